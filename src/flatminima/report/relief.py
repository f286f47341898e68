"""A stored surface made ready for drawing: finer, clipped, with its holes kept."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

FINE = 200
"""About this many drawn points along an axis: no facets to be seen at 300 dots per inch."""


@dataclass(frozen=True)
class Relief:
    """Positions `u`, `v` and `loss` on a finer grid; NaN in `loss` where the surface has a hole."""

    u: np.ndarray
    v: np.ndarray
    loss: np.ndarray

    def clipped(self, clip: float) -> np.ndarray:
        """The losses to draw: a plateau at `clip`, holes left as NaN."""
        return np.asarray(np.minimum(self.loss, clip))


def make_relief(surface: xr.Dataset, fine: int = FINE) -> Relief:
    """Interpolate between the grid points of `surface`, for drawing only.

    A cubic spline, held within the range of the surrounding grid points, so it makes no basin or
    ridge that the grid points do not have. A grid point without a finite loss takes its whole cell
    (half a step to each side) out of the drawing.
    """
    loss = surface["loss"].values
    holes = ~np.isfinite(loss)
    if holes.all():
        return Relief(surface["u"].values, surface["v"].values, np.full(loss.shape, np.nan))
    filled = loss
    if holes.any():
        nearest = distance_transform_edt(holes, return_distances=False, return_indices=True)
        filled = loss[tuple(nearest)]
    rows, columns = (_fine_positions(n, fine) for n in loss.shape)
    drawn = _interpolate(filled, rows, columns)
    drawn[holes[np.ix_(_nearest(rows), _nearest(columns))]] = np.nan
    u = _interpolate(surface["u"].values, rows, columns)
    v = _interpolate(surface["v"].values, rows, columns)
    return Relief(u, v, drawn)


def hole_cells(surface: xr.Dataset) -> np.ndarray:
    """Corners `[holes, 4, 2]` in (u, v) of the cell around every point without a finite loss."""
    rows, columns = np.nonzero(~np.isfinite(surface["loss"].values))
    u, v = surface["u"].values, surface["v"].values
    along_x = np.array([u[0, 1] - u[0, 0], v[0, 1] - v[0, 0]]) / 2
    along_y = np.array([u[1, 0] - u[0, 0], v[1, 0] - v[0, 0]]) / 2
    centres = np.stack([u[rows, columns], v[rows, columns]], axis=-1)
    corners = np.stack(
        [-along_x - along_y, along_x - along_y, along_x + along_y, along_y - along_x]
    )
    return centres[:, None, :] + corners


def _fine_positions(count: int, fine: int) -> np.ndarray:
    """Positions between 0 and count - 1 that include every whole number."""
    factor = max(1, round(fine / count))
    return np.linspace(0, count - 1, (count - 1) * factor + 1)


def _nearest(positions: np.ndarray) -> np.ndarray:
    return np.floor(positions + 0.5).astype(int).clip(0, int(positions[-1]))


def _interpolate(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A spline through all values, without overshoot."""
    down, across = (np.arange(n, dtype=float) for n in values.shape)
    kx, ky = (min(3, n - 1) for n in values.shape)
    fine = RectBivariateSpline(down, across, values, kx=kx, ky=ky)(rows, columns)
    corner = np.ix_(_before(rows), _before(columns))
    # With this origin the 2 x 2 window of entry (i, j) holds the corners of the cell after it.
    low = minimum_filter(values, size=2, origin=-1, mode="nearest")[corner]
    high = maximum_filter(values, size=2, origin=-1, mode="nearest")[corner]
    return np.asarray(np.clip(fine, low, high))


def _before(positions: np.ndarray) -> np.ndarray:
    return np.floor(positions + 1e-9).astype(int)
