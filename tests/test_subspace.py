"""Planes and random directions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
import naive
from cases import flat, perceptron, states
from flatminima.minimum import Minimum
from flatminima.subspace import Subspace, norm


@pytest.fixture(scope="module")
def minima():
    return states(lambda s: perceptron(s, dtype=torch.float32), 4)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_coordinates_are_distances_in_weight_space(minima, count):
    subspace = Subspace.through(*minima[:count])
    np.testing.assert_allclose(subspace.gram(), np.eye(count - 1), atol=1e-14)
    vectors = [flat(minimum.parameters) for minimum in minima[:count]]
    for i in range(count):
        for j in range(count):
            apart = np.linalg.norm(subspace.anchor_coordinates[i] - subspace.anchor_coordinates[j])
            np.testing.assert_allclose(apart, np.linalg.norm(vectors[i] - vectors[j]), rtol=1e-12)
    np.testing.assert_allclose(subspace.anchor_coordinates[0], 0.0)
    np.testing.assert_allclose(subspace.anchor_coordinates[1][1:], 0.0, atol=1e-12)


def test_nearly_parallel_differences_still_give_an_orthonormal_basis():
    a, b, _ = states(perceptron, 3)
    bent = Minimum({n: 2 * b.parameters[n] - a.parameters[n] for n in a.parameters})
    bent.parameters["0.weight"] = bent.parameters["0.weight"].clone()
    bent.parameters["0.weight"][0, 0] += 1e-4
    plane = Subspace.through(a, b, bent)
    np.testing.assert_allclose(plane.gram(), np.eye(2), atol=1e-12)


@given(weights=st.lists(st.floats(-2, 2), min_size=2, max_size=2))
@settings(max_examples=20, deadline=None)
def test_barycentric_points_are_the_mixtures_of_the_states(weights):
    a, b, c = states(perceptron, 3)
    plane = Subspace.through(a, b, c)
    x, y = weights
    coordinate = plane.barycentric(np.array([[x, y, 1 - x - y]]))[0]
    mixed = naive.through(a, b, c, x, y)
    for name, value in plane.parameters_at(coordinate).items():
        torch.testing.assert_close(value, mixed[name], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(plane.coordinates_of(Minimum(mixed)), coordinate, atol=1e-11)


def test_anchors_come_back_to_the_last_bits(minima):
    plane = Subspace.through(*minima[:3])
    for anchor, coordinate in zip(plane.anchors, plane.anchor_coordinates, strict=True):
        for name, value in plane.parameters_at(coordinate).items():
            torch.testing.assert_close(value, anchor.parameters[name], rtol=2e-7, atol=1e-8)
    for name, value in plane.parameters_at(np.zeros(2)).items():
        torch.testing.assert_close(value, minima[0].parameters[name], rtol=0, atol=0)


def test_identical_and_collinear_states_are_refused(minima):
    a, b = minima[:2]
    with pytest.raises(ValueError, match="got state 1 on the line or plane through states 0"):
        Subspace.through(a, a, b)
    between = Minimum({n: 0.3 * a.parameters[n] + 0.7 * b.parameters[n] for n in a.parameters})
    with pytest.raises(ValueError, match="got state 2 on the line or plane through states 0, 1"):
        Subspace.through(a, b, between)
    with pytest.raises(ValueError, match="at least two states"):
        Subspace.through(a)


def test_states_with_nan_are_refused_by_name(minima):
    bad = Minimum({name: value.clone() for name, value in minima[0].parameters.items()})
    bad.parameters["2.bias"][1] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 5 non-finite values in 2\.bias of state 2"):
        Subspace.through(minima[0], minima[1], bad)
    with pytest.raises(ValueError, match="of the origin"):
        Subspace.random(bad, 1, 0)


def test_states_of_two_architectures_are_refused_with_shapes(minima):
    other = states(lambda s: perceptron(s, sizes=(6, 9, 5, 4)), 1)[0]
    with pytest.raises(ValueError, match=r"0\.weight of shape \(8, 6\).*\(9, 6\)"):
        Subspace.through(minima[0], other)
    deeper = states(lambda s: perceptron(s, sizes=(6, 8, 5, 4, 3)), 1)[0]
    with pytest.raises(ValueError, match=r"6\.weight only in"):
        Subspace.through(minima[0], deeper)


def test_random_directions_are_unit_and_isotropic():
    network = perceptron()
    subspace = Subspace.random(network, 400, 3)
    draws = np.array([flat(subspace.direction(k)) for k in range(400)])
    np.testing.assert_allclose(np.linalg.norm(draws, axis=1), 1.0, rtol=1e-12)
    n = draws.shape[1]
    # Coordinates of a uniform unit vector have mean 0 and variance 1/n.
    np.testing.assert_allclose(draws.mean(), 0.0, atol=4 / np.sqrt(400 * n * n))
    np.testing.assert_allclose((draws**2).mean(0) * n, 1.0, atol=6 * np.sqrt(2 / 400))


def test_a_direction_is_a_function_of_seed_index_and_names_alone():
    single, double = perceptron(dtype=torch.float32), perceptron(dtype=torch.float64)
    some = Subspace.random(single, 3, 9).direction(2)
    later = Subspace.random(double, 1, 9, first=2).direction(0)
    other = Subspace.random(perceptron(seed=4), 5, 9).direction(2)
    for name, value in some.items():
        torch.testing.assert_close(value, later[name], rtol=0, atol=0)
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)
    different = Subspace.random(single, 3, 10).direction(2)
    assert not torch.equal(some["0.weight"], different["0.weight"])


def test_random_directions_leave_the_global_generator_alone():
    network = perceptron()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    Subspace.random(network, 2, 0).direction(1)
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


def test_orthogonal_directions_are_orthonormal_and_independent_ones_are_not():
    network = perceptron(sizes=(2, 2))
    together = Subspace.random(network, 6, 0, orthogonal=True)
    np.testing.assert_allclose(together.gram(), np.eye(6), atol=1e-12)
    with pytest.raises(ValueError, match="at most 6 orthogonal directions"):
        Subspace.random(network, 7, 0, orthogonal=True)
    free = Subspace.random(network, 6, 0).gram()
    assert np.abs(free - np.eye(6)).max() > 0.1


def test_globs_and_names_choose_what_moves():
    network = perceptron()
    assert Subspace.random(network, 1, 0, parameters="2.*").moved == ("2.weight", "2.bias")
    assert Subspace.random(network, 1, 0, parameters=["4.bias"]).moved == ("4.bias",)
    moved = Subspace.random(network, 1, 0, parameters="2.*").parameters_at(np.array([1.0]))
    torch.testing.assert_close(moved["0.weight"], network[0].weight.detach(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="parameters that match 'head"):
        Subspace.random(network, 1, 0, parameters="head.*")
    with pytest.raises(ValueError, match=r"names of parameters, got '9\.bias'"):
        Subspace.random(network, 1, 0, parameters=["9.bias"])


def test_directions_that_do_not_fit_the_origin_are_refused():
    network = perceptron()
    with pytest.raises(ValueError, match="direction 0 to fit the origin"):
        Subspace(network, [{"0.weight": torch.zeros(2, 2)}])
    with pytest.raises(ValueError, match="an unknown name"):
        Subspace(network, [{"7.weight": torch.zeros(2, 2)}])


def test_weights_that_do_not_sum_to_one_are_refused(minima):
    plane = Subspace.through(*minima[:3])
    with pytest.raises(ValueError, match="sum to 1"):
        plane.barycentric(np.array([[1.0, 1.0, 1.0]]))
    with pytest.raises(ValueError, match="expected 3 weights"):
        plane.barycentric(np.array([[1.0, 0.0]]))


def test_buffers_are_no_part_of_the_geometry():
    network = cases.ImageNet()
    other = cases.seeded(cases.ImageNet(), 1)
    other.norm.running_var.fill_(50.0)
    other.norm.num_batches_tracked.fill_(1000)
    line = Subspace.through(network, other)
    apart = {
        n: p.detach() - dict(other.named_parameters())[n].detach()
        for n, p in network.named_parameters()
    }
    np.testing.assert_allclose(line.anchor_coordinates[1, 0], norm(apart), rtol=1e-6)
    assert not any("running" in name for name in line.moved)


def test_origin_is_a_copy():
    network = perceptron()
    subspace = Subspace.random(network, 1, 0)
    before = subspace.origin.parameters["0.weight"].clone()
    with torch.no_grad():
        network[0].weight.add_(1.0)
    torch.testing.assert_close(subspace.origin.parameters["0.weight"], before, rtol=0, atol=0)
