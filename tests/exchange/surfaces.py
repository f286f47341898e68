"""Surfaces with everything that files have trouble with."""

import numpy as np
import xarray as xr


def make_surface(rows: int = 4, columns: int = 5, *, anchors: int = 3) -> xr.Dataset:
    """Skewed axes of different lengths, holes, awkward numbers, attributes of every type."""
    rng = np.random.default_rng(0)
    x, y = np.linspace(-0.4, 1.3, columns), np.linspace(-0.1, 0.7, rows)
    loss = rng.exponential(2.0, (rows, columns))
    loss[0, 0], loss[1, 0] = np.nextafter(1.0, 2.0), 5e-324
    loss[-1, -1] = np.nan
    accuracy = rng.random((rows, columns))
    accuracy[2, 1] = np.nan
    grid = ("y", "x")
    position = rng.normal(0, 9, (anchors, 2))
    gaps = np.linalg.norm(position[:, None] - position[None], axis=-1)
    surface = xr.Dataset(
        {
            "anchor_u": ("anchor", position[:, 0]),
            "anchor_v": ("anchor", position[:, 1]),
            "anchor_loss": ("anchor", np.where(np.arange(anchors) == 1, np.nan, 0.1)),
            "anchor_distance": (("anchor", "other"), gaps),
            "u": (grid, 30 * x[None, :] + 15 * y[:, None]),
            "v": (grid, 26.5 * y[:, None] + 0 * x[None, :]),
            "loss": (grid, loss),
            "accuracy": (grid, accuracy),
            "loss_noisy, labels": (grid, loss.astype(np.float32)),
            "outcome": (grid, np.isnan(loss).astype(np.int8)),
            "interpolated": (grid, loss > 2),
            "seen": (grid, np.arange(loss.size, dtype=np.int64).reshape(loss.shape)),
        },
        coords={"x": x, "y": y},
        attrs={
            "axes": "barycentric",
            "dimensions": 2,
            "samples": 60000,
            "clip": 0.1 + 0.2,
            "largest": float("inf"),
            "exact": True,
            "nothing": None,
            "empty": "",
            "none of them": [],
            "classes": ["one: two", 'th"ree', "vier\nü"],
            "weights": [0.5, 1.0],
            "seed": 2**40,
        },
    )
    surface["u"].attrs["data"] = "of the anchors"
    surface["u"].attrs["long_name"] = "distance in weight space"
    surface["outcome"].attrs.update(flag_values=[0, 1], flag_meanings="finite non_finite")
    return surface


def assert_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Values to the last bit, types, coordinates, and attributes."""
    xr.testing.assert_identical(found, expected)
    for name, variable in expected.variables.items():
        assert found[name].dtype == variable.dtype, name
        np.testing.assert_array_equal(
            np.signbit(found[name].to_numpy().astype(float)),
            np.signbit(variable.to_numpy().astype(float)),
        )
    assert {k: type(v) for k, v in found.attrs.items()} == {
        k: type(v) for k, v in expected.attrs.items()
    }
