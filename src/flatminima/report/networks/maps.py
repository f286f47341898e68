"""Maps of what was measured beside the loss: groups on one scale, metrics each on its own."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator

from flatminima.report import style
from flatminima.report.contents import StudyContents, Surface
from flatminima.report.elements import caption, card
from flatminima.report.inline_svg import inline_svg, page_style
from flatminima.report.networks.words import metrics_of, names_of, subsets_of, table
from flatminima.report.relief import make_relief
from flatminima.report.surfaces import contour_panel, contours_figure

# A surface is drawn up to its largest loss, or up to this share of its points where the largest is
# more than so many times as high: one corner would hide everything else.
_SHARE, _TIMES = 0.75, 3.0
# So many groups are drawn; all are in the table and in the store.
_MOST = 15
_PANEL = 3.4  # inches
_LABEL = {"boxstyle": "round,pad=0.22", "facecolor": "white", "edgecolor": "none", "alpha": 0.86}


def drawn_height(losses: np.ndarray) -> float:
    """Up to which loss a surface is drawn, in two digits."""
    finite = losses[np.isfinite(losses)]
    if not len(finite) or finite.max() <= 0.0:
        return 1.0
    most, usual = float(finite.max()), float(np.quantile(finite, _SHARE))
    height = usual if usual > 0.0 and most > _TIMES * usual else most
    digits = 1 - math.floor(math.log10(height))
    return math.ceil(height * 10.0**digits) / 10.0**digits


def maps_figures(study: StudyContents, data: xr.Dataset) -> Iterator[tuple[str, Figure, str]]:
    """A figure of all groups and one of all metrics, as far as there are any, with captions."""
    if subsets_of(data):
        drawn, surfaces = _groups(study, data)
        columns = _columns(len(surfaces))
        rows = [
            (drawn, surfaces[first : first + columns]) for first in range(0, len(surfaces), columns)
        ]
        with _constants():
            yield "groups", contours_figure(rows, _group_title), _groups_caption(drawn, data)
    if metrics_of(data):
        yield "metrics", _metrics_figure(data), _metrics_caption(data)


def maps_section(study: StudyContents, data: xr.Dataset) -> str:
    """Maps of groups and metrics on the page, and their values at the networks."""
    parts = []
    if subsets_of(data):
        drawn, surfaces = _groups(study, data)
        cards = []
        for place, surface in enumerate(surfaces):
            with style.figure_style(**page_style(f"groups-{place}")), _constants():
                figure = contour_panel(drawn, surfaces, surface, _group_title)
                cards.append(card(inline_svg(figure, f"Map of the loss, {surface.group}")))
        text = caption(_groups_caption(drawn, data))
        parts.append(
            f'<h3>By group of samples</h3><div class="panels">{"".join(cards)}</div>{text}'
        )
    if metrics_of(data):
        cards = []
        for name in metrics_of(data):
            with style.figure_style(**page_style(f"metric-{name}")):
                cards.append(card(inline_svg(_metric_panel(data, name), f"Map of {name}")))
        text = caption(_metrics_caption(data))
        parts.append(f'<h3>Metrics</h3><div class="panels">{"".join(cards)}</div>{text}')
    return "".join(parts) + values_table(data) if parts else ""


def values_table(data: xr.Dataset) -> str:
    """What every group and metric is at the networks, and at most and least elsewhere."""
    ends = [f"at {name}" for name in names_of(data)]
    groups = {"": int(data.attrs["samples"]), **subsets_of(data)}
    rows = [
        (f"{kind}, {name or 'all samples'}", f"{samples:,}", *_values(data, key))
        for kind in ("loss", "accuracy")
        for name, samples in groups.items()
        if (key := f"{kind}_{name}" if name else kind) in data
    ]
    rows += [(name, f"{groups['']:,}", *_values(data, name)) for name in metrics_of(data)]
    where = "on the line" if "position" in data.dims else "on the grid"
    return table(("mean of", "samples", *ends, f"least {where}", f"most {where}"), rows)


def _values(data: xr.Dataset, name: str) -> list[str]:
    values = data[name].values
    known = values[np.isfinite(values)]
    least_and_most = [known.min(), known.max()] if len(known) else [np.nan] * 2
    return [f"{value:.4g}" for value in (*data[f"anchor_{name}"].values, *least_and_most)]


def _groups(study: StudyContents, data: xr.Dataset) -> tuple[StudyContents, list[Surface]]:
    """The surface of all samples and those of groups, with one height for all."""
    losses = {"all samples": (data["loss"], data["anchor_loss"])}
    for name, samples in list(subsets_of(data).items())[:_MOST]:
        title = f"{name} ({samples:,} samples)"
        losses[title] = (data[f"loss_{name}"], data[f"anchor_loss_{name}"])
    if "clip" in data.attrs:  # of points that were stopped nothing is known for groups
        data = data.assign(outcome=data["outcome"].assign_attrs(flag_meanings="finite not missing"))
    surfaces = [
        Surface(
            title, "end", "train", data.assign(loss=loss.where(np.isfinite(loss)), anchor_loss=own)
        )
        for title, (loss, own) in losses.items()
    ]
    height = drawn_height(np.concatenate([each.values.ravel() for each, _ in losses.values()]))
    settings = {**study.settings, "report": {"clip": height}}
    return replace(study, settings=settings, surfaces=tuple(surfaces)), surfaces


def _group_title(_study: StudyContents, surface: Surface) -> str:
    return surface.group


def _groups_caption(drawn: StudyContents, data: xr.Dataset) -> str:
    count = len(subsets_of(data))
    left = f" The first {_MOST} of {count} groups; the others are in the table." * (count > _MOST)
    stopped = " Of points that were stopped nothing is known for groups: they are hatched." * (
        "clip" in data.attrs
    )
    return (
        "The mean loss of each group of samples over the same plane, in the same colours, drawn up"
        f" to {drawn.clip:g}. Numbers at the dots: the group's loss at the networks.{left}{stopped}"
    )


def _metrics_caption(data: xr.Dataset) -> str:
    return (
        f"Means over all samples: {', '.join(metrics_of(data))}. Every map has its own scale;"
        " numbers at the dots: at the networks. Where nothing is drawn the value is not known."
    )


def _metrics_figure(data: xr.Dataset) -> Figure:
    """The maps of all metrics."""
    metrics = metrics_of(data)
    columns = _columns(len(metrics))
    rows = -(-len(metrics) // columns)
    height = _PANEL * _shape(data) + 1.1
    figure = Figure(figsize=((_PANEL + 0.4) * columns, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, metrics, strict=False):
        _draw_metric(figure, axes, data, name)
    return figure


def _metric_panel(data: xr.Dataset, name: str) -> Figure:
    """One of them by itself, for the page."""
    figure = Figure(figsize=(4.4, 3.8 * _shape(data) + 1.2), layout="constrained")
    _draw_metric(figure, figure.subplots(), data, name)
    return figure


def _columns(panels: int) -> int:
    """How many panels stand side by side, so that rows are nearly full."""
    return panels if panels <= 4 else 4 if panels > 9 or panels % 4 in (0, 3) else 3


def _shape(data: xr.Dataset) -> float:
    """Height of a map as a multiple of its width."""
    return min(max(float(np.ptp(data["v"].values) / np.ptp(data["u"].values)), 0.5), 2.0)


def _draw_metric(figure: Figure, axes: Axes, data: xr.Dataset, name: str) -> None:
    """A map with lines of equal value, and the networks with theirs."""
    values = data[name].where(np.isfinite(data[name]))
    relief = make_relief(data.assign(loss=values), fine=300)
    known = values.values[np.isfinite(values.values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    norm = Normalize(low, high)
    colours = _colours()
    drawn = np.ma.masked_invalid(relief.loss)
    mesh = axes.pcolormesh(
        relief.u, relief.v, drawn, cmap=colours, norm=norm, shading="nearest", rasterized=True
    )
    u, v = data["u"].values, data["v"].values
    corners = [(u[i, j], v[i, j]) for i, j in ((0, 0), (0, -1), (-1, -1), (-1, 0))]
    border = Polygon(corners, fill=False, edgecolor=style.MUTED, linewidth=0.6)
    axes.add_patch(border)
    mesh.set_clip_path(border)
    with _constants():
        axes.contour(
            relief.u, relief.v, drawn, MaxNLocator(6).tick_values(low, high),
            colors=style.ON_PLOT, linewidths=0.5, alpha=0.5,
        )  # fmt: skip
    own = (data[f"anchor_{each}"].values for each in ("u", "v", name))
    for place, (x, y, value) in enumerate(zip(*own, strict=True)):
        axes.plot(x, y, "o", ms=6.5, mfc=style.MARKER, mec="white", mew=1.1, zorder=5)
        axes.annotate(
            f"{place + 1}: {value:.3g}", (x, y), (0, 12), textcoords="offset points",
            ha="center", size=7.5, color=style.ON_PLOT, zorder=6, bbox=_LABEL,
        )  # fmt: skip
    axes.set_title(name)
    axes.set_aspect("equal")
    axes.set(xlabel="u (distance in weight space)", ylabel="v (distance in weight space)")
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=axes, orientation="horizontal", shrink=0.85, aspect=34,
        pad=0.02, label=name, ticks=MaxNLocator(4),
    )  # fmt: skip
    bar.outline.set_linewidth(0.5)


def _colours() -> LinearSegmentedColormap:
    """Colours that are not those of losses: more of a metric may be better or worse."""
    stops = ("#f7f4fa", "#d9c9e6", "#b394cf", "#8a5fb0", "#5f3286")
    return LinearSegmentedColormap.from_list("flatminima_metric", stops, N=256)


@contextmanager
def _constants() -> Iterator[None]:
    """A map that is nearly constant has no line: that is no mistake to be warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No contour levels were found")
        yield
