"""Result files of other programs, written here as those programs write them."""

from pathlib import Path

import numpy as np
import pytest

from exchange.surfaces import assert_same
from flatminima.exchange import load_surface, save_surface

BENDS = np.array([[0.0, 0.0], [20.0, 30.0], [50.0, 0.0]])


def height(x, y):
    """A function that tells x from y, and one sign from the other."""
    return 1 + np.square(x - 0.3) + 4 * np.square(y + 0.1) + 0.5 * x * y


def write_surface_file(path: Path, x: np.ndarray, y: np.ndarray, **changes) -> None:
    """As `crunch` of plot_surface.py does: declared (x, y), filled in the order of meshgrid."""
    h5py = pytest.importorskip("h5py")
    losses = -np.ones(shape=(len(x), len(y)))
    accuracies = -np.ones(shape=(len(x), len(y)))
    x_mesh, y_mesh = np.meshgrid(x, y)
    for index, (s, t) in enumerate(zip(x_mesh.ravel(), y_mesh.ravel(), strict=True)):
        if index != 7:  # the run was stopped
            losses.ravel()[index] = height(s, t)
            accuracies.ravel()[index] = 100 / height(s, t)
    losses.ravel()[9] = np.nan
    parts = {
        "dir_file": "model_weights.h5",
        "xcoordinates": x,
        "ycoordinates": y,
        "train_loss": losses,
        "train_acc": accuracies,
    } | changes
    with h5py.File(path, "w") as file:
        for name, values in parts.items():
            if values is not None:
                file[name] = values


@pytest.mark.parametrize("counts", [(5, 5), (7, 5), (5, 9)])
def test_a_loss_landscape_keeps_its_orientation(tmp_path: Path, counts: tuple[int, int]) -> None:
    x, y = (np.linspace(-1, 1, count) for count in counts)
    write_surface_file(tmp_path / "a.h5", x, y)
    surface = load_surface(tmp_path / "a.h5")
    expected = height(x[None, :], y[:, None])
    expected.ravel()[[7, 9]] = np.nan
    np.testing.assert_allclose(surface["loss"], expected, rtol=1e-15)
    outcome = np.zeros(expected.shape, np.int8)
    outcome.ravel()[[7, 9]] = 2, 1
    np.testing.assert_array_equal(surface["outcome"], outcome)
    assert surface["outcome"].attrs["flag_meanings"] == "finite non_finite missing"
    accuracy = surface["accuracy"].to_numpy().ravel()
    assert np.isnan(accuracy[7])
    np.testing.assert_allclose(accuracy[0], 1 / expected[0, 0])
    np.testing.assert_array_equal(surface["u"][0], x)
    np.testing.assert_array_equal(surface["v"][:, 0], y)
    np.testing.assert_allclose(surface["anchor_loss"], [height(0, 0)])
    assert surface.attrs["source"] == "loss-landscape"
    assert surface.attrs["dir_file"] == "model_weights.h5"
    assert surface.attrs["samples"] == 0
    save_surface(surface, tmp_path / "a.nc")
    assert_same(load_surface(tmp_path / "a.nc"), surface)


def test_a_grid_without_the_trained_network_has_no_anchor(tmp_path: Path) -> None:
    x, y = np.linspace(-1, 1, 5), np.linspace(-1, 1, 6)
    test = -np.ones((5, 6))
    test.ravel()[0] = 3.0
    write_surface_file(tmp_path / "a.h5", x, y, train_acc=None, dir_file=None, test_loss=test)
    surface = load_surface(tmp_path / "a.h5")
    assert surface.sizes["anchor"] == 0
    assert surface["anchor_distance"].shape == (0, 0)
    assert "accuracy" not in surface
    assert int(np.isfinite(surface["test_loss"]).sum()) == 1
    for suffix in (".csv", ".nc", ".zarr"):
        save_surface(surface, tmp_path / f"a{suffix}")
        assert_same(load_surface(tmp_path / f"a{suffix}"), surface)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ycoordinates": None}, "got a line without ycoordinates; run plot_surface.py with --y"),
        ({"xcoordinates": None}, "expected xcoordinates"),
        ({"train_loss": None}, "expected train_loss"),
        ({"train_loss": np.zeros((5, 4))}, r"has the shape \(5, 4\), not \(5, 6\)"),
        ({"train_acc": np.zeros(3)}, "has the shape"),
        ({"train_loss": "no numbers"}, "has the shape"),
        ({"xcoordinates": np.zeros((5, 1))}, "xcoordinates is not a row"),
        ({"xcoordinates": np.zeros(5)}, "come twice"),
        ({"ycoordinates": np.full(6, np.nan)}, "not finite"),
    ],
)
def test_a_surface_file_that_is_none_is_one_line(tmp_path: Path, changes, said: str) -> None:
    write_surface_file(tmp_path / "a.h5", np.linspace(-1, 1, 5), np.linspace(-1, 1, 6), **changes)
    with pytest.raises(ValueError, match=said) as error:
        load_surface(tmp_path / "a.h5")
    assert "\n" not in str(error.value)


def test_a_surface_file_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    write_surface_file(tmp_path / "a.h5", np.linspace(-1, 1, 5), np.linspace(-1, 1, 6))
    whole = (tmp_path / "a.h5").read_bytes()
    for length in (8, 100, len(whole) // 2, len(whole) - 8):
        (tmp_path / "cut.h5").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged or foreign") as error:
            load_surface(tmp_path / "cut.h5")
        assert "\n" not in str(error.value)


def plane_arrays() -> dict[str, np.ndarray]:
    """As plane.py saves them, with sides of different lengths."""
    dx, dy = 50.0, 30.0
    alphas, betas = np.linspace(-0.2, 1.2, 6), np.linspace(-0.1, 1.2, 6)
    grid = np.zeros((6, 6, 2))
    arrays = {f"{s}_{k}": np.zeros((6, 6)) for s in ("tr", "te") for k in ("loss", "nll", "acc")}
    for i, alpha in enumerate(alphas):
        for j, beta in enumerate(betas):
            grid[i, j] = [alpha * dx, beta * dy]
            for split, more in (("tr", 0.0), ("te", 0.5)):
                arrays[f"{split}_nll"][i, j] = height(alpha, beta) + more
                arrays[f"{split}_loss"][i, j] = height(alpha, beta) + more + 0.25
                arrays[f"{split}_acc"][i, j] = 90 - 10 * alpha
    ts = np.linspace(0, 1, 4)
    curve = np.column_stack([50 * ts, 40 * ts * (1 - ts)])
    arrays |= {"tr_err": 100 - arrays["tr_acc"], "te_err": 100 - arrays["te_acc"]}
    return arrays | {
        "ts": ts,
        "bend_coordinates": BENDS,
        "curve_coordinates": curve,
        "alphas": alphas,
        "betas": betas,
        "grid": grid,
    }


def test_a_plane_keeps_its_orientation_and_distances(tmp_path: Path) -> None:
    arrays = plane_arrays()
    arrays["tr_nll"][2, 4] = np.inf
    np.savez(tmp_path / "plane.npz", **arrays)
    surface = load_surface(tmp_path / "plane.npz")
    x, y = surface["x"].to_numpy(), surface["y"].to_numpy()
    expected = height(x[None, :], y[:, None])
    expected[4, 2] = np.nan
    np.testing.assert_allclose(surface["loss"], expected)
    np.testing.assert_allclose(surface["regularised_loss"], height(x[None, :], y[:, None]) + 0.25)
    np.testing.assert_allclose(surface["test_loss"], height(x[None, :], y[:, None]) + 0.5)
    np.testing.assert_allclose(surface["accuracy"][0], 0.9 - 0.1 * x)
    np.testing.assert_allclose(surface["u"][3], 50 * x)
    np.testing.assert_allclose(surface["v"][:, 3], 30 * y)
    assert surface["outcome"].to_numpy()[4, 2] == 1
    np.testing.assert_allclose(surface["anchor_x"], [0, 0.4, 1], atol=1e-12)
    np.testing.assert_allclose(surface["anchor_y"], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(surface["anchor_distance"][0], [0, np.hypot(20, 30), 50])
    np.testing.assert_array_equal(surface["anchor_outcome"], [2, 2, 2])
    np.testing.assert_array_equal(surface["curve_u"], arrays["curve_coordinates"][:, 0])
    assert surface.attrs["source"] == "dnn-mode-connectivity"
    assert surface.attrs["batchnorm"] == "recompute"
    for suffix in (".csv", ".nc", ".zarr"):
        save_surface(surface, tmp_path / f"a{suffix}")
        assert_same(load_surface(tmp_path / f"a{suffix}"), surface)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tr_nll": None}, "expected alphas, betas, grid, tr_nll"),
        ({"tr_nll": np.zeros((5, 6))}, r"tr_nll is float64 of shape \(5, 6\), not \(6, 6\)"),
        ({"grid": np.zeros((6, 6))}, "grid is"),
        ({"grid": np.zeros((6, 6, 2))}, "no extent"),
        ({"grid": np.full((6, 6, 2), np.nan)}, "not finite"),
        ({"alphas": np.zeros((6, 6))}, "alphas is not a row"),
        ({"bend_coordinates": np.zeros(3)}, "bend_coordinates is"),
        ({"tr_nll": np.full((6, 6), {"a": 1}, dtype=object)}, "allow_pickle=False"),
    ],
)
def test_a_plane_that_is_none_is_one_line(tmp_path: Path, changes, said: str) -> None:
    arrays = {k: v for k, v in (plane_arrays() | changes).items() if v is not None}
    np.savez(tmp_path / "plane.npz", **arrays)
    with pytest.raises(ValueError, match=said) as error:
        load_surface(tmp_path / "plane.npz")
    assert "\n" not in str(error.value)


def test_a_plane_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "plane.npz", **plane_arrays())
    whole = (tmp_path / "plane.npz").read_bytes()
    for length in (2, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged or foreign") as error:
            load_surface(tmp_path / "cut")
        assert "\n" not in str(error.value)
