"""Every path and every policy: on the device the numbers are those of the processor."""

import copy

import numpy as np
import pytest
import torch

import flatminima as fm
from accelerator.problems import (
    CASES,
    DEVICE,
    FEW,
    MEASURES,
    ON_CUDA,
    assert_losses_close,
    assert_losses_same,
    pictures,
    vgg,
)
from cases import perceptron, points, seeded
from flatminima.subspace import Subspace


def test_a_landscape_is_where_it_was_asked_to_be():
    landscape = fm.Landscape(perceptron(), points(), device=DEVICE)
    assert landscape.device.type == DEVICE
    assert landscape.dataset.device.type == DEVICE
    assert {value.device.type for value in landscape._network.parameters()} == {DEVICE}


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_processor_in_float64(name):
    case = CASES[name]
    found, want = case.losses(DEVICE), case.losses("cpu")
    assert found.path.startswith(case.path)
    assert found.finite.all()
    assert_losses_close(found, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_losses_in_float32_are_near_those_in_float64(name):
    case = CASES[name]
    found, want = case.losses(DEVICE, torch.float32), case.losses("cpu")
    assert found.path == want.path
    assert found.batchnorm == want.batchnorm
    assert (found.repeated, found.difference) == (0, 0.0)
    np.testing.assert_array_less(np.abs(found.loss - want.loss), 1e-6 * (1 + want.loss))
    np.testing.assert_allclose(found.standard_error, want.standard_error, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["keep", "recompute"])
def test_a_large_network_in_float32_is_near_itself_in_float64(policy):
    network, data = vgg(0.25), pictures(64)
    rays = Subspace.random(network, 2, 0)
    options = {"batchnorm": policy, "batch_size": 64, "recompute_batch": 32}
    found = fm.Landscape(network, data, device=DEVICE, **options).losses(rays, np.eye(2))
    want = fm.Landscape(copy.deepcopy(network).double(), data, **options).losses(rays, np.eye(2))
    assert found.batchnorm == want.batchnorm == policy
    np.testing.assert_allclose(found.loss, want.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MEASURES)
def test_whatever_is_measured_is_that_of_the_processor(name):
    case = MEASURES[name]
    found, want = case.losses(DEVICE), case.losses("cpu")
    assert found.path.startswith(case.path)
    assert_losses_close(found, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["plane", "rays", "suffix", "top", "recompute", "batch", "tied"])
def test_points_are_stopped_where_the_processor_stops_them(name):
    case = CASES[name]
    middle = np.sort(case.losses("cpu").loss)
    clip = float(middle[5:7].mean())
    found, want = case.losses(DEVICE, clip=clip), case.losses("cpu", clip=clip)
    assert want.clipped is not None
    assert 0 < want.clipped.sum() < len(want.clipped)
    assert_losses_close(found, want, rtol=1e-10, atol=1e-10)


def test_a_loss_below_zero_is_refused_with_a_clip():
    with pytest.raises(ValueError, match="never negative"):
        MEASURES["callable"].losses(DEVICE, clip=1.0)


def test_classes_that_are_to_be_ignored_count_for_nothing():
    data = points()
    targets = data.targets.clone()
    targets[::4] = -100
    plane = Subspace.random(perceptron(), 2, 0, parameters="4.*")
    found, want = (
        fm.Landscape(perceptron(), fm.Dataset(data.inputs, targets), device=device).losses(
            plane, np.eye(2)
        )
        for device in (DEVICE, "cpu")
    )
    assert found.path == "top"
    assert_losses_close(found, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["plane", "keep", "vectors recompute", "tied"])
def test_single_states_and_gradients_are_those_of_the_processor(name):
    case = CASES[name]
    there, here = case.landscape(DEVICE), case.landscape("cpu")
    state = case.network(1)
    for policy in (None, "recompute", "batch"):
        found, want = (one.loss_at(state, batchnorm=policy) for one in (there, here))
        assert_losses_close(found, want, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(there.gradient_norm(state), here.gradient_norm(state), rtol=1e-9)


@pytest.mark.parametrize("name", ["plane", "suffix", "top", "recompute", "interpolate"])
def test_networks_states_and_data_may_be_there_already(name):
    case = CASES[name]
    network, data = case.network().to(DEVICE), case.dataset().to(DEVICE)
    states = [case.network(seed).to(DEVICE) for seed in range(3)]
    plane = (
        Subspace.through(*states)
        if case.moves is None
        else Subspace.random(states[0], 2, 0, parameters=case.moves)
    )
    sizes = {"batch_size": 10, "recompute_batch": 7, "recompute_samples": 21}
    landscape = fm.Landscape(network, data, **sizes, **case.options)
    assert landscape.device.type == DEVICE
    found = landscape.losses(plane, case.coordinates(plane))
    assert_losses_close(found, case.losses("cpu"), rtol=1e-9, atol=1e-9)
    own = {value.device.type for value in network.state_dict().values()}
    assert own == {DEVICE}


def test_a_landscape_here_takes_states_from_there():
    landscape = fm.Landscape(perceptron(), points().to(DEVICE), device="cpu")
    there = perceptron(1).to(DEVICE)
    want = landscape.loss_at(perceptron(1))
    assert_losses_close(landscape.loss_at(there), want, rtol=1e-12, atol=1e-12)
    found = landscape.losses(Subspace.random(there, 2, 0), np.eye(2))
    want = landscape.losses(Subspace.random(perceptron(1), 2, 0), np.eye(2))
    assert_losses_close(found, want, rtol=1e-10, atol=1e-10)


SUBSPACES = {
    "principal": lambda states: Subspace.principal(states, 2),
    "filters": lambda states: Subspace.random(states[0], 2, 0, scaling="filter"),
    "layers": lambda states: Subspace.random(states[0], 2, 0, scaling="layer", vectors="scale"),
    "orthogonal": lambda states: Subspace.random(states[0], 2, 0, orthogonal=True),
}


@pytest.mark.parametrize("name", SUBSPACES)
def test_subspaces_of_states_there_are_those_of_states_here(name):
    there, here = (
        SUBSPACES[name]([perceptron(seed).to(device) for seed in range(4)])
        for device in (DEVICE, "cpu")
    )
    np.testing.assert_allclose(there.gram(), here.gram(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        there.anchor_coordinates, here.anchor_coordinates, rtol=1e-9, atol=1e-9
    )
    for index in range(2):
        for key, value in here.direction(index).items():
            own = there.direction(index)[key]
            assert own.device.type == DEVICE
            torch.testing.assert_close(own.cpu(), value, rtol=1e-9, atol=1e-12)
    coordinates = np.random.default_rng(0).normal(size=(9, 2))
    found = fm.Landscape(perceptron(), points(), device=DEVICE).losses(there, coordinates)
    want = fm.Landscape(perceptron(), points()).losses(here, coordinates)
    assert_losses_close(found, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if "batch" not in name])
def test_the_batch_size_is_a_matter_of_speed(name):
    case = CASES[name]
    want = case.losses(DEVICE, torch.float32)
    for size in (4, None):
        found = case.losses(DEVICE, torch.float32, batch_size=size)
        np.testing.assert_allclose(found.loss, want.loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "precision"), [(name, "exact") for name in CASES] + [(name, "fast") for name in FEW]
)
def test_the_same_call_gives_the_same_bits(name, precision):
    case = CASES[name]
    plane = case.subspace(torch.float32)
    coordinates = case.coordinates(plane)
    landscape = case.landscape(DEVICE, torch.float32)
    found = [landscape.losses(plane, coordinates, precision=precision) for _ in range(2)]
    fresh = case.landscape(DEVICE, torch.float32).losses(plane, coordinates, precision=precision)
    for other in (*found[1:], fresh):
        assert_losses_same(other, found[0])


@pytest.mark.parametrize("name", CASES)
def test_a_point_is_the_same_whatever_is_evaluated_beside_it(name):
    """Few points and many, which may be evaluated in another way."""
    case = CASES[name]
    plane = case.subspace()
    coordinates = case.coordinates(plane, 23)
    landscape = case.landscape(DEVICE)
    whole = landscape.losses(plane, coordinates)
    for part in (slice(3), slice(5, 6), slice(9, 23)):
        found = landscape.losses(plane, coordinates[part])
        assert_losses_close(found, whole.part(part), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", ["keep", "recompute"])
def test_a_large_network_gives_the_same_bits_and_its_batches_do_not_matter(policy):
    network, data = vgg(0.5), pictures(200)
    rays = Subspace.random(network, 2, 0)
    coordinates = np.random.default_rng(0).normal(size=(9 if ON_CUDA else 2, 2))
    landscape = fm.Landscape(network, data, device=DEVICE, batchnorm=policy, batch_size=100)
    found = [landscape.losses(rays, coordinates) for _ in range(2)]
    assert_losses_same(found[1], found[0])
    other = fm.Landscape(network, data, device=DEVICE, batchnorm=policy, batch_size=64)
    got = other.losses(rays, coordinates)
    np.testing.assert_allclose(got.loss, found[0].loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["plane", "top", "recompute"])
def test_another_subspace_or_state_leaves_nothing_behind(name):
    case = CASES[name]
    landscape, plane = case.landscape(DEVICE), case.subspace()
    coordinates = case.coordinates(plane)
    first = landscape.losses(plane, coordinates)
    network = case.network(2)
    landscape.losses(Subspace.random(network, 3, 5), 3 * np.eye(3))
    landscape.loss_at(network, batchnorm="recompute")
    assert_losses_same(landscape.losses(plane, coordinates), first)
    if name != "recompute":
        states = [plane.parameters_at(coordinate) for coordinate in coordinates]
        want = [case.landscape("cpu").loss_at(state).loss[0] for state in states]
        np.testing.assert_allclose(first.loss, want, rtol=1e-10)


def test_what_overflows_is_an_outcome_at_its_point_only():
    landscape = fm.Landscape(perceptron(), points(), device=DEVICE)
    rays = Subspace.random(perceptron(), 1, 0)
    found = landscape.losses(rays, np.array([[0.0], [1e300], [1.0]]))
    np.testing.assert_array_equal(found.finite, [True, False, True])
    assert np.isfinite(found.loss[[0, 2]]).all()
    assert np.isnan(found.loss[1])


def test_weights_that_are_not_numbers_are_an_outcome():
    broken = perceptron()
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.nan
    found = fm.Landscape(broken, points(), device=DEVICE).loss_at(broken)
    assert not found.finite[0]
    assert np.isnan(found.loss[0])


def asking(outputs, targets):
    """A loss that looks at its numbers, for which a GPU must be waited for."""
    losses = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    return losses if float(losses.max()) < 2.0 else 2.0 * losses


@pytest.mark.parametrize("name", FEW)
def test_a_loss_may_look_at_its_numbers(name):
    """What cannot be recorded is computed step by step."""
    case = CASES[name]
    found, want = (case.losses(device, loss=asking) for device in (DEVICE, "cpu"))
    assert_losses_close(found, want, rtol=1e-10, atol=1e-10)


class Looking(torch.nn.Module):
    """A network that takes another way where its numbers are large."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5)
        self.last = torch.nn.Linear(5, 4)

    def forward(self, x):
        hidden = self.norm(self.first(x))
        return self.last(torch.tanh(hidden) if float(hidden.detach().abs().max()) > 1.5 else hidden)


@pytest.mark.parametrize("policy", ["keep", "recompute", "batch"])
def test_a_network_may_look_at_its_numbers(policy):
    with torch.random.fork_rng(devices=[]):
        network = seeded(Looking().double(), 0)
    rays = Subspace.random(network, 2, 0)
    coordinates = 2 * np.random.default_rng(0).normal(size=(12, 2))
    found, want = (
        fm.Landscape(network, points(), device=device, batchnorm=policy, batch_size=10).losses(
            rays, coordinates
        )
        for device in (DEVICE, "cpu")
    )
    assert_losses_close(found, want, rtol=1e-10, atol=1e-10)
