"""Radii against quadratics with known curvature, where every answer is exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flatminima as fm
from cases import CLASSES, half_square, perceptron, points, quadratic
from flatminima.flatness._crossing import _Ray
from flatminima.flatness._walk import Walk
from flatminima.flatness.radius import CENSORED, CROSSED, NON_FINITE
from flatminima.subspace import Subspace


def curvature_along(curvatures, directions, seed):
    """`u'Hu` per direction, from the directions themselves."""
    network, _ = quadratic(curvatures)
    subspace = Subspace.random(network, directions, seed)
    h = np.asarray(curvatures)
    return np.array(
        [(h * subspace.direction(k)["w"].numpy() ** 2).sum() for k in range(directions)]
    )


def quadratic_radius(curvatures, at=None, **settings):
    network, data = quadratic(curvatures, at)
    landscape = fm.Landscape(network, data, loss=half_square)
    return fm.flatness_radius(landscape, network, **settings)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e5])
def test_radius_on_a_quadratic_at_its_minimum(scale):
    curvatures = scale * np.arange(1.0, 31.0)
    result = quadratic_radius(
        curvatures,
        directions=8,
        seed=3,
        threshold=0.05,
        tolerance=1e-4,
        max_radius=1e3 / scale**0.5,
    )
    want = np.sqrt(2 * 0.05 / curvature_along(curvatures, 8, 3))
    np.testing.assert_array_equal(result.outcome, CROSSED)
    for sign in (1, -1):
        np.testing.assert_allclose(result.radius.sel(sign=sign), want, rtol=2e-4)


def test_antithetic_rays_on_a_quadratic_with_a_gradient():
    curvatures, at = np.arange(1.0, 21.0), np.linspace(-0.3, 0.2, 20)
    result = quadratic_radius(curvatures, at, directions=10, seed=1, tolerance=1e-6)
    plus, minus = result.radius.sel(sign=1).to_numpy(), result.radius.sel(sign=-1).to_numpy()
    along = curvature_along(curvatures, 10, 1)
    np.testing.assert_allclose(plus * minus, 2 * 0.05 / along, rtol=1e-5)
    network, _ = quadratic(curvatures, at)
    subspace = Subspace.random(network, 10, 1)
    slope = [(curvatures * at * subspace.direction(k)["w"].numpy()).sum() for k in range(10)]
    np.testing.assert_allclose(0.05 * (1 / plus - 1 / minus), slope, rtol=1e-4, atol=1e-7)


@given(threshold=st.floats(1e-4, 10.0), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_radius_grows_with_the_root_of_the_threshold(threshold, seed):
    curvatures = np.geomspace(0.1, 10.0, 12)
    result = quadratic_radius(
        curvatures, directions=2, seed=seed, threshold=threshold, tolerance=1e-5, max_radius=1e4
    )
    want = np.sqrt(2 * threshold / curvature_along(curvatures, 2, seed))
    np.testing.assert_allclose(result.radius.sel(sign=1), want, rtol=1e-4)


class Wavy(nn.Module):
    """One weight; the loss is a function of its value that rises, falls and rises again."""

    def __init__(self, at=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([float(at)], dtype=torch.float64))

    def forward(self, x):
        return x * self.w


def on_a_line(function, **settings):
    data = fm.Dataset(torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
    network = Wavy()
    landscape = fm.Landscape(network, data, loss=lambda outputs, _: function(outputs[:, 0]))
    return fm.flatness_radius(landscape, network, directions=1, **settings)


def test_the_first_of_several_crossings_is_found_and_reentries_are_counted():
    result = on_a_line(
        lambda t: torch.where(t.abs() < 6, 0.2 * torch.sin(t.abs()) ** 2, t.abs()),
        threshold=0.1,
        max_radius=12.0,
    )
    # sin^2 = 1/2 first at pi/4; below again from 3 pi/4.
    np.testing.assert_allclose(result.radius, np.pi / 4, rtol=1e-3)
    assert (result.reentries.to_numpy() >= 1).all()


def test_reentry_within_the_bracket_is_counted():
    # Crosses at 1, is below again from 1.3 to 1.7, and stays up from there.
    result = on_a_line(
        lambda t: torch.where((t.abs() < 1.0) | ((t.abs() > 1.3) & (t.abs() < 1.7)), 0.0, 1.0),
        threshold=0.5,
        max_radius=2.0,
    )
    np.testing.assert_allclose(result.radius, 1.0, rtol=1e-3)
    assert (result.reentries.to_numpy() >= 1).all()


def test_a_radius_never_reached_is_censored_not_a_number():
    result = quadratic_radius([1e-9] * 4, at=[1.0] * 4, directions=3)
    np.testing.assert_array_equal(result.outcome, CENSORED)
    np.testing.assert_allclose(result.radius, result.attrs["max_radius"])
    np.testing.assert_allclose(result.attrs["max_radius"], 2 * 2.0)


def test_a_non_finite_loss_before_any_rise_is_an_outcome():
    result = on_a_line(
        lambda t: torch.where(t.abs() < 0.7, 0.0 * t, torch.full_like(t, torch.nan)), max_radius=4.0
    )
    np.testing.assert_array_equal(result.outcome, NON_FINITE)
    assert (result.radius.to_numpy() < 0.7).all()
    np.testing.assert_allclose(result.radius, 0.7, rtol=1e-6)


def test_a_crossing_just_before_a_non_finite_loss_is_a_crossing():
    result = on_a_line(
        lambda t: torch.where(t.abs() < 0.7, t.abs(), torch.full_like(t, torch.nan)),
        threshold=0.6,
        max_radius=16.0,
    )
    np.testing.assert_array_equal(result.outcome, CROSSED)
    np.testing.assert_allclose(result.radius, 0.6, rtol=1e-3)


def test_stepwise_floors_and_stops_at_a_fall_of_the_loss():
    rising = on_a_line(
        lambda t: t.abs(), threshold=0.5, protocol="stepwise", step=0.2, max_radius=4.0
    )
    # 0.2, 0.4 are below 0.5 and 0.6 is not: the last step before is 0.4.
    np.testing.assert_allclose(rising.radius, [[0.4]])
    falling = on_a_line(
        lambda t: -t.abs(), threshold=0.5, protocol="stepwise", step=0.2, max_radius=4.0
    )
    np.testing.assert_allclose(falling.radius, [[0.4]])
    np.testing.assert_array_equal(falling.outcome, [[CROSSED]])
    # The measured radius ignores a fall.
    crossing = on_a_line(lambda t: -t.abs(), threshold=0.5, max_radius=4.0)
    np.testing.assert_array_equal(crossing.outcome, CENSORED)


def test_stepwise_agrees_with_a_plain_walk():
    network, data = perceptron(), points()
    landscape = fm.Landscape(network, data)
    result = fm.flatness_radius(
        landscape, network, directions=5, seed=2, protocol="stepwise", step=0.3, threshold=0.4
    )
    subspace = Subspace.random(network, 5, 2)
    start = landscape.loss_at(network).loss[0]
    for k in range(5):
        steps = 0
        while True:
            coordinate = np.zeros(5)
            coordinate[k] = 0.3 * (steps + 1)
            moved = landscape.loss_at(subspace.parameters_at(coordinate)).loss[0]
            if abs(moved - start) >= 0.4:
                break
            steps += 1
        np.testing.assert_allclose(result.radius[k, 0], 0.3 * steps)


def test_directions_do_not_depend_on_their_order_or_number():
    network, data = perceptron(), points()
    landscape = fm.Landscape(network, data)
    whole = fm.flatness_radius(landscape, network, directions=6, seed=5)
    part = fm.flatness_radius(landscape, network, directions=2, seed=5, first=3)
    np.testing.assert_array_equal(part.direction, [3, 4])
    np.testing.assert_allclose(part.radius, whole.radius[3:5], rtol=1e-12)


def test_top_layer_radius_equals_full_passes_and_runs_the_network_once():
    network, data = perceptron(), points()
    passes = []
    network[0].register_forward_hook(lambda *_: passes.append(1))
    landscape = fm.Landscape(network, data)
    top = fm.flatness_radius(landscape, network, directions=4, seed=7, parameters="top")
    assert top.attrs["layer"] == "4"
    assert top.attrs["path"] == "top"
    assert top.attrs["moved"] == 5 * CLASSES + CLASSES
    passes.clear()
    more = fm.flatness_radius(landscape, network, directions=4, seed=8, parameters="top")
    points_seen = int(more.evaluations.sum())
    # Probes and one pass over the data (a single batch here), however many points there are.
    assert 0 < len(passes) < points_seen / 4, "the network ran again for every point"
    # The same answer by full passes, through a log-softmax that forbids the short cut.
    slow = nn.Sequential(*network, nn.LogSoftmax(1))
    other = fm.Landscape(
        slow, data, loss=lambda o, t: nn.functional.nll_loss(o, t, reduction="none")
    )
    full = fm.flatness_radius(other, slow, directions=4, seed=7, parameters="top")
    assert full.attrs["path"] != "top"
    np.testing.assert_allclose(full.radius, top.radius, rtol=2e-3)


def test_relative_tolerance_holds():
    network, data = perceptron(), points()
    landscape = fm.Landscape(network, data)
    rough = fm.flatness_radius(landscape, network, directions=4, seed=1, tolerance=1e-3)
    fine = fm.flatness_radius(landscape, network, directions=4, seed=1, tolerance=1e-8)
    np.testing.assert_allclose(rough.radius, fine.radius, rtol=1e-3)
    start = landscape.loss_at(network).loss[0]
    subspace = Subspace.random(network, 4, 1)
    for k in range(4):
        coordinate = np.zeros(4)
        coordinate[k] = float(fine.radius.sel(sign=1)[k])
        moved = landscape.loss_at(subspace.parameters_at(coordinate)).loss[0]
        np.testing.assert_allclose(moved - start, 0.05, rtol=1e-6)


def test_hidden_units_permuted_leave_the_radius_and_rescaled_ones_change_it():
    network, data = perceptron(), points()
    reference = fm.flatness_radius(fm.Landscape(network, data), network, directions=6, seed=0)
    scaled = perceptron()
    with torch.no_grad():
        scaled[0].weight.mul_(5.0)
        scaled[0].bias.mul_(5.0)
        scaled[2].weight.div_(5.0)
    landscape = fm.Landscape(scaled, data)
    np.testing.assert_allclose(landscape.loss_at(scaled).loss, landscape.loss_at(network).loss)
    changed = fm.flatness_radius(landscape, scaled, directions=6, seed=0)
    assert abs(float(changed.radius.mean() / reference.radius.mean()) - 1) > 0.05


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"threshold": 0.0}, "positive threshold"),
        ({"threshold": float("nan")}, "positive threshold"),
        ({"directions": 0}, "at least 1 direction"),
        ({"protocol": "walk"}, "'crossing' or 'stepwise'"),
        ({"step": -1.0}, "positive step"),
        ({"max_radius": float("inf")}, "positive max_radius"),
        ({"parameters": "no.such.*"}, "expected parameters that match"),
        ({"buffers": "shaken"}, "buffers 'policy'"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings, complaint):
    network, data = perceptron(), points()
    with pytest.raises(ValueError, match=complaint) as caught:
        fm.flatness_radius(fm.Landscape(network, data), network, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.03, 1.0, 30.0])
def test_a_crossing_takes_few_evaluations_near_any_guess(scale):
    # The guess is a tenth of the norm, 0.1 here; the loss rises by the cube, not the square.
    def function(t):
        return (t.abs() / scale) ** 3

    def rise(t):
        return function(t - 1.0)

    data = fm.Dataset(torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
    network = Wavy(at=1.0)
    landscape = fm.Landscape(network, data, loss=lambda outputs, _: rise(outputs[:, 0]))
    result = fm.flatness_radius(landscape, network, directions=1, max_radius=100.0)
    np.testing.assert_allclose(result.radius, 0.05 ** (1 / 3) * scale, rtol=1e-6)
    decades = max(0.0, -np.log10(scale))
    assert (result.evaluations <= 10 + 6 * decades).all()


def test_a_bracket_as_narrow_as_rounding_has_a_crossing():
    # Below the threshold and at it by one bit, of which the roots know nothing.
    threshold = 4.770201866357349
    network, data = quadratic([1.0, 2.0])
    landscape = fm.Landscape(network, data, loss=half_square)
    ray = _Ray(Walk(landscape.losses, Subspace.random(network, 1, 0), threshold), 0, 1)
    ray.add(np.array([2.0, 2.0005]), np.array([np.nextafter(threshold, 0.0), threshold]))
    assert (ray.outcome, ray.is_closed(1e-3)) == (CROSSED, True)
    assert 2.0 <= ray.radius() <= 2.0005


@given(first=st.floats(0.05, 3.0), hump=st.floats(0.9, 2.0), dip=st.floats(0.3, 1.5))
@settings(max_examples=40, deadline=None)
def test_an_earlier_crossing_is_found_before_a_dip(first, hump, dip):
    # Over for `hump`, which is more than a quarter of where it is over for good; below for `dip`.
    start, end = (1.0 + hump) * first, (1.0 + hump + dip) * first

    def function(t):
        away = t.abs()
        over = torch.where(away < start, (away / first) ** 2, (away / end) ** 2)
        return torch.where((away >= start) & (away < end), 0.1 * over, over)

    result = on_a_line(function, threshold=1.0, max_radius=20.0)
    np.testing.assert_array_equal(result.outcome, CROSSED)
    np.testing.assert_allclose(result.radius, first, rtol=1e-3)
