"""Colours and type shared by the figures and the page."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

GROUP_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's palette: told apart with any colour vision. The page's styles name them too."""

INK = "#1a2129"
ON_PLOT = "#12181f"
"""Ink on top of coloured areas, the same in every theme; the page recolours the others."""
MUTED = "#5b6672"
GRID = "#d9dee4"
PAPER = "#fefefe"
MARKER = "#e4572e"
HOLE = "#8c959f"

_LOSS_STOPS = ("#1b1f4b", "#27437f", "#2b6f9c", "#3f9aa6", "#77c0a5", "#b9dcae", "#f3edc8")
"""From dark to light in even steps of lightness; told apart in greyscale too."""

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "flatminima",
}


@contextmanager
def figure_style(**changes: Any) -> Iterator[None]:
    """Matplotlib's settings for the time of one figure; the caller's come back afterwards."""
    settings: Any = {**_RC, **changes}
    with mpl.rc_context(settings):
        yield


def loss_colours() -> LinearSegmentedColormap:
    """Dark where the loss is low, light where it is high, like a chart of the sea floor."""
    return LinearSegmentedColormap.from_list("flatminima_loss", _LOSS_STOPS, N=256)


def plotly_colours(stops: int = 24) -> list[list[float | str]]:
    """`loss_colours` as a plotly colour scale."""
    colours = loss_colours()
    places = np.linspace(0.0, 1.0, stops)
    return [[float(p), mpl.colors.to_hex(colours(float(p)))] for p in places]


def group_colour(index: int) -> str:
    """The colour of the study's `index`-th group."""
    return GROUP_COLOURS[index % len(GROUP_COLOURS)]
