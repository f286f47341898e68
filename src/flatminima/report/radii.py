"""Figure of the flatness radii: every ray a point, every network and group a mean."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flatminima.report import style
from flatminima.report.contents import COLUMNS, PARAMETERS, PERTURBED_PROTOCOL, StudyContents
from flatminima.report.published import PUBLISHED
from flatminima.report.setting import short_name

ORDER = ("measured_matched", "measured_end", "as_published")
"""The primary comparison first."""

_GAP = 1.9  # between the groups, in widths of a network
_MARKS = {"crossed": ".", "censored": "^", "non_finite": "x"}


def radii_figure(studies: Sequence[StudyContents]) -> Figure:
    """One row for each study and set of parameters, one panel for each column of the table."""
    lines = [(study, parameters) for study in studies for parameters in measured_parameters(study)]
    columns = max(len(measured_columns(study)) for study in studies)
    figure = Figure(figsize=(3.7 * columns + 0.4, 3.3 * len(lines) + 0.35), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for (study, parameters), line in zip(lines, grid, strict=True):
        for axes in line[len(measured_columns(study)) :]:
            axes.set_axis_off()
        for axes, column in zip(line, measured_columns(study), strict=False):
            draw_radii(axes, study, column, parameters)
            if axes is not line[0]:
                axes.set_ylabel("")
            if len(studies) > 1:
                axes.set_title(f"{short_name(study)}\n{axes.get_title('left')}")
    handles = [handle for study in studies for handle in legend_handles(study)]
    unique = list({str(handle.get_label()): handle for handle in handles}.values())
    figure.legend(handles=unique, loc="outside lower center", ncols=3)
    return figure


def radii_panel(study: StudyContents, column: str, parameters: str) -> Figure:
    """One panel by itself, for the page."""
    figure = Figure(figsize=(3.7, 3.4), layout="constrained")
    draw_radii(figure.subplots(), study, column, parameters)
    return figure


def measured_columns(study: StudyContents) -> list[str]:
    """The columns for which the study has any ray."""
    return [c for c in ORDER if any(_select(study, c, p).sizes["ray"] for p in PARAMETERS)]


def measured_parameters(study: StudyContents) -> list[str]:
    """The sets of parameters for which the study has any ray."""
    return [p for p in PARAMETERS if any(_select(study, c, p).sizes["ray"] for c in ORDER)]


def draw_radii(axes: Axes, study: StudyContents, column: str, parameters: str) -> None:
    """Draw the rays of every network, their means, and the groups' means with 95 % intervals."""
    assert study.summary is not None
    rays = _select(study, column, parameters)
    cell = study.summary.sel(column=column, parameters=parameters)
    networks = study.summary["network"].values
    ticks = []
    for g, group in enumerate(study.groups):
        left = g * (len(networks) + _GAP)
        colour = style.group_colour(g)
        for i, network in enumerate(networks):
            _draw_rays(axes, rays, group, int(network), left + i, colour)
            mean = float(cell["mean"].sel(group=group, network=network))
            axes.plot([left + i - 0.36, left + i + 0.36], [mean] * 2, color=style.INK, lw=1.6)
        _draw_group(axes, study, cell, column, parameters, group, left + len(networks))
        ticks.append(left + len(networks) / 2)
    axes.set_ylim(0.0, _top(study, parameters))
    axes.set_xlim(-0.8, len(study.groups) * (len(networks) + _GAP) - 0.9)
    axes.set_xticks(ticks, [f"{group} labels" for group in study.groups])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    what = {"all": "all parameters", "top": "top layer"}[parameters]
    axes.set_title(f"{what}: {COLUMNS[column].title}")
    threshold = study.summary.attrs["threshold"]
    axes.set_ylabel(f"radius (loss rises by {threshold:g})")


def legend_handles(study: StudyContents) -> list[Line2D]:
    """What the marks mean; rays that did not cross only where there are any."""
    assert study.radii is not None
    ink: dict[str, Any] = {"color": style.INK}
    handles = [
        Line2D([], [], ls="", marker="o", ms=4, color=style.MUTED, alpha=0.6, label="one ray"),
        Line2D([], [], **ink, lw=1.6, label="mean of a network"),
        Line2D([], [], **ink, marker="D", ms=5, lw=1.2, label="mean of a group, 95 % interval"),
    ]
    found = drawn_outcomes(study.radii)
    if "censored" in found:
        label = "not crossed within the range (lower bound)"
        handles.append(Line2D([], [], ls="", marker="^", ms=5, mfc="none", **ink, label=label))
    if "non_finite" in found:
        label = "loss not finite beyond (lower bound)"
        handles.append(Line2D([], [], ls="", marker="x", ms=5, **ink, label=label))
    if PUBLISHED.get(study.published) and "as_published" in measured_columns(study):
        label = "published mean \N{PLUS-MINUS SIGN} deviation"
        handles.append(Line2D([], [], marker="s", mfc="none", ms=5, lw=1.0, **ink, label=label))
    return handles


def _select(study: StudyContents, column: str, parameters: str) -> xr.Dataset:
    """The rays of one column and set of parameters."""
    assert study.radii is not None
    radii, source = study.radii, COLUMNS[column]
    chosen = (
        (radii["checkpoint"] == source.checkpoint)
        & (radii["protocol"] == source.protocol)
        & (radii["parameters"] == parameters)
    )
    return radii.isel(ray=np.flatnonzero(chosen.values))


def _outcomes(rays: xr.Dataset) -> np.ndarray:
    meanings = str(rays["outcome"].attrs["flag_meanings"]).split()
    return np.array([meanings[code] for code in rays["outcome"].values], dtype=object)


def drawn_outcomes(radii: xr.Dataset) -> set[str]:
    """The outcomes that occur among the rays that are drawn."""
    return set(_outcomes(_drawn(radii)))


def _drawn(radii: xr.Dataset) -> xr.Dataset:
    """All rays but those of the walks that perturb running statistics; see `perturbed.py`."""
    return radii.isel(ray=np.flatnonzero(radii["protocol"].values != PERTURBED_PROTOCOL))


def _top(study: StudyContents, parameters: str) -> float:
    """One upper limit for all panels of the same parameters."""
    assert study.radii is not None
    assert study.summary is not None
    drawn = _drawn(study.radii)
    rays = drawn["radius"].values[drawn["parameters"].values == parameters]
    columns = [column for column in ORDER if column in study.summary["column"].values]
    interval = study.summary["group_interval"].sel(column=columns, parameters=parameters)
    high = interval.sel(bound="high").values
    finite = list(rays[np.isfinite(rays)])
    # The interval of two networks can be ten times as long as everything else is high.
    finite += [min(value, 1.5 * max(finite)) for value in high[np.isfinite(high)]]
    published = PUBLISHED.get(study.published, {})
    finite += [p.mean + p.deviation for (name, _), p in published.items() if name == parameters]
    return 1.08 * float(max(finite, default=1.0))


def _draw_rays(
    axes: Axes, rays: xr.Dataset, group: str, network: int, place: float, colour: str
) -> None:
    """The rays of one network, side by side in the order of their directions."""
    mine = (rays["group"].values == group) & (rays["network"].values == network)
    own = rays.isel(ray=np.flatnonzero(mine))
    direction, sign = own["direction"].values, own["sign"].values
    spread = direction / max(1, int(direction.max(initial=0))) - 0.5 + 0.02 * sign
    found = _outcomes(own)
    for outcome, mark in _MARKS.items():
        chosen = found == outcome
        lower_bound = outcome != "crossed"
        axes.plot(
            place + 0.6 * spread[chosen],
            own["radius"].values[chosen],
            mark,
            color=colour,
            ms=5.0,
            mfc="none" if lower_bound else colour,
            mec=colour if lower_bound else "none",
            alpha=0.9 if lower_bound else 0.55,
        )


def _draw_group(
    axes: Axes,
    study: StudyContents,
    cell: xr.Dataset,
    column: str,
    parameters: str,
    group: str,
    place: float,
) -> None:
    """The mean of a group with its interval; beside it the published number, if there is one."""
    mine = cell.sel(group=group)
    mean, (low, high) = float(mine["group_mean"]), mine["group_interval"].values
    colour = style.group_colour(study.colour_index(group))
    if np.isfinite(mean):
        if np.isfinite(low) and np.isfinite(high):
            reach = [[mean - max(low, 0.0)], [high - mean]]
            axes.errorbar(place, mean, reach, color=colour, lw=1.4, capsize=3.5, capthick=1.4)
        axes.plot(place, mean, "D", ms=5, color=colour, zorder=5)
    total = cell.sizes["network"]
    reasons = {"not reached": int(mine["not_reached"]), "excluded": int(mine["excluded"])}
    missing = [f"{why}\n({count} of {total})" for why, count in reasons.items() if count]
    if missing:
        axes.text(
            place - total / 2, 0.02, "\n".join(missing),
            transform=axes.get_xaxis_transform(), ha="center", va="bottom",
            size=7.5, color=style.MUTED,
        )  # fmt: skip
    published = PUBLISHED.get(study.published, {}).get((parameters, group))
    if column == "as_published" and published is not None:
        axes.errorbar(
            place + 0.62, published.mean, published.deviation,
            fmt="s", mfc="none", ms=5, lw=1.0, capsize=2.5, color=style.INK,
        )  # fmt: skip
