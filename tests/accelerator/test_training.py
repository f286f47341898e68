"""Training on the device: repeatable, resumable, and nothing is left behind."""

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
from accelerator.problems import DEVICE, ON_CUDA, assert_states_same, loud, pictures, vgg
from flatminima.training import TrainingRun

MLP = {"name": "mlp", "settings": {"sizes": [64, 32, 10]}}
RECIPE = fm.Recipe(epochs=6, batch_size=64, learning_rate=0.1, momentum=0.9)


def digits(split="train", limit=None):
    return fm.load_dataset("digits", split, limit=limit).to(DEVICE)


def small_pictures():
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (40, 1, 6, 6), generator=draw, dtype=torch.uint8)
    return fm.Dataset(pixels, torch.arange(40) % 4, mean=[0.5], std=[0.3]).to(DEVICE)


def convolving():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(16, 4),
    )  # fmt: skip


RUNS = {
    "digits": (MLP, lambda: digits(limit=200), RECIPE),
    "adamw": (
        MLP,
        lambda: digits(limit=200),
        fm.Recipe(epochs=4, batch_size=64, optimizer="adamw", schedule="cosine"),
    ),
    "convolutions": (
        convolving,
        small_pictures,
        fm.Recipe(epochs=4, batch_size=16, momentum=0.9, weight_decay=1e-3, augment="crop_flip"),
    ),
    "half precision": (
        convolving,
        small_pictures,
        fm.Recipe(epochs=4, batch_size=16, momentum=0.9, precision="bfloat16"),
    ),
}


def test_digits_are_learnt(world):
    torch.manual_seed(3)
    before = world()
    end = fm.train(MLP, digits(), RECIPE, seed=0, test=digits("test"), match_loss=0.5)
    assert world() == before
    assert end.history.attrs["outcome"] == "fitted"
    assert float(end.history.train_loss[-1]) < 0.2
    assert float(end.history.test_accuracy[-1]) > 0.85
    assert end.matched is not None
    for state in (end, end.matched):
        assert {value.device.type for value in state.state_dict().values()} == {"cpu"}
        assert all(value.dtype == torch.float32 for value in state.parameters.values())


def test_a_stored_state_has_the_loss_that_training_measured():
    end = fm.train(MLP, digits(), RECIPE, seed=0)
    for device in (DEVICE, "cpu"):
        landscape = fm.Landscape(end.module(), digits(), device=device)
        found = landscape.loss_at(end)
        np.testing.assert_allclose(found.loss[0], end.history.train_loss[-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.metrics["accuracy"][0], end.history.train_accuracy[-1])
    again = fm.Minimum.from_bytes(end.to_bytes())
    assert again.to_bytes() == end.to_bytes()


def test_training_there_begins_as_training_here():
    """Before the first step all is alike; after one epoch the steps differ by rounding."""
    here = fm.load_dataset("digits", "train", limit=200)
    recipe = fm.Recipe(epochs=1, batch_size=64, learning_rate=0.01)
    found, want = (fm.train(MLP, data, recipe, seed=4) for data in (here.to(DEVICE), here))
    np.testing.assert_allclose(found.history.train_loss, want.history.train_loss, rtol=1e-4)
    for name, value in want.parameters.items():
        torch.testing.assert_close(found.parameters[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_the_same_seed_gives_the_same_bits(name):
    model, data, recipe = RUNS[name]
    first, second = (fm.train(model, data(), recipe, seed=2) for _ in range(2))
    assert_states_same(first, second)
    other = fm.train(model, data(), recipe, seed=3)
    assert other.to_bytes() != first.to_bytes()


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_an_uninterrupted_one(name, world):
    model, make, recipe = RUNS[name]
    options = {"seed": 3, "test": make(), "match_loss": 1.2}
    whole = TrainingRun.start(model, make(), recipe, **options)
    whole.advance(recipe.epochs)
    run = TrainingRun.start(model, make(), recipe, **options)
    for _ in range(recipe.epochs):
        run.advance(1)
        torch.rand(3, device=DEVICE)  # what happens between two pieces must not matter
        before = world()
        run = TrainingRun.resume(run.to_bytes(), model, make(), recipe, **options)
        assert world() == before
    assert run.finished
    assert run.to_bytes() == whole.to_bytes()
    assert run.matched_epoch == whole.matched_epoch
    assert_states_same(run.minimum(), whole.minimum())


@pytest.mark.parametrize("name", RUNS)
def test_tf32_and_autocast_of_the_caller_change_no_bit(name, world):
    model, data, recipe = RUNS[name]
    want = fm.train(model, data(), recipe, seed=2)
    with loud():
        before = world()
        found = fm.train(model, data(), recipe, seed=2)
        assert world() == before
    assert_states_same(found, want)


def test_losses_of_a_large_network_are_measured_in_float32():
    """As a landscape measures them; TF32 is a thousandth off."""
    network, data = vgg(), pictures(128).to(DEVICE)
    run = TrainingRun.start(network, data, fm.Recipe(epochs=1), seed=0)
    measured = float(run.history.train_loss[0])
    exact = fm.Landscape(network, data, device=DEVICE).loss_at(network).loss[0]
    np.testing.assert_allclose(measured, exact, rtol=1e-6)
    warmed = fm.train(network, data, fm.Recipe(epochs=1, batch_size=32), seed=0)
    exact = fm.Landscape(network, data, device=DEVICE).loss_at(warmed).loss[0]
    np.testing.assert_allclose(warmed.history.train_loss[-1], exact, rtol=5e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_large_network_trains_and_repeats(precision, world):
    data = pictures(256 if ON_CUDA else 64).to(DEVICE)
    recipe = fm.Recipe(
        epochs=1, batch_size=64 if ON_CUDA else 32, augment="crop_flip", precision=precision
    )
    network = vgg()
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    before = world()
    ends = [fm.train(network, data, recipe, seed=0) for _ in range(2)]
    assert world() == before
    assert ends[0].history.attrs["outcome"] != "diverged"
    assert np.isfinite(ends[0].history.train_loss).all()
    assert_states_same(*ends)
    assert {value.dtype for value in ends[0].parameters.values()} == {torch.float32}
    assert {value.device.type for value in ends[0].state_dict().values()} == {"cpu"}
    assert not torch.equal(ends[0].parameters["0.weight"], tensors["0.weight"])
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=0)


def test_a_module_from_there_is_copied_and_stays_there():
    network = convolving().to(DEVICE)
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    end = fm.train(network, small_pictures(), fm.Recipe(epochs=1, batch_size=16), seed=0)
    assert {value.device.type for value in end.state_dict().values()} == {"cpu"}
    for name, value in network.state_dict().items():
        assert value.device.type == DEVICE
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=0)


def test_labels_are_the_same_wherever_they_are_drawn():
    here = fm.load_dataset("digits", "train", limit=100)
    drawn, want = (fm.randomize_labels(data, 0.5, 1) for data in (here.to(DEVICE), here))
    assert drawn.device.type == DEVICE
    assert drawn.digest == want.digest
    torch.testing.assert_close(drawn.labels.cpu(), want.labels)
    torch.testing.assert_close(drawn.changed.cpu(), want.changed)
    chosen = torch.tensor([5, 3, 99])
    torch.testing.assert_close(drawn.subset(chosen).labels.cpu(), want.subset(chosen).labels)


def test_a_run_that_diverges_says_so():
    end = fm.train(MLP, digits(limit=100), fm.Recipe(epochs=3, learning_rate=1e30), seed=0)
    assert end.history.attrs["outcome"] == "diverged"
    assert end.epoch == 1
