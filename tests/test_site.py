"""The documentation builds as a site, without a warning, and its reference holds every name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flatminima

ROOT = Path(__file__).parents[1]


def test_reference_holds_every_public_name_in_order():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.findall(r"^::: flatminima\.(\w+)$", text, re.MULTILINE) == flatminima.__all__


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    for library in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "api.html" in home
    reference = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in flatminima.__all__:
        assert f'id="flatminima.{name}"' in reference
