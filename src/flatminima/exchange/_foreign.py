"""Another program's numbers put into the form of our surfaces."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from flatminima.exchange._checks import GRID

_MISSING = 2
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Anchors:
    """Positions `[anchors, 2]` on the axes and in the isometric frame, and losses if known."""

    position: np.ndarray
    isometric: np.ndarray
    loss: np.ndarray
    known: bool


def foreign_surface(
    grid: xr.Dataset,
    loss: np.ndarray,
    missing: np.ndarray,
    anchors: Anchors,
    **attributes: Any,
) -> xr.Dataset:
    """A surface from a grid with `u` and `v`, losses, and what the other program tells.

    A loss that is missing or not finite becomes NaN, and the outcome says which.
    """
    surface = grid.copy()
    surface["loss"] = (GRID, np.where(missing | ~np.isfinite(loss), np.nan, loss))
    surface["outcome"] = (GRID, _outcome(loss, missing))
    gaps = anchors.isometric[:, None] - anchors.isometric[None]
    columns = {
        "x": anchors.position[:, 0],
        "y": anchors.position[:, 1],
        "u": anchors.isometric[:, 0],
        "v": anchors.isometric[:, 1],
        "loss": anchors.loss,
        "outcome": _outcome(anchors.loss, np.full(anchors.loss.shape, not anchors.known)),
    }
    for name, values in columns.items():
        surface[f"anchor_{name}"] = ("anchor", values)
    surface["anchor_distance"] = (("anchor", "other"), np.linalg.norm(gaps, axis=-1))
    for name in ("outcome", "anchor_outcome"):
        surface[name].attrs.update(
            flag_values=[0, 1, _MISSING], flag_meanings="finite non_finite missing"
        )
    told = {"axes": "directions", "dimensions": 2, "samples": 0, "split": "train"}
    silent = dict.fromkeys(("batchnorm", "path", "precision", "loss_name", "dataset"), UNKNOWN)
    return surface.assign_attrs(**told, **{**silent, **attributes})


def _outcome(loss: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """0 finite, 1 not, 2 missing."""
    return np.where(missing, _MISSING, ~np.isfinite(loss)).astype(np.int8)


def axis(values: np.ndarray, name: str) -> np.ndarray:
    """The values along an axis as floats.

    Raises:
        ValueError: If they are not two or more finite numbers in a row.
    """
    if values.ndim != 1 or values.dtype.kind not in "iuf" or values.size < 2:
        raise ValueError(f"{name} is not a row of two numbers or more but {values.shape}")
    if not np.isfinite(values).all() or (np.diff(values) == 0).any():
        raise ValueError(f"{name} has values that are not finite or come twice in a row")
    return values.astype(np.float64)
