"""Draws the pictures of the gallery: each by the script that the page shows below it.

A script of docs/gallery runs in the root of the repository, in the style of the report's figures.
It leaves `figure` (a figure of matplotlib, or the bytes of a PNG), at will a `caption` of one or
more lines, and at will a `page`: the bytes of an HTML page that belongs to the picture.
"""

import contextlib
import html
import io
import re
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from flatminima.report.style import figure_style

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "gallery"
LINK = re.compile(r"^\[([^\[\]]+)\]\(gallery/(\w+)\.py\)$", re.MULTILINE)
"""A link to a script that stands alone, with what is to be seen as its text."""
_DPI, _CSS = 200, 96


@dataclass(frozen=True)
class Picture:
    """What a script has drawn."""

    png: bytes
    caption: str
    page: bytes | None

    @property
    def pixels(self):
        """Width and height, as the head of the file says."""
        return struct.unpack(">II", self.png[16:24])


def scripts():
    """All scripts of the gallery by name, in order."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py"))}


def draw(path):
    """What the script draws; it runs once, unless it has changed since."""
    return _draw(path, path.read_text(encoding="utf-8"))


def site_files():
    """The contents of the files that the gallery adds to the site, by their place in it."""
    for name, path in scripts().items():
        picture = draw(path)
        yield f"gallery/{name}.png", picture.png
        if picture.page is not None:
            yield f"gallery/{name}.html", picture.page


def with_pictures(markdown):
    """A page on which every link to a script has become its picture, its caption and its code."""
    return LINK.sub(lambda found: _figure(found[2], " ".join(found[1].split())), markdown)


@cache
def _draw(path, source):
    namespace = {"__name__": "__main__"}
    matplotlib.use("agg")
    with contextlib.chdir(ROOT), figure_style():
        exec(compile(source, str(path), "exec"), namespace)
        figure, png = namespace["figure"], io.BytesIO()
        if isinstance(figure, bytes):
            png.write(figure)
        else:
            figure.savefig(png, dpi=_DPI, bbox_inches="tight", pad_inches=0.1)
            pyplot.close(figure)
    return Picture(png.getvalue(), namespace.get("caption", ""), namespace.get("page"))


def _figure(name, seen):
    path = scripts()[name]
    picture = draw(path)
    place = f"gallery/{name}"
    first, *rest = (html.escape(line) for line in picture.caption.split("\n"))
    items = "".join(f"<li>{line}</li>" for line in rest)
    below = [first, f"<ul>{items}</ul>" if items else ""]
    if picture.page is not None:
        below.append(f'<a href="{place}.html">Open the page itself</a>')
    code = "".join(f"    {line}".rstrip() + "\n" for line in path.read_text("utf-8").splitlines())
    width, height = (round(size * _CSS / _DPI) for size in picture.pixels)
    return (
        f'<figure class="gallery" style="--inches:{width / _CSS:.1f}"><a href="{place}.png">'
        f'<img src="{place}.png" width="{width}" height="{height}" alt="{html.escape(seen)}"'
        f' loading="lazy"></a><figcaption>{"".join(below)}</figcaption></figure>\n\n'
        f'??? code "The code that drew it: {place}.py"\n\n    ```python\n{code}    ```\n'
    )
