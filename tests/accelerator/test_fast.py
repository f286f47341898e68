"""Half precision on the device: near the exact answer, and honest about the distance."""

import numpy as np
import pytest
import torch

import flatminima as fm
from accelerator.problems import CASES, DEVICE, ON_CUDA, pictures, vgg
from cases import ImageNet, images, perceptron, points, seeded
from flatminima.subspace import Subspace


@pytest.mark.parametrize("policy", ["keep", "recompute"])
def test_a_large_network_is_near_its_exact_losses(policy):
    network, data = vgg(), pictures(200)
    rays = Subspace.random(network, 2, 0)
    coordinates = 2 * np.random.default_rng(0).normal(size=(12 if ON_CUDA else 3, 2))
    landscape = fm.Landscape(network, data, device=DEVICE, batchnorm=policy)
    quick = landscape.losses(rays, coordinates, precision="fast")
    slow = landscape.losses(rays, coordinates)
    assert quick.batchnorm == slow.batchnorm == policy
    assert quick.path == slow.path
    assert quick.finite.all()
    assert slow.finite.all()
    np.testing.assert_allclose(quick.loss, slow.loss, rtol=0.03)
    assert (quick.loss != slow.loss).any()
    assert quick.repeated > 0
    assert np.isfinite(quick.difference)
    assert 0 < quick.difference <= np.abs(quick.loss - slow.loss).max() + 1e-6
    assert (slow.repeated, slow.difference) == (0, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_small_networks_are_near_their_exact_losses(name):
    case = CASES[name]
    quick = case.losses(DEVICE, torch.float32, precision="fast")
    slow = case.losses(DEVICE, torch.float32)
    assert quick.path == slow.path
    np.testing.assert_allclose(quick.loss, slow.loss, rtol=0.05, atol=0.05)
    if slow.path == "top":
        np.testing.assert_array_equal(quick.loss, slow.loss)
        assert quick.repeated == 0
    else:
        assert quick.repeated > 0
        assert 0 < quick.difference < 0.1


def test_a_surface_tells_its_largest_difference_and_its_minima_are_exact():
    case = CASES["recompute"]
    plane = case.subspace(torch.float32)
    quick, slow = (
        fm.loss_surface(
            case.landscape(DEVICE, torch.float32, precision=precision), plane, resolution=4
        )
        for precision in ("fast", "exact")
    )
    assert quick.attrs["repeated"] > 0
    assert 0 < quick.attrs["largest_difference"] < 0.1
    np.testing.assert_array_equal(quick["anchor_loss"], slow["anchor_loss"])


def test_weights_in_half_precision_are_evaluated_in_float32():
    case = CASES["plane"]
    stored = case.network(0, torch.bfloat16)
    single = case.network(0, torch.bfloat16).float()
    data = case.dataset(torch.float32)
    found, want = (
        fm.flatness_radius(
            fm.Landscape(network, data, device=DEVICE), network, directions=2, threshold=1e-2
        )
        for network in (stored, single)
    )
    np.testing.assert_array_equal(found.radius, want.radius)


@pytest.mark.parametrize("protocol", ["crossing", "stepwise"])
@pytest.mark.parametrize("made", [perceptron, ImageNet])
def test_radii_that_a_sample_leads_to_are_the_exact_ones(made, protocol):
    network = seeded(made(), 0).float()
    data = (points if made is perceptron else images)(2500)
    given = fm.Dataset(data.inputs.float(), data.targets)
    fast, exact = (
        fm.flatness_radius(
            fm.Landscape(network, given, device=device, precision=precision),
            network,
            directions=2,
            protocol=protocol,
            step=0.1,
        )
        for device, precision in ((DEVICE, "fast"), ("cpu", "exact"))
    )
    assert fast.attrs["sampled"] == 250
    assert fast.evaluations.sum() < exact.evaluations.sum()
    np.testing.assert_array_equal(fast.outcome, exact.outcome)
    np.testing.assert_allclose(fast.radius, exact.radius, rtol=2e-3)
