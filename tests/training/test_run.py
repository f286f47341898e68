import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from flatminima.data import Dataset
from flatminima.data.augment import crop_flip
from flatminima.minimum import Minimum
from flatminima.training import Recipe, TrainingRun, train


def blobs(count=60, seed=0, classes=3):
    """Classes that lie apart: fitted within a few epochs."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = 3 * torch.eye(classes, 4)
    return Dataset(centres[labels] + torch.randn(count, 4, generator=random), labels)


def images(count=40):
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 1, 6, 6), generator=random, dtype=torch.uint8)
    return Dataset(pixels, torch.arange(count) % 4, mean=[0.5], std=[0.3])


def plain():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def dropping():
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))


def convolving():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )


class Tied(nn.Module):
    """Two names for one weight, and a parameter that is not trained."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.top = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.top(self.second(self.first(inputs).relu() * self.frozen).relu())


RUNS = {
    "sgd": (plain, blobs, Recipe(epochs=5, batch_size=16, learning_rate=0.1)),
    "momentum": (
        plain,
        blobs,
        Recipe(epochs=5, batch_size=16, momentum=0.9, weight_decay=1e-3, schedule="cosine"),
    ),
    "adamw": (
        plain,
        blobs,
        Recipe(epochs=5, batch_size=16, optimizer="adamw", weight_decay=0.1, schedule="cosine"),
    ),
    "step": (
        plain,
        blobs,
        Recipe(epochs=5, batch_size=16, schedule="step", step_epochs=2, momentum=0.5),
    ),
    "dropout": (dropping, blobs, Recipe(epochs=5, batch_size=16, learning_rate=0.1)),
    "batchnorm": (convolving, images, Recipe(epochs=5, batch_size=16, momentum=0.9)),
    "augmented": (
        convolving,
        images,
        Recipe(epochs=5, batch_size=16, momentum=0.9, augment="crop_flip"),
    ),
    "half precision": (
        convolving,
        images,
        Recipe(epochs=5, batch_size=16, momentum=0.9, precision="bfloat16"),
    ),
    "tied": (Tied, blobs, Recipe(epochs=5, batch_size=16, momentum=0.9)),
    # Large enough for the quicker affine layer, where there is one.
    "wide": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 500), nn.ReLU(), nn.Linear(500, 4)),
        images,
        Recipe(epochs=5, batch_size=16, learning_rate=0.1, momentum=0.9),
    ),
    "by name": (
        {"name": "mlp", "settings": {"sizes": [36, 5, 4]}},
        images,
        Recipe(epochs=5, batch_size=16),
    ),
}


def assert_same(first, second):
    """Bit for bit."""
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=0, atol=0)
    assert first.history.identical(second.history)
    assert first.to_bytes() == second.to_bytes()


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("pieces", [(3, 2), (1, 1, 1, 1, 1)])
def test_a_resumed_run_is_an_uninterrupted_one(case, pieces):
    model, make_data, recipe = RUNS[case]
    data, test = make_data(), make_data(20)
    settings = {"seed": 3, "test": test, "match_loss": 0.9}
    whole = TrainingRun.start(model, data, recipe, **settings)
    whole.advance(5)
    run = TrainingRun.start(model, data, recipe, **settings)
    run.advance(pieces[0])
    matched = run.matched
    for piece in pieces[1:]:
        torch.rand(3)  # what happens between two pieces must not matter
        run = TrainingRun.resume(run.to_bytes(), model, make_data(), recipe, **settings)
        run.advance(piece)
        matched = matched or run.matched
    assert run.finished
    assert_same(run.minimum(), whole.minimum())
    assert run.to_bytes() == whole.to_bytes()
    assert run.matched_epoch == whole.matched_epoch
    assert (matched is None) == (whole.matched is None)
    if matched is not None and whole.matched is not None:
        assert_same(matched, whole.matched)


def test_training_follows_the_recipe_step_by_step():
    """The twin: a plain loop that uses nothing of ours but the order of the samples."""
    data = blobs()
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.2, momentum=0.9, weight_decay=0.01)
    torch.manual_seed(5)
    network = plain()
    end = train(network, data, recipe, seed=1)
    run = TrainingRun.start(network, data, recipe, seed=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    for epoch in range(2):
        run.epoch = epoch
        order = torch.randperm(len(data), generator=run._stream("order"))
        for start in range(0, len(data), 16):
            chosen = order[start : start + 16]
            optimizer.zero_grad()
            functional.cross_entropy(network(data.inputs[chosen]), data.labels[chosen]).backward()
            optimizer.step()
    for name, value in network.named_parameters():
        torch.testing.assert_close(end.parameters[name], value.detach())


def test_augmented_training_is_the_plain_loop_on_changed_images():
    """The twin: normalised by hand after the change, in the epoch's own stream of draws."""
    data = images()
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.2, augment="crop_flip")
    torch.manual_seed(5)
    network = convolving()
    end = train(network, data, recipe, seed=1)
    run = TrainingRun.start(network, data, recipe, seed=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2)
    pixels = (data.images * 0.3 + 0.5).mul(255).round()
    network.train()
    for epoch in range(2):
        run.epoch = epoch
        order = torch.randperm(len(data), generator=run._stream("order"))
        draws = run._stream("augment")
        for chosen in order.split(16):
            changed = (crop_flip(pixels[chosen], draws) / 255 - 0.5) / 0.3
            optimizer.zero_grad()
            functional.cross_entropy(network(changed), data.labels[chosen]).backward()
            optimizer.step()
    for name, value in network.named_parameters():
        torch.testing.assert_close(end.parameters[name], value.detach(), atol=1e-5, rtol=1e-4)


def test_half_precision_computes_steps_only_and_keeps_weights_whole():
    settings = {"seed": 1, "match_loss": 0.9}
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.1)
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = convolving()

        def forward(self, inputs):
            outputs = self.inner(inputs)
            seen.append((self.training, outputs.dtype))
            return outputs

    ends = {
        precision: train(Watching, images(), replace(recipe, precision=precision), **settings)
        for precision in ("float32", "bfloat16")
    }
    assert set(seen) == {
        (False, torch.float32),
        (True, torch.float32),
        (True, torch.bfloat16),
    }
    for name, value in ends["bfloat16"].parameters.items():
        assert value.dtype == torch.float32
        gap = (value - ends["float32"].parameters[name]).abs().max()
        assert 0 < float(gap) < 0.05


def test_what_joined_later_leaves_the_description_of_a_recipe_as_it_was():
    assert Recipe().settings().keys() == {
        "epochs",
        "batch_size",
        "optimizer",
        "learning_rate",
        "momentum",
        "weight_decay",
        "schedule",
        "step_epochs",
        "step_factor",
        "stop_at_loss",
    }
    recipe = Recipe(augment="crop_flip", precision="bfloat16")
    assert recipe.settings().items() >= {"augment": "crop_flip", "precision": "bfloat16"}.items()
    assert Recipe(**recipe.settings()) == recipe


def test_history_is_of_whole_sets_in_evaluation_mode():
    data, test = blobs(61), blobs(23, seed=9)
    end = train(dropping, data, Recipe(epochs=3, batch_size=16), seed=0, test=test)
    assert list(end.history.data_vars) == [
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
    ]
    np.testing.assert_array_equal(end.history.epoch, [0, 1, 2, 3])
    network = end.module(dropping).double()
    for which, split in (("train", data), ("test", test)):
        logits = network(split.inputs.double())
        loss = functional.cross_entropy(logits, split.labels).item()
        accuracy = (logits.argmax(1) == split.labels).double().mean().item()
        np.testing.assert_allclose(end.history[f"{which}_loss"][-1], loss, rtol=1e-6)
        np.testing.assert_allclose(end.history[f"{which}_accuracy"][-1], accuracy)
        assert end.history[f"{which}_loss"].dtype == np.float64


def test_the_first_epoch_at_the_matched_loss_is_kept():
    data = blobs()
    recipe = Recipe(epochs=12, batch_size=8, learning_rate=0.1)
    end = train(plain, data, recipe, seed=0, match_loss=0.3)
    loss = end.history.train_loss.values
    first = next(epoch for epoch in range(1, 13) if loss[epoch] <= 0.3)
    assert end.history.attrs["matched_epoch"] == first < 12
    assert end.history.attrs["match_loss"] == 0.3
    assert end.matched is not None
    assert end.matched.epoch == first
    np.testing.assert_array_equal(end.matched.history.train_loss, loss[: first + 1])
    until = train(plain, data, Recipe(12, 8, "sgd", 0.1, stop_at_loss=0.3), seed=0)
    assert until.epoch == first
    for name, value in until.parameters.items():
        torch.testing.assert_close(value, end.matched.parameters[name], rtol=0, atol=0)


def test_a_loss_that_is_never_reached_is_not_matched():
    end = train(plain, blobs(), Recipe(epochs=1), seed=0, match_loss=1e-9)
    assert end.matched is None
    assert end.history.attrs["matched_epoch"] == -1


def test_training_stops_at_the_loss_asked_for():
    recipe = Recipe(epochs=100, batch_size=8, learning_rate=0.1, stop_at_loss=0.2)
    run = TrainingRun.start(plain, blobs(), recipe, seed=0)
    run.advance(100)
    loss = run.history.train_loss.values
    assert run.finished
    assert len(loss) < 101
    assert loss[-1] <= 0.2 < loss[-2]
    before = run.to_bytes()
    run.advance(5)
    assert run.to_bytes() == before
    resumed = TrainingRun.resume(before, plain, blobs(), recipe, seed=0)
    assert resumed.finished


def test_a_diverging_run_ends_and_says_so():
    recipe = Recipe(epochs=9, batch_size=8, learning_rate=1e30)
    run = TrainingRun.start(plain, blobs(), recipe, seed=0)
    run.advance(9)
    assert run.finished
    assert run.outcome == "diverged"
    assert run.epoch == 1
    end = run.minimum()
    assert end.history.attrs["outcome"] == "diverged"
    assert not math.isfinite(end.history.train_loss.values[-1])
    resumed = TrainingRun.resume(run.to_bytes(), plain, blobs(), recipe, seed=0)
    assert resumed.finished
    assert resumed.outcome == "diverged"


def test_a_network_that_learns_frequencies_only_is_at_chance():
    labels = torch.tensor([0, 0, 0, 1])  # entropy 0.5623
    data = Dataset(torch.zeros(4, 2), labels)
    end = train(lambda: nn.Linear(2, 2), data, Recipe(epochs=30, learning_rate=0.5), seed=0)
    assert end.history.attrs["outcome"] == "chance"
    np.testing.assert_allclose(end.history.train_loss[-1], 0.562335, atol=1e-3)
    assert train(plain, blobs(), Recipe(20, 8, "sgd", 0.1), seed=0).history.outcome == "fitted"


def test_the_seed_is_that_of_initialisation_and_order():
    data, recipe = blobs(), Recipe(epochs=1, batch_size=8)
    first, again, other = (train(plain, data, recipe, seed=seed) for seed in (0, 0, 1))
    assert_same(first, again)
    starts = [TrainingRun.start(plain, data, recipe, seed=seed).minimum() for seed in (0, 1)]
    assert not torch.equal(starts[0].parameters["0.weight"], starts[1].parameters["0.weight"])
    assert not torch.equal(first.parameters["0.weight"], other.parameters["0.weight"])
    network = plain()
    ends = [train(network, data, recipe, seed=seed) for seed in (0, 0, 1)]
    assert_same(ends[0], ends[1])
    assert not torch.equal(ends[0].parameters["0.weight"], ends[2].parameters["0.weight"])


def test_the_initialisation_does_not_depend_on_the_data():
    recipe = Recipe(epochs=1)
    starts = [TrainingRun.start(plain, blobs(seed=seed), recipe, seed=4) for seed in (0, 1)]
    for name, value in starts[0].minimum().parameters.items():
        torch.testing.assert_close(value, starts[1].minimum().parameters[name], rtol=0, atol=0)


def test_the_callers_network_and_the_global_random_state_are_as_before():
    network = dropping().eval()
    network[0].weight.requires_grad_(False)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    before = torch.get_rng_state()
    end = train(network, blobs(), Recipe(epochs=2, learning_rate=0.5), seed=0)
    train(dropping, blobs(), Recipe(epochs=1), seed=0)
    torch.testing.assert_close(torch.get_rng_state(), before)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    assert not network.training
    assert [value.requires_grad for value in network.parameters()] == [False, True, True, True]
    assert all(value.grad is None for value in network.parameters())
    # What is frozen stays, and is part of the state all the same.
    torch.testing.assert_close(end.parameters["0.weight"], weights["0.weight"], rtol=0, atol=0)
    assert not torch.equal(end.parameters["3.weight"], weights["3.weight"])


def test_a_run_goes_on_without_touching_what_it_handed_out():
    run = TrainingRun.start(plain, blobs(), Recipe(epochs=2, learning_rate=0.5), seed=0)
    start = run.minimum()
    values = {name: value.clone() for name, value in start.parameters.items()}
    run.advance(2)
    for name, value in start.parameters.items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0)


def test_progress_is_told_epoch_by_epoch():
    told = []
    train(
        plain,
        blobs(),
        Recipe(epochs=3),
        seed=0,
        progress=lambda *news: told.append(news),
    )
    assert [(epoch, epochs) for epoch, epochs, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert set(told[0][2]) == {"train_loss", "train_accuracy"}


def test_a_network_by_name_can_be_had_back(tmp_path):
    model = {"name": "mlp", "settings": {"sizes": [36, 5, 4]}}
    data = images()
    end = train(model, data, Recipe(epochs=1), seed=0)
    end.save(tmp_path / "end.safetensors")
    network = Minimum.load(tmp_path / "end.safetensors").module()
    loss = functional.cross_entropy(network(data.images), data.labels).item()
    np.testing.assert_allclose(end.history.train_loss[-1], loss, rtol=1e-6)


class Summing(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.top(left + right)


@pytest.mark.parametrize("kind", ["dict", "tuple", "list"])
def test_nested_inputs_are_passed_on_by_name_or_position(kind):
    plainly = blobs()
    left, right = plainly.inputs / 2, plainly.inputs / 2
    inputs = {"dict": {"right": right, "left": left}, "tuple": (left, right), "list": [left, right]}
    network = Summing()
    end = train(network, Dataset(inputs[kind], plainly.labels), Recipe(epochs=2), seed=0)
    one = train(nn.Sequential(network.top), plainly, Recipe(epochs=2), seed=0)
    torch.testing.assert_close(end.parameters["top.weight"], one.parameters["0.weight"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("lenet", "got 'lenet'"),
        ({"settings": {}}, "expected a model with 'name' and 'settings', got "),
        (lambda: 3, "expected a name, an nn.Module or a function that builds one, got int"),
        (lambda: nn.Linear(5, 3), "expected a network that takes the inputs of custom, got .*mat1"),
        (lambda: nn.Linear(4, 2), r"expected logits \(1, 3\) .* got \(1, 2\)"),
        (nn.ReLU, "expected a network with parameters to train"),
    ],
)
def test_refuses_a_network_that_does_not_fit(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(model, blobs(), Recipe(epochs=1), seed=0)
    assert "\n" not in str(caught.value)


def test_refuses_weights_with_nan_and_targets_that_are_not_labels():
    network = plain()
    nn.init.constant_(network[0].bias, math.nan)
    with pytest.raises(ValueError, match="expected a network with finite weights"):
        train(network, blobs(), Recipe(epochs=1), seed=0)
    with pytest.raises(ValueError, match="expected targets that are class labels"):
        train(plain, Dataset(torch.zeros(3, 4), torch.zeros(3)), Recipe(epochs=1), seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "another seed;"),
        ({"recipe": Recipe(epochs=9)}, "another recipe;"),
        ({"dataset": blobs(seed=5)}, "another dataset;"),
        ({"match_loss": 0.1, "test": blobs()}, "another match_loss, test;"),
        ({"data": b"nonsense"}, "expected the state of a training run, got other bytes"),
        ({"data": b""}, "expected the state of a training run, got other bytes"),
        ({"model": dropping}, r"expected 0.bias of shape \(16,\), got \(8,\)"),
    ],
)
def test_refuses_the_state_of_another_run(change, message):
    run = TrainingRun.start(plain, blobs(), Recipe(epochs=3), seed=0)
    arguments = {"data": run.to_bytes(), "model": plain, "dataset": blobs()}
    arguments |= {"recipe": Recipe(epochs=3), "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        TrainingRun.resume(**arguments)


def test_refuses_the_bytes_of_a_minimum():
    end = train(plain, blobs(), Recipe(epochs=1), seed=0)
    with pytest.raises(ValueError, match="expected the state of a training run"):
        TrainingRun.resume(end.to_bytes(), plain, blobs(), Recipe(epochs=1), seed=0)
