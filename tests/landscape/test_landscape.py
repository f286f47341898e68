"""What a Landscape promises besides its numbers: the world is left as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
import naive
from cases import images, perceptron, points, seeded
from flatminima.subspace import Subspace


class Noisy(nn.Module):
    """Dropout, BatchNorm and a buffer that counts calls."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(5, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


def test_the_given_model_and_the_random_state_are_as_before():
    network = Noisy().double().train()
    network.first.weight.requires_grad_(False)
    (network(points().inputs).sum()).backward()
    before = copy.deepcopy(network.state_dict())
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    landscape = fm.Landscape(network, points())
    landscape.losses(Subspace.random(network, 2, 0), np.eye(2))
    landscape.loss_at(network, batchnorm="recompute")
    fm.flatness_radius(landscape, network, directions=1, parameters="top")
    torch.testing.assert_close(torch.get_rng_state(), random, rtol=0, atol=0)
    assert network.training
    assert network.norm.training
    assert not network.first.weight.requires_grad
    assert network.last.weight.requires_grad
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    for name, value in network.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(value.grad, grads[name], rtol=0, atol=0)


def test_dropout_is_off_and_the_answer_repeats():
    network = Noisy().double().train()
    landscape = fm.Landscape(network, points())
    first, second = landscape.loss_at(network), landscape.loss_at(network)
    np.testing.assert_array_equal(first.loss, second.loss)
    with torch.no_grad():
        want = nn.functional.cross_entropy(
            copy.deepcopy(network).eval()(points().inputs), points().targets
        )
    np.testing.assert_allclose(first.loss[0], float(want), rtol=1e-12)


def test_autocast_and_reduced_precision_left_on_do_not_reach_the_loss():
    network, data = perceptron(dtype=torch.float32), points(dtype=torch.float32)
    landscape = fm.Landscape(network, data)
    want = landscape.loss_at(network).loss
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = landscape.loss_at(network).loss
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(got, want)


def test_half_precision_weights_move_in_float32():
    stored = perceptron(dtype=torch.bfloat16)
    data = points(dtype=torch.float32)
    found = fm.flatness_radius(fm.Landscape(stored, data), stored, directions=3, threshold=1e-3)
    single = perceptron(dtype=torch.bfloat16).float()
    want = fm.flatness_radius(fm.Landscape(single, data), single, directions=3, threshold=1e-3)
    np.testing.assert_array_equal(found.radius, want.radius)
    assert stored[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("batch_size", [1, 5, 7, 36, 37, 100])
def test_the_mean_is_over_examples_whatever_the_batches(batch_size):
    network, data = perceptron(), points()
    want, accuracy = naive.loss_at(perceptron(), dict(network.named_parameters()), data)
    found = fm.Landscape(network, data, batch_size=batch_size).loss_at(network)
    np.testing.assert_allclose(found.loss[0], want, rtol=1e-12)
    np.testing.assert_allclose(found.metrics["accuracy"][0], accuracy)
    assert found.samples == 37


def test_standard_error_is_the_sampling_error_of_the_mean():
    network, data = perceptron(), points()
    with torch.no_grad():
        losses = nn.functional.cross_entropy(
            network(data.inputs), data.targets, reduction="none"
        ).numpy()
    found = fm.Landscape(network, data).loss_at(network)
    np.testing.assert_allclose(found.standard_error[0], losses.std(ddof=1) / np.sqrt(37))


def test_weighted_losses_are_a_ratio_of_sums():
    network, data = perceptron(), points()
    weights = torch.linspace(0.1, 3.0, 37, dtype=torch.float64)

    def weighted(outputs, targets):
        losses = nn.functional.cross_entropy(outputs, targets[:, 0].long(), reduction="none")
        return losses * targets[:, 1], targets[:, 1]

    targets = torch.stack([data.targets.double(), weights], dim=1)
    found = fm.Landscape(network, fm.Dataset(data.inputs, targets), loss=weighted, batch_size=10)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(network(data.inputs), data.targets, reduction="none")
    want = float((losses * weights).sum() / weights.sum())
    result = found.loss_at(network)
    np.testing.assert_allclose(result.loss[0], want, rtol=1e-12)
    assert "accuracy" not in result.metrics


def test_segmentation_weighs_pixels():
    network = seeded(nn.Conv2d(1, 4, 1).double(), 0)
    inputs = images().inputs
    targets = torch.randint(4, (23, 6, 6), generator=torch.Generator().manual_seed(0))
    targets[3] = -100
    targets[5, :2] = -100
    found = fm.Landscape(network, fm.Dataset(inputs, targets), batch_size=4).loss_at(network)
    with torch.no_grad():
        want = nn.functional.cross_entropy(network(inputs), targets)
    np.testing.assert_allclose(found.loss[0], float(want), rtol=1e-12)


def test_a_non_finite_loss_is_an_outcome_at_its_point_only():
    network, data = perceptron(), points()
    landscape = fm.Landscape(network, data)
    rays = Subspace.random(network, 1, 0)
    found = landscape.losses(rays, np.array([[0.0], [1e300], [1.0]]))
    np.testing.assert_array_equal(found.finite, [True, False, True])
    assert np.isfinite(found.loss[[0, 2]]).all()


def test_frozen_parameters_stay_put_unless_named():
    network = perceptron()
    network[0].requires_grad_(False)
    landscape = fm.Landscape(network, points())
    assert landscape.parameter_names("all") == ("2.weight", "2.bias", "4.weight", "4.bias")
    assert landscape.parameter_names("*.weight") == ("0.weight", "2.weight", "4.weight")
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="all frozen; pass parameters='\\*'"):
        fm.Landscape(network, points()).parameter_names("all")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"loss": "cross_entrpy"}, "expected a loss among"),
        ({"batchnorm": "fixed"}, "expected a BatchNorm policy among"),
        ({"precision": "sloppy"}, "expected precision 'exact' or 'fast'"),
        ({"batch_size": 0}, "batch_size of 1 or more"),
        ({"recompute_samples": 0}, "recompute_samples of 1 or more"),
        ({"recompute_batch": 0}, "recompute_batch of 1 or more"),
    ],
)
def test_impossible_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        fm.Landscape(perceptron(), points(), **settings)


def test_a_mean_where_per_sample_losses_are_due_is_refused():
    landscape = fm.Landscape(perceptron(), points(), loss=nn.functional.cross_entropy)
    with pytest.raises(ValueError, match="one loss per sample"):
        landscape.loss_at(perceptron())


def test_losses_of_other_things_than_samples_are_refused():
    def of_outputs(outputs, targets):
        return outputs.square().flatten()

    data = points()
    samples = len(data)
    with pytest.raises(ValueError, match=rf"here {samples}, got {samples * 4}; average"):
        fm.Landscape(perceptron(), data, loss=of_outputs).loss_at(perceptron())


def test_states_of_another_architecture_name_tensor_and_shapes():
    landscape = fm.Landscape(perceptron(), points())
    other = perceptron(sizes=(6, 9, 5, 4))
    with pytest.raises(ValueError, match=r"0.weight of shape \(8, 6\).*got \(9, 6\)"):
        landscape.loss_at(other)
    with pytest.raises(ValueError, match=r"lacks 4\.bias, 4\.weight"):
        landscape.loss_at(perceptron(sizes=(6, 8, 5)))
    with pytest.raises(ValueError, match=r"0.weight of shape"):
        landscape.losses(Subspace.random(other, 1, 0), np.ones((1, 1)))


def test_coordinates_of_another_subspace_are_refused():
    landscape = fm.Landscape(perceptron(), points())
    rays = Subspace.random(perceptron(), 2, 0)
    with pytest.raises(ValueError, match=r"coordinates \[points, 2\], got shape \(3, 1\)"):
        landscape.losses(rays, np.ones((3, 1)))
    with pytest.raises(ValueError, match="finite coordinates"):
        landscape.losses(rays, np.full((1, 2), np.nan))


def test_no_points_give_no_losses():
    landscape = fm.Landscape(perceptron(), points())
    found = landscape.losses(Subspace.random(perceptron(), 2, 0), np.zeros((0, 2)))
    assert found.loss.shape == (0,)
