"""BatchNorm: what becomes of running statistics when weights move."""

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
import naive
from cases import ImageNet, images, perceptron, points, seeded, states
from flatminima.subspace import Subspace


def batchnorm_states(eps=1e-5):
    def build(seed):
        network = seeded(ImageNet(eps=eps).double(), seed)
        with torch.no_grad():
            network.norm.running_mean.fill_(0.1 * seed)
            network.norm.running_var.fill_(1.0 + seed)
        return network

    return build, states(build, 3)


def test_auto_recomputes_between_minima_and_keeps_around_one():
    build, minima = batchnorm_states()
    landscape = fm.Landscape(build(0), images())
    assert landscape.losses(Subspace.through(*minima), np.zeros((1, 2))).batchnorm == "recompute"
    assert landscape.losses(Subspace.random(minima[0], 1, 0), np.eye(1)).batchnorm == "keep"
    plain = fm.Landscape(perceptron(), points())
    assert plain.loss_at(perceptron()).batchnorm == "none"


def test_recompute_at_an_anchor_equals_loss_at_under_the_same_policy():
    build, minima = batchnorm_states()
    landscape = fm.Landscape(build(0), images(), batch_size=5)
    plane = Subspace.through(*minima)
    found = landscape.losses(plane, plane.anchor_coordinates)
    own = [landscape.loss_at(m, batchnorm="recompute").loss[0] for m in minima]
    np.testing.assert_allclose(found.loss, own, rtol=1e-9)


def test_recompute_pools_mean_and_variance_over_full_batches():
    build, minima = batchnorm_states()
    data = images()
    landscape = fm.Landscape(build(0), data, batch_size=23, recompute_samples=23)
    network = minima[1].module(lambda: build(0))
    inputs = data.inputs
    hidden = network.conv(inputs)
    with torch.no_grad():
        network.norm.running_mean.copy_(hidden.mean((0, 2, 3)))
        network.norm.running_var.copy_(hidden.var((0, 2, 3), unbiased=False))
        want = nn.functional.cross_entropy(network(inputs), data.targets)
    found = landscape.loss_at(minima[1], batchnorm="recompute")
    np.testing.assert_allclose(found.loss[0], float(want), rtol=1e-12)


def test_tripled_weights_before_batchnorm_are_the_same_function_under_recompute_only():
    build, minima = batchnorm_states(eps=0.0)
    tripled = states(build, 1)[0]
    for name in ("conv.weight", "conv.bias"):
        tripled.parameters[name] = 3 * tripled.parameters[name]
    line = Subspace.through(minima[0], tripled)
    steps = np.linspace(0.0, line.anchor_coordinates[1, 0], 5)[:, None]
    data = images()
    flat = fm.Landscape(build(0), data, batchnorm="recompute").losses(line, steps).loss
    np.testing.assert_allclose(flat, flat[0], rtol=1e-9)
    kept = fm.Landscape(build(0), data, batchnorm="keep").losses(line, steps).loss
    assert np.ptp(kept) > 0.01


def test_interpolate_combines_statistics_with_the_weights():
    build, minima = batchnorm_states()
    landscape = fm.Landscape(build(0), images(), batchnorm="interpolate")
    plane = Subspace.through(*minima)
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.5, 0.3]])
    found = landscape.losses(plane, plane.barycentric(weights))
    own = [landscape.loss_at(minima[k]).loss[0] for k in (0, 2)]
    np.testing.assert_allclose(found.loss[:2], own, rtol=1e-9)
    mixed = minima[0].module(lambda: build(0))
    point = naive.through(*minima, 0.2, 0.5)
    with torch.no_grad():
        for name, value in mixed.named_parameters():
            value.copy_(point[name])
        for name, value in mixed.named_buffers():
            if value.is_floating_point():
                parts = [w * m.buffers[name] for w, m in zip(weights[2], minima, strict=True)]
                value.copy_(sum(parts))
        want = nn.functional.cross_entropy(mixed(images().inputs), images().targets)
    np.testing.assert_allclose(found.loss[2], float(want), rtol=1e-9)
    with pytest.raises(ValueError, match="anchors that span the subspace"):
        landscape.losses(Subspace.random(minima[0], 2, 0), np.eye(2))


def test_negative_interpolated_variances_are_non_finite_not_high():
    build, minima = batchnorm_states()
    landscape = fm.Landscape(build(0), images(), batchnorm="interpolate")
    plane = Subspace.through(*minima)
    found = landscape.losses(plane, plane.barycentric(np.array([[6.0, 0.0, -5.0]])))
    np.testing.assert_array_equal(found.finite, [False])


def test_recompute_does_not_depend_on_the_evaluations_batches():
    build, minima = batchnorm_states()
    options = {"batchnorm": "recompute", "recompute_batch": 7, "recompute_samples": 20}
    found = [
        fm.Landscape(build(0), images(), batch_size=size, **options).loss_at(
            minima[1], batchnorm="recompute"
        )
        for size in (3, 7, 23)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.loss, found[0].loss, rtol=1e-13)
    coarse = fm.Landscape(build(0), images(), recompute_batch=5, recompute_samples=20)
    assert abs(coarse.loss_at(minima[1], batchnorm="recompute").loss - found[0].loss)[0] > 1e-9


@pytest.mark.parametrize(
    ("samples", "batch", "used"), [(20, 7, (14, 7)), (100, 10, (20, 10)), (5, 100, (5, 5))]
)
def test_recompute_uses_full_batches_only_and_says_how_many_examples(samples, batch, used):
    build, minima = batchnorm_states()
    data = images()
    landscape = fm.Landscape(build(0), data, recompute_samples=samples, recompute_batch=batch)
    assert (landscape.recompute_samples, landscape.recompute_batch) == used
    clean = list(landscape._clean_batches())
    assert [len(targets) for _, targets in clean] == [used[1]] * (used[0] // used[1])
    rows = torch.cat([inputs for inputs, _ in clean])
    assert len({row.numpy().tobytes() for row in rows}) == used[0]
    plane = Subspace.through(*minima)
    surface = fm.loss_surface(landscape, plane, resolution=2)
    assert (surface.attrs["recompute_samples"], surface.attrs["recompute_batch"]) == used


def test_a_surface_says_what_each_minimum_loses_with_its_own_statistics():
    build, minima = batchnorm_states()
    plane = Subspace.through(*minima)
    own = [fm.Landscape(build(0), images()).loss_at(m).loss[0] for m in minima]
    for policy in ("recompute", "keep"):
        landscape = fm.Landscape(build(0), images(), batchnorm=policy)
        surface = fm.loss_surface(landscape, plane, resolution=2)
        assert surface.anchor_stored_loss.dims == ("anchor",)
        np.testing.assert_allclose(surface.anchor_stored_loss, own, rtol=1e-12)
        # Only the origin's own statistics are the ones that `keep` uses.
        gap = abs(surface.anchor_stored_loss - surface.anchor_loss).values
        assert (gap > 1e-4).tolist() == [policy == "recompute", True, True]
    plain = fm.Landscape(perceptron(), points())
    without = fm.loss_surface(plain, Subspace.through(*states(perceptron, 3)), resolution=2)
    assert "anchor_stored_loss" not in without
    assert "recompute_samples" not in without.attrs
