"""Figures as SVG that lives inside the page and follows its theme."""

import html
import io
import re

from matplotlib.figure import Figure

from flatminima.report import style

_THEMED = {
    style.INK: "var(--ink)",
    style.MUTED: "var(--muted)",
    style.GRID: "var(--line)",
    style.PAPER: "var(--card)",
    **{colour: f"var(--group-{i})" for i, colour in enumerate(style.GROUP_COLOURS)},
}
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'


def page_style(key: str) -> dict[str, object]:
    """Matplotlib settings for a figure inside the page; `key` keeps its ids apart from others'."""
    return {"svg.fonttype": "none", "svg.hashsalt": key, "savefig.facecolor": "none"}


def inline_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element; `label` is read out in its place."""
    out = io.StringIO()
    figure.savefig(out, format="svg", dpi=200, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*", rf"font: \1\2 {_css(_FONT)}", text)
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {_css(_FONT)}", text)
    for colour, variable in _THEMED.items():
        text = text.replace(colour, variable)
    head = f'<svg role="img" aria-label="{html.escape(label)}"'
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s(?:width|height|version|id)="[^"]*"', "", opening)
    return re.sub(r"\n\s*", "\n", f"{opening.replace('<svg', head, 1)}>{rest}").strip()


def _css(fonts: str) -> str:
    """A font list that can stand inside a double-quoted attribute."""
    return fonts.replace('"', "'")
