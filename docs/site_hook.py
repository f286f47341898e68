"""What the site has beyond docs/: the README as its first page, the files that pages link to, and
the pictures of the gallery.

On GitHub a page reaches the files by relative links; here they become pages and files of the site.
A link to a folder, or to a page that the site does not have, becomes plain text. A link to a script
of the gallery becomes its picture and its code.
"""

import re
from pathlib import Path

# Found beside this file, whose folder is on the path while hooks are loaded.
import gallery_build
from mkdocs.structure.files import File

_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Add the README and everything that it and the pages link to, and draw the gallery."""
    sources = {file.src_uri: Path(file.abs_src_path) for file in files.documentation_pages()}
    sources["index.md"] = _ROOT / "README.md"
    readme = _rewritten(sources["index.md"])
    files.append(File.generated(config, "index.md", content=readme))
    for source in sources.values():
        for found in _LINK.finditer(_CODE.sub("", source.read_text(encoding="utf-8"))):
            target = _inside(source, found[3])
            if target is not None and _carried(target) and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(_ROOT / target)))
    for place, content in gallery_build.site_files():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown, page, **_):
    """Turn the links of a page that lead out of docs/ to what `on_files` added."""
    if page.file.src_uri == "index.md":
        return markdown
    text = _rewritten(_ROOT / "docs" / page.file.src_uri, markdown)
    if page.file.src_uri != "gallery.md":
        return text
    page.meta["hide"] = ["toc"]  # its column is room for the pictures
    return gallery_build.with_pictures(text)


def _inside(source, link):
    """The path in the repository that a relative link leads to, if any."""
    if re.match(r"[a-z]+:", link):
        return None
    return (source.parent / link).resolve().relative_to(_ROOT).as_posix()


def _carried(target):
    """Whether a file outside docs/ is part of the site."""
    path = _ROOT / target
    return path.is_file() and path.suffix != ".md" and not target.startswith("docs/")


def _rewritten(source, text=None):
    """A page's text with its links as the site has them."""
    text = source.read_text(encoding="utf-8") if text is None else text
    parts = []
    end = 0
    for code in _CODE.finditer(text):
        parts += [_LINK.sub(lambda found: _link(source, found), text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(lambda found: _link(source, found), text[end:])])


def _link(source, found):
    target = _inside(source, found[3])
    if target is None:
        return found[0]
    if target.startswith("docs/"):
        place = target.removeprefix("docs/")
    elif target == "README.md":
        place = "index.md"
    elif _carried(target):
        place = target
    else:
        return found[2]
    return f"{found[1]}[{found[2]}]({place}{found[4] or ''})"
