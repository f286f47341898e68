"""Planes of dnn-mode-connectivity.

Garipov et al., 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs":
https://github.com/timgaripov/dnn-mode-connectivity, `plane.py`.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from flatminima.exchange._checks import GRID
from flatminima.exchange._damage import listed, readable
from flatminima.exchange._foreign import Anchors, axis, foreign_surface

_NEEDED = ("alphas", "betas", "grid", "tr_nll")
# The program adds weight decay to what it calls loss; errors repeat the accuracies.
_OPTIONAL = {
    "regularised_loss": ("tr_loss", 1.0),
    "accuracy": ("tr_acc", 0.01),  # percent there
    "test_loss": ("te_nll", 1.0),
    "test_regularised_loss": ("te_loss", 1.0),
    "test_accuracy": ("te_acc", 0.01),
}


def read_plane(path: Path) -> xr.Dataset:
    """Read `plane.npz`.

    Raises:
        ValueError: If it is damaged, of another program, or needs pickle.
    """
    kind = "a plane.npz of dnn-mode-connectivity"
    with readable(path, kind), np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        wanted = {"bend_coordinates", "curve_coordinates", "ts", *_NEEDED}
        wanted |= {theirs for theirs, _ in _OPTIONAL.values()}
        names = file.files
        arrays = {name: file[name] for name in names if name in wanted}
    lacking = [name for name in _NEEDED if name not in arrays]
    if lacking:
        raise ValueError(
            f"expected {', '.join(_NEEDED)} in {path}, got {listed(names)}; name a"
            " file that plane.py wrote"
        )
    with readable(path, kind):
        return _surface(arrays)


def _surface(arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    """The arrays as a surface; [i, j] belongs to (alphas[i], betas[j])."""
    x, y = axis(arrays["alphas"], "alphas"), axis(arrays["betas"], "betas")
    position = _numbers(arrays, "grid", (x.size, y.size, 2))
    if not np.isfinite(position).all():
        raise ValueError("grid has values that are not finite")
    grid = xr.Dataset(
        {"u": (GRID, position[..., 0].T), "v": (GRID, position[..., 1].T)}, {"x": x, "y": y}
    )
    for name, which in (("x", "first"), ("y", "second")):
        grid[name].attrs["long_name"] = f"multiple of the {which} side"
    for name in ("u", "v"):
        grid[name].attrs["long_name"] = "distance in weight space"
    for name, (theirs, unit) in _OPTIONAL.items():
        if theirs in arrays:
            grid[name] = (GRID, _numbers(arrays, theirs, (x.size, y.size)).T * unit)
    if {"ts", "curve_coordinates"} <= set(arrays):
        ts = axis(arrays["ts"], "ts")
        curve = _numbers(arrays, "curve_coordinates", (ts.size, 2))
        for name, values in (("t", ts), ("u", curve[:, 0]), ("v", curve[:, 1])):
            grid[f"curve_{name}"] = ("curve", values)
    loss = _numbers(arrays, "tr_nll", (x.size, y.size)).T
    return foreign_surface(
        grid,
        loss,
        np.zeros(loss.shape, dtype=bool),
        _bends(arrays, x, y, position),
        source="dnn-mode-connectivity",
        batchnorm="recompute",
        loss_name="cross_entropy",
    )


def _numbers(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int | None, ...]
) -> np.ndarray:
    """One of the arrays as floats; None in `shape` stands for any length."""
    values = arrays[name]
    same = len(shape) == values.ndim and all(
        length in (None, found) for length, found in zip(shape, values.shape, strict=True)
    )
    if not same or values.dtype.kind not in "iuf":
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}, not {shape}")
    return values.astype(np.float64)


def _bends(
    arrays: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray, position: np.ndarray
) -> Anchors:
    """The networks that the curve is made of; what their losses are is not in the file."""
    bends = np.empty((0, 2))
    if "bend_coordinates" in arrays:
        bends = _numbers(arrays, "bend_coordinates", (None, 2))
    i, j = int(np.abs(x).argmax()), int(np.abs(y).argmax())
    sides = np.array([position[i, 0, 0] / x[i], position[0, j, 1] / y[j]])
    if not sides.all():
        raise ValueError("grid has no extent")
    return Anchors(bends / sides, bends, np.full(len(bends), np.nan), known=False)
