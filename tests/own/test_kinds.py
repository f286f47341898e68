"""Every kind of task: losses on a plane against a loop that forms each state by hand in float64."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatminima as fm
from cases import ImageNet, Tied, TwoInputs, perceptron, seeded
from flatminima.own import open_networks
from flatminima.subspace import Subspace

SAMPLES = 23
DRAWS = 0.3 * np.random.default_rng(0).normal(size=(5, 2))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, classes=4):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))


def float32(build):
    return lambda seed: seeded(build().float(), seed).eval()


def entropy(outputs, targets):
    return F.cross_entropy(outputs, targets)


class Segmenter(nn.Module):
    """A class for every pixel."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class TinyForCausalLM(nn.Module):
    """A language model that computes its own loss when it is given labels."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)

    def forward(self, input_ids, labels=None):
        logits = self.head(torch.tanh(self.embed(input_ids).cumsum(1)))
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


class Shared(nn.Module):
    """One layer called twice, under two names."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(6, 6)
        self.again = self.into
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        return self.out(torch.tanh(self.again(torch.tanh(self.into(x)))))


def tokens():
    return labels(SAMPLES, 5, classes=7)


def spoken():
    """Labels of which some are not to be predicted."""
    found = tokens().clone()
    found[:, 1] = -100
    found[4] = -100
    return found


def next_token(outputs, targets):
    logits = outputs["logits"][:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())


X = drawn(SAMPLES, 6)
IMAGES = drawn(SAMPLES, 1, 6, 6)
MARKED = labels(SAMPLES, 6, 6)
MARKED[:, 0] = -100  # pixels without a class
PAIR = {"left": drawn(SAMPLES, 6), "right": drawn(SAMPLES, 3, seed=2)}


def perceptrons(seed):
    return perceptron(seed, dtype=torch.float32)


def frozen(seed):
    network = perceptrons(seed)
    network[2].requires_grad_(False)
    return network


KINDS = {
    "convolutions": (
        float32(lambda: ImageNet(batchnorm=False)),
        (IMAGES, labels(SAMPLES)),
        {},
        entropy,
    ),
    "statistics kept": (
        float32(ImageNet),
        (IMAGES, labels(SAMPLES)),
        {"batchnorm": "keep"},
        entropy,
    ),
    "regression": (perceptrons, (X, drawn(SAMPLES, 4, seed=3)), {"loss": "mse"}, F.mse_loss),
    "several labels": (
        perceptrons,
        (X, labels(SAMPLES, 4, classes=2)),
        {"loss": "binary_cross_entropy"},
        lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets.double()),
    ),
    "segmentation": (float32(Segmenter), (IMAGES, MARKED), {}, entropy),
    "next token": (
        float32(TinyForCausalLM),
        ({"input_ids": tokens()}, spoken()),
        {"loss": "next_token"},
        next_token,
    ),
    "own loss": (
        float32(TinyForCausalLM),
        ({"input_ids": tokens()}, spoken()),
        {"loss": "model"},
        next_token,
    ),
    "inputs by name": (float32(TwoInputs), (PAIR, labels(SAMPLES)), {}, entropy),
    "frozen": (frozen, (X, labels(SAMPLES)), {}, entropy),
    "tied": (float32(Tied), (X, labels(SAMPLES)), {}, entropy),
    "shared": (float32(Shared), (X, labels(SAMPLES)), {}, entropy),
}


def states_by_hand(network, plane, names):
    """All chosen weights as one vector, `w + a u + b v`, and its pieces under their names."""
    own = dict(network.named_parameters())

    def flat(parts):
        vectors = [parts.get(name, torch.zeros_like(own[name])) for name in names]
        return torch.cat([vector.detach().double().flatten() for vector in vectors])

    for coordinate in DRAWS:
        vector = flat(own)
        for index, amount in enumerate(coordinate):
            vector = vector + float(amount) * flat(plane.direction(index))
        pieces = vector.split([own[name].numel() for name in names])
        yield {name: piece.view_as(own[name]) for name, piece in zip(names, pieces, strict=True)}


def called(network, state, inputs):
    """Outputs in double precision."""
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    with torch.no_grad():
        return torch.func.functional_call(
            copy.deepcopy(network).double(), state, args, kwargs, tie_weights=True
        )


def wide(inputs):
    if isinstance(inputs, dict):
        return {name: wide(value) for name, value in inputs.items()}
    return inputs.double() if inputs.is_floating_point() else inputs


def plane_around(landscape, network, parameters):
    names = landscape.parameter_names(parameters)
    state = landscape.state(network)
    return Subspace.random(state, 2, 0, parameters=names, scaling="layer", vectors="scale"), list(
        names
    )


def compare(network, data, naive, parameters="all", **settings):
    """The landscape at five points against a loop over states, of the mean over all samples."""
    landscape = fm.Landscape(network, fm.Dataset(*data), batch_size=5, **settings)
    plane, names = plane_around(landscape, network, parameters)
    losses = landscape.losses(plane, DRAWS)
    inputs, targets = (wide(part) for part in data)
    for found, state in zip(losses.loss, states_by_hand(network, plane, names), strict=True):
        want = naive(called(network, state, inputs), targets).item()
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
    return names, losses


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_states_formed_by_hand(kind):
    build, data, settings, naive = KINDS[kind]
    network = build(0)
    names, _ = compare(network, data, naive, **settings)
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert set(names) == {name for name, _ in network.named_parameters()} - frozen


@pytest.mark.parametrize(
    ("parameters", "moved"),
    [("4.*", ["4.weight", "4.bias"]), ("*.bias", ["0.bias", "2.bias", "4.bias"])],
)
def test_some_of_the_parameters_move(parameters, moved):
    names, losses = compare(perceptrons(0), (X, labels(SAMPLES)), entropy, parameters=parameters)
    assert names == moved
    assert losses.loss.std() > 0


def test_a_glob_reaches_frozen_parameters():
    names, _ = compare(frozen(0), (X, labels(SAMPLES)), entropy, parameters="2.*")
    assert names == ["2.weight", "2.bias"]


def test_recomputed_statistics_are_those_of_the_data():
    network = float32(ImageNet)(0)
    data = IMAGES, labels(SAMPLES)
    landscape = fm.Landscape(network, data, batchnorm="recompute", recompute_batch=SAMPLES)
    plane, names = plane_around(landscape, network, "all")
    losses = landscape.losses(plane, DRAWS)
    assert losses.batchnorm == "recompute"
    for found, state in zip(losses.loss, states_by_hand(network, plane, names), strict=True):
        before = F.conv2d(IMAGES.double(), state["conv.weight"], state["conv.bias"], padding=1)
        mean, variance = before.mean((0, 2, 3)), before.var((0, 2, 3), correction=0)
        held = {"norm.running_mean": mean, "norm.running_var": variance}
        outputs = called(network, state | held, data[0].double())
        np.testing.assert_allclose(found, entropy(outputs, data[1]).item(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("coordinates", ["isometric", "barycentric"])
def test_a_surface_through_three_networks_is_a_loop_over_their_means(coordinates):
    nets = [perceptrons(seed) for seed in range(3)]
    targets = labels(SAMPLES)
    landscape = fm.Landscape(nets[0], (X, targets))
    plane = Subspace.through(*nets)
    surface = fm.loss_surface(landscape, plane, resolution=4, coordinates=coordinates)
    flat = [
        torch.cat([value.detach().double().flatten() for value in net.parameters()]) for net in nets
    ]
    shapes = {name: value.shape for name, value in nets[0].named_parameters()}
    corners = np.stack([surface["anchor_x"], surface["anchor_y"], np.ones(3)])
    for row, y in enumerate(surface.y.values):
        for column, x in enumerate(surface.x.values):
            shares = np.linalg.solve(corners, [x, y, 1.0])
            vector = sum(float(share) * one for share, one in zip(shares, flat, strict=True))
            pieces = vector.split([shape.numel() for shape in shapes.values()])
            state = {
                name: piece.view(shape)
                for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
            }
            want = entropy(called(nets[0], state, X.double()), targets).item()
            np.testing.assert_allclose(surface.loss[row, column], want, rtol=2e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda net: torch.compile(nn.DataParallel(net)),
        lambda net: nn.DataParallel(torch.compile(net)),
    ],
    ids=["parallel", "compiled", "compiled parallel", "parallel compiled"],
)
def test_checkpoints_of_wrapped_networks(tmp_path, monkeypatch, wrap):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "wrapped_task.py").write_text(
        "from cases import perceptron, points\nimport torch\n"
        "def build(): return perceptron(9, dtype=torch.float32)\n"
        "data = points(dtype=torch.float32)\n"
    )
    nets = [perceptrons(seed) for seed in range(2)]
    torch.save(nets[0].state_dict(), "plain.pt")
    names = list(wrap(nets[1]).state_dict())
    assert all(name.startswith(("module.", "_orig_mod.")) for name in names)
    torch.save(wrap(nets[1]).state_dict(), "wrapped.pt")
    own = open_networks("wrapped_task:build", ["plain.pt", "wrapped.pt"], "wrapped_task:data")
    sys.modules.pop("wrapped_task")
    data = own.landscape.dataset
    for state, network in zip(own.states, nets, strict=True):
        want = entropy(network.double()(data.inputs.double()), data.targets).item()
        np.testing.assert_allclose(own.landscape.loss_at(state).loss, [want], rtol=1e-6)
