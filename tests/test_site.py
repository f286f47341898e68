"""The documentation builds as a site, without a warning: its reference holds every name, and its
gallery every picture.
"""

import ast
import html
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flatminima

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "docs" / "gallery").glob("*.py"))


def _gallery_build():
    """The module that draws the gallery, which is found beside the site's hook only."""
    place = ROOT / "docs" / "gallery_build.py"
    spec = importlib.util.spec_from_file_location("gallery_build", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _with_source():
    """The environment of a process that is to find this very package, wherever it runs."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _shows_something(png):
    """Whether a picture has ink, in more than a few shades, and room around it."""
    pixels = pytest.importorskip("matplotlib.image").imread(io.BytesIO(png))[..., :3]
    tones = pixels.mean(-1)
    blank = (tones > 0.95).mean()
    shades = len(set((tones * 255).astype(int).ravel().tolist()))
    return min(tones.shape) > 300 and 0.05 < blank < 0.98 and shades > 50


def test_reference_holds_every_public_name_in_order():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.findall(r"^::: flatminima\.(\w+)$", text, re.MULTILINE) == flatminima.__all__


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "src").rglob("*.py")) if ">>>" in path.read_text("utf-8")],
    ids=lambda path: path.stem,
)
def test_doctests_stand_in_a_section_of_examples(path):
    """The site takes others for quotations."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = (ast.get_docstring(node) or "") if isinstance(node, kinds) else ""
        before, mark, _ = text.partition(">>>")
        assert not mark or re.search(r"^Examples:\n +$", before, re.MULTILINE), text


def test_the_gallery_shows_every_script_with_what_is_to_be_seen():
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    found = _gallery_build().LINK.findall(text)
    assert sorted(name for _, name in found) == [path.stem for path in SCRIPTS]
    assert text.count("](gallery/") == len(found), "a link to a script does not stand alone"
    assert all(len(seen) > 60 for seen, _ in found)


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is not None, reason="drawn for the site, and looked at there"
)
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_gallery_is_drawn(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", _with_source()["PYTHONPATH"])
    picture = _gallery_build().draw(path)
    assert _shows_something(picture.png)
    assert picture.caption or picture.page
    assert "nan" not in picture.caption


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site, with a gallery drawn for it."""
    for library in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        env={**_with_source(), "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_site_builds_without_a_warning(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    assert "api.html" in home
    assert "gallery.html" in home
    reference = (site / "api.html").read_text(encoding="utf-8")
    for name in flatminima.__all__:
        assert f'id="flatminima.{name}"' in reference
    assert '<span class="gp">&gt;&gt;&gt; </span>' in reference
    assert "<blockquote>" not in reference


def test_the_gallery_holds_every_script_and_nothing_else(site):
    page = (site / "gallery.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img src="gallery/(\w+)\.png"', page)
    assert sorted(shown) == [path.stem for path in SCRIPTS]
    for target in re.findall(r'<figcaption>.*?href="([^"]+)"', page):
        assert (site / target).exists()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_picture_of_the_gallery_is_shown_with_its_text_and_code(site, path):
    page = (site / "gallery.html").read_text(encoding="utf-8")
    (figure,) = (
        found
        for found in re.findall(r'<figure class="gallery".*?</figure>', page, re.DOTALL)
        if f'<img src="gallery/{path.stem}.png"' in found
    )
    assert len(re.search(r' alt="([^"]*)"', figure)[1]) > 60
    caption = re.search(r"<figcaption>(.*?)</figcaption>", figure, re.DOTALL)[1]
    assert re.sub(r"<[^>]+>", "", caption).strip()
    assert "nan" not in caption
    assert _shows_something((site / "gallery" / f"{path.stem}.png").read_bytes())
    plain = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert path.read_text(encoding="utf-8").strip() in plain
