"""Layers behind the first one, called without their modules: the same losses, where it is safe."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
from cases import perceptron, points, seeded, states
from flatminima import _linear, _processor, _quick
from flatminima._packed import Packed
from flatminima.landscape import _affine, _suffix
from flatminima.landscape._chain import Chain, chain_behind
from flatminima.landscape._states import States
from flatminima.subspace import Subspace


def behind(*layers):
    return nn.Sequential(nn.Linear(6, 5), *layers)


class Wide(nn.Linear):
    """Not what its parent is."""

    def forward(self, inputs):
        return 2 * super().forward(inputs)


class Own(nn.Module):
    """Nobody knows what it does with other inputs."""

    def __init__(self):
        super().__init__()
        self.layers = behind(nn.ReLU(), nn.Linear(5, 4))

    def forward(self, inputs):
        return self.layers(inputs)


def hooked():
    network = behind(nn.ReLU(), nn.Linear(5, 4))
    network[2].register_forward_hook(lambda _module, _given, output: 2 * output)
    return network


def patched():
    network = behind(nn.ReLU(), nn.Linear(5, 4))
    network[1].forward = torch.tanh
    return network


def tied():
    network = behind(nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    network[4].weight = network[2].weight
    return network


@pytest.mark.parametrize(
    ("network", "affine"),
    [
        (behind(nn.ReLU(), nn.Linear(5, 4)), ["2"]),
        (behind(nn.Linear(5, 4, bias=False), nn.ReLU()), ["1"]),
        (
            behind(
                nn.Sequential(nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)),
                nn.Identity(),
                nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(), nn.Linear(3, 4))),
            ),
            ["1.2", "3.1.1"],
        ),
    ],
)
def test_plain_layers_in_a_row_are_a_chain(network, affine):
    network.eval()
    chain = chain_behind(network, "0")
    assert [step[0] for step in chain.steps if isinstance(step, tuple)] == [
        f"{name}.weight" for name in affine
    ]
    inputs = torch.randn(9, 6)
    state = dict(network.named_parameters())
    with torch.no_grad():
        got = chain(network[0](inputs), state, Packed(()), lambda value: value)
        assert torch.equal(got, network(inputs))


def test_what_is_rectified_before_it_is_rounded_is_the_same_number():
    network = behind(nn.Flatten(), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    chain = chain_behind(network, "0")
    state = {name: value.to(torch.bfloat16) for name, value in network.named_parameters()}
    value = torch.cat(
        [torch.randn(9, 5), torch.tensor([[-0.0, torch.inf, -torch.inf, 1e-45, 1e5]])]
    )
    given = []

    def convert(value):
        given.append(value.clone())
        return value.to(torch.bfloat16)

    with torch.no_grad():
        got = chain(value.clone(), state, Packed(()), convert)
        halves = nn.functional.linear(
            value.to(torch.bfloat16).relu(), state["3.weight"], state["3.bias"]
        )
        want = nn.functional.linear(halves.relu(), state["5.weight"], state["5.bias"])
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(given[0], value.relu())
    assert len(given) == 1


@pytest.mark.parametrize(
    "network",
    [
        behind(),
        behind(nn.ReLU()),
        behind(nn.Tanh(), nn.Linear(5, 4)),
        behind(nn.ReLU6(), nn.Linear(5, 4)),
        behind(nn.ReLU(), Wide(5, 4)),
        behind(nn.ReLU(), nn.Linear(5, 4), nn.LogSoftmax(1)),
        behind(nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))),
        behind(nn.Dropout(), nn.Linear(5, 4)).train(),
        hooked(),
        patched(),
        tied(),
    ],
)
def test_whatever_else_follows_is_none(network):
    assert chain_behind(network, "0") is None


def test_a_module_that_calls_its_layers_itself_is_none():
    assert chain_behind(Own(), "layers.0") is None


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("kind", ["plane", "rays"])
def test_losses_are_those_of_the_modules(monkeypatch, precision, kind):
    # Large enough that oneDNN is asked, where it is the quicker one.
    sizes = (6, 300, 200, 4)
    data = points(300, dtype=torch.float32)
    build = lambda seed: perceptron(seed, sizes=sizes, dtype=torch.float32)  # noqa: E731
    plane = (
        Subspace.through(*states(build, 3)) if kind == "plane" else Subspace.random(build(0), 3, 0)
    )
    coordinates = np.random.default_rng(0).normal(size=(40, plane.dimensions))

    def losses(**settings):
        scape = fm.Landscape(build(0), data, precision=precision, batch_size=150)
        found = scape.losses(plane, coordinates, **settings)
        again = scape.losses(plane, coordinates, **settings)
        assert found.path == "affine"
        np.testing.assert_array_equal(found.loss, again.loss)
        return found

    calls = []
    whole = Chain.__call__
    monkeypatch.setattr(Chain, "__call__", lambda *given: calls.append(1) or whole(*given))
    quick, clipped = losses(), losses(clip=3.0)
    assert calls
    monkeypatch.setattr(_affine, "chain_behind", lambda *_: None)
    calls.clear()
    slow, clipped_slow = losses(), losses(clip=3.0)
    assert not calls
    tolerance = 1e-6 if precision == "exact" else 1e-2
    np.testing.assert_allclose(quick.loss, slow.loss, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        quick.standard_error, slow.standard_error, rtol=10 * tolerance, atol=tolerance
    )
    np.testing.assert_allclose(clipped.loss, clipped_slow.loss, rtol=tolerance, atol=tolerance)
    if precision == "exact":
        np.testing.assert_array_equal(quick.metrics["accuracy"], slow.metrics["accuracy"])
        np.testing.assert_array_equal(clipped.clipped, clipped_slow.clipped)


@pytest.mark.parametrize(
    "overflows",
    [
        {"0.weight": 1e30},
        {"2.weight": 1e30},
        {"2.bias": 1e30},
        # The sum of both infinities is no number, in one unit of every sample, and nothing else is.
        {"2.weight": 1e30, "2.bias": -1e30},
    ],
)
def test_what_is_not_finite_is_not_rectified_away(monkeypatch, overflows):
    for room in (_linear, _quick):
        monkeypatch.setattr(room, "mkl_is_slow", lambda: True)
    network = perceptron(sizes=(6, 300, 200, 4), dtype=torch.float32)
    data = points(300, dtype=torch.float32)
    rays = Subspace.random(network, 2, 0)
    broken = {name: torch.zeros_like(value) for name, value in rays.direction(0).items()}
    for name, value in overflows.items():
        broken[name][0] = value
    given = Subspace(rays.origin, (broken, rays.direction(1)))
    found = fm.Landscape(network, data).losses(given, np.diag([1e20, 1.0]))
    np.testing.assert_array_equal(found.finite, [False, True])


@pytest.mark.parametrize(("parameters", "room"), [("all", _affine), ("2.*", _suffix)])
def test_one_chunk_of_points_is_in_memory_at_a_time(monkeypatch, parameters, room):
    network, data = perceptron(sizes=(6, 9, 5, 4)), points()
    landscape = fm.Landscape(network, data)
    rays = Subspace.random(network, 2, 0, parameters=landscape.parameter_names(parameters))
    coordinates = np.random.default_rng(0).normal(size=(40, 2))
    whole = landscape.losses(rays, coordinates)
    monkeypatch.setattr(room, "MEMORY", 4_000)
    chunks, cut, alive, form = [], room._chunks, [], States.at

    def noted(*given, **named):
        for chunk in cut(*given, **named):
            chunks.append(len(chunk[0]) if isinstance(chunk, tuple) else len(chunk))
            yield chunk

    def formed(*given, **named):
        state = form(*given, **named)
        made = next(value for key, value in state.items() if key == "2.weight")
        alive.append(weakref.ref(made))
        most.append(sum(ref() is not None for ref in alive))
        return state

    most = []
    monkeypatch.setattr(room, "_chunks", noted)
    monkeypatch.setattr(States, "at", formed)
    np.testing.assert_array_equal(landscape.losses(rays, coordinates).loss, whole.loss)
    assert len(chunks) > 2
    assert max(most) <= max(chunks) + 1  # and the one that is being formed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_affine_map_is_that_of_torch(monkeypatch, dtype):
    monkeypatch.setattr(_linear, "mkl_is_slow", lambda: True)
    draws = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(n, 200, generator=draws).to(dtype) for n in (150, 90))
    bias = torch.randn(90, generator=draws).to(dtype)
    got = _linear.affine(inputs, weight, bias, Packed([weight]))
    want = nn.functional.linear(inputs.double(), weight.double(), bias.double())
    assert got.dtype == dtype
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("halves")
def test_weights_in_half_precision_are_brought_into_order_once(monkeypatch):
    if not _processor.packs_halves():
        pytest.skip("oneDNN is not at hand, or refuses")
    monkeypatch.setattr(_linear, "mkl_is_slow", lambda: False)
    inputs, weight = torch.randn(150, 200), torch.randn(90, 200)
    for dtype, packs in ((torch.float32, False), (torch.bfloat16, True)):
        own = weight.to(dtype)
        packed = Packed([own])
        for _ in range(2):
            _linear.affine(inputs.to(dtype), own, None, packed)
        assert len(packed._made) == packs


def test_a_network_in_float64_gives_the_losses_of_its_modules(monkeypatch):
    build = lambda seed: seeded(perceptron(seed), seed)  # noqa: E731
    plane = Subspace.through(*states(build, 3))
    coordinates = np.random.default_rng(0).normal(size=(7, 2))
    quick = fm.Landscape(build(0), points()).losses(plane, coordinates)
    monkeypatch.setattr(_affine, "chain_behind", lambda *_: None)
    slow = fm.Landscape(build(0), points()).losses(plane, coordinates)
    np.testing.assert_allclose(quick.loss, slow.loss, rtol=1e-13, atol=1e-13)
