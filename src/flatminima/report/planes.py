"""What the eye should see on a plane under several BatchNorm policies, counted from its points."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.interpolate import RegularGridInterpolator

from flatminima.report.contents import Surface
from flatminima.report.words import number, percent, series

MEANINGS = {
    "recompute": "statistics measured anew at every point",
    "keep": "the running statistics of minimum 1 at every point",
    "interpolate": "running statistics combined like the weights, so that a variance can turn "
    "negative",
    "batch": "the statistics of each batch",
}
NEAR = 0.05
"""A loss within this share of ln(classes) is taken for that of a constant output."""
_RISE = 0.05
"""A minimum whose loss under a policy is this much above its own is not one on that plane."""


@dataclass(frozen=True)
class PlaneFacts:
    """Counts over the grid points of one plane, and the losses at its minima.

    Attributes:
        policy: The BatchNorm policy.
        shape: Grid points along y and x.
        holes: How many of them have no finite loss.
        constant: How many have the loss of a constant output.
        chance: How many of those also have the accuracy of guessing; None if it was not stored.
        low: How many lie below half the loss of a constant output.
        centre: The loss at the centroid of the minima, between grid points; NaN in a hole.
        broken: How many are a hole or a constant output where the first policy's plane is
            neither; None on that plane itself.
        anchors: The losses of the minima under this policy.
        stored: Their losses with the statistics that their own training left, if recorded.
    """

    policy: str
    shape: tuple[int, int]
    holes: int
    constant: int
    chance: int | None
    low: int
    centre: float
    broken: int | None
    anchors: tuple[float, ...]
    stored: tuple[float, ...] | None

    @property
    def points(self) -> int:
        """How many grid points there are."""
        return self.shape[0] * self.shape[1]

    @property
    def lost(self) -> list[int]:
        """The minima, counted from 1, that are none on this plane."""
        if self.stored is None:
            return []
        pairs = enumerate(zip(self.anchors, self.stored, strict=True), start=1)
        return [i for i, (loss, own) in pairs if not loss - own <= _RISE]


def plane_facts(surfaces: Sequence[Surface], classes: int) -> list[PlaneFacts]:
    """The facts of every plane that was made, the first being the one to compare with."""
    made = [surface for surface in surfaces if surface.data is not None]
    first = made[0].data if made and made[0] is surfaces[0] else None
    return [_facts(s.policy, s.data, first, classes) for s in made if s.data is not None]


def what_to_see(facts: Sequence[PlaneFacts], classes: int) -> list[str]:
    """What the eye should see, a line for each plane, and what of it is broken statistics."""
    return [" ".join(_seen(plane, facts[0], classes)) for plane in facts]


def stored_difference(surface: xr.Dataset) -> np.ndarray | None:
    """Loss under the plane's policy less that with each minimum's own stored statistics."""
    if "anchor_stored_loss" not in surface:
        return None
    return np.asarray(surface["anchor_loss"].values - surface["anchor_stored_loss"].values)


def constant_loss(classes: int) -> str:
    """E.g. "ln 10 = 2.303"."""
    return f"ln {classes} = {math.log(classes):.3f}"


def _facts(policy: str, data: xr.Dataset, first: xr.Dataset | None, classes: int) -> PlaneFacts:
    loss = data["loss"].values
    constant = _constant(loss, classes)
    chance = None
    if "accuracy" in data:
        guessed = data["accuracy"].values <= 1.5 / classes
        chance = int((constant & guessed).sum())
        constant_output = constant & guessed
    else:
        constant_output = constant
    broken = None
    if first is not None and first is not data:
        y, x = np.meshgrid(data["y"].values, data["x"].values, indexing="ij")
        there = _at(first, x, y)
        sound = np.isfinite(there) & ~_constant(there, classes)
        broken = int(((~np.isfinite(loss) | constant_output) & sound).sum())
    x, y = (np.array([data[f"anchor_{name}"].values.mean()]) for name in ("x", "y"))
    stored = data.get("anchor_stored_loss")
    return PlaneFacts(
        policy=policy,
        shape=(loss.shape[0], loss.shape[1]),
        holes=int((~np.isfinite(loss)).sum()),
        constant=int(constant.sum()),
        chance=chance,
        low=int((loss < math.log(classes) / 2).sum()),
        centre=float(_at(data, x, y)[0]),
        broken=broken,
        anchors=tuple(map(float, data["anchor_loss"].values)),
        stored=None if stored is None else tuple(map(float, stored.values)),
    )


def _constant(loss: np.ndarray, classes: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(loss / math.log(classes) - 1) <= NEAR)


def _at(data: xr.Dataset, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The loss between grid points, linearly; NaN beside a hole and outside the grid."""
    grid = (data["y"].values, data["x"].values)
    loss = data["loss"].values
    lookup = RegularGridInterpolator(grid, loss, bounds_error=False, fill_value=np.nan)
    return np.asarray(lookup(np.stack([y, x], axis=-1)))


def _seen(plane: PlaneFacts, first: PlaneFacts, classes: int) -> Iterator[str]:
    own = plane is first
    meaning = MEANINGS.get(plane.policy)
    near = f"{constant_loss(classes)}, the loss of a constant output" if own else f"ln {classes}"
    holes, constant, low = (
        percent(count / plane.points) for count in (plane.holes, plane.constant, plane.low)
    )
    guessing = (
        f" ({percent(plane.chance / plane.points)} with the accuracy of guessing)"
        if plane.constant and plane.chance is not None
        else ""
    )
    yield plane.policy + (f" ({meaning}):" if meaning else ":")
    yield (
        f"of {plane.points} points {holes} are holes, {constant} lie within {percent(NEAR)} of "
        f"{near}{guessing}, and {low} below {number(math.log(classes) / 2)}"
        f"{', half of that' if own else ''};"
    )
    yield (
        f"the loss at the centroid of the minima is {number(plane.centre)}."
        if math.isfinite(plane.centre)
        else "the centroid of the minima lies in or beside a hole."
    )
    if lost := plane.lost:
        yield _lost(plane, lost)
    if plane.broken:
        yield (
            f"At {plane.broken} of the {plane.points} points it shows a hole or a constant output "
            f"where {first.policy} shows neither: there one sees broken statistics, not the loss "
            "of the weights."
        )


def _lost(plane: PlaneFacts, lost: Sequence[int]) -> str:
    """Which minima are none on this plane, with their losses there and their own."""
    assert plane.stored is not None
    several = len(lost) > 1
    there = series([_loss(plane.anchors[i - 1]) for i in lost])
    own = series([_loss(plane.stored[i - 1]) for i in lost])
    why = ": no basin lies there, since the statistics are those of minimum 1"
    return (
        f"{'Minima' if several else 'Minimum'} {series(list(map(str, lost)))} "
        f"{'have losses' if several else 'has the loss'} {there} there, against {own} with the "
        f"statistics of {'their' if several else 'its'} own training"
        f"{why if plane.policy == 'keep' else ''}."
    )


def _loss(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "none (a hole)"
