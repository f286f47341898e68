"""Metrics, subsets, named losses and the loss of the network itself, against plain sums."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatminima as fm
from cases import CLASSES, ImageNet, images, perceptron, points, seeded
from flatminima.subspace import Subspace


def outputs_at(network, plane, coordinate, inputs):
    """The network's outputs at one coordinate, by hand."""
    state = plane.parameters_at(np.asarray(coordinate))
    return torch.func.functional_call(network, state, (inputs,))


def margin(outputs, targets):
    """How far the target's logit is above the largest other."""
    own = outputs.gather(1, targets[:, None])[:, 0]
    others = outputs.scatter(1, targets[:, None], -torch.inf).max(1).values
    return own - others


def weighted(outputs, targets):
    """Sums and weights."""
    weights = 1.0 + targets.to(outputs)
    return outputs.square().sum(1) * weights, weights


@pytest.mark.parametrize("batch_size", [1, 5, 37])
@pytest.mark.parametrize("parameters", ["all", "4.*", "top"])
def test_metrics_and_subsets_equal_plain_means(batch_size, parameters):
    network, data = perceptron(), points()
    chosen = "4.*" if parameters == "top" else parameters
    plane = Subspace.random(network, 2, 3, parameters=chosen)
    even = torch.arange(len(data)) % 2 == 0
    landscape = fm.Landscape(
        network,
        data,
        metrics={"margin": margin, "weighted": weighted},
        subsets={"even": even, "first": (torch.arange(37) < 3).numpy()},
        batch_size=batch_size,
    )
    coordinates = np.random.default_rng(0).normal(size=(5, 2))
    losses = landscape.losses(plane, coordinates)
    for row, coordinate in enumerate(coordinates):
        outputs = outputs_at(network, plane, coordinate, data.inputs)
        each = F.cross_entropy(outputs, data.targets, reduction="none")
        right = (outputs.argmax(1) == data.targets).double()
        sums, weights = weighted(outputs, data.targets)
        want = {
            "accuracy": right.mean(),
            "margin": margin(outputs, data.targets).mean(),
            "weighted": sums.sum() / weights.sum(),
            "loss_even": each[even].mean(),
            "accuracy_even": right[even].mean(),
            "loss_first": each[:3].mean(),
            "accuracy_first": right[:3].mean(),
        }
        assert set(losses.metrics) == set(want)
        np.testing.assert_allclose(losses.loss[row], each.mean().item(), rtol=1e-12)
        for name, value in want.items():
            np.testing.assert_allclose(losses.metrics[name][row], value.item(), rtol=1e-12)


def test_the_loss_is_the_same_whatever_is_measured_beside_it():
    network, data = perceptron(dtype=torch.float32), points(dtype=torch.float32)
    plane = Subspace.random(network, 2, 3)
    coordinates = np.random.default_rng(0).normal(size=(4, 2))
    plain = fm.Landscape(network, data).losses(plane, coordinates)
    more = fm.Landscape(network, data, subsets="classes", metrics={"margin": margin})
    np.testing.assert_array_equal(more.losses(plane, coordinates).loss, plain.loss)
    np.testing.assert_array_equal(
        more.losses(plane, coordinates).standard_error, plain.standard_error
    )


def test_losses_of_the_classes_make_up_the_loss_of_a_surface():
    data = images()
    nets = [seeded(ImageNet().double(), seed) for seed in range(3)]
    landscape = fm.Landscape(nets[0], data, subsets="classes")
    surface = fm.loss_surface(landscape, Subspace.through(*nets), resolution=3)
    counts = np.bincount(data.targets.numpy(), minlength=CLASSES)
    parts = sum(
        counts[k] * surface[f"loss_class_{k}"].to_numpy() for k in range(CLASSES) if counts[k]
    )
    np.testing.assert_allclose(parts / len(data), surface.loss, rtol=1e-10)
    assert surface["anchor_loss_class_0"].shape == (3,)


class Writer(nn.Module):
    """A language model in miniature that computes its own loss, in the manner of libraries."""

    def __init__(self, tokens=7, width=6):
        super().__init__()
        self.embed, self.head = nn.Embedding(tokens, width), nn.Linear(width, tokens)

    def forward(self, input_ids, labels=None):
        logits = self.head(torch.tanh(self.embed(input_ids).cumsum(1)))
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


class WriterForCausalLM(Writer):
    """Says by its name that its loss is a mean over predicted tokens."""


def texts(samples=11, length=5):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 7, (samples, length), generator=generator)
    labels = ids.clone()
    labels[torch.rand(samples, length, generator=generator) < 0.3] = -100
    labels[2] = -100  # nothing to predict at all
    return ids, labels


@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_the_models_own_loss_is_that_of_all_tokens(batch_size):
    ids, labels = texts()
    network = seeded(WriterForCausalLM().double(), 0)
    named = fm.Landscape(
        network, fm.Dataset({"input_ids": ids}, labels), loss="next_token", batch_size=batch_size
    ).loss_at(network)
    own = fm.Landscape(
        network, fm.Dataset({"input_ids": ids}, labels), loss="model", batch_size=batch_size
    ).loss_at(network)
    inside = fm.Landscape(
        network,
        fm.Dataset({"input_ids": ids, "labels": labels}, labels),
        loss="model",
        weight=lambda batch: (batch["labels"][:, 1:] >= 0).sum(),
        batch_size=batch_size,
    ).loss_at(network)
    logits = network(ids)["logits"]
    want = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()
    for losses in (named, own, inside):
        np.testing.assert_allclose(losses.loss, [want], rtol=1e-12)
        assert losses.metrics == {}
    assert named.standard_error is not None
    assert own.standard_error is None


def test_the_fast_paths_serve_the_models_own_loss():
    ids, labels = texts()
    network = seeded(WriterForCausalLM().double(), 0)
    landscape = fm.Landscape(network, fm.Dataset({"input_ids": ids}, labels), loss="model")
    head = Subspace.random(network, 2, 0, parameters="head.*")
    coordinates = np.random.default_rng(0).normal(size=(3, 2))
    losses = landscape.losses(head, coordinates)
    assert losses.path == "suffix"
    for row, coordinate in enumerate(coordinates):
        state = landscape.loss_at(head.parameters_at(coordinate))
        np.testing.assert_allclose(losses.loss[row], state.loss[0], rtol=1e-12)
    radii = fm.flatness_radius(landscape, network, directions=2)
    assert (radii.outcome == 0).all()


def test_named_losses_read_logits_by_name():
    network, data = perceptron(), points()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network

        def forward(self, x):
            return {"logits": self.body(x), "hidden": x}

    plain = fm.Landscape(network, data).loss_at(network)
    named = fm.Landscape(Named(), data).loss_at(Named())
    np.testing.assert_allclose(named.loss, plain.loss, rtol=1e-12)
    np.testing.assert_allclose(named.metrics["accuracy"], plain.metrics["accuracy"])


def test_binary_cross_entropy_is_the_mean_over_labels_and_samples():
    network, data = perceptron(), points()
    labels = (torch.arange(37 * CLASSES).reshape(37, CLASSES) % 3 == 0).long()
    losses = fm.Landscape(
        network, fm.Dataset(data.inputs, labels), loss="binary_cross_entropy"
    ).loss_at(network)
    want = F.binary_cross_entropy_with_logits(network(data.inputs), labels.double())
    np.testing.assert_allclose(losses.loss, [want.item()], rtol=1e-12)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_wrapped_networks_are_the_networks_inside():
    network, data = perceptron(), points()
    wrapped = nn.DataParallel(network)
    want = fm.Landscape(network, data).loss_at(network).loss
    for model, state in (
        (wrapped, wrapped),
        (network, wrapped.state_dict()),
        (torch.compile(network), torch.compile(wrapped).state_dict()),
    ):
        np.testing.assert_array_equal(fm.Landscape(model, data).loss_at(state).loss, want)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"metrics": {"loss": margin}}, "do not have anyhow, got 'loss'"),
        ({"metrics": {"loss_a": margin}, "subsets": {"a": torch.ones(37) > 0}}, "got 'loss_a'"),
        ({"metrics": {"margin": 3}}, "got int"),
        ({"subsets": {"a": torch.ones(37)}}, "mask [37] of true and false"),
        ({"subsets": {"a": torch.ones(36) > 0}}, "got bool [36]"),
        ({"subsets": {"a": torch.zeros(37) > 0}}, "got none"),
        ({"subsets": "labels"}, "masks by name or 'classes'"),
        ({"loss": "crossentropy"}, "expected a loss among"),
        ({"loss": "model"}, "inputs by name for loss='model', got Tensor"),
        ({"weight": len}, "weight only with loss='model'"),
    ],
)
def test_impossible_measures_are_refused_in_one_line(settings, complaint):
    with pytest.raises(ValueError) as caught:
        fm.Landscape(perceptron(), points(), **settings)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "settings", "complaint"),
    [
        (Writer, {}, "expected weight=, a function"),
        (WriterForCausalLM, {"subsets": {"a": torch.ones(11) > 0}}, "expected no subsets"),
    ],
)
def test_the_models_own_loss_must_be_weighed(network, settings, complaint):
    ids, labels = texts()
    with pytest.raises(ValueError, match=complaint):
        fm.Landscape(
            network().double(), fm.Dataset({"input_ids": ids}, labels), loss="model", **settings
        )


def test_a_model_without_a_loss_is_named():
    ids, labels = texts()

    class SilentForCausalLM(Writer):
        def forward(self, input_ids, labels=None):
            return super().forward(input_ids)

    network = SilentForCausalLM().double()
    landscape = fm.Landscape(network, fm.Dataset({"input_ids": ids}, labels), loss="model")
    with pytest.raises(ValueError, match="outputs with one loss for loss='model', got dict"):
        landscape.loss_at(network)
