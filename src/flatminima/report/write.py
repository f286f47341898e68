"""Write the report of one or several studies into a folder."""

import io
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from flatminima.report import captions, style
from flatminima.report.contents import StudyContents, Surface, read_study
from flatminima.report.markdown import table_markdown
from flatminima.report.page import build_page
from flatminima.report.page_overview import figure_planes, figure_title
from flatminima.report.radii import radii_figure
from flatminima.report.setting import short_name
from flatminima.report.surfaces import (
    Row,
    Title,
    contours_figure,
    policy_title,
    surface_title,
    surfaces_figure,
)
from flatminima.report.tables import table_csv
from flatminima.report.training_curves import training_figure
from flatminima.store import Store

_DPI = 220
FIGURES = ("overview", "surfaces", "contours", "policies", "training", "radii")


def write_report(
    store: Store,
    studies: Sequence[str],
    out: Path,
    *,
    beside: Sequence[tuple[Store, str]] = (),
) -> Path:
    """Draw what is stored of some studies; parts that are missing are said to be missing.

    Writes `report.html` (self-contained), `figure-surfaces`, `figure-contours`, `figure-policies`
    (planes under several BatchNorm policies), `figure-training` and `figure-radii` as `.png` and
    `.svg`, `table.csv` and `table.md`. Several studies get a head with Table 1 and the published
    figures side by side, and those as `figure-overview`. A figure for which nothing is stored yet
    is not written, and an older one is removed.

    Args:
        store: Where the results are; nothing is computed from them.
        studies: Names of studies in the store, in the order of the report.
        out: The folder to write into; it is made if it does not exist.
        beside: Further studies, each with the store it is in.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: If no study is named, or two have one name.
        StoreError: If a study is not in its store, or one of its results is damaged.
    """
    sources = [*((store, name) for name in studies), *beside]
    if not sources:
        raise ValueError("expected the name of at least one study, got none; name a study")
    for name, count in Counter(name for _, name in sources).items():
        if count > 1:
            raise ValueError(f"expected every study once, got {name!r} {count} times; name it once")
    contents = [read_study(store, name) for store, name in sources]
    out.mkdir(parents=True, exist_ok=True)
    drawn = set()
    with style.figure_style():
        for name, figure, caption in _figures(contents):
            drawn.add(name)
            save_figure(figure, caption, out / f"figure-{name}")
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
    if len(contents) > 1:
        yield from _overview(contents)
    titled = _titled(contents, surface_title)
    rows = _made((study, row) for study in contents for row in study.surface_rows())
    if rows:
        texts = [(study, captions.surfaces_caption(study, row)) for study, row in rows]
        yield "surfaces", surfaces_figure(rows, titled), _joined(texts)
        texts = [(study, captions.contours_caption(study, row)) for study, row in rows]
        yield "contours", contours_figure(rows, titled), _joined(texts)
    rows = _made((study, planes) for study in contents for planes in study.planes())
    if rows:
        texts = [(study, captions.planes_caption(study, planes)) for study, planes in rows]
        yield "policies", contours_figure(rows, _titled(contents, _plane_title)), _joined(texts)
    trained = [study for study in contents if study.networks]
    if trained:
        texts = [(study, captions.training_caption(study)) for study in trained]
        yield "training", training_figure(trained), _joined(texts)
    views = (view for study in contents for view in (study, *study.further))
    measured = [view for view in views if view.has_radii]
    if measured:
        texts = [(study, captions.radii_caption(study)) for study in measured]
        yield "radii", radii_figure(measured), _joined(texts)


def _overview(contents: Sequence[StudyContents]) -> Iterator[tuple[str, Figure, str]]:
    """The published figures in rows: planes of one study, or one plane under its policies."""
    rows: list[Row] = []
    numbers = {}
    texts = []
    for number, study, planes in figure_planes(contents):
        numbers[study.name, planes[0].group] = number
        alone = len(planes) == 1
        if alone and rows and rows[-1][0] is study and len(study.planes()) == 0:
            rows[-1][1].extend(planes)
        else:
            rows.append((study, list(planes)))
        caption = captions.plane_caption(study, planes[0])
        texts.append(caption if alone else captions.planes_caption(study, planes))
        texts[-1] = f"{figure_title(number, study, planes[0])}. {texts[-1]}"

    def title(study: StudyContents, surface: Surface) -> str:
        name = figure_title(numbers[study.name, surface.group], study, surface)
        beside = [planes for planes in study.planes() if planes[0].place == surface.place]
        if not beside:
            return name
        # The others of a row stand beside the first, which is named in full.
        first = surface is beside[0][0]
        return f"{name}, {surface.policy}" if first else f"the same under {surface.policy}"

    made = _made(rows)
    if made:
        yield "overview", surfaces_figure(made, title), "\n".join(texts)


def _made(rows: Iterable[Row]) -> list[Row]:
    """The rows in which there is anything to draw."""
    return [(study, row) for study, row in rows if any(s.data is not None for s in row)]


def _plane_title(study: StudyContents, surface: Surface) -> str:
    return f"{surface_title(study, surface)}\n{policy_title(study, surface)}"


def _titled(contents: Sequence[StudyContents], title: Title) -> Title:
    """A title that names the study too where there are several."""
    if len(contents) == 1:
        return title
    return lambda study, surface: f"{short_name(study)}\n{title(study, surface)}"


def _joined(texts: Sequence[tuple[StudyContents, str]]) -> str:
    """One caption for all rows of a figure; the study is named where there are several."""
    several = len({study.heading for study, _ in texts}) > 1
    return "\n".join(f"{study.heading}: {text}" if several else text for study, text in texts)


def save_figure(figure: Figure, caption: str, path: Path) -> None:
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
