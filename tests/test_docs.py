"""Every Python block of the README and the guides runs; every command they name exists.

Blocks fenced as ```python run file by file, in order, in one namespace and in an empty folder. One
with a title is a file: it is written under that name. On a page with such files the lines
`$ flatminima ...` and `$ python ...` of ```console blocks run too; `# exit code 2` behind one says
how it ends, if not with 0. The code cells of notebooks run likewise.
"""

import glob
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# The whole of MNIST is needed by these words; where it cannot be had the document is skipped.
_NEEDS_MNIST = '"mnist"'
# Pages that need libraries which flatminima does not.
_NEEDED_BY = {"transformers.md": ["transformers"], "lightning.md": ["lightning"]}
# Blocks that import what has an environment of its own: tests/environments runs them there.
_ELSEWHERE = re.compile(r"^import timm$", re.MULTILINE)


def blocks(path, *languages):
    """The fenced blocks of some languages in order: first line, language, title, text."""
    text = path.read_text(encoding="utf-8")
    kinds = "|".join(languages)
    return [
        (text.count("\n", 0, found.start(3)), found[1], found[2], found[3])
        for found in re.finditer(
            rf'^```({kinds})(?: title="(.*?)")?\n(.*?)^```$', text, re.MULTILINE | re.DOTALL
        )
    ]


def prose(path):
    """The text of a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def identify(path):
    return path.relative_to(ROOT).as_posix()


def _marks(path):
    needs_mnist = any(_NEEDS_MNIST in text for *_, text in blocks(path, "python"))
    marks = [pytest.mark.slow, pytest.mark.network] if needs_mnist else []
    # These libraries warn of their own doings.
    return [*marks, *[pytest.mark.filterwarnings("ignore")] * (path.name in _NEEDED_BY)]


WITH_CODE = [
    pytest.param(path, id=identify(path), marks=_marks(path))
    for path in DOCUMENTS
    if blocks(path, "python")
]


@pytest.fixture
def own_modules(tmp_path, monkeypatch) -> Iterator[None]:
    """An empty folder to be in; modules that are imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name, module in [*sys.modules.items()]:
        if (getattr(module, "__file__", None) or "").startswith(f"{tmp_path}/"):
            del sys.modules[name]


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("path", WITH_CODE)
def test_blocks_run(path):
    for library in _NEEDED_BY.get(path.name, ()):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed (flatminima[hub])")
    code = blocks(path, "python", "console")
    if any(_NEEDS_MNIST in text for *_, text in code):
        _require_mnist()
    titled = any(title for _, _, title, _ in code)
    namespace = {"__name__": "__main__"}
    for line, language, title, text in code:
        if language == "console":
            for command in text.splitlines() if titled else ():
                _run_command(command, f"{path.name}: {command}")
        elif _ELSEWHERE.search(text):
            continue
        elif title:
            Path(title).write_text(text, encoding="utf-8")
        else:
            # Blank lines in front, so that an error shows the line of the document.
            exec(compile("\n" * line + text, str(path), "exec"), namespace)


def code_cells(path):
    """The code of a notebook, cell by cell."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=identify)
def test_notebooks_run(path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.setenv("FLATMINIMA_RESULTS", str(ROOT / "results"))
    namespace = {"__name__": "__main__"}
    for number, text in enumerate(code_cells(path), start=1):
        exec(compile(text, f"{path}, code cell {number}", "exec"), namespace)
    pyplot.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=identify)
def test_notebooks_hold_no_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def _run_command(line, where):
    """Run one line of a console block, if it is a command that can be run here."""
    found = re.fullmatch(r"\$ (python|flatminima) (.*?)(?:\s+# (?:exit code (\d+)|.*))?", line)
    if found is None:
        return
    program, text, code = found[1], found[2], int(found[3] or 0)
    words = [word for part in shlex.split(text) for word in sorted(glob.glob(part)) or [part]]
    if program == "python":
        subprocess.run([sys.executable, *words], check=True, timeout=120)
        return
    # In this process, which has loaded the libraries already.
    from flatminima.cli import main

    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == code, where


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
            for *_, text in blocks(path, language):
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
