"""Small pieces of the page."""

import html

from flatminima.report import style
from flatminima.report.contents import StudyContents, Surface


def swatch(study: StudyContents, group: str) -> str:
    """A dot in the colour of a group."""
    index = study.colour_index(group) % len(style.GROUP_COLOURS)
    return (
        f'<span class="swatch" style="background:var(--group-{index});display:inline-block"></span>'
    )


def card(content: str) -> str:
    """A framed figure."""
    return f'<div class="card">{content}</div>'


def caption(text: str) -> str:
    """Text under a figure or a table; lines after the first are items of a list."""
    first, *rest = text.split("\n")
    items = "".join(f"<li>{html.escape(line)}</li>" for line in rest)
    head = f'<p class="caption">{html.escape(first)}</p>'
    return head + (f'<ul class="caption">{items}</ul>' if items else "")


def sentence(text: str) -> str:
    """A sentence in place of what is not there."""
    return f'<p class="note">{html.escape(text)}</p>'


def missing(surface: Surface) -> str:
    """A frame that says why a surface is not there."""
    text = f"There is no surface for {surface.group} labels: {surface.reason}."
    return f'<div class="card missing"><p>{html.escape(text)}</p></div>'
