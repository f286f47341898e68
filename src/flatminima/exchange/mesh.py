"""A surface as a mesh of triangles, for printing and for looking at."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from flatminima.exchange._libraries import library

_HEIGHT = 0.5
"""Height of a loss of `clip` as a share of the grid's longer side, as in the figures."""
_ANCHORS = 5.0
"""By default a relief shows losses up to this many times the worst anchor's, at least."""


@dataclass(frozen=True)
class Triangles:
    """Corners `[corners, 3]`, and three of them for each triangle, seen counterclockwise."""

    corners: np.ndarray
    faces: np.ndarray


def write_mesh(surface: xr.Dataset, path: Path, clip: float | None) -> None:
    """Write `.stl`, or `.glb` with colours."""
    suffix = path.suffix
    trimesh = library("trimesh", suffix)
    relief = triangles(surface, clip)
    corners = relief.corners
    if suffix == ".glb":  # y is up there
        corners = np.column_stack([corners[:, 0], corners[:, 2], -corners[:, 1]])
    mesh = trimesh.Trimesh(corners, relief.faces, process=False)
    if suffix == ".glb":
        height = relief.corners[:, 2]
        mesh.visual.vertex_colors = trimesh.visual.interpolate(height, color_map="viridis")
    mesh.export(path, file_type=suffix.removeprefix("."))


def triangles(surface: xr.Dataset, clip: float | None) -> Triangles:
    """The relief without the cells that have a corner of no finite loss.

    Raises:
        ValueError: If no cell is left, or `clip` is not above the lowest loss.
    """
    loss = surface["loss"].to_numpy().astype(np.float64)
    faces = _faces(np.isfinite(loss))
    if not len(faces):
        raise ValueError(
            "expected a cell with four finite losses to draw, got none; save a .csv to look at the"
            " losses"
        )
    u, v = (surface[name].to_numpy().astype(np.float64) for name in ("u", "v"))
    points = np.column_stack([u.ravel(), v.ravel(), _heights(surface, clip).ravel()])
    used, faces = np.unique(faces, return_inverse=True)
    faces, corners = faces.reshape(-1, 3), points[used]
    first, second, third = (corners[faces[:, i], :2] for i in range(3))
    a, b = second - first, third - first
    if (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() < 0:  # (u, v) mirrors (x, y)
        faces = faces[:, ::-1]
    return Triangles(corners, faces)


def default_clip(surface: xr.Dataset) -> float:
    """A clip that shows the basins and at least half of the grid's losses as they are."""
    loss = surface["loss"].to_numpy().astype(np.float64)
    loss = loss[np.isfinite(loss)]
    anchors = surface["anchor_loss"].to_numpy() if "anchor_loss" in surface else np.empty(0)
    worst = float(np.max(anchors, where=np.isfinite(anchors), initial=0.0))
    return min(max(_ANCHORS * worst, float(np.median(loss))), float(loss.max()))


def _heights(surface: xr.Dataset, clip: float | None) -> np.ndarray:
    """Losses in units of length: 0, or the lowest if it is negative, is at the bottom."""
    loss = surface["loss"].to_numpy().astype(np.float64)
    lowest = float(loss[np.isfinite(loss)].min())
    if clip is not None and clip <= lowest:
        raise ValueError(f"expected a clip above the lowest loss, {lowest:g}, got {clip:g}")
    top, bottom = default_clip(surface) if clip is None else clip, min(0.0, lowest)
    width = max(float(np.ptp(surface[name].to_numpy())) for name in ("u", "v"))
    scale = _HEIGHT * width / (top - bottom) if top > bottom else 0.0
    return np.asarray((np.minimum(loss, top) - bottom) * scale)


def _faces(drawn: np.ndarray) -> np.ndarray:
    """Two triangles for each cell of a grid whose corners are all drawn."""
    index = np.arange(drawn.size).reshape(drawn.shape)
    whole = drawn[:-1, :-1] & drawn[:-1, 1:] & drawn[1:, 1:] & drawn[1:, :-1]
    a, b = index[:-1, :-1][whole], index[:-1, 1:][whole]
    c, d = index[1:, 1:][whole], index[1:, :-1][whole]
    return np.concatenate([np.column_stack([a, b, c]), np.column_stack([a, c, d])])
