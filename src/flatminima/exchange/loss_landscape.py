"""Surface files of loss-landscape.

Li et al., 2018, "Visualizing the Loss Landscape of Neural Nets":
https://github.com/tomgoldstein/loss-landscape, `plot_surface.py` and `scheduler.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from flatminima.exchange._checks import GRID
from flatminima.exchange._damage import listed, readable
from flatminima.exchange._foreign import Anchors, axis, foreign_surface
from flatminima.exchange._libraries import library
from flatminima.exchange.netcdf import read_netcdf

_NOT_COMPUTED = -1.0


def read_hdf5(path: Path) -> xr.Dataset:
    """Read a surface file, or NetCDF 4, which is HDF5 too.

    Raises:
        ValueError: If it is damaged, is neither, or holds a line.
        ImportError: If h5py is missing, or h5netcdf for NetCDF 4.
    """
    h5py = library("h5py", ".h5")
    with readable(path, "HDF5"), h5py.File(path, "r") as file:
        names = set(file)
    if "xcoordinates" not in names:
        if {"loss", "x", "y"} <= names:
            library("h5netcdf", "NetCDF 4")
            return read_netcdf(path, "h5netcdf")
        raise ValueError(
            f"expected xcoordinates (loss-landscape) or loss, x and y (NetCDF) in {path}, got"
            f" {listed(names)}; name another file"
        )
    if "ycoordinates" not in names:
        raise ValueError(
            f"expected a plane in {path}, got a line without ycoordinates; run plot_surface.py with"
            " --y"
        )
    if "train_loss" not in names:
        raise ValueError(
            f"expected train_loss in {path}, got {listed(names)}; run plot_surface.py to its end"
        )
    with readable(path, "a surface file of loss-landscape"), h5py.File(path, "r") as file:
        return _surface(file)


def _surface(file: Any) -> xr.Dataset:
    """The datasets of an open file as a surface."""
    x, y = (axis(file[f"{name}coordinates"][()], f"{name}coordinates") for name in "xy")
    shape = (y.size, x.size)
    u, v = np.meshgrid(x, y)
    grid = xr.Dataset({"u": (GRID, u), "v": (GRID, v)}, {"x": x, "y": y})
    for name, which in (("x", "first"), ("u", "first"), ("y", "second"), ("v", "second")):
        grid[name].attrs["long_name"] = f"multiple of the {which} direction"
    optional = {
        "accuracy": ("train_acc", 0.01),  # percent there
        "test_loss": ("test_loss", 1.0),
        "test_accuracy": ("test_acc", 0.01),
    }
    for name, (theirs, unit) in optional.items():
        if theirs in file:
            values = _on_grid(file[theirs], shape)
            known = np.isfinite(values) & (values != _NOT_COMPUTED)
            grid[name] = (GRID, np.where(known, values * unit, np.nan))
    loss = _on_grid(file["train_loss"], shape)
    attributes = {"source": "loss-landscape"}
    if "dir_file" in file:
        text = file["dir_file"][()]
        attributes["dir_file"] = (
            text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        )
    missing = loss == _NOT_COMPUTED
    return foreign_surface(grid, loss, missing, _trained(x, y, loss, missing), **attributes)


def _on_grid(dataset: Any, shape: tuple[int, int]) -> np.ndarray:
    """Values over (y, x).

    The program declares the shape (x, y), but fills the flat array in the order of
    `meshgrid(x, y)`: y outer, x inner. The order is what was computed; only on square grids do the
    two agree.
    """
    if sorted(dataset.shape) != sorted(shape):
        raise ValueError(f"{dataset.name} has the shape {dataset.shape}, not {shape[::-1]}")
    return np.asarray(dataset[()], dtype=np.float64).reshape(shape)


def _trained(x: np.ndarray, y: np.ndarray, loss: np.ndarray, missing: np.ndarray) -> Anchors:
    """The network that the directions start from, if it is a grid point that was computed."""
    found = []
    for values in (x, y):
        near = int(np.abs(values).argmin())
        # Off by rounding only.
        found.append(near if abs(values[near]) < 1e-6 * np.ptp(values) / values.size else None)
    column, row = found
    if column is None or row is None or missing[row, column]:
        nowhere = np.empty((0, 2))
        return Anchors(nowhere, nowhere, np.empty(0), known=True)
    origin = np.zeros((1, 2))
    return Anchors(origin, origin, loss[row, column][None], known=True)
