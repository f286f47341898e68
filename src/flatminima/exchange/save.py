"""Write a surface for another program; the suffix says for which."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from flatminima.exchange._checks import checked
from flatminima.exchange._replace import replacing
from flatminima.exchange.folder import is_zarr, write_zarr
from flatminima.exchange.mesh import write_mesh
from flatminima.exchange.netcdf import write_netcdf
from flatminima.exchange.paraview import write_anchor_points, write_structured_grid
from flatminima.exchange.table import write_table

_DATA: dict[str, Callable[[xr.Dataset, Path], None]] = {
    ".csv": write_table,
    ".nc": write_netcdf,
    ".zarr": write_zarr,
    ".vts": write_structured_grid,
    ".vtu": write_anchor_points,
}
_MESHES = (".stl", ".glb")


def save_surface(surface: xr.Dataset, path: str | Path, *, clip: float | None = None) -> None:
    """Write a surface into a file whose suffix says what kind.

    Tables and arrays, whole and exact; `load_surface` gives back equal values, coordinates and
    attributes:

    - `.csv`: one row per grid point (y outer, x inner) with x, y, and every variable over the
      grid, all digits. Lines in front that begin with `#` hold the attributes and everything else
      (the anchors), as JSON: one file, which `pandas.read_csv(path, comment="#")` reads.
    - `.nc`: NetCDF 3, which everything reads. Attributes that NetCDF 3 cannot hold (booleans,
      None, lists of texts) are only in the attribute `flatminima`, as JSON.
    - `.zarr`: a zarr folder, format 2.

    For ParaView, with the library pyevtk:

    - `.vts`: a flat structured grid at the isometric positions (u, v, 0), with every variable over
      the grid as point data. Nothing is clipped or scaled; its filter "Warp By Scalar" raises the
      loss.
    - `.vtu`: the anchors as points (u, v, 0), with what is known of each as point data.

    Meshes, with the library trimesh:

    - `.stl`: the relief of the loss over (u, v), for printing. A loss of `clip` stands at half the
      width (the longer side) of the grid, and higher ones are a plateau there. Cells with a corner
      whose loss is not finite are left out. Positions are float32.
    - `.glb`: the same with the colours of viridis at the vertices; up is y, as glTF has it, and v
      points away from the viewer.

    A file or zarr folder that exists is replaced in one step, once the new one is whole; nothing
    but `path` is written.

    Args:
        surface: From `loss_surface`, `load_surface`, or a study's results.
        path: Where to; its folder must exist.
        clip: For meshes: losses above are drawn at this height. By default five times the largest
            loss of an anchor or the median loss of the grid, whichever is more, but not above the
            largest. Other files are never clipped.

    Raises:
        ValueError: If the suffix is none of these, the surface is none or holds something else
            than numbers, the place is a folder that holds something else, `clip` is given for
            other files than meshes or is not above the lowest loss, or there is nothing to draw.
        ImportError: If a library that the suffix needs is not installed.
        OSError: If the disk is full or not writable; what was there before stays.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _DATA and suffix not in _MESHES:
        known = ", ".join([*_DATA, *_MESHES])
        raise ValueError(
            f"expected a file name that ends in one of {known}, got {path.name}; rename it"
        )
    if clip is not None and suffix not in _MESHES:
        raise ValueError(
            f"expected clip only for .stl and .glb, got it for {suffix}, which holds the losses as"
            " they are; leave it out"
        )
    if clip is not None and not np.isfinite(clip):
        raise ValueError(f"expected a finite clip, got {clip}; give a loss")
    _check_place(path, suffix)
    made = checked(surface, "give one from loss_surface or load_surface")
    with replacing(path) as new:
        if suffix in _MESHES:
            write_mesh(made, new, clip)
        else:
            _DATA[suffix](made, new)


def _check_place(path: Path, suffix: str) -> None:
    """Refuse to replace anything but a file by a file, or a zarr folder by a zarr folder."""
    if suffix == ".zarr":
        if path.exists() and not is_zarr(path):
            raise ValueError(
                f"expected a zarr folder or nothing at {path}, got something else; name another"
            )
    elif path.is_dir():
        raise ValueError(f"expected a file or nothing at {path}, got a folder; name another")
