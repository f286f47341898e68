"""The line between two of somebody's own networks."""

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flatminima.report import style
from flatminima.report.networks.words import about, metrics_of, names_of, subsets_of

# So many groups are told apart by colours, then by strokes; all are in the table.
_STROKES = ("-", "--", ":")
_MOST = (len(style.GROUP_COLOURS) - 1) * len(_STROKES)


def line_figure(line: xr.Dataset) -> Figure:
    """The loss along a line with its chord, below it accuracy where it is known, and metrics."""
    below = [*(["accuracy"] if "accuracy" in line else []), *metrics_of(line)]
    panels = 1 + len(below)
    width = 7.4 if subsets_of(line) else 6.2
    figure = Figure(figsize=(width, 2.9 * panels), layout="constrained")
    axes = np.atleast_1d(figure.subplots(panels, 1, sharex=True))
    position = line["position"].values
    top = axes[0]
    top.plot(position, line["loss"], "o-", ms=3.5, lw=1.4, color=style.group_colour(0))
    if "standard_error" in line:
        low, high = (line["loss"] + k * 1.96 * line["standard_error"] for k in (-1, 1))
        top.fill_between(position, low, high, color=style.group_colour(0), alpha=0.18, lw=0)
    top.plot(position, line["chord"], ls=(0, (4, 3)), lw=1.0, color=style.MUTED)
    barrier, at = float(line.attrs["barrier"]), float(line.attrs["barrier_position"])
    if math.isfinite(barrier) and barrier > 0:
        foot = float(np.interp(at, position, line["chord"].values))
        top.annotate(
            "", (at, foot + barrier), (at, foot),
            arrowprops={"arrowstyle": "<->", "color": style.MARKER, "lw": 1.2},
        )  # fmt: skip
        top.text(
            at, foot + barrier / 2, f"  barrier {barrier:.3g}", color=style.MARKER, va="center",
            bbox={"facecolor": style.PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
        )  # fmt: skip
    _draw_groups(top, line, "loss")
    top.set(ylabel="loss", ylim=(0 if float(line["loss"].min()) >= 0 else None, None))
    for lower, name in zip(axes[1:], below, strict=True):
        colour = style.group_colour(0 if subsets_of(line) else 2)
        lower.plot(position, line[name], "o-", ms=3.5, lw=1.4, color=colour)
        if name == "accuracy":
            _draw_groups(lower, line, name)
        lower.set(ylabel=name)
    ends = names_of(line)
    axes[-1].set(xlabel=f"position: 0 is {ends[0]}, 1 is {ends[1]}")
    for each in axes:
        each.grid(axis="y")
        each.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _draw_groups(axes: Axes, line: xr.Dataset, kind: str) -> None:
    """A line for each group of samples, told apart in a legend."""
    for place, name in enumerate(list(subsets_of(line))[:_MOST]):
        again, colour = divmod(place, len(style.GROUP_COLOURS) - 1)
        axes.plot(
            line["position"].values, line[f"{kind}_{name}"],
            ls=_STROKES[again], lw=1.2, color=style.group_colour(1 + colour), label=name,
        )  # fmt: skip
    if subsets_of(line) and kind == "loss":
        axes.get_lines()[0].set_label("all samples")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def line_caption(line: xr.Dataset) -> str:
    """Under a line."""
    barrier = float(line.attrs["barrier"])
    if math.isfinite(barrier):
        at = float(line.attrs["barrier_position"])
        rise = (
            f"The barrier, the largest rise above the chord (dashed), is {barrier:.4g} at {at:.3g}."
        )
    else:
        rise = "A loss on the way is not finite: the barrier is infinite."
    band = " Band: 95 % sampling error of the mean." if "standard_error" in line else ""
    groups = len(subsets_of(line))
    told = " Thin lines: groups of samples; with dots: all samples." * bool(groups)
    told += f" The first {_MOST} of {groups} groups are drawn." * (groups > _MOST)
    return (
        f"{about(line)} {line.sizes['position']} points on the straight line, which is"
        f" {float(line.attrs['length']):.4g} long. {rise}{band}{told}"
    )


def line_table(line: xr.Dataset) -> Any:
    """One row per position."""
    return (
        line[[name for name in line.data_vars if line[name].dims == ("position",)]]
        .to_dataframe()
        .reset_index()
    )
