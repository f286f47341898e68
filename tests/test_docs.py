"""Every Python block of the README and the guides runs; every command they name exists.

Blocks fenced as ```python run file by file, in order, in one namespace and in an empty folder.
Blocks fenced as ```console are not run.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# The whole of MNIST is needed by these words; where it cannot be had the document is skipped.
_NEEDS_MNIST = '"mnist"'


def blocks(path, language):
    """The text of the fenced blocks of one language, each with the line where it begins."""
    text = path.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start(1)), found[1])
        for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def prose(path):
    """The text of a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def identify(path):
    return path.relative_to(ROOT).as_posix()


WITH_CODE = [
    pytest.param(
        path,
        id=identify(path),
        marks=[pytest.mark.slow, pytest.mark.network]
        if any(_NEEDS_MNIST in code for _, code in blocks(path, "python"))
        else [],
    )
    for path in DOCUMENTS
    if blocks(path, "python")
]


@pytest.mark.parametrize("path", WITH_CODE)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    code = blocks(path, "python")
    if any(_NEEDS_MNIST in text for _, text in code):
        _require_mnist()
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, text in code:
        # Blank lines in front, so that an error shows the line of the document.
        exec(compile("\n" * line + text, str(path), "exec"), namespace)


def _require_mnist():
    from flatminima.data import load_dataset

    try:
        load_dataset("mnist", limit=10)
    except (OSError, ValueError) as error:
        pytest.skip(f"MNIST cannot be had here: {error}")


def commands():
    """Every `flatminima SUBCOMMAND` that the documents show, once."""
    shown = {}
    for path in DOCUMENTS:
        for language in ("console", "sh", "bash"):
            for _, text in blocks(path, language):
                for found in re.findall(r"\bflatminima ([a-z]+)", text):
                    shown.setdefault(found, identify(path))
    return sorted(shown.items())


@pytest.mark.parametrize(("command", "document"), commands())
def test_named_commands_exist(command, document):
    done = subprocess.run(
        [sys.executable, "-c", "from flatminima.cli import main; main()", command, "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{document}: flatminima {command}: {done.stderr}"


def test_named_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"(?:^|`|\$ )make ([a-z]+)\b", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{identify(path)}: {target}"


def test_named_files_exist():
    """Relative links of the documents lead to files."""
    for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", prose(path)):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{identify(path)}: {target}"
