"""A walk: the rise of the loss along random rays from one state, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from flatminima.landscape import Losses
from flatminima.subspace import Subspace
from flatminima.types import Coordinates, PerPoint

Evaluation: TypeAlias = Callable[[Subspace, Coordinates], Losses]
"""`Landscape.losses`, or what takes its place."""

CROSSED, CENSORED, NON_FINITE = 0, 1, 2
OUTCOMES = "crossed censored non_finite"


@dataclass
class Radii:
    """One entry per ray; rays are ordered by direction, then sign."""

    radius: PerPoint
    outcome: Int64[np.ndarray, " points"]
    evaluations: Int64[np.ndarray, " points"]
    reentries: Int64[np.ndarray, " points"]


class Walk:
    """The rise of the loss along rays; every point is evaluated once and remembered."""

    def __init__(self, losses: Evaluation, subspace: Subspace, threshold: float) -> None:
        self._losses, self._subspace = losses, subspace
        self.threshold = threshold
        start = losses(subspace, np.zeros((1, subspace.dimensions)))
        if not start.finite[0]:
            raise ValueError(
                "expected a state with a finite loss, got a non-finite one at the state itself;"
                " check its weights and data"
            )
        self.loss = float(start.loss[0])
        self.path, self.batchnorm = start.path, start.batchnorm
        self.known: dict[tuple[int, float], float] = {}

    @property
    def directions(self) -> int:
        return self._subspace.dimensions

    def rise(
        self,
        distance: Float64[np.ndarray, " points"],
        direction: Int64[np.ndarray, " points"],
        sign: Int64[np.ndarray, " points"],
    ) -> Float64[np.ndarray, " points"]:
        """`L(w + sign t u) - L(w)`, NaN where the loss is not finite."""
        keys = [(int(d), float(s * t)) for t, d, s in zip(distance, direction, sign, strict=True)]
        new = sorted({key for key in keys if key not in self.known})
        if new:
            points = np.zeros((len(new), self.directions))
            for row, (index, t) in enumerate(new):
                points[row, index] = t
            losses = self._losses(self._subspace, points)
            self.known |= dict(zip(new, (losses.loss - self.loss).tolist(), strict=True))
        return np.array([self.known[key] for key in keys])

    def evaluations(self, direction: int, sign: int) -> int:
        """How many points of a ray were evaluated."""
        return sum(1 for index, t in self.known if index == direction and t * sign > 0)


def stepwise(walk: Walk, *, step: float, limit: float, stride: int) -> Radii:
    """Whole steps along +u until the loss has changed by the threshold, either way.

    Args:
        walk: The rays.
        step: Length of a step.
        limit: No step goes further than this, except the first.
        stride: Steps evaluated at once; those beyond the end of a walk are in vain.
    """
    rays = walk.directions
    steps = steps_within(limit, step)
    taken = np.zeros(rays, dtype=np.int64)
    outcome = np.full(rays, CENSORED)
    active = np.arange(rays)
    while len(active):
        ahead = np.minimum(taken[active] + np.arange(1, stride + 1)[:, None], steps)
        repeated = np.tile(active, stride)
        changes = walk.rise(ahead.ravel() * step, repeated, np.ones_like(repeated))
        changes = changes.reshape(ahead.shape)
        again = []
        for column, ray in enumerate(active):
            over = ~(np.abs(changes[:, column]) < walk.threshold)
            if over.any():
                event = int(np.argmax(over))
                outcome[ray] = ended(changes[event, column])
                taken[ray] = ahead[event, column] - 1
            else:
                taken[ray] = ahead[-1, column]
                if taken[ray] < steps:
                    again.append(ray)
        active = np.array(again, dtype=np.int64)
    evaluations = np.array([walk.evaluations(ray, 1) for ray in range(rays)])
    return Radii(taken * step, outcome, evaluations, np.zeros(rays, dtype=np.int64))


def steps_within(limit: float, step: float) -> int:
    """How many steps there are at most: one, however near the limit is."""
    return max(1, int(np.floor(limit / step * (1 + 1e-12))))


def ended(change: float) -> int:
    """The outcome of a walk that a change of the loss has ended."""
    return CROSSED if np.isfinite(change) else NON_FINITE
