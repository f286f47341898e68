"""Write the report of one or several studies into a folder."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from flatminima.report import captions, style
from flatminima.report.contents import StudyContents, read_study
from flatminima.report.page import build_page
from flatminima.report.radii import radii_figure
from flatminima.report.surfaces import contours_figure, surfaces_figure
from flatminima.report.tables import table_csv, table_markdown
from flatminima.report.training_curves import training_figure
from flatminima.store import Store

_DPI = 220
FIGURES = ("surfaces", "contours", "training", "radii")


def write_report(store: Store, studies: list[str], out: Path) -> Path:
    """Draw what the store holds of `studies`; parts that are missing are said to be missing.

    Writes `report.html` (self-contained), `figure-surfaces`, `figure-contours`,
    `figure-training` and `figure-radii` as `.png` and `.svg`, `table.csv` and `table.md`.
    A figure for which nothing is stored yet is not written, and an older one is removed.

    Args:
        store: Where the results are; nothing is computed from them.
        studies: Names of studies in the store, in the order of the report.
        out: The folder to write into; it is made if it does not exist.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: If no study is named.
        StoreError: If a study is not in the store, or one of its results is damaged.
    """
    if not studies:
        raise ValueError("expected the name of at least one study, got none; name a study")
    contents = [read_study(store, name) for name in studies]
    out.mkdir(parents=True, exist_ok=True)
    drawn = set()
    with style.figure_style():
        for name, figure, caption in _figures(contents):
            drawn.add(name)
            _save(figure, caption, out / f"figure-{name}")
    for name in set(FIGURES) - drawn:
        for suffix in (".png", ".svg"):
            (out / f"figure-{name}{suffix}").unlink(missing_ok=True)
    measured = [view for study in contents for view in (study, *study.further)]
    (out / "table.csv").write_text(table_csv(measured), encoding="utf-8")
    (out / "table.md").write_text(table_markdown(measured), encoding="utf-8")
    page = out / "report.html"
    page.write_text(build_page(contents), encoding="utf-8")
    return page


def _figures(contents: Sequence[StudyContents]) -> Iterator[tuple[str, Figure, str]]:
    """Every figure for which there is something to draw, with its caption."""
    rows = [
        (study, row)
        for study in contents
        for row in study.surface_rows()
        if any(surface.data is not None for surface in row)
    ]
    if rows:
        texts = [(study, captions.surfaces_caption(study, row)) for study, row in rows]
        yield "surfaces", surfaces_figure(rows), _joined(texts)
        texts = [(study, captions.contours_caption(study, row)) for study, row in rows]
        yield "contours", contours_figure(rows), _joined(texts)
    trained = [study for study in contents if study.networks]
    if trained:
        texts = [(study, captions.training_caption(study)) for study in trained]
        yield "training", training_figure(trained), _joined(texts)
    views = (view for study in contents for view in (study, *study.further))
    measured = [view for view in views if view.has_radii]
    if measured:
        texts = [(study, captions.radii_caption(study)) for study in measured]
        yield "radii", radii_figure(measured), _joined(texts)


def _joined(texts: Sequence[tuple[StudyContents, str]]) -> str:
    """One caption for all rows of a figure; the study is named where there are several."""
    several = len({study.heading for study, _ in texts}) > 1
    return "\n".join(f"{study.heading}: {text}" if several else text for study, text in texts)


def _save(figure: Figure, caption: str, path: Path) -> None:
    """Save as PNG and SVG with the caption below."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:  # held where it is when the saved area grows
        legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)
    drawn, size = figure.get_tightbbox(), 7.5
    characters = int(drawn.width * 72 / (size * 0.53))
    lines = [line for text in caption.split("\n") for line in textwrap.wrap(text, characters)]
    figure.text(
        drawn.x0 / figure.get_figwidth(), (drawn.y0 - 0.12) / figure.get_figheight(),
        "\n".join(lines), va="top", size=size, color=style.MUTED, linespacing=1.4,
    )  # fmt: skip
    for suffix, metadata in ((".png", None), (".svg", {"Date": None})):
        data = io.BytesIO()
        figure.savefig(
            data, format=suffix[1:], dpi=_DPI, metadata=metadata,
            bbox_inches="tight", pad_inches=0.15,
        )  # fmt: skip
        path.with_suffix(suffix).write_bytes(data.getvalue())
