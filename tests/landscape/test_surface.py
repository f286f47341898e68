"""Grids: order, positions, anchors, holes."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import flatminima as fm
import naive
from cases import perceptron, points, states
from flatminima.landscape import assemble_surface, surface_grid
from flatminima.landscape.surface import grid_coordinates
from flatminima.subspace import Subspace


@pytest.fixture(scope="module")
def plane():
    return Subspace.through(*states(perceptron, 3))


@pytest.fixture(scope="module")
def landscape():
    return fm.Landscape(perceptron(), points())


def test_every_cell_is_the_loss_at_its_own_labels(plane, landscape):
    """An asymmetric extent: a transposed or flipped grid cannot pass."""
    surface = fm.loss_surface(landscape, plane, resolution=4, extent=((-1.0, 2.0), (0.5, 5.0)))
    assert surface.loss.dims == ("y", "x")
    for x in surface.x.values:
        for y in surface.y.values:
            parameters = naive.parameters_at(plane, [x, y])
            want, accuracy = naive.loss_at(perceptron(), parameters, points())
            cell = surface.sel(x=x, y=y)
            np.testing.assert_allclose(cell.loss, want, rtol=1e-12)
            np.testing.assert_allclose(cell.accuracy, accuracy)
            np.testing.assert_allclose([cell.u, cell.v], [x, y], atol=1e-9)


@given(resolution=st.integers(2, 6), low=st.floats(-0.9, 0.2), width=st.floats(0.3, 2.0))
@settings(max_examples=10, deadline=None)
def test_barycentric_cells_mix_the_three_networks(resolution, low, width):
    minima = states(perceptron, 3)
    plane = Subspace.through(*minima)
    surface = fm.loss_surface(
        fm.Landscape(perceptron(), points()),
        plane,
        resolution=resolution,
        extent=(low, low + width),
        coordinates="barycentric",
    )
    x, y = surface.x.values[-1], surface.y.values[0]
    want, _ = naive.loss_at(perceptron(), naive.through(*minima, x, y), points())
    np.testing.assert_allclose(surface.loss[0, -1], want, rtol=1e-10)


def test_positions_are_isometric_in_both_kinds_of_coordinates(plane, landscape):
    surface = fm.loss_surface(landscape, plane, resolution=3, coordinates="barycentric")
    a, b = (
        naive.through(*plane.anchors, surface.x.values[i], surface.y.values[j])
        for i, j in ((0, 1), (2, 2))
    )
    apart = np.sqrt(sum(float((a[n] - b[n]).square().sum()) for n in a))
    flat = np.hypot(surface.u[1, 0] - surface.u[2, 2], surface.v[1, 0] - surface.v[2, 2])
    np.testing.assert_allclose(flat, apart, rtol=1e-9)


def test_anchors_carry_their_own_losses_and_distances(plane, landscape):
    for coordinates in ("isometric", "barycentric"):
        surface = fm.loss_surface(landscape, plane, resolution=2, coordinates=coordinates)
        own = [landscape.loss_at(anchor).loss[0] for anchor in plane.anchors]
        np.testing.assert_allclose(surface.anchor_loss, own, rtol=1e-12)
        one, two = plane.anchors[1].parameters, plane.anchors[2].parameters
        apart = np.sqrt(sum(float((one[n] - two[n]).square().sum()) for n in one))
        np.testing.assert_allclose(surface.anchor_distance[1, 2], apart, rtol=1e-9)
    np.testing.assert_allclose(surface.anchor_x, [1, 0, 0])
    np.testing.assert_allclose(surface.anchor_y, [0, 1, 0])


def test_a_row_of_the_plane_equals_the_line(plane, landscape):
    a, b, _ = plane.anchors
    line = Subspace.through(a, b)
    length = line.anchor_coordinates[1, 0]
    surface = fm.loss_surface(landscape, plane, resolution=5, extent=((0.0, length), (0.0, length)))
    along = landscape.losses(line, surface.x.values[:, None])
    np.testing.assert_allclose(surface.loss[0], along.loss, rtol=1e-10)


def test_a_surface_in_tiles_is_the_same_surface(plane, landscape):
    grid = surface_grid(plane, resolution=5, coordinates="barycentric")
    wanted = np.vstack([grid_coordinates(grid), plane.anchor_coordinates])
    parts = [landscape.losses(plane, part) for part in np.array_split(wanted, 4)]
    whole = fm.loss_surface(landscape, plane, resolution=5, coordinates="barycentric")
    cells = np.concatenate([part.loss for part in parts])
    np.testing.assert_array_equal(cells[:25].reshape(5, 5), whole.loss)
    again = assemble_surface(grid, landscape.losses(plane, wanted), landscape)
    assert again.equals(whole)


@pytest.mark.parametrize(
    ("whole", "real"),
    [
        ({"extent": (-1, 1)}, {"extent": (-1.0, 1.0)}),
        ({"extent": ((-1, 1.5), (0, 2))}, {"extent": ((-1.0, 1.5), (0.0, 2.0))}),
        ({"clip": 2, "refine": 1}, {"clip": 2.0, "refine": 1.0}),
    ],
)
def test_whole_numbers_make_the_same_surface(plane, landscape, whole, real):
    """Annotations are checked here, so that they must say that ints will do."""
    surface, expected = (
        fm.loss_surface(landscape, plane, resolution=3, **settings) for settings in (whole, real)
    )
    xr.testing.assert_identical(surface, expected)


def test_whole_numbers_will_do_wherever_numbers_are_real(landscape):
    first, second, *_ = states(perceptron, 3)
    line = fm.loss_line(landscape, first, second, resolution=7, extent=(-1, 2))
    radii = fm.flatness_radius(landscape, first, threshold=1, step=2, max_radius=4, directions=1)
    recipe = fm.Recipe(epochs=1, learning_rate=1, momentum=0, stop_at_loss=1)
    assert fm.randomize_labels(points(), 0, seed=0).digest == points().digest
    assert recipe.settings() == fm.Recipe(epochs=1, learning_rate=1.0, stop_at_loss=1.0).settings()
    assert fm.train(perceptron, points(), recipe, seed=0, match_loss=100).matched is not None
    for value in (line.attrs["barrier"], radii.threshold, radii.max_radius, recipe.learning_rate):
        assert isinstance(value, float)


def test_holes_are_flagged_never_filled(landscape):
    network = perceptron()
    plane = Subspace.random(network, 2, 0)
    surface = fm.loss_surface(landscape, plane, resolution=3, extent=(-1e300, 1e300))
    assert surface.outcome.values[0, 0] == 1
    assert np.isnan(surface.loss.values[0, 0])
    assert surface.outcome.values[1, 1] == 0
    assert surface.outcome.attrs["flag_meanings"] == "finite non_finite"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"resolution": 1}, "resolution of at least 2"),
        ({"coordinates": "polar"}, "'isometric' or 'barycentric'"),
        ({"extent": (1.0, 0.0)}, "from below to"),
    ],
)
def test_impossible_grids_are_refused(plane, landscape, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        fm.loss_surface(landscape, plane, **settings)


def test_grids_need_a_plane_and_anchors(landscape):
    network = perceptron()
    with pytest.raises(ValueError, match="expected a plane"):
        fm.loss_surface(landscape, Subspace.random(network, 3, 0), extent=(-1.0, 1.0))
    with pytest.raises(ValueError, match="three anchors"):
        fm.loss_surface(landscape, Subspace.random(network, 2, 0), coordinates="barycentric")
    with pytest.raises(ValueError, match="expected an extent"):
        fm.loss_surface(landscape, Subspace.random(network, 2, 0))
