"""Landscapes of convolutions taken tile by tile, against the definition."""

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
from flatminima import _convolution
from flatminima.landscape import _arithmetic, _rows
from flatminima.landscape._rows import Row, in_rows


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """As where there is MKL, and of few channels, too."""
    monkeypatch.setattr(_arithmetic, "mkl_is_quick", lambda: True)
    monkeypatch.setattr(_convolution, "_LEAST_CHANNELS", 4)
    monkeypatch.setattr(_convolution, "_LEAST_TILES", 1)


def block(before, after):
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]


def plain():
    return nn.Sequential(
        *block(3, 8), *block(8, 8), nn.MaxPool2d(2), *block(8, 4), nn.Flatten(), nn.Linear(64, 3)
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(*block(3, 8))
        self.inner = nn.Sequential(*block(8, 8), nn.Conv2d(8, 8, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.head(torch.relu(x + self.norm(self.inner(x))).mean((2, 3)))


class Between(nn.Module):
    """Uses what a convolution gave before its BatchNorm, too, and a slice of its layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*block(3, 8), *block(8, 8))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.layers[:3](x)
        raw = self.layers[3](x)
        return self.head(torch.cat([raw.mean((2, 3)), self.layers[4:](raw).mean((2, 3))], 1))


def without_norm():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3)
    )


def bare_norm():
    layers = nn.Sequential(*block(3, 8), *block(8, 8), nn.Flatten(), nn.Linear(512, 3))
    layers[4] = nn.BatchNorm2d(8, affine=False)
    layers[1] = nn.BatchNorm2d(8, track_running_stats=False)
    return layers


NETWORKS = [plain, Residual, Between, without_norm, bare_norm]


def made(build, seed):
    torch.manual_seed(seed)
    network = build().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return network


def data(count=40):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 8, 8, generator=rng), torch.arange(count) % 3


def landscapes(network, monkeypatch, **settings):
    """One that takes the quicker way, and one that does not."""
    quick = fm.Landscape(network, data(), **settings)
    monkeypatch.setattr(_arithmetic, "mkl_is_quick", lambda: False)
    slow = fm.Landscape(network, data(), **settings)
    assert quick._exact.tiled
    assert not slow._exact.tiled
    return quick, slow


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("policy", ["keep", "recompute", "interpolate", "batch"])
def test_surfaces_are_those_of_the_definition(build, policy, monkeypatch):
    threads = 2 if build is plain else 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        minima = [made(build, seed) for seed in range(3)]
        plane = fm.Subspace.through(*minima)
        points = np.random.default_rng(0).normal(size=(6, 2))
        quick, slow = landscapes(
            minima[0], monkeypatch, batchnorm=policy, batch_size=16, recompute_batch=10
        )
        got, want = quick.losses(plane, points), slow.losses(plane, points)
    finally:
        torch.set_num_threads(before)
    assert got.path == want.path
    np.testing.assert_array_equal(got.finite, want.finite)
    np.testing.assert_allclose(got.loss, want.loss, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (plain, "all"),
        (plain, "top"),
        (Residual, "inner.*"),
        (Between, "layers.3.*"),
        (without_norm, "all"),
        (bare_norm, "3.*"),
    ],
)
def test_radii_are_those_of_the_definition(build, parameters, monkeypatch):
    network = made(build, 1)
    quick, slow = landscapes(network, monkeypatch, batch_size=16)
    found = [
        fm.flatness_radius(each, network, directions=1, seed=0, parameters=parameters)
        for each in (quick, slow)
    ]
    assert found[0].attrs["path"] == found[1].attrs["path"]
    np.testing.assert_array_equal(found[0].outcome, found[1].outcome)
    np.testing.assert_allclose(found[0].radius, found[1].radius, rtol=1e-3)


def split(monkeypatch):
    """How many images each part of a batch had, from here on."""
    seen, through = [], _rows._through

    def noted(segment, part):
        seen.append((len(segment), len(part)))
        return through(segment, part)

    monkeypatch.setattr(_rows, "_through", noted)
    monkeypatch.setattr(_rows, "_PART", 40_000)
    return seen


def test_images_go_through_in_parts_up_to_where_they_shrink(monkeypatch):
    network, (inputs, _) = made(plain, 0), data()
    seen = split(monkeypatch)
    row = in_rows(network)
    assert type(row) is Row
    assert type(network) is nn.Sequential
    assert [id(p) for p in row.parameters()] == [id(p) for p in network.parameters()]
    with torch.no_grad():
        torch.testing.assert_close(row(inputs), network(inputs), atol=1e-5, rtol=1e-5)
    assert seen == [(7, 19), (7, 19), (7, 2), (3, 40)]


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("part", [1, 5_000, 2**22])
def test_parts_of_any_size_give_what_the_modules_do(build, part, monkeypatch):
    network, inputs = made(build, 0).double(), data()[0].double()
    monkeypatch.setattr(_rows, "_PART", part)
    with torch.no_grad():
        got = in_rows(network)(inputs)
        torch.testing.assert_close(got, network(inputs), atol=1e-12, rtol=1e-12)


def test_a_module_that_is_watched_is_called(monkeypatch):
    network, (inputs, _) = made(plain, 0), data()
    seen, watched = split(monkeypatch), []
    row = in_rows(network)
    row[4].register_forward_hook(lambda _module, _args, output: watched.append(len(output)))
    with torch.no_grad():
        torch.testing.assert_close(row(inputs), network(inputs), atol=1e-5, rtol=1e-5)
    assert watched == [40]
    assert {count for count, _ in seen} == {4, 3}


def test_statistics_of_a_batch_are_those_of_all_its_images(monkeypatch):
    network, (inputs, _) = made(plain, 0), data()
    seen = split(monkeypatch)
    row = in_rows(network)
    row.train()
    with torch.no_grad():
        got = row(inputs)
    assert not seen
    assert torch.equal(got, made(plain, 0).train()(inputs))


def test_half_precision_and_other_layers_are_left_alone(monkeypatch):
    seen = split(monkeypatch)
    row = in_rows(made(plain, 0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        row(data()[0])
    assert not seen
    indices = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, return_indices=True))
    assert in_rows(indices) is None
    assert in_rows(nn.Sequential(nn.Linear(3, 4), nn.ReLU())) is None
    assert in_rows(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())) is None


@pytest.mark.parametrize("where", ["tiles", "parts"])
def test_a_wrong_answer_is_noticed_and_the_direct_way_taken(monkeypatch, where):
    if where == "tiles":
        tiled = _convolution._tile_by_tile
        monkeypatch.setattr(_convolution, "_tile_by_tile", lambda *given: tiled(*given) * 1.01)
    else:
        through = _rows._through
        monkeypatch.setattr(_rows, "_through", lambda *given: through(*given) * 1.01)
    network = made(plain, 0)
    quick, slow = landscapes(network, monkeypatch, batchnorm="recompute")
    plane = fm.Subspace.through(network, made(plain, 1), made(plain, 2))
    points = np.array([[0.3, 0.4]])
    got, want = quick.losses(plane, points), slow.losses(plane, points)
    assert "convolutions in parts differed" in got.path
    np.testing.assert_array_equal(got.loss, want.loss)


def test_the_loss_of_a_state_is_by_the_definition(monkeypatch):
    network = made(plain, 0)
    quick, slow = landscapes(network, monkeypatch)
    np.testing.assert_array_equal(quick.loss_at(network).loss, slow.loss_at(network).loss)


def test_the_network_that_was_given_stays_as_it_is():
    network = made(plain, 0)
    assert fm.Landscape(network, data())._exact.tiled
    assert type(network) is nn.Sequential
