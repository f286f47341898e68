"""Figures of loss surfaces: reliefs in three dimensions, and contour maps."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]
from mpl_toolkits.mplot3d.axes3d import Axes3D  # type: ignore[import-untyped]

from flatminima.report import style
from flatminima.report.contents import StudyContents, Surface
from flatminima.report.relief import Relief, hole_cells, make_relief

CAMERA = {"elev": 40.0, "azim": -22.0}
"""The long diagonal of a barycentric grid runs along v: seen from the side, its high ends stand
left and right and the minima lie open between them."""
HEIGHT = 0.5
"""Height of the drawn box as a share of its longer side."""
LEVELS = (0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
"""Losses at which contour maps may draw a line."""
_RELIEF = 5.7
"""Width of a drawn relief, inches."""
_PANEL = 3.7
"""Width of a contour map, inches."""
_LABEL: dict[str, Any] = {
    "boxstyle": "round,pad=0.22",
    "facecolor": "white",
    "edgecolor": "none",
    "alpha": 0.86,
}

_USUAL = (1.0, 12.0)
"""Heights of drawings of cross-entropies, for which `LEVELS` are made."""

Row = tuple[StudyContents, list[Surface]]
Title = Callable[[StudyContents, Surface], str]


def surface_title(study: StudyContents, surface: Surface) -> str:
    """What stands over a surface: the labels, and what sets it apart from other rows."""
    extra = [] if surface.split == "train" else [f"{surface.split} set"]
    if len({s.checkpoint for s in study.surfaces}) > 1:
        extra.append({"end": "at the end", "matched": "at matched loss"}[surface.checkpoint])
    return f"{surface.group} labels" + (f" ({', '.join(extra)})" if extra else "")


def policy_title(study: StudyContents, surface: Surface) -> str:
    """What stands over a plane that is drawn under several BatchNorm policies."""
    assert surface.data is not None
    size = " by ".join(str(n) for n in reversed(surface.data["loss"].shape))
    return f"{surface.policy} ({size} points)"


def surfaces_figure(rows: Sequence[Row], title: Title = surface_title) -> Figure:
    """One row of reliefs for each pair of surfaces, all with one clip, colour scale and camera."""
    clip = max(study.clip for study, _ in rows)
    columns = max(len(surfaces) for _, surfaces in rows)
    figure = Figure(figsize=(_RELIEF * columns + 0.8, 4.4 * len(rows)))
    norm = Normalize(0.0, clip)
    for r, (study, row) in enumerate(rows):
        for c, surface in enumerate(row):
            place = (
                (_RELIEF * c + 0.02) / figure.get_figwidth(),
                1 - (r + 1) / len(rows),
                _RELIEF / figure.get_figwidth(),
                1 / len(rows),
            )
            if surface.data is None:
                _say_missing(figure.add_axes(place), surface)
                continue
            axes = figure.add_axes(place, projection="3d", computed_zorder=False)
            assert isinstance(axes, Axes3D)
            _draw_relief(axes, surface.data, clip, norm)
            axes.text2D(
                0.06, 0.97, title(study, surface),
                transform=axes.transAxes, weight="bold", size=10.5, va="top",
            )  # fmt: skip
    bar = figure.add_axes(
        (1 - 0.66 / figure.get_figwidth(), 0.24, 0.13 / figure.get_figwidth(), 0.5)
    )
    _colour_bar(figure, bar, norm, clip)
    return figure


def relief_panel(study: StudyContents, surface: Surface) -> Figure:
    """One relief by itself, with its colour bar below, for the page."""
    assert surface.data is not None
    figure = Figure(figsize=(4.8, 4.1))
    axes = figure.add_axes((0.0, 0.13, 0.95, 0.9), projection="3d", computed_zorder=False)
    assert isinstance(axes, Axes3D)
    norm = Normalize(0.0, study.clip)
    _draw_relief(axes, surface.data, study.clip, norm)
    bar = figure.add_axes((0.16, 0.115, 0.68, 0.026))
    _colour_bar(figure, bar, norm, study.clip, orientation="horizontal")
    return figure


def contours_figure(rows: Sequence[Row], title: Title = surface_title) -> Figure:
    """One row of contour maps for each pair of surfaces, all with one colour scale.

    The maps of a row share one length scale, so that widths can be compared by eye.
    """
    columns = max(len(surfaces) for _, surfaces in rows)
    heights = [_PANEL * _shape(row) + 0.75 for _, row in rows]
    figure = Figure(figsize=((_PANEL + 0.75) * columns + 0.75, sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    clip = max(study.clip for study, _ in rows)
    for (study, row), line in zip(rows, grid, strict=True):
        for axes in line[len(row) :]:
            axes.set_axis_off()
        for surface, axes in zip(row, line, strict=False):
            draw_contours(axes, study, surface, clip, _window(surface, row), title)
    mappable = ScalarMappable(contour_norm(clip), style.loss_colours())
    bar = figure.colorbar(mappable, ax=grid, shrink=0.7, aspect=28, extend="max", pad=0.02)
    _label_bar(bar, clip)
    return figure


def contour_panel(
    study: StudyContents, row: list[Surface], surface: Surface, title: Title = surface_title
) -> Figure:
    """One map of a row by itself, with its colour bar below, for the page."""
    width = 4.4
    height = (width - 0.6) * _shape(row) + 1.2
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    draw_contours(axes, study, surface, study.clip, _window(surface, row), title)
    mappable = ScalarMappable(contour_norm(study.clip), style.loss_colours())
    bar = figure.colorbar(
        mappable, ax=axes, orientation="horizontal", shrink=0.85, aspect=34, extend="max", pad=0.02
    )
    _label_bar(bar, study.clip)
    return figure


def _spans(row: list[Surface]) -> tuple[float, float]:
    """The widest extent along u and v of any surface of the row."""
    made = [s.data for s in row if s.data is not None]
    return (
        max((float(np.ptp(d["u"].values)) for d in made), default=1.0) * 1.04,
        max((float(np.ptp(d["v"].values)) for d in made), default=1.0) * 1.04,
    )


def _shape(row: list[Surface]) -> float:
    """Height of a map as a multiple of its width."""
    u, v = _spans(row)
    return min(max(v / u, 0.5), 2.0)


def _window(surface: Surface, row: list[Surface]) -> tuple[tuple[float, float], ...]:
    """Limits along u and v that centre the surface and have the same span for the whole row."""
    if surface.data is None:
        return ((0.0, 1.0), (0.0, 1.0))
    limits = []
    for name, span in zip(("u", "v"), _spans(row), strict=True):
        values = surface.data[name].values
        middle = float(values.min() + values.max()) / 2
        limits.append((middle - span / 2, middle + span / 2))
    return tuple(limits)


def levels_below(clip: float) -> list[float]:
    """Losses at which a map drawn up to `clip` has a line."""
    if _USUAL[0] <= clip <= _USUAL[1]:
        return [level for level in LEVELS if level < clip]
    shares = (0.03, 0.1, 0.3, 0.6, 0.85)
    rounded = {float(f"{share * clip:.1g}") for share in shares}
    return sorted(level for level in rounded if level < clip)


def contour_norm(clip: float) -> Normalize:
    """Colours by the square root of the loss, so that the basins do not drown in one shade."""
    return PowerNorm(0.5, 0.0, clip)


def _say_missing(axes: Axes, surface: Surface) -> None:
    axes.set_axis_off()
    text = f"{surface.group} labels: no surface\n({surface.reason})"
    axes.text(0.5, 0.5, text, ha="center", va="center", color=style.MUTED, wrap=True)


def _draw_relief(axes: Axes3D, data: xr.Dataset, clip: float, norm: Normalize) -> None:
    """Draw a surface at its isometric positions, with a pin at every minimum."""
    relief = make_relief(data)
    height = relief.clipped(clip)
    spans = np.array([np.ptp(relief.u), np.ptp(relief.v)])
    axes.add_collection3d(_faces(relief, height, clip, norm, spans.max()))
    top = clip * 1.12
    for i, (u, v, loss) in enumerate(_anchors(data)):
        foot = np.minimum(loss, clip)  # under `keep` a minimum may stand on the plateau
        axes.plot([u, u], [v, v], [foot, top], color=style.INK, lw=0.8, zorder=20)
        axes.plot([u], [v], [foot], "o", ms=5.5, mfc=style.MARKER, mec="white", mew=0.9, zorder=21)
        axes.text(
            u, v, top, _anchor_label(i, loss),
            ha="center", va="bottom", size=8, color=style.ON_PLOT, bbox=_LABEL, zorder=22,
        )  # fmt: skip
    axes.set(
        xlim=(relief.u.min(), relief.u.max()),
        ylim=(relief.v.min(), relief.v.max()),
        zlim=(0.0, clip * 1.02),
        xlabel="u (distance)",
        ylabel="v (distance)",
        zlabel="loss",
    )
    axes.set_box_aspect((*(spans / spans.max()), HEIGHT), zoom=1.04)
    axes.view_init(**CAMERA)
    axes.set_proj_type("persp", focal_length=1.6)
    axes.tick_params(labelsize=7.5, pad=0)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.fill = False
        axis.pane.set_edgecolor(style.GRID)
        axis._axinfo["grid"].update(color=style.GRID, linewidth=0.5)
        axis.line.set_color(style.MUTED)
        axis.line.set_linewidth(0.6)
        axis.labelpad = 2
    axes.zaxis.labelpad = -4
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if _USUAL[0] <= clip <= _USUAL[1]:
        axes.set_zticks([tick for tick in range(int(clip) + 1) if clip < 8 or tick % 5 == 0])
    else:
        axes.set_zticks(MaxNLocator(4).tick_values(0.0, clip))


def _faces(
    relief: Relief, height: np.ndarray, clip: float, norm: Normalize, span: float
) -> Poly3DCollection:
    """The relief as shaded quadrilaterals; one that touches a hole is left out."""
    points = np.stack([relief.u, relief.v, height], axis=-1)
    quads = np.stack(
        [points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], axis=2
    ).reshape(-1, 4, 3)
    quads = quads[np.isfinite(quads).all(axis=(1, 2))]
    seen = quads / np.array([span, span, clip / HEIGHT])
    normal = np.cross(seen[:, 2] - seen[:, 0], seen[:, 3] - seen[:, 1])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    normal *= np.sign(normal[:, 2:])
    light = np.array([-0.35, 0.30, 0.89])
    lit = np.clip(normal @ (light / np.linalg.norm(light)), 0.0, 1.0)
    colours = style.loss_colours()(norm(quads[:, :, 2].mean(axis=1)))
    colours[:, :3] *= (0.7 + 0.3 * lit)[:, None]
    collection = Poly3DCollection(
        quads, facecolors=colours, edgecolors="none", antialiased=False, zorder=1
    )
    collection.set_rasterized(True)
    return collection


def _anchors(data: xr.Dataset) -> list[tuple[float, float, float]]:
    columns = (data[f"anchor_{name}"].values for name in ("u", "v", "loss"))
    return [(float(u), float(v), float(loss)) for u, v, loss in zip(*columns, strict=True)]


def _anchor_label(index: int, loss: float) -> str:
    """The number of a minimum and its loss."""
    return f"{index + 1}: {loss:.3g}" if np.isfinite(loss) else f"{index + 1}: not finite"


def _colour_bar(figure: Figure, axes: Axes, norm: Normalize, clip: float, **where: Any) -> None:
    mappable = ScalarMappable(norm, style.loss_colours())
    bar = figure.colorbar(mappable, cax=axes, extend="max", **where)
    bar.set_label(f"loss (drawn up to {clip:g})")
    bar.outline.set_linewidth(0.5)


def _label_bar(bar: Any, clip: float) -> None:
    bar.set_ticks([0.0, *levels_below(clip * (1 + 1e-9))])
    bar.ax.minorticks_off()
    bar.ax.set_axisbelow(False)
    bar.set_label(f"loss (drawn up to {clip:g})")
    bar.formatter = lambda value, _: f"{value:g}"
    bar.outline.set_linewidth(0.5)


def draw_contours(
    axes: Axes,
    study: StudyContents,
    surface: Surface,
    clip: float,
    window: tuple[tuple[float, float], ...],
    title: Title = surface_title,
) -> None:
    """Draw an isometric contour map with holes, minima and the distances between them."""
    if surface.data is None:
        _say_missing(axes, surface)
        return
    data = surface.data
    relief = make_relief(data, fine=300)
    axes.set_title(title(study, surface))
    axes.set_aspect("equal")
    mesh = axes.pcolormesh(
        relief.u,
        relief.v,
        np.ma.masked_invalid(relief.clipped(clip)),
        cmap=style.loss_colours(),
        norm=contour_norm(clip),
        shading="nearest",
        rasterized=True,
    )
    u, v = data["u"].values, data["v"].values
    border = Polygon(
        [(u[i, j], v[i, j]) for i, j in ((0, 0), (0, -1), (-1, -1), (-1, 0))],
        fill=False,
        edgecolor=style.MUTED,
        linewidth=0.6,
    )
    axes.add_patch(border)
    mesh.set_clip_path(border)
    levels = levels_below(clip)
    loss = np.ma.masked_invalid(relief.loss)
    dark = 0.9 if _USUAL[0] <= clip <= _USUAL[1] else 0.25 * clip
    shade = ["#ffffff" if level < dark else style.ON_PLOT for level in levels]
    lines = axes.contour(relief.u, relief.v, loss, levels, colors=shade, linewidths=0.6, alpha=0.75)
    axes.clabel(lines, fmt=lambda level: f"{level:g}", fontsize=6.5, inline_spacing=3)
    axes.add_collection(
        PolyCollection(
            list(hole_cells(data)),
            facecolors="#f4f5f7",
            edgecolors=style.HOLE,
            hatch="//////",
            linewidths=0.4,
        )
    )
    _draw_triangle(axes, data)
    unit = data["u"].attrs.get("long_name", "distance in weight space")
    axes.set(xlabel=f"u ({unit})", ylabel=f"v ({unit})")
    axes.set(xlim=window[0], ylim=window[1])
    if surface.holes:
        axes.text(
            0.02, 0.02, f"hatched: loss {_absent(data)}\n({surface.holes} points)",
            transform=axes.transAxes, size=7.5, color=style.MUTED,
        )  # fmt: skip


def _absent(data: xr.Dataset) -> str:
    """Why there is no loss at some points: other programs mark what they have not computed yet."""
    meanings = (
        str(data["outcome"].attrs.get("flag_meanings", "")).split() if "outcome" in data else []
    )
    missing = "missing" in meanings and bool((data["outcome"] == meanings.index("missing")).any())
    return "not computed or not finite" if missing else "not finite"


def _draw_triangle(axes: Axes, data: xr.Dataset) -> None:
    """Mark the minima with their losses and write the distances between them."""
    anchors = _anchors(data)
    if not anchors:
        return
    gaps = data["anchor_distance"].values
    for a, b in combinations(range(len(anchors)), 2):
        (ua, va, _), (ub, vb, _) = anchors[a], anchors[b]
        axes.plot([ua, ub], [va, vb], ls=(0, (4, 3)), lw=0.8, color=style.MARKER)
        axes.text(
            (ua + ub) / 2, (va + vb) / 2, f"{gaps[a, b]:.1f}",
            ha="center", va="center", size=7.5, color="#7a2512", bbox=_LABEL,
        )  # fmt: skip
    centre = np.mean([(u, v) for u, v, _ in anchors], axis=0)
    for i, (u, v, loss) in enumerate(anchors):
        axes.plot(u, v, "o", ms=6.5, mfc=style.MARKER, mec="white", mew=1.1, zorder=5)
        away = np.array([u, v]) - centre if len(anchors) > 1 else np.array([0.0, 1.0])
        away = away / (np.linalg.norm(away) or 1.0)
        axes.annotate(
            _anchor_label(i, loss), (u, v), (float(away[0]) * 19, float(away[1]) * 19),
            textcoords="offset points",
            ha="center", va="center", size=7.5, color=style.ON_PLOT, bbox=_LABEL, zorder=6,
        )  # fmt: skip
