"""A surface as VTK files."""

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import xarray as xr

from flatminima.exchange._checks import grid_variables
from flatminima.exchange._libraries import library


def write_structured_grid(surface: xr.Dataset, path: Path) -> None:
    """Write a flat `.vts` at the isometric positions, with all variables as point data."""
    high = library("pyevtk.hl", ".vts")
    y, x = np.meshgrid(surface["y"].to_numpy(), surface["x"].to_numpy(), indexing="ij")
    data = {name: surface[name].to_numpy() for name in grid_variables(surface)} | {"x": x, "y": y}
    # Axes are (x, y, z) there.
    fields = _named((name, values.T[:, :, None]) for name, values in data.items())
    u, v = fields["u"].astype(np.float64), fields["v"].astype(np.float64)
    high.gridToVTK(str(path.with_suffix("")), u, v, np.zeros_like(u), pointData=fields)


def write_anchor_points(surface: xr.Dataset, path: Path) -> None:
    """Write the anchors as the points of a `.vtu`, with what is known of each as point data."""
    high = library("pyevtk.hl", ".vtu")
    known = {
        str(name).removeprefix("anchor_"): surface[name].to_numpy()
        for name in surface.variables
        if surface[name].dims == ("anchor",)
    }
    count = surface.sizes.get("anchor", 0)
    if not count or not {"u", "v"} <= set(known):
        raise ValueError(
            f"expected anchors with positions for a .vtu, got {count} anchors; save the grid as"
            " .vts"
        )
    fields = _named({"index": np.arange(count), **known}.items())
    u, v = fields["u"].astype(np.float64), fields["v"].astype(np.float64)
    high.pointsToVTK(str(path.with_suffix("")), u, v, np.zeros_like(u), data=fields)


def _named(fields: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays that the library can write: it neither escapes names nor copies views."""
    return {
        escape(name, {'"': "&quot;"}): np.ascontiguousarray(
            values.astype(np.uint8) if values.dtype.kind == "b" else values
        )
        for name, values in fields
    }
