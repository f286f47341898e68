"""The published fault against a loop over a state dict, as the published programs walked."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
from cases import CLASSES, ImageNet, images, perceptron, points, seeded
from flatminima._seeds import derive_seed
from flatminima.flatness.radius import CENSORED, CROSSED, NON_FINITE


def vectors(*, eps=1e-5, momentum=0.1, affine=True):
    """A 1d network whose running statistics are those of its data."""
    network = nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8, eps=eps, momentum=momentum, affine=affine),
        nn.ReLU(),
        nn.Linear(8, CLASSES),
    )
    return settled(seeded(network.double(), 3), points()), points()


def pictures():
    return settled(seeded(ImageNet().double(), 1), images()), images()


class Counting(nn.Module):
    """Reads its counter, so that the loss shows what became of it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.norm(x)) * (1 + self.norm.num_batches_tracked.to(x.dtype))


def counting():
    return settled(seeded(Counting().double(), 0), points(), passes=3), points()


def settled(network, data, passes=40):
    """The network after some passes in training mode, its statistics those of the data."""
    inputs, _ = data.batch(slice(0, len(data)))
    network.train()
    with torch.no_grad():
        for _ in range(passes):
            network(inputs)
    return network.eval()


def mean_loss(network, data):
    inputs, targets = data.batch(slice(0, len(data)))
    with torch.no_grad():
        return float(nn.functional.cross_entropy(network(inputs), targets))


def variances(network):
    return torch.cat(
        [
            module.running_var + module.eps
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
    )


def direction_of(network, index, seed):
    """One unit vector over every entry of a state dict, from the draws of the seed machinery."""
    draws = {}
    for name, entry in network.state_dict().items():
        stream = torch.Generator().manual_seed(derive_seed(seed, "direction", index, name))
        draws[name] = torch.randn(entry.shape, generator=stream).double()
    length = torch.cat([draw.ravel() for draw in draws.values()]).norm()
    return {name: draw / length for name, draw in draws.items()}


def moved(network, direction, distance):
    """The network with `distance` times the direction added to every entry of its state dict."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for name, entry in other.state_dict().items():
            entry.copy_(entry + distance * direction[name])
    return other


def published_walk(network, data, direction, *, step, threshold, steps):
    """Radius, whether the loss ended the walk by not being finite, and variances below zero."""
    start = mean_loss(network, data)
    for taken in range(steps):
        other = moved(network, direction, step * (taken + 1))
        loss = mean_loss(other, data)
        if not abs(loss - start) < threshold:
            return step * taken, np.isfinite(loss), int((variances(other) < 0).sum())
    return step * steps, None, int((variances(other) < 0).sum())


@pytest.mark.parametrize(
    ("build", "step", "threshold"),
    [
        (vectors, 0.1, 0.05),
        (vectors, 0.3, 3.0),
        (lambda: vectors(eps=0.5, momentum=None, affine=False), 0.2, 0.5),
        (pictures, 0.1, 0.4),
        (pictures, 0.25, 5.0),
        (counting, 0.3, 2.0),
    ],
)
def test_equals_a_loop_over_the_state_dict(build, step, threshold):
    network, data = build()
    result = fm.flatness_radius(
        fm.Landscape(network, data),
        network,
        directions=8,
        seed=4,
        protocol="stepwise",
        buffers="perturb",
        step=step,
        threshold=threshold,
        max_radius=60 * step,
    )
    assert result.sizes == {"direction": 8, "sign": 1}
    for k in range(8):
        direction = direction_of(network, k, 4)
        radius, finite, negative = published_walk(
            network, data, direction, step=step, threshold=threshold, steps=60
        )
        ray = result.isel(direction=k, sign=0)
        np.testing.assert_allclose(ray.radius, radius, rtol=1e-12)
        assert int(ray.outcome) == {None: CENSORED, True: CROSSED, False: NON_FINITE}[finite]
        assert int(ray.negative_variances) == negative
        assert int(ray.evaluations) == round(radius / step) + (finite is not None)


def single(network, data):
    """Both in float32."""
    return network.float(), fm.Dataset(data.inputs.float(), data.targets, classes=CLASSES)


def negative_walks(given=pictures, **settings):
    network, data = given()
    return fm.flatness_radius(
        fm.Landscape(network, data, **settings.pop("landscape", {})),
        network,
        protocol="stepwise",
        buffers="perturb",
        **{"directions": 12, "seed": 4, "step": 0.1, "threshold": 5.0, **settings},
    )


def test_a_negative_variance_ends_the_walk_and_says_so():
    result = negative_walks()
    ended = result.outcome == NON_FINITE
    assert ended.any()
    assert (result.negative_variances.where(ended, 1) > 0).all()
    # It ends at the first step beyond the distance in closed form, and not before.
    assert (result.radius <= result.first_negative).where(ended, True).all()
    assert (result.radius + 0.1 > result.first_negative).where(ended, True).all()


def test_first_negative_is_where_a_variance_passes_zero():
    network, data = vectors()
    landscape = fm.Landscape(network, data)
    result = fm.flatness_radius(
        landscape, network, directions=6, seed=4, protocol="stepwise", buffers="perturb"
    )
    for k, distance in enumerate(result.first_negative.to_numpy()[:, 0]):
        assert np.isfinite(distance)
        direction = direction_of(network, k, 4)
        before, after = (
            variances(moved(network, direction, distance * factor)) for factor in (0.999, 1.001)
        )
        assert (before > 0).all()
        assert (after < 0).sum() == 1


def test_no_falling_variance_is_never():
    # One channel: a direction either raises the only variance or lets it fall.
    network = nn.Sequential(nn.BatchNorm1d(1, affine=False), nn.Linear(1, CLASSES))
    network, data = seeded(network.double(), 0), points(features=1)
    signs = [float(direction_of(network, k, 0)["0.running_var"]) for k in range(8)]
    result = fm.flatness_radius(
        fm.Landscape(network, data), network, directions=8, protocol="stepwise", buffers="perturb"
    )
    falling = np.array(signs) < 0
    assert 0 < falling.sum() < 8
    np.testing.assert_array_equal(np.isfinite(result.first_negative[:, 0]), falling)
    assert (result.negative_variances[~falling] == 0).all()


def test_attributes_say_what_was_moved():
    network, data = vectors()
    landscape = fm.Landscape(network, data)
    walked = {"directions": 2, "protocol": "stepwise"}
    plain = fm.flatness_radius(landscape, network, **walked)
    result = fm.flatness_radius(landscape, network, buffers="perturb", **walked)
    assert result.attrs["buffers"] == "perturb"
    assert result.attrs["batchnorm"] == "keep"
    assert result.attrs["moved_buffers"] == 8 + 8 + 1
    assert result.attrs["smallest_variance"] == float(network[1].running_var.min())
    for name in ("moved", "norm", "max_radius", "threshold", "seed", "step", "protocol"):
        assert result.attrs[name] == plain.attrs[name]
    np.testing.assert_allclose(result.attrs["loss"], plain.attrs["loss"], rtol=1e-12)
    assert "negative_variances" not in plain
    assert "smallest_variance" not in plain.attrs


def test_policy_of_the_landscape_and_parts_of_a_sequence_change_nothing():
    whole = negative_walks()
    for policy in ("keep", "recompute", "batch"):
        other = negative_walks(landscape={"batchnorm": policy})
        np.testing.assert_array_equal(other.radius, whole.radius)
    part = negative_walks(directions=3, first=5)
    np.testing.assert_array_equal(part.direction, [5, 6, 7])
    for name in ("radius", "outcome", "negative_variances", "first_negative"):
        np.testing.assert_array_equal(part[name], whole[name][5:8])


@pytest.mark.parametrize(
    ("build", "threshold", "limit", "outcome"),
    [(vectors, 0.2, None, CROSSED), (pictures, 5.0, None, NON_FINITE), (vectors, 9.0, 2, CENSORED)],
)
@pytest.mark.parametrize("policy", ["keep", "recompute"])
def test_in_fast_a_sample_leads_to_the_same_steps(build, threshold, limit, outcome, policy):
    network, data = single(build()[0], {vectors: points, pictures: images}[build](2003))
    exact, fast = (
        fm.flatness_radius(
            fm.Landscape(network, data, batchnorm=policy, precision=precision),
            network,
            directions=6,
            seed=4,
            protocol="stepwise",
            buffers="perturb",
            step=0.1,
            threshold=threshold,
            max_radius=limit,
        )
        for precision in ("exact", "fast")
    )
    assert (exact.outcome == outcome).any()
    for name in ("radius", "outcome", "negative_variances", "first_negative"):
        np.testing.assert_array_equal(fast[name], exact[name])
    assert fast.evaluations.sum() < exact.evaluations.sum() / 2
    assert (fast.attrs["precision"], fast.attrs["sampled"]) == ("fast", 200)
    assert fast.attrs["largest_difference"] > 0.0
    assert "sampled" not in exact.attrs


def test_in_fast_few_examples_are_all_asked():
    exact, fast = (
        negative_walks(lambda: single(*pictures()), landscape={"precision": precision})
        for precision in ("exact", "fast")
    )
    np.testing.assert_array_equal(fast.radius, exact.radius)
    np.testing.assert_array_equal(fast.evaluations, exact.evaluations)
    assert fast.attrs["sampled"] == 0


def test_the_callers_network_is_as_before():
    network, data = pictures()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    landscape = fm.Landscape(network, data)
    fm.flatness_radius(landscape, network, directions=3, protocol="stepwise", buffers="perturb")
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert torch.equal(torch.get_rng_state(), random_state)
    np.testing.assert_allclose(landscape.loss_at(network).loss, mean_loss(network, data))


def test_half_precision_is_walked_in_float32():
    network, data = vectors()
    half = network.to(torch.bfloat16)
    single = copy.deepcopy(half).float()
    walked = {"directions": 4, "protocol": "stepwise", "buffers": "perturb", "step": 0.05}
    results = [fm.flatness_radius(fm.Landscape(n, data), n, **walked) for n in (half, single)]
    np.testing.assert_array_equal(results[0].radius, results[1].radius)
    np.testing.assert_array_equal(results[0].first_negative, results[1].first_negative)
    assert (results[0].radius > 0).any()


@pytest.mark.parametrize(
    ("network", "settings", "complaint"),
    [
        (vectors()[0], {"protocol": "crossing"}, "protocol 'stepwise' with buffers='perturb'"),
        (vectors()[0], {"parameters": "top"}, "parameters 'all' with buffers='perturb'"),
        (vectors()[0], {"parameters": ["0.bias"]}, "parameters 'all' with buffers='perturb'"),
        (vectors()[0], {"buffers": "shaken"}, "expected buffers 'policy' or 'perturb'"),
        (perceptron(), {}, "a network with running statistics for buffers='perturb'"),
        (
            nn.Sequential(nn.Linear(6, CLASSES), nn.GroupNorm(2, CLASSES)).double(),
            {},
            "got Sequential, which keeps none",
        ),
    ],
)
def test_what_the_fault_is_not_defined_for_is_refused_in_one_line(network, settings, complaint):
    walked = {"protocol": "stepwise", "buffers": "perturb", **settings}
    with pytest.raises(ValueError, match=complaint) as caught:
        fm.flatness_radius(fm.Landscape(network, points()), network, **walked)
    assert "\n" not in str(caught.value)
