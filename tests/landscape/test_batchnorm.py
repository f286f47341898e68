"""BatchNorm: what becomes of running statistics when weights move."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import flatminima as fm
import naive
from cases import CLASSES, ImageNet, images, perceptron, points, seeded, states
from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._batchnorm import recomputed
from flatminima.landscape.surface import FINITE, NON_FINITE
from flatminima.subspace import Subspace

EXACT = Arithmetic(half=False, device=torch.device("cpu"))


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
    clean = list(landscape._batches.clean())
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


# Any network with BatchNorm.


class Shifted(nn.BatchNorm2d):
    """A layer of one's own: it normalises a shifted input, and stores nothing in training."""

    def forward(self, input):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = input.mean((0, 2, 3)), input.var((0, 2, 3), unbiased=False)
        shape = (1, -1, 1, 1)
        return (input - mean.view(shape)) / (var.view(shape) + self.eps).sqrt() + 0.1


def twice():
    """One layer called for two inputs of different statistics."""
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.Tanh(), nn.Conv2d(3, 3, 3), norm)


def switched_off():
    """A layer with statistics that is told to stop tracking, as in fine-tuning."""
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    network[1].track_running_stats = False
    return network


NETWORKS = {
    "1d": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5)),
    "1d over time": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 3, 5), nn.BatchNorm1d(3)),
    "2d": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)),
    "3d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 3, (1, 3, 3)), nn.BatchNorm3d(3)
    ),
    "the network itself": lambda: nn.BatchNorm2d(1),
    "momentum None": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=None), nn.ReLU(), nn.Conv2d(3, 2, 2),
        nn.BatchNorm2d(2, momentum=None),
    ),
    "affine off": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, affine=False)),
    "among other norms": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.ReLU(),
        nn.InstanceNorm2d(4), nn.LayerNorm(4), nn.BatchNorm2d(4),
    ),
    "beside one that stores nothing": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU(),
        nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2),
    ),
    "SyncBatchNorm alone": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.SyncBatchNorm(3)),
    "called twice": twice,
    "of one's own": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), Shifted(3), nn.BatchNorm2d(3)),
    "tracking switched off": switched_off,
}  # fmt: skip


class Scores(nn.Module):
    """The first values of each example, as class scores."""

    def forward(self, x):
        return x.flatten(1)[:, :CLASSES]


def layers_of(network):
    return {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm)}


def built(kind, seed=0, *, dtype=torch.float64, eps=None):
    """A network with weights, and statistics as no data leave them, of their own per seed."""
    network = seeded(nn.Sequential(NETWORKS[kind](), Scores()).to(dtype), seed)
    for layer in layers_of(network).values():
        layer.eps = layer.eps if eps is None else eps
        if layer.running_mean is not None:
            layer.running_mean.fill_(0.3 * seed)
            layer.running_var.fill_(0.5 + seed)
            layer.num_batches_tracked.fill_(7 + seed)
    return network.eval()


def image_batches(dtype=torch.float64):
    data = images(21, seed=3)
    return [(10 + data.inputs[k : k + 7].to(dtype), data.targets[k : k + 7]) for k in (0, 7, 14)]


def slowly_pooled(network, batches):
    """Per layer the mean and variance of all its inputs at once, in float64."""
    network = copy.deepcopy(network)
    seen = {}
    for name, layer in layers_of(network).items():
        layer.register_forward_pre_hook(
            lambda _module, args, name=name: seen.setdefault(name, []).append(
                args[0].double().transpose(0, 1).flatten(1)
            )
        )
        layer.train()
    with torch.no_grad():
        for inputs, _ in batches:
            network(inputs)
    pools = {name: torch.cat(values, 1) for name, values in seen.items()}
    return {name: (pool.mean(1), pool.var(1, correction=0)) for name, pool in pools.items()}


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kind", NETWORKS)
def test_pooled_statistics_are_those_of_all_inputs_at_once(kind, dtype, rtol):
    """In float32 a layer rounds each batch's moments once, to 6e-8; nothing else is lost."""
    network, batches = built(kind, 1, dtype=dtype), image_batches(dtype)
    buffers = dict(network.named_buffers())
    with torch.no_grad():
        found = recomputed(network, dict(network.named_parameters()), buffers, batches, EXACT)
    want = slowly_pooled(network, batches)
    stored = 0
    for name, layer in layers_of(network).items():
        if layer.running_mean is None:
            continue
        stored += 1
        for key, value in zip(("running_mean", "running_var"), want[name], strict=True):
            full = f"{name}.{key}"
            assert found[full].dtype == dtype
            torch.testing.assert_close(found[full].double(), value, rtol=rtol, atol=rtol)
            assert not torch.allclose(found[full], buffers[full])
        torch.testing.assert_close(
            found[f"{name}.num_batches_tracked"], torch.tensor(8), rtol=0, atol=0
        )
    assert stored
    assert set(found) == set(buffers)


def test_pooling_keeps_its_digits_where_the_mean_is_large():
    network = nn.BatchNorm2d(1).double()
    batches = [(1e6 + inputs, targets) for inputs, targets in image_batches()]
    with torch.no_grad():
        found = recomputed(
            network.eval(),
            dict(network.named_parameters()),
            dict(network.named_buffers()),
            batches,
            EXACT,
        )
    want = torch.cat([inputs for inputs, _ in batches]).var(correction=0)
    torch.testing.assert_close(found["running_var"][0], want, rtol=1e-8, atol=0)


def test_statistics_left_infinite_do_not_reach_the_recomputed_ones():
    network = built("2d")
    sound = fm.Landscape(network, images()).loss_at(network, batchnorm="recompute")
    network[0][1].running_var.fill_(torch.inf)
    network[0][1].running_mean.fill_(torch.nan)
    found = fm.Landscape(network, images()).loss_at(network, batchnorm="recompute")
    np.testing.assert_array_equal(found.loss, sound.loss)
    assert not fm.Landscape(network, images()).loss_at(network).finite[0]


@pytest.mark.parametrize("policy", ["recompute", "keep", "interpolate", "batch"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_no_measurement_touches_the_callers_networks(kind, policy):
    """Counters, running statistics, weights and modes, to the last bit."""
    network = built(kind, 1).train()
    others = [built(kind, seed) for seed in (2, 3, 4)]
    given = [network, *others]
    before = [copy.deepcopy(item.state_dict()) for item in given]
    settings = [[(m.training, m.__dict__.get("momentum")) for m in n.modules()] for n in given]
    minima = states(lambda seed: built(kind, seed + 2), 3)
    kept = [copy.deepcopy(minimum.state_dict()) for minimum in minima]
    landscape = fm.Landscape(network, images(), batchnorm=policy, batch_size=10)
    plane = Subspace.through(*others)
    landscape.losses(plane, np.array([[0.1, 0.2], [1.0, -0.5]]))
    landscape.loss_at(network, batchnorm=policy)
    landscape.loss_at(minima[0], batchnorm=policy)
    fm.loss_surface(landscape, Subspace.through(*minima), resolution=2)
    for item, state, modes in zip(given, before, settings, strict=True):
        assert [(m.training, m.__dict__.get("momentum")) for m in item.modules()] == modes
        for name, value in item.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    for minimum, state in zip(minima, kept, strict=True):
        for name, value in minimum.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=0, atol=0)


@pytest.mark.parametrize("policy", ["recompute", "keep", "interpolate", "batch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_point_is_measured_the_same_whatever_was_measured_before(policy, dtype):
    kind = "momentum None"
    minima = states(lambda seed: built(kind, seed, dtype=dtype), 3)
    data = images()
    data = fm.Dataset(data.inputs.to(dtype), data.targets)
    plane, points_ = Subspace.through(*minima), np.array([[0.1, 0.2], [1.0, -0.5], [0.3, 0.3]])
    landscape = fm.Landscape(built(kind, dtype=dtype), data, batchnorm=policy)
    first = landscape.losses(plane, points_)
    again = landscape.losses(plane, points_[::-1].copy())
    np.testing.assert_array_equal(first.loss, again.loss[::-1])
    fresh = fm.Landscape(built(kind, 5, dtype=dtype), data, batchnorm=policy)
    np.testing.assert_array_equal(first.loss, fresh.losses(plane, points_).loss)


@pytest.mark.parametrize("policy", ["recompute", "batch"])
def test_what_overflows_under_a_policy_is_a_hole(policy):
    network = built("momentum None")
    landscape = fm.Landscape(network, images(), batchnorm=policy)
    plane = Subspace.random(network, 2, 0)
    surface = fm.loss_surface(landscape, plane, resolution=3, extent=(-1e300, 1e300))
    np.testing.assert_array_equal(surface.outcome, [[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(surface.loss.isnull(), surface.outcome == 1)
    assert surface.attrs["batchnorm"] == policy


@pytest.mark.parametrize("policy", ["recompute", "keep", "interpolate", "batch"])
def test_layers_that_store_nothing_use_the_batch_under_every_policy(policy):
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), Scores()
    )
    network = seeded(network.double(), 0).eval()
    data = images()
    found = fm.Landscape(network, data, batchnorm=policy, batch_size=10).loss_at(
        network, batchnorm=policy
    )
    assert found.batchnorm == "batch"
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(network(x), y, reduction="sum")
            for x, y in (data.batch(slice(k, k + 10)) for k in (0, 10, 20))
        ]
    np.testing.assert_allclose(found.loss[0], float(sum(losses)) / len(data), rtol=1e-12)


@pytest.mark.parametrize("policy", ["recompute", "keep", "interpolate", "batch"])
def test_other_norms_are_left_alone(policy):
    def build(seed):
        return seeded(
            nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.InstanceNorm2d(4),
                nn.LayerNorm(4), Scores(),
            ).double(), seed,
        ).eval()  # fmt: skip

    data, plane = images(), Subspace.through(*states(build, 3))
    found = fm.Landscape(build(0), data, batchnorm=policy).losses(plane, np.array([[0.4, -2.0]]))
    assert found.batchnorm == "none"
    want, _ = naive.loss_at(build(0), naive.parameters_at(plane, [0.4, -2.0]), data)
    np.testing.assert_allclose(found.loss[0], want, rtol=1e-11)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_layers_that_cannot_be_measured_are_named(monkeypatch):
    lazy = nn.Sequential(nn.Conv2d(1, 3, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="uninitialised LazyBatchNorm2d '1'; pass one batch"):
        fm.Landscape(lazy, images())
    network = built("SyncBatchNorm alone")
    landscape = fm.Landscape(network, images())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match=r"SyncBatchNorm '0\.1' within a process group"):
        landscape.loss_at(network, batchnorm="recompute")
    assert landscape.loss_at(network).batchnorm == "keep"


def test_batches_without_a_variance_are_refused():
    network, data = built("1d"), images()
    with pytest.raises(ValueError, match=r"two values per channel or more .* another batch_size"):
        fm.Landscape(network, data, batch_size=11).loss_at(network, batchnorm="batch")
    with pytest.raises(ValueError, match="recompute_batch"):
        fm.Landscape(network, data, recompute_batch=1).loss_at(network, batchnorm="recompute")


# What must hold on a plane.


class Deep(nn.Module):
    """BatchNorm after convolutions and after an affine layer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
            nn.Linear(54, 8), nn.BatchNorm1d(8), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.body(x))


BEFORE_NORMS = ("body.0", "body.4", "body.8")


def deep(seed, *, gain=1.0, eps=1e-5, dtype=torch.float64):
    """A network whose running statistics are those of its data, so of size `gain` squared."""
    network = seeded(Deep().to(dtype), seed)
    with torch.no_grad():
        for name in BEFORE_NORMS:
            for value in network.get_submodule(name).parameters():
                value.mul_(gain)
        network.train()
        for _ in range(60):  # running averages forget their start as 0.9 ** 60 = 0.002
            network(images().inputs.to(dtype))
    for layer in layers_of(network).values():
        layer.eps = eps
    return network.eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_minimum_has_its_own_loss_under_recompute(dtype):
    data = images()
    data = fm.Dataset(data.inputs.to(dtype), data.targets)
    minima = states(lambda seed: deep(seed, gain=1.0 + seed, dtype=dtype), 3)
    landscape = fm.Landscape(Deep().to(dtype), data, recompute_batch=5, recompute_samples=15)
    plane = Subspace.through(*minima)
    own = [landscape.loss_at(m, batchnorm="recompute").loss[0] for m in minima]
    for coordinates in ("isometric", "barycentric"):
        surface = fm.loss_surface(landscape, plane, resolution=2, coordinates=coordinates)
        np.testing.assert_allclose(surface.anchor_loss, own, rtol=1e-6, atol=1e-6)
    # And a cell of the grid that is a minimum.
    grid = fm.loss_surface(
        landscape, plane, resolution=2, coordinates="barycentric", extent=(0.0, 1.0)
    )
    cells = [grid.loss.sel(x=x, y=y) for x, y in ((1, 0), (0, 1), (0, 0))]
    np.testing.assert_allclose(cells, own, rtol=1e-6, atol=1e-6)


def test_tripled_weights_before_batchnorm_are_the_same_function_under_recompute_only():
    network = deep(0, eps=0.0)
    minimum, tripled = states(lambda _seed: network, 2)
    for name in BEFORE_NORMS:
        for key in ("weight", "bias"):
            tripled.parameters[f"{name}.{key}"] *= 3
    line = Subspace.through(minimum, tripled)
    steps = np.linspace(0.0, line.anchor_coordinates[1, 0], 5)[:, None]
    policies = ("recompute", "batch", "keep")
    losses = {
        policy: fm.Landscape(network, images(), batchnorm=policy).losses(line, steps).loss
        for policy in policies
    }
    for policy in ("recompute", "batch"):
        np.testing.assert_allclose(losses[policy], losses[policy][0], rtol=1e-9)
    assert np.ptp(losses["keep"]) > 0.1


def test_negative_coefficients_break_interpolated_variances_and_no_recomputed_ones():
    """Two minima of small activations and one of large: 1.3 + 1.3 - 1.6 * 5 ** 2 is below zero."""
    minima = states(lambda seed: deep(seed, gain=(1.0, 1.0, 5.0)[seed]), 3)
    variances = [minimum.buffers["body.1.running_var"] for minimum in minima]
    assert (variances[2] > 2 * (variances[0] + variances[1])).any()
    plane = Subspace.through(*minima)
    outside = plane.barycentric(np.array([[1.3, 1.3, -1.6]]))
    options = {"resolution": 2, "coordinates": "barycentric", "extent": (-0.4, 1.3)}
    found, surfaces = {}, {}
    for policy in ("interpolate", "recompute"):
        landscape = fm.Landscape(Deep().double(), images(), batchnorm=policy)
        found[policy] = landscape.losses(plane, outside)
        surfaces[policy] = fm.loss_surface(landscape, plane, **options)
    corner = {"x": 1.3, "y": 1.3}
    assert not found["interpolate"].finite[0]
    assert surfaces["interpolate"].outcome.sel(corner) == NON_FINITE
    assert np.isnan(surfaces["interpolate"].loss.sel(corner))
    assert found["recompute"].finite[0]
    assert (surfaces["recompute"].outcome == FINITE).all()
    np.testing.assert_allclose(surfaces["recompute"].loss.sel(corner), found["recompute"].loss[0])
