"""The loss along the straight line between two networks, and the barrier on it."""

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64

from flatminima.landscape import Landscape, Losses, assemble_surface, stored_losses
from flatminima.minimum import State
from flatminima.subspace import Subspace
from flatminima.types import PerPoint, Real

# A position this close to an end is that end, which steps of a tenth miss by rounding.
_SAME = 1e-12


def loss_line(
    landscape: Landscape,
    start: State,
    end: State,
    *,
    resolution: int = 25,
    extent: tuple[Real, Real] = (0.0, 1.0),
) -> xr.Dataset:
    """Evaluate the loss along the straight line through two states.

    The barrier is the largest rise of the loss above the straight line (chord) between the losses
    of the two ends:

        max over 0 <= t <= 1 of  L(w(t)) - ((1 - t) L(w(0)) + t L(w(1))),  w(t) = w0 + t (w1 - w0)

    as Entezari et al. define it (2022, arXiv 2110.06296). Frankle et al. (2020, arXiv
    1912.05671) take the mean of the two ends' errors off instead of the chord, which is
    the same where these are equal. Both ends are always evaluated, in full precision, and have no
    rise, so a barrier is 0 or more; being a maximum over the positions evaluated, it is a lower
    bound.

    Args:
        landscape: The network, data and loss. Two states are combined, so `batchnorm="auto"` means
            `recompute`.
        start: The state at position 0.
        end: The state at position 1.
        resolution: How many positions.
        extent: The first and the last of them.

    Returns:
        A dataset over `position` with `loss`, `accuracy` (where targets are classes),
        `standard_error`, `outcome` (0 finite, 1 non_finite), `distance` (in weight space from the
        start, negative before it) and `chord` (the straight line through the losses of the ends).
        Over `anchor`, the two ends: `anchor_position`, `anchor_loss` and the like, and, for a
        network with BatchNorm, `anchor_stored_loss`, each end's loss with the statistics that its
        own training left. Besides the attributes of a surface: `length`, the distance of the
        states; `barrier` and `barrier_position`, 0 where nothing rises above the chord; where
        targets are classes `accuracy_barrier` and `accuracy_barrier_position`, by how much the
        accuracy falls below its own chord; `barrier_points`, the number of positions evaluated
        strictly between the ends; and `barrier_outcome`, "finite" or "non_finite". A loss that is
        not finite at an end or between the ends makes the barriers infinite; their position is then
        the first such one.

    Raises:
        ValueError: If a state does not fit the network, the two are identical, the extent is empty,
            or no position lies between the ends.
    """
    positions = _positions(resolution, extent)
    line = Subspace.through(landscape.state(start), landscape.state(end))
    row = _row(line, positions)
    losses = landscape.losses(line, row["coordinate"].to_numpy()[0])
    # The ends' own losses are exact whatever the precision between them.
    ends = landscape.losses(line, line.anchor_coordinates, precision="exact")
    stored = stored_losses(landscape, line)
    surface = assemble_surface(row, losses.followed_by(ends), landscape, stored=stored)
    result = surface.isel(y=0).rename(x="position", u="distance")
    result["chord"] = ("position", _chord(positions, ends.loss))
    return result.assign_attrs(_barriers(positions, losses, ends))


def _row(line: Subspace, positions: PerPoint) -> xr.Dataset:
    """The positions as a grid of one row, so that a line is assembled as surfaces are."""
    length = float(line.anchor_coordinates[1, 0])
    distance = positions * length
    row = xr.Dataset(
        {
            "u": (("y", "x"), distance[None]),
            "coordinate": (("y", "x", "dimension"), distance[None, :, None]),
            "anchor_position": ("anchor", [0.0, 1.0]),
        },
        coords={"x": positions},
        attrs={"dimensions": 1, "length": length},
    )
    row["x"].attrs["long_name"] = "position between start (0) and end (1)"
    row["u"].attrs["long_name"] = "distance in weight space"
    return row


def _positions(resolution: int, extent: tuple[Real, Real]) -> PerPoint:
    if resolution < 2:
        raise ValueError(f"expected a resolution of at least 2, got {resolution}; 25 is usual")
    low, high = extent
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"expected an extent (from, to), from below to, got {extent}; swap them")
    positions = np.linspace(low, high, resolution)
    for end in (0.0, 1.0):
        positions[np.abs(positions - end) < _SAME] = end
    if not ((positions > 0) & (positions < 1)).any():
        raise ValueError(
            f"expected positions between the two states (0 to 1), got none at resolution"
            f" {resolution} over {extent}; raise the resolution or choose another extent"
        )
    return positions


def _chord(positions: PerPoint, ends: Float64[np.ndarray, "2"]) -> PerPoint:
    """The straight line through the values at positions 0 and 1."""
    return np.asarray((1 - positions) * ends[0] + positions * ends[1])


def _barriers(positions: PerPoint, losses: Losses, ends: Losses) -> dict[str, Any]:
    """The attributes of a line that speak of its barriers."""
    between = (positions > 0) & (positions < 1)
    places = np.concatenate([[0.0], positions[between], [1.0]])
    finite = np.concatenate([ends.finite[:1], losses.finite[between], ends.finite[1:]])
    rises = {"barrier": losses.loss - _chord(positions, ends.loss)}
    if "accuracy" in losses.metrics:
        chord = _chord(positions, ends.metrics["accuracy"])
        rises["accuracy_barrier"] = chord - losses.metrics["accuracy"]
    found: dict[str, Any] = {
        "barrier_outcome": "finite" if finite.all() else "non_finite",
        "barrier_points": int(between.sum()),
    }
    for name, rise in rises.items():
        heights = np.concatenate([[0.0], rise[between], [0.0]])
        if not finite.all():  # nor is the chord, where that is an end
            heights = np.where(finite, 0.0, np.inf)
        # Of several that are as high, the first.
        highest = int(np.argmax(heights))
        found |= {name: float(heights[highest]), f"{name}_position": float(places[highest])}
    return found
