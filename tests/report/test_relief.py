import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from flatminima.report.relief import hole_cells, make_relief

losses = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=7),
    elements=st.floats(0, 50, width=32),
)


def skewed(loss: np.ndarray) -> xr.Dataset:
    """`loss` on a grid whose axes are not orthogonal."""
    rows, columns = loss.shape
    x, y = np.arange(columns) * 1.0, np.arange(rows) * 1.0
    u, v = 2 * x[None, :] + y[:, None], 3 * y[:, None] - x[None, :]
    grid = ("y", "x")
    return xr.Dataset({"loss": (grid, loss), "u": (grid, u), "v": (grid, v)}, {"x": x, "y": y})


@given(losses)
def test_keeps_the_grid_points_and_never_overshoots(loss: np.ndarray) -> None:
    rows, columns = loss.shape
    relief = make_relief(skewed(loss), fine=20)
    step = (relief.loss.shape[0] - 1) // (rows - 1), (relief.loss.shape[1] - 1) // (columns - 1)
    np.testing.assert_allclose(relief.loss[:: step[0], :: step[1]], loss, atol=1e-9)
    assert relief.loss.min() >= loss.min()
    assert relief.loss.max() <= loss.max()


def test_positions_stay_isometric() -> None:
    surface = skewed(np.zeros((4, 5)))
    relief = make_relief(surface, fine=20)
    j, i = np.meshgrid(np.linspace(0, 4, relief.u.shape[1]), np.linspace(0, 3, relief.u.shape[0]))
    np.testing.assert_allclose(relief.u, 2 * j + i, atol=1e-12)
    np.testing.assert_allclose(relief.v, 3 * i - j, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_point_without_a_finite_loss_is_a_hole_of_its_own_size(bad: float) -> None:
    loss = np.ones((5, 5))
    loss[2, 3] = bad
    relief = make_relief(skewed(loss), fine=50)
    hole = np.isnan(relief.loss)
    step = (relief.loss.shape[0] - 1) // 4
    rows, columns = np.nonzero(hole)
    assert hole[2 * step, 3 * step]
    np.testing.assert_array_less(np.abs(rows / step - 2), 0.5 + 1e-9)
    np.testing.assert_array_less(np.abs(columns / step - 3), 0.5 + 1e-9)
    np.testing.assert_allclose(relief.loss[~hole], 1.0)


def test_clipping_makes_a_plateau_and_leaves_holes() -> None:
    loss = np.array([[0.0, 10.0], [np.nan, 1.0]])
    clipped = make_relief(skewed(loss), fine=2).clipped(3.5)
    np.testing.assert_allclose(clipped, [[0.0, 3.5], [np.nan, 1.0]])


def test_a_surface_without_any_finite_loss_is_one_hole() -> None:
    assert np.isnan(make_relief(skewed(np.full((3, 3), np.nan))).loss).all()


def test_hole_cells_surround_their_points() -> None:
    loss = np.zeros((3, 4))
    loss[1, 2] = np.nan
    surface = skewed(loss)
    (cell,) = hole_cells(surface)
    centre = [surface["u"].values[1, 2], surface["v"].values[1, 2]]
    np.testing.assert_allclose(cell.mean(axis=0), centre)
    # Half a step along both grid axes, (2, -1) and (1, 3).
    np.testing.assert_allclose(cell[2] - cell[0], [3.0, 2.0])
