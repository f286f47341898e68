"""What does not move runs once, where a network can be cut, and nowhere else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flatminima as fm
import naive
from cases import CLASSES, ImageNet, Tied, images, perceptron, points, seeded
from flatminima.landscape import _suffix
from flatminima.subspace import Subspace


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Residual(nn.Module):
    """A stem, two blocks and a head, called one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3)
        self.first, self.second = Block(3), Block(3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(self.second(self.first(x)).mean((2, 3)))


class Around(nn.Module):
    """A connection leads around the second layer; behind the first one the network is a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.d = nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        y = torch.tanh(self.a(x))
        return self.d(torch.tanh(self.c(y + torch.tanh(self.b(y)))))


class OfTheInput(nn.Module):
    """The input itself is used again behind the cut: it is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.c(x + torch.tanh(self.b(torch.tanh(self.a(x)))))


class Loose(nn.Module):
    """The last weight is used where its own module is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.c(torch.relu(self.b(self.a(x + self.c.weight.sum()))))


class Again(nn.Module):
    """The first layer is called once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.a(torch.relu(self.b(torch.tanh(self.a(x)))))


class Counting(nn.Module):
    """Its output grows with every call, by a buffer that it writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.c(torch.relu(self.b(torch.relu(self.a(x))))) * self.calls


class Strict(nn.Module):
    """Refuses what its second layer cannot have returned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, CLASSES)

    def forward(self, x):
        y = self.a(x)
        assert y.shape[1] == 5
        if self.b(y).shape[1] != 3:
            raise KeyError("b")
        return self.c(y).relu() + self.c(torch.tanh(y))


def in_place():
    """Works in place behind the cut."""
    layers = [nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(5, CLASSES))


# Network, data, what moves, and the module behind which it is cut (none: it must not be).
CASES = {
    "a chain": (lambda: perceptron(), points, ["2.weight", "4.bias"], "1"),
    "in place": (in_place, points, ["2.weight", "4.weight"], "1"),
    "nested": (
        lambda: nn.Sequential(
            perceptron(1, sizes=(6, 7, 5)), nn.Tanh(), perceptron(2, sizes=(5, 5, 4))
        ),
        points,
        ["2.0.weight"],
        "1",
    ),
    "blocks": (Residual, images, ["second.conv.weight", "head.bias"], "first"),
    "within a block": (Residual, images, ["second.norm.bias", "head.bias"], "first"),
    "behind a norm": (ImageNet, images, ["head.weight", "norm.bias"], "conv"),
    "a way around": (Around, points, ["c.weight", "d.weight"], "a"),
    "the input again": (OfTheInput, points, ["b.weight", "c.weight"], "a"),
    "its own checks": (Strict, points, ["c.weight"], "a"),
    "used elsewhere": (Loose, points, ["b.bias", "c.weight"], None),
    "called again": (Again, points, ["b.weight"], None),
    "tied": (Tied, points, ["out.bias"], None),
}


def _landscape(name: str, **settings):
    make, data, moved, behind = CASES[name]
    network = seeded(make().double(), 5).eval()
    policy = {"batchnorm": "keep"}
    loss = {"loss": "cross_entropy"}
    return fm.Landscape(network, data(), **policy, **loss, **settings), network, moved, behind


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("memory", [1, 2**20])
def test_the_answer_is_that_of_whole_passes(monkeypatch, name, memory):
    monkeypatch.setattr(_suffix, "MEMORY", memory)
    landscape, network, moved, behind = _landscape(name, batch_size=10)
    rays = Subspace.random(network, 3, 0, parameters=moved)
    coordinates = np.random.default_rng(0).normal(size=(7, 3))
    found = landscape.losses(rays, coordinates)
    want = [
        naive.loss_at(network, naive.parameters_at(rays, c), landscape.dataset)[0]
        for c in coordinates
    ]
    np.testing.assert_allclose(found.loss, want, rtol=1e-12, atol=1e-12)
    assert (found.path == "suffix") == (behind is not None)
    if behind is not None:
        assert landscape._prepare(rays).cut.behind == behind


@given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    from_layer=st.integers(1, 3),
    samples=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    count=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_any_chain_from_any_layer_on(sizes, from_layer, samples, batch_size, count, seed):
    layers = (6, *sizes, 4)
    network, data = perceptron(seed, sizes=layers), points(samples, seed=seed)
    moved = [
        name
        for name, _ in network.named_parameters()
        if int(name.split(".")[0]) >= 2 * min(from_layer, len(layers) - 3)
    ]
    landscape = fm.Landscape(network, data, batch_size=batch_size)
    rays = Subspace.random(network, 2, seed, parameters=moved)
    coordinates = 3 * np.random.default_rng(seed).normal(size=(count, 2))
    found = landscape.losses(rays, coordinates)
    want = [naive.loss_at(network, naive.parameters_at(rays, c), data)[0] for c in coordinates]
    np.testing.assert_allclose(found.loss, want, rtol=1e-12, atol=1e-12)
    assert found.path == "suffix"


def test_no_point_sees_what_another_left_in_a_buffer():
    network = seeded(Counting().double(), 5).eval()
    landscape = fm.Landscape(network, points(), batch_size=10)
    rays = Subspace.random(network, 2, 0, parameters=["b.weight", "c.weight"])
    coordinates = np.random.default_rng(0).normal(size=(4, 2))
    found = landscape.losses(rays, coordinates)
    assert found.path == "suffix"
    want = [
        landscape.loss_at({**network.state_dict(), **rays.parameters_at(c)}).loss[0]
        for c in coordinates
    ]
    np.testing.assert_allclose(found.loss, want, rtol=1e-12)
    np.testing.assert_array_equal(landscape.losses(rays, coordinates).loss, found.loss)


def test_layers_before_the_cut_run_once_a_batch():
    landscape, network, moved, _ = _landscape("blocks", batch_size=23)
    rays = Subspace.random(network, 2, 0, parameters=moved)
    landscape.losses(rays, np.zeros((1, 2)))  # chooses the path, which takes passes of its own
    calls = {"stem": 0, "head": 0}
    for name in calls:

        def count(_module, _args, name=name):
            calls[name] += 1

        landscape._network.get_submodule(name).register_forward_pre_hook(count)
    landscape.losses(rays, np.ones((9, 2)))
    assert calls == {"stem": 1, "head": 9}


def test_a_radius_of_one_block_is_that_of_whole_passes():
    landscape, network, _, _ = _landscape("blocks")
    radii = fm.flatness_radius(landscape, network, directions=4, parameters="second.*")
    assert radii.attrs["path"] == "suffix"
    rays = Subspace.random(network, 4, 0, parameters="second.*")
    crossed = [(ray, sign) for ray in range(4) for sign in (1, -1)]
    crossed = [(r, s) for r, s in crossed if radii["outcome"].sel(direction=r, sign=s) == 0]
    assert crossed
    for ray, sign in crossed:
        coordinate = np.zeros(4)
        coordinate[ray] = sign * float(radii["radius"].sel(direction=ray, sign=sign))
        there = {**network.state_dict(), **rays.parameters_at(coordinate)}
        rise = landscape.loss_at(there).loss[0] - radii.attrs["loss"]
        assert abs(rise - 0.05) < 1e-3
