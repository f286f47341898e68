"""The loss along a line, and barriers of functions that are known."""

import numpy as np
import pytest
import torch
from torch import nn

import cases
import flatminima as fm
import naive
from cases import flat, perceptron, points, states
from flatminima.connectivity import loss_line
from flatminima.subspace import Subspace


class OneWeight(nn.Module):
    """Its output is its weight, so the loss is any function of that."""

    def __init__(self, at=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([float(at)], dtype=torch.float64))

    def forward(self, x):
        return x * self.w


def line_of(function, start=-1.0, end=1.0, **settings):
    data = fm.Dataset(torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    landscape = fm.Landscape(OneWeight(), data, loss=lambda outputs, _: function(outputs[:, 0]))
    return loss_line(landscape, OneWeight(start), OneWeight(end), **settings)


def double_well(t):
    return (t**2 - 1) ** 2


def tilted(t):
    return double_well(t) + 0.5 * t + 3.0


@pytest.fixture(scope="module")
def ends():
    return states(perceptron, 3)


@pytest.fixture(scope="module")
def landscape():
    return fm.Landscape(perceptron(), points())


def test_every_position_is_the_loss_of_the_mixture(ends, landscape):
    a, b, _ = ends
    line = loss_line(landscape, a, b, resolution=9, extent=(-0.3, 1.7))
    assert line.loss.dims == ("position",)
    for index in np.random.default_rng(0).choice(9, 5, replace=False):
        at = line.isel(position=index)
        t = float(at.position)
        mixed = {n: (1 - t) * a.parameters[n] + t * b.parameters[n] for n in a.parameters}
        want, accuracy = naive.loss_at(perceptron(), mixed, points())
        np.testing.assert_allclose(at.loss, want, rtol=1e-11)
        np.testing.assert_allclose(at.accuracy, accuracy)
        np.testing.assert_allclose(
            abs(at.distance), np.linalg.norm(flat(mixed) - flat(a.parameters)), rtol=1e-11
        )
    assert (line.standard_error > 0).all()
    np.testing.assert_array_equal(line.outcome, 0)


def test_the_ends_are_the_losses_of_the_two_states(ends, landscape):
    a, b, _ = ends
    line = loss_line(landscape, a, b, resolution=5)
    own = [landscape.loss_at(state).loss[0] for state in (a, b)]
    np.testing.assert_allclose(line.loss.sel(position=[0.0, 1.0]), own, rtol=1e-12)
    np.testing.assert_allclose(line.anchor_loss, own, rtol=1e-12)
    along = Subspace.through(a, b)
    found = landscape.losses(along, along.anchor_coordinates)
    np.testing.assert_array_equal(line.anchor_loss, found.loss)
    np.testing.assert_array_equal(line.anchor_accuracy, found.metrics["accuracy"])
    apart = np.linalg.norm(flat(b.parameters) - flat(a.parameters))
    np.testing.assert_allclose(line.attrs["length"], apart, rtol=1e-12)
    np.testing.assert_allclose(line.distance, apart * line.position, rtol=1e-12)
    np.testing.assert_allclose(line.chord, own[0] + (own[1] - own[0]) * line.position, rtol=1e-12)


def test_a_row_of_a_plane_equals_the_line(ends, landscape):
    plane = Subspace.through(*ends)
    length = plane.anchor_coordinates[1, 0]
    surface = fm.loss_surface(landscape, plane, resolution=5, extent=((0.0, length), (0.0, 1.0)))
    line = loss_line(landscape, *ends[:2], resolution=5)
    np.testing.assert_allclose(line.loss, surface.loss[0], rtol=1e-10)
    np.testing.assert_allclose(line.distance, surface.u[0], rtol=1e-12)
    same = set(surface.attrs) & set(line.attrs) - {"dimensions"}
    assert {"batchnorm", "path", "precision", "samples", "loss_name", "data_digest"} <= same
    assert {name: line.attrs[name] for name in same} == {n: surface.attrs[n] for n in same}


def test_the_barrier_is_the_highest_rise_above_the_chord(ends, landscape):
    line = loss_line(landscape, *ends[:2], resolution=11)
    rises = (line.loss - line.chord).to_numpy()
    np.testing.assert_allclose(line.attrs["barrier"], rises.max(), rtol=1e-12)
    np.testing.assert_allclose(line.attrs["barrier_position"], line.position[rises.argmax()])
    accuracy = line.accuracy.to_numpy()
    falls = np.interp(line.position, [0, 1], accuracy[[0, -1]]) - accuracy
    np.testing.assert_allclose(line.attrs["accuracy_barrier"], max(falls.max(), 0.0), atol=1e-12)
    assert line.attrs["barrier_points"] == 9


@pytest.mark.parametrize("extent", [(0.0, 1.0), (-0.5, 1.5), (0.2, 0.8)])
@pytest.mark.parametrize("function", [double_well, tilted])
def test_the_barrier_of_a_double_well_is_its_hump(function, extent):
    # A linear tilt moves the chord as it moves the function; the hump of height 1 stays at 0.
    line = line_of(function, resolution=21, extent=extent)
    np.testing.assert_allclose(line.attrs["barrier"], 1.0, rtol=1e-12)
    np.testing.assert_allclose(line.attrs["barrier_position"], 0.5, rtol=1e-12)
    np.testing.assert_allclose(line.attrs["length"], 2.0)
    assert line.attrs["barrier_outcome"] == "finite"
    assert "accuracy_barrier" not in line.attrs


def test_no_barrier_is_zero_and_humps_beyond_the_ends_do_not_count():
    line = line_of(lambda t: t**2, resolution=15, extent=(-0.2, 1.2))
    assert line.attrs["barrier"] == 0.0
    assert line.attrs["barrier_position"] == 0.0
    # A step of a tenth would miss the ends by rounding.
    assert {0.0, 1.0} <= set(line.position.values)
    outside = line_of(lambda t: torch.where(t.abs() > 1.01, 9.0 + t, 0 * t), extent=(-1.0, 2.0))
    assert outside.attrs["barrier"] == 0.0


def test_a_loss_that_is_not_finite_between_the_ends_is_an_infinite_barrier():
    def broken(t):
        return torch.where((t > 0.1) & (t < 0.7), torch.nan, double_well(t))

    line = line_of(broken, resolution=11)
    assert line.attrs["barrier"] == np.inf
    assert line.attrs["barrier_outcome"] == "non_finite"
    np.testing.assert_allclose(line.attrs["barrier_position"], 0.6)
    np.testing.assert_array_equal(line.outcome, [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0])
    assert line.outcome.attrs["flag_meanings"] == "finite non_finite"
    assert np.isnan(line.loss[6])


def test_a_loss_that_is_not_finite_beyond_the_ends_is_no_barrier_and_at_an_end_it_is():
    def edge(t):
        return torch.where(t > 1.0, torch.inf, double_well(t))

    beyond = line_of(edge, resolution=11, extent=(0.0, 2.0))
    np.testing.assert_allclose(beyond.attrs["barrier"], double_well(-0.2), rtol=1e-12)
    assert beyond.attrs["barrier_outcome"] == "finite"
    at_end = line_of(edge, end=1.5, resolution=3, extent=(0.0, 0.5))
    assert at_end.attrs["barrier"] == np.inf
    assert at_end.attrs["barrier_outcome"] == "non_finite"
    assert at_end.attrs["barrier_position"] == 1.0


def test_batchnorm_statistics_are_recomputed_between_two_networks():
    def network(seed):
        made = cases.seeded(cases.ImageNet(), seed).double()
        made.norm.running_mean.fill_(float(seed))
        return made

    a, b = network(1), network(2)
    landscape = fm.Landscape(a, cases.images())
    line = loss_line(landscape, a, b, resolution=3)
    assert line.attrs["batchnorm"] == "recompute"
    assert line.attrs["recompute_samples"] == landscape.recompute_samples
    for position, state in enumerate((a, b)):
        for name, policy in (("anchor_loss", "recompute"), ("anchor_stored_loss", "keep")):
            want = landscape.loss_at(state, batchnorm=policy).loss
            np.testing.assert_allclose(line[name][position], want[0], rtol=1e-9)
    kept = fm.Landscape(a, cases.images(), batchnorm="keep")
    assert loss_line(kept, a, b, resolution=3).attrs["batchnorm"] == "keep"


@pytest.mark.usefixtures("halves")
def test_a_fast_line_has_exact_ends():
    a, b = (perceptron(seed, dtype=torch.float32) for seed in (0, 1))
    data = points(dtype=torch.float32)
    line = loss_line(fm.Landscape(a, data, precision="fast"), a, b, resolution=4)
    exact = loss_line(fm.Landscape(a, data), a, b, resolution=4)
    np.testing.assert_allclose(line.anchor_loss, exact.anchor_loss, rtol=1e-6)
    assert line.attrs["precision"] == "fast"
    assert line.attrs["repeated"] >= 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"resolution": 1}, "expected a resolution of at least 2, got 1"),
        ({"resolution": 2}, "expected positions between the two states .* got none"),
        ({"extent": (1.0, 2.0)}, "expected positions between the two states .* got none"),
        ({"extent": (1.0, 0.0)}, "from below to"),
        ({"extent": (0.0, float("inf"))}, "from below to"),
        ({"end": perceptron(0)}, "got state 1 on the line or plane through states 0"),
        ({"end": perceptron(0, sizes=(6, 9, 5, 4))}, r"expected 0\.weight of shape"),
    ],
)
def test_impossible_lines_are_refused_in_one_line(landscape, settings, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        loss_line(landscape, perceptron(0), **{"end": perceptron(1), **settings})
    assert "\n" not in str(caught.value)
