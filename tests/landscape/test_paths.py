"""Every way of computing a loss gives the answer of the definition."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flatminima as fm
import naive
from cases import ImageNet, Tied, TwoInputs, images, perceptron, points, seeded, states
from flatminima.landscape import _affine, _layers
from flatminima.subspace import Subspace


def by_reference(landscape, subspace, coordinates):
    """The same points, one forward pass each."""
    parameters = [subspace.parameters_at(coordinate) for coordinate in coordinates]
    return np.array([landscape.loss_at(p).loss[0] for p in parameters])


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    samples=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    count=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_affine_path_equals_the_reference_in_float64(sizes, samples, batch_size, count, seed):
    layers = (6, *sizes, 4)
    data = points(samples, seed=seed)
    a, b, c = states(lambda s: perceptron(seed + s, sizes=layers), 3)
    landscape = fm.Landscape(perceptron(sizes=layers), data, batch_size=batch_size)
    plane = Subspace.through(a, b, c)
    coordinates = 3 * np.random.default_rng(seed).normal(size=(count, 2))
    found = landscape.losses(plane, coordinates)
    assert found.path == "affine"
    slow = perceptron(sizes=layers)
    want = [naive.loss_at(slow, naive.parameters_at(plane, c), data) for c in coordinates]
    np.testing.assert_allclose(found.loss, [loss for loss, _ in want], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.metrics["accuracy"], [accuracy for _, accuracy in want])


@pytest.mark.parametrize("memory", [1, 2_000, 20_000])
def test_cutting_into_chunks_changes_no_bit(monkeypatch, memory):
    data = points()
    landscape = fm.Landscape(perceptron(), data)
    rays = Subspace.random(perceptron(), 5, 0)
    coordinates = np.random.default_rng(0).normal(size=(11, 5)) * (
        np.random.default_rng(1).random((11, 5)) < 0.5
    )
    whole = landscape.losses(rays, coordinates)
    monkeypatch.setattr(_affine, "MEMORY", memory)
    cut = landscape.losses(rays, coordinates)
    np.testing.assert_array_equal(whole.loss, cut.loss)


def test_float32_agrees_with_float64():
    data = points(dtype=torch.float32)
    exact = fm.Dataset(data.inputs.double(), data.targets)
    network = perceptron(dtype=torch.float32)
    plane = Subspace.through(*states(lambda s: perceptron(s, dtype=torch.float32), 3))
    coordinates = np.random.default_rng(0).normal(size=(9, 2))
    single = fm.Landscape(network, data).losses(plane, coordinates)
    double = fm.Landscape(perceptron().double(), exact).losses(plane, coordinates)
    np.testing.assert_allclose(single.loss, double.loss, rtol=1e-6, atol=1e-6)


def test_vertices_of_the_plane_are_the_networks_own_losses():
    data = points()
    minima = states(perceptron, 3)
    landscape = fm.Landscape(perceptron(), data)
    plane = Subspace.through(*minima)
    found = landscape.losses(plane, plane.anchor_coordinates)
    own = [landscape.loss_at(minimum).loss[0] for minimum in minima]
    np.testing.assert_allclose(found.loss, own, rtol=1e-12)


def test_convolution_first_layer_is_shared():
    data = images()
    build = lambda s: seeded(ImageNet(batchnorm=False).double(), s)  # noqa: E731
    landscape = fm.Landscape(build(0), data)
    plane = Subspace.through(*states(build, 3))
    coordinates = np.random.default_rng(0).normal(size=(5, 2))
    found = landscape.losses(plane, coordinates)
    assert found.path == "affine"
    want = by_reference(landscape, plane, coordinates)
    np.testing.assert_allclose(found.loss, want, rtol=1e-12, atol=1e-12)


class Sneaky(nn.Module):
    """Looks as if it fed its data straight into a layer, but shifts them by a parameter first."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 4)

    def forward(self, x):
        return self.second(torch.relu(self.first(x + self.second.weight.sum())))


def test_a_network_that_breaks_the_assumption_gets_the_reference_path_and_is_told():
    data = points()
    network = seeded(Sneaky().double(), 0)
    landscape = fm.Landscape(network, data)
    rays = Subspace.random(network, 3, 0)
    coordinates = np.eye(3)
    found = landscape.losses(rays, coordinates)
    assert found.path.startswith("reference (the affine path differed by")
    np.testing.assert_allclose(found.loss, by_reference(landscape, rays, coordinates), rtol=1e-12)


@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.ReLU(), nn.Hardtanh(-50, 50)])
def test_top_path_is_refused_where_something_follows_the_top_layer(last):
    data = points()
    network = seeded(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), last).double(), 0)
    landscape = fm.Landscape(network, data)
    assert landscape.top_layer() == "2"
    rays = Subspace.random(network, 2, 0, parameters=landscape.parameter_names("top"))
    found = landscape.losses(rays, np.eye(2))
    assert found.path != "top"
    np.testing.assert_allclose(found.loss, by_reference(landscape, rays, np.eye(2)), rtol=1e-12)


def test_top_path_with_a_reshape_after_it():
    class Reshaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 8)

        def forward(self, x):
            return self.head(torch.relu(self.body(x))).view(len(x), 4, 2)

    data = fm.Dataset(points().inputs, torch.randint(4, (37, 2), generator=torch.Generator()))
    network = seeded(Reshaped().double(), 1)
    landscape = fm.Landscape(network, data)
    rays = Subspace.random(network, 2, 0, parameters="head.*")
    found = landscape.losses(rays, np.eye(2))
    assert found.path == "top"
    np.testing.assert_allclose(found.loss, by_reference(landscape, rays, np.eye(2)), rtol=1e-12)


def test_top_path_uses_the_origins_own_features():
    """The private copy holds other weights than the origin; its features must not leak in."""
    data = points()
    landscape = fm.Landscape(perceptron(0), data)
    for seed in (1, 2):
        rays = Subspace.random(perceptron(seed), 2, 0, parameters="4.*")
        found = landscape.losses(rays, np.eye(2))
        assert found.path == "top"
        np.testing.assert_allclose(found.loss, by_reference(landscape, rays, np.eye(2)), rtol=1e-12)


def test_top_layer_of_unsuitable_networks_is_refused_with_the_reason():
    data = points()
    tied = fm.Landscape(seeded(Tied().double(), 0), data, loss="mse")
    with pytest.raises(ValueError, match="shares them with 'into'"):
        tied.top_layer()
    again = nn.Linear(6, 6).double()
    twice = fm.Landscape(nn.Sequential(again, nn.ReLU(), again), data)
    with pytest.raises(ValueError, match="calls '0' 2 times"):
        twice.top_layer()

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return self.head(x), x

    both = fm.Landscape(Pair().double(), data, loss=lambda o, t: o[0].square().sum(1))
    with pytest.raises(ValueError, match="one output tensor"):
        both.top_layer()


def test_tied_weights_move_together():
    data = fm.Dataset(points().inputs, points().inputs)
    network = seeded(Tied().double(), 3)
    landscape = fm.Landscape(network, data, loss="mse")
    rays = Subspace.random(network, 2, 0)
    assert "out.weight" not in rays.moved
    found = landscape.losses(rays, np.eye(2))
    for row, coordinate in enumerate(np.eye(2)):
        moved = seeded(Tied().double(), 3)
        with torch.no_grad():
            for name, value in moved.named_parameters():
                value.copy_(rays.parameters_at(coordinate)[name])
        inputs = data.inputs
        want = (moved(inputs) - inputs).detach().square().mean()
        np.testing.assert_allclose(found.loss[row], float(want), rtol=1e-12)


def test_inputs_by_keyword_and_by_position():
    left, right = points().inputs, points(features=3, seed=1).inputs
    targets = points().targets
    network = seeded(TwoInputs().double(), 0)
    named = fm.Landscape(network, fm.Dataset({"left": left, "right": right}, targets))
    placed = fm.Landscape(network, fm.Dataset((left, right), targets))
    rays = Subspace.random(network, 3, 0)
    np.testing.assert_allclose(
        named.losses(rays, np.eye(3)).loss, placed.losses(rays, np.eye(3)).loss, rtol=1e-13
    )
    with torch.no_grad():
        want = nn.functional.cross_entropy(network(left, right), targets)
    np.testing.assert_allclose(named.loss_at(network).loss[0], float(want), rtol=1e-12)


class Viewing(nn.Module):
    """Reads its activations in the order in which they usually lie in memory."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.how = how

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        if self.how == "view":
            x = x.view(len(x), -1)
        if self.how == "strides":
            x = x.as_strided((len(x), 48), (48, 1))
        return x.flatten(1)[:, :4]


def colours(dtype):
    """Images of three channels; with one, both layouts are the same."""
    data = images()
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)[:, None, None]
    return fm.Dataset(data.inputs.to(dtype) * factors, data.targets)


@pytest.mark.parametrize(("how", "taken"), [("", True), ("view", False), ("strides", False)])
@pytest.mark.parametrize("policy", ["keep", "recompute", "batch"])
def test_the_layout_of_images_changes_no_loss(monkeypatch, how, taken, policy):
    data = colours(torch.float32)
    build = lambda s: seeded(Viewing(how), s)  # noqa: E731
    plane = Subspace.through(*states(build, 3))
    coordinates = np.random.default_rng(0).normal(size=(5, 2))
    quick = fm.Landscape(build(0), data, batchnorm=policy)
    assert quick._batches.channels_last == taken
    found = quick.losses(plane, coordinates)
    monkeypatch.setattr(_layers, "takes_channels_last", lambda _network, _inputs: False)
    plain = fm.Landscape(build(0), data, batchnorm=policy)
    want = plain.losses(plane, coordinates)
    np.testing.assert_allclose(found.loss, want.loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.metrics["accuracy"], want.metrics["accuracy"])
    assert found.path == want.path


@pytest.mark.parametrize("policy", ["keep", "recompute"])
def test_a_slim_vgg16_agrees_with_itself_in_float64(policy):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 3, 32, 32, generator=generator)
    data = fm.Dataset(inputs, torch.arange(12) % 10)
    exact = fm.Dataset(inputs.double(), data.targets)
    minima = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            minima.append(fm.build_model("vgg16", width=0.125))
    plane = Subspace.through(*minima)
    coordinates = 0.3 * plane.anchor_coordinates
    quick = fm.Landscape(minima[0], data, batchnorm=policy)
    assert quick._batches.channels_last
    found = quick.losses(plane, coordinates)
    double = copy.deepcopy(minima[0]).double()
    want = fm.Landscape(double, exact, batchnorm=policy).losses(plane, coordinates)
    np.testing.assert_allclose(found.loss, want.loss, rtol=1e-6, atol=1e-6)


def test_only_convolutions_in_float32_are_laid_out_anew():
    assert not fm.Landscape(Viewing("").double(), colours(torch.float64))._batches.channels_last
    assert not fm.Landscape(perceptron(dtype=torch.float32), points())._batches.channels_last


class Bounded(nn.Module):
    """Bounds its outputs, far above where they usually are."""

    def __init__(self):
        super().__init__()
        self.top = nn.Linear(6, 3, bias=False)

    def forward(self, inputs):
        return self.top(inputs).clamp(-1e3, 1e3)


def test_what_follows_the_top_layer_is_looked_for_on_more_than_the_first_examples():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator)
    inputs[:3] = 0.0  # of these a bound shows nothing
    network = Bounded()
    scape = fm.Landscape(network, (inputs, torch.arange(40) % 3))
    found = scape.losses(fm.Subspace.random(network, 2, 0), np.array([[0.0, 0.0], [3e4, 0.0]]))
    assert found.path != "top"
    far = {
        "top.weight": network.top.weight.detach()
        + 3e4 * fm.Subspace.random(network, 2, 0).direction(0)["top.weight"]
    }
    np.testing.assert_allclose(found.loss[1], scape.loss_at(far).loss[0], rtol=1e-5)
