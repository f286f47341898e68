"""Fewer points: a coarse grid, halved where the surface bends, and interpolated in between.

How far the interpolation is off is not assumed: points that it filled are evaluated after all, at
random, and what was found there is part of the result.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.interpolate import CloughTocher2DInterpolator

from flatminima._seeds import derive_seed
from flatminima.landscape._losses import Losses

# The coarse grid has at least so many cells along each axis, in steps of a power of two.
_COARSEST = 6
# Of the interpolated points one in so many is evaluated after all, but so many at least.
_HELD_OUT, _LEAST_HELD_OUT = 20, 10

Evaluation: TypeAlias = Callable[[Int64[np.ndarray, " points"]], Losses]
"""Losses at points of a grid, which are counted row by row."""


@dataclass(frozen=True)
class Refinement:
    """What was interpolated, and how well.

    Attributes:
        interpolated: Which points were, row by row.
        held_out: How many interpolated points were evaluated afterwards (they hold what was found).
        largest: The largest difference between interpolated and evaluated loss there, divided by
            `sqrt(1 + loss^2)` as the tolerance is.
        root_mean_square: Of the differences.
    """

    interpolated: Bool[np.ndarray, " points"]
    held_out: int
    largest: float
    root_mean_square: float


def refine_losses(
    evaluate: Evaluation, rows: int, columns: int, tolerance: float
) -> tuple[Losses, Refinement]:
    """Losses at all points of a grid, from as many evaluations as a tolerance asks for.

    A cell of the grid is halved again where the points that halved it last differ from what its
    surroundings had led to expect by more than `tolerance * sqrt(1 + loss^2)`, or are not finite.

    Args:
        evaluate: Computes some points.
        rows: Of the grid.
        columns: Of the grid.
        tolerance: See above.
    """
    found = _Found(evaluate, rows, columns)
    stride = 1
    while (min(rows, columns) - 1) // (2 * stride) >= _COARSEST:
        stride *= 2
    found.add(_lines(rows, columns, stride))
    wanted = np.ones((rows, columns), dtype=bool)
    while stride > 1:
        new = _lines(rows, columns, stride // 2) & wanted & ~found.known
        expected = found.interpolated(new)
        found.add(new)
        gap = np.abs(np.arcsinh(expected) - np.arcsinh(found.loss[new]))
        surprising = np.zeros_like(wanted)
        surprising[new] = ~(gap <= tolerance)  # not a number counts
        wanted = _cells_with(surprising, stride)
        stride //= 2
    return found.everywhere()


def _lines(rows: int, columns: int, stride: int) -> Bool[np.ndarray, "rows columns"]:
    """The points of every so many rows and columns, and of the last ones."""
    chosen = np.zeros((rows, columns), dtype=bool)
    chosen[np.ix_(_steps(rows, stride), _steps(columns, stride))] = True
    return chosen


def _steps(count: int, stride: int) -> list[int]:
    return sorted({*range(0, count, stride), count - 1})


def _cells_with(
    points: Bool[np.ndarray, "rows columns"], stride: int
) -> Bool[np.ndarray, "rows columns"]:
    """The cells, with their borders, that hold any of some points."""
    cells = np.zeros_like(points)
    down, across = (_steps(count, stride) for count in points.shape)
    for top, bottom in itertools.pairwise(down):
        for left, right in itertools.pairwise(across):
            cell = np.s_[top : bottom + 1, left : right + 1]
            cells[cell] |= points[cell].any()
    return cells


class _Found:
    """The points evaluated so far."""

    def __init__(self, evaluate: Evaluation, rows: int, columns: int) -> None:
        self._evaluate = evaluate
        self._losses: Losses | None = None
        self._order = np.empty(0, dtype=np.int64)
        self.known = np.zeros((rows, columns), dtype=bool)
        self.loss = np.full((rows, columns), np.nan)

    def add(self, points: Bool[np.ndarray, "rows columns"]) -> None:
        """Evaluate some points."""
        indices = np.flatnonzero(points)
        if not len(indices):
            return
        more = self._evaluate(indices)
        self._losses = more if self._losses is None else self._losses.followed_by(more)
        self._order = np.concatenate([self._order, indices])
        self.known |= points
        self.loss.ravel()[indices] = more.loss

    def interpolated(self, points: Bool[np.ndarray, "rows columns"]) -> Float64[np.ndarray, " n"]:
        """What the loss is expected to be; NaN outside of what is known and finite."""
        usable = self.known & np.isfinite(self.loss)
        return np.asarray(np.sinh(_interpolate(usable, np.arcsinh(self.loss[usable]), points)))

    def everywhere(self) -> tuple[Losses, Refinement]:
        """The losses at all points, interpolated where they are not known."""
        filled = ~self.known
        expected = np.full(self.known.shape, np.nan)
        expected[filled] = self.interpolated(filled)
        # What lies next to holes cannot be interpolated.
        self.add(filled & np.isnan(expected))
        chosen = self._held_out(filled & ~self.known)
        self.add(chosen)
        gaps = np.abs(np.arcsinh(expected[chosen]) - np.arcsinh(self.loss[chosen]))
        gaps = np.where(np.isnan(gaps), np.inf, gaps)  # a hole that was filled
        rest = ~self.known
        refinement = Refinement(
            interpolated=rest.ravel(),
            held_out=int(chosen.sum()),
            largest=float(gaps.max(initial=0.0)),
            root_mean_square=float(np.sqrt(np.mean(gaps**2))) if len(gaps) else 0.0,
        )
        return self._with(rest, expected[rest]), refinement

    def _held_out(
        self, points: Bool[np.ndarray, "rows columns"]
    ) -> Bool[np.ndarray, "rows columns"]:
        """Some of the points, at random."""
        indices = np.flatnonzero(points)
        count = min(len(indices), max(_LEAST_HELD_OUT, len(indices) // _HELD_OUT))
        draw = np.random.default_rng(derive_seed(0, "held out", len(indices)))
        chosen = np.zeros_like(points)
        chosen.ravel()[draw.choice(indices, count, replace=False)] = True
        return chosen

    def _with(self, points: Bool[np.ndarray, "rows columns"], loss: np.ndarray) -> Losses:
        """The losses in the order of the grid, those at `points` interpolated."""
        losses = self._losses
        assert losses is not None

        def spread(values: np.ndarray) -> np.ndarray:
            whole = np.full(points.shape, np.nan)
            whole.ravel()[self._order] = values
            usable = np.isfinite(whole)
            whole[points] = _interpolate(usable, whole[usable], points)
            return np.asarray(whole.ravel())

        whole = self.loss.copy()
        whole[points] = loss
        clipped = None
        if losses.clip is not None:
            # Of an interpolated point this is as little certain as its loss.
            above = points & (whole >= losses.clip * (1 - 1e-9))
            whole[above] = losses.clip
            clipped = above.ravel()
            clipped[self._order] = losses.clipped
        error = losses.standard_error
        return replace(
            losses,
            loss=whole.ravel(),
            metrics={name: spread(values) for name, values in losses.metrics.items()},
            finite=np.isfinite(whole.ravel()),
            standard_error=None if error is None else spread(error),
            clipped=clipped,
        )


def _interpolate(
    usable: Bool[np.ndarray, "rows columns"],
    values: Float64[np.ndarray, " known"],
    points: Bool[np.ndarray, "rows columns"],
) -> Float64[np.ndarray, " n"]:
    """A smooth surface through values at some points of a grid, read at others."""
    if not points.any():
        return np.empty(0)
    places = np.argwhere(usable)
    if len(places) < 4 or np.linalg.matrix_rank(places - places[0]) < 2:
        return np.full(int(points.sum()), np.nan)
    return np.asarray(CloughTocher2DInterpolator(places, values)(np.argwhere(points)), np.float64)
