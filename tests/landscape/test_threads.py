"""Work on several threads gives the bits of one, in order, and is not done where it cannot be."""

import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
from cases import ImageNet, images, perceptron, points, seeded, states
from flatminima.landscape import _affine, _landscape, _paths
from flatminima.landscape._losses import per_sample_loss
from flatminima.landscape._meter import Measures, Meter
from flatminima.landscape._states import States
from flatminima.landscape._threads import in_threads
from flatminima.subspace import Subspace


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Watching(nn.Module):
    """Notes which threads it runs on."""

    seen: ClassVar[set[int]] = set()

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        self.seen.add(threading.get_ident())
        return self.network(x)


class Counting(Watching):
    """Besides writes to a buffer, which it adds to its outputs."""

    def __init__(self, network):
        super().__init__(network)
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + 0.01 * self.calls)


def watched(monkeypatch, network, subspace, *, batchnorm="auto", data=None, threads=True):
    monkeypatch.setattr(_landscape, "_ENOUGH", 0 if threads else 10**12)
    landscape = fm.Landscape(
        network, data or points(37), batch_size=3, batchnorm=batchnorm, recompute_batch=5
    )
    coordinates = np.random.default_rng(0).normal(size=(6, subspace.dimensions))
    landscape.losses(subspace, coordinates[:1])
    Watching.seen.clear()
    found = landscape.losses(subspace, coordinates)
    return found, len(Watching.seen)


@pytest.mark.parametrize("path", ["affine", "suffix", "top"])
def test_every_path_gives_the_bits_of_one_thread(monkeypatch, two_threads, path):
    network = Watching(perceptron())
    names = [name for name, _ in network.named_parameters()]
    moved = {"affine": names, "suffix": names[2:], "top": names[-2:]}[path]
    subspace = Subspace.random(network, 2, 0, parameters=moved)
    many, on = watched(monkeypatch, network, subspace)
    one, alone = watched(monkeypatch, network, subspace, threads=False)
    assert many.path == one.path == path
    assert alone <= 1
    assert on >= 2 or path == "top"  # there the network does not run any more
    np.testing.assert_array_equal(many.loss, one.loss)
    np.testing.assert_array_equal(many.metrics["accuracy"], one.metrics["accuracy"])
    np.testing.assert_array_equal(many.standard_error, one.standard_error)


@pytest.mark.parametrize("batchnorm", ["recompute", "interpolate", "batch"])
def test_points_side_by_side_give_the_bits_of_one_thread(monkeypatch, two_threads, batchnorm):
    plane = Subspace.through(*states(_image_net, 3))
    network, data = _image_net(0), images(24)
    many, on = watched(monkeypatch, network, plane, batchnorm=batchnorm, data=data)
    one, _ = watched(monkeypatch, network, plane, batchnorm=batchnorm, data=data, threads=False)
    assert on == 2
    np.testing.assert_array_equal(many.loss, one.loss)


def _image_net(seed):
    return Watching(seeded(ImageNet().double(), seed))


def test_a_network_that_writes_to_its_buffers_stays_on_one_thread(monkeypatch, two_threads):
    network = Counting(perceptron())
    subspace = Subspace.random(network, 2, 0)
    found, on = watched(monkeypatch, network, subspace)
    assert on == 1
    again, _ = watched(monkeypatch, network, subspace, threads=False)
    np.testing.assert_array_equal(found.loss, again.loss)


def test_results_come_in_order_and_settings_return(two_threads):
    network = nn.Linear(2, 2)
    seen = []

    def work(own, item):
        seen.append((own is network, own.weight is network.weight, torch.is_grad_enabled()))
        return item, torch.get_num_threads()

    got = list(in_threads(network, range(20), work, allowed=True))
    assert [item for item, _ in got] == list(range(20))
    assert {threads for _, threads in got} == {1}
    assert set(seen) == {(False, True, False)}
    assert torch.get_num_threads() == 2
    assert [item for item, _ in in_threads(network, range(3), work, allowed=False)] == [0, 1, 2]
    assert seen[-1] == (True, True, True)


def test_an_error_on_a_thread_arrives_and_settings_return(two_threads):
    def fail(_own, item):
        if item == 3:
            raise RuntimeError("no")
        return item

    with pytest.raises(RuntimeError, match="no"):
        list(in_threads(nn.Linear(2, 2), range(9), fail, allowed=True))
    assert torch.get_num_threads() == 2


def test_losses_of_a_stack_are_those_of_its_points():
    outputs = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    for targets in (torch.arange(7) % 4, torch.tensor([0, 1, -100, 3, 2, 1, 0])):
        one, stacked = (Meter(Measures(per_sample_loss("cross_entropy")), 4) for _ in range(2))
        for point, each in zip((3, 0, 1), outputs, strict=True):
            one.add(point, each, targets)
        stacked.add_stack((3, 0, 1), outputs, targets)
        kinds = {"path": "", "batchnorm": "none"}
        want, got = one.losses(7, **kinds), stacked.losses(7, **kinds)
        np.testing.assert_allclose(got.loss, want.loss, rtol=1e-6)
        np.testing.assert_allclose(got.standard_error, want.standard_error, rtol=1e-5)
        np.testing.assert_array_equal(got.metrics["accuracy"], want.metrics["accuracy"])
    assert np.isnan(got.loss[2])


def test_a_first_layer_of_few_products_is_not_shared(monkeypatch):
    network, data = seeded(ImageNet(batchnorm=False).double(), 0), images()
    subspace = Subspace.random(network, 2, 0)
    assert fm.Landscape(network, data).losses(subspace, np.ones((1, 2))).path == "affine"
    monkeypatch.setattr(_paths, "_CACHE", 0)
    found = fm.Landscape(network, data).losses(subspace, np.ones((1, 2)))
    assert found.path == "reference"


def test_states_are_those_of_the_subspace_and_draw_each_direction_once(monkeypatch):
    network = perceptron(dtype=torch.float32)
    subspace = Subspace.random(network, 3, 0)
    drawn = []
    direction = Subspace.direction
    monkeypatch.setattr(Subspace, "direction", lambda own, k: drawn.append(k) or direction(own, k))
    formed = States(subspace)
    for coordinate in np.random.default_rng(0).normal(size=(5, 3)) * [1, 0, 1]:
        for name, value in subspace.parameters_at(coordinate).items():
            assert torch.equal(formed.at(coordinate)[name], value)
    assert drawn == [0, 2]


def test_products_of_rays_are_kept_and_change_no_bit(monkeypatch, two_threads):
    network, data = perceptron(), points()
    rays = Subspace.random(network, 4, 0)
    rounds = [np.diag([1.0, 2.0, 3.0, 4.0]), np.diag([0.5, 0.0, 0.0, -2.0])]
    size = 37 * 8 * 8  # of one direction
    wanted = None
    for room in (0, 2, 5):
        monkeypatch.setattr(_paths, "_FEATURES", room * size + 100)
        computed = []
        product = _affine.AffineLayer.product
        monkeypatch.setattr(
            _affine.AffineLayer,
            "product",
            lambda own, index, inputs: computed.append(index) or product(own, index, inputs),  # noqa: B023
        )
        landscape = fm.Landscape(network, data, batch_size=37)
        landscape.losses(rays, rounds[0])
        computed.clear()
        found = np.concatenate([landscape.losses(rays, points).loss for points in rounds])
        monkeypatch.setattr(_affine.AffineLayer, "product", product)
        wanted = found if wanted is None else wanted
        np.testing.assert_array_equal(found, wanted)
        # Five products are asked for, then three of them; and one more a call, for the size.
        assert len(computed) == {0: 5 + 3, 2: 3 + 1, 5: 0}[room] + 2
