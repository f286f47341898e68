"""Points that are recorded once and replayed, with a recorder that does the work again."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

import flatminima as fm
from flatminima.landscape import _meter, _passes


class Again:
    """Replays by doing the work again on the same tensors."""

    def __init__(self) -> None:
        self.recorded = 0

    def rehearse(self, work, times=3):
        for _ in range(times):
            work()

    def record(self, work):
        self.recorded += 1
        work()
        return work


class Refusing(Again):
    """Finds that nothing can be recorded."""

    def rehearse(self, work, times=3):
        raise RuntimeError("called a synchronizing CUDA operation")


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(4 * 64, 10),
        )  # fmt: skip
    return net.eval()


@pytest.fixture
def data() -> fm.Dataset:
    return fm.load_dataset("digits", limit=200)


def use(monkeypatch, recorder) -> None:
    """As on a device whose numbers are not asked for before they are read."""
    monkeypatch.setattr(_meter, "_waits", lambda values: True)
    monkeypatch.setattr(_passes, "recorder_for", lambda device: recorder)


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize("policy", ["keep", "recompute", "interpolate", "batch"])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_recording_gives_the_same_bits(data, monkeypatch, policy, precision):
    plane = fm.Subspace.through(*map(network, range(3)))
    points = np.random.default_rng(0).normal(size=(60, 2))
    options = {"batchnorm": policy, "precision": precision, "batch_size": 64}
    want = fm.Landscape(network(), data, **options).losses(plane, points)
    recorder = Again()
    use(monkeypatch, recorder)
    scape = fm.Landscape(network(), data, **options)
    got = [scape.losses(plane, points) for _ in range(2)][-1]
    # Once for what there are enough points of, however often they are evaluated.
    assert recorder.recorded == isinstance(scape._last[1], _passes.Reference)
    assert_array_equal(got.loss, want.loss)
    assert_array_equal(got.metrics["accuracy"], want.metrics["accuracy"])
    assert_array_equal(got.standard_error, want.standard_error)
    assert got.difference == want.difference


def test_what_cannot_be_recorded_is_computed_as_ever(data, monkeypatch):
    plane = fm.Subspace.through(*map(network, range(3)))
    points = np.random.default_rng(0).normal(size=(20, 2))
    want = fm.Landscape(network(), data).losses(plane, points)
    use(monkeypatch, Refusing())
    assert_array_equal(fm.Landscape(network(), data).losses(plane, points).loss, want.loss)


def test_few_points_and_clipped_ones_are_not_recorded(data, monkeypatch):
    plane = fm.Subspace.through(*map(network, range(3)))
    points = np.random.default_rng(0).normal(size=(20, 2))
    want = fm.Landscape(network(), data).losses(plane, points, clip=2.5)
    recorder = Again()
    use(monkeypatch, recorder)
    scape = fm.Landscape(network(), data)
    scape.losses(plane, points[:3])
    got = scape.losses(plane, points, clip=2.5)
    assert recorder.recorded == 0
    assert_array_equal(got.loss, want.loss)
    assert_array_equal(got.clipped, want.clipped)


def test_sums_that_wait_add_up_to_the_same_bits(monkeypatch):
    data = fm.load_dataset("digits", limit=300)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    for moved in ("all", "top"):
        scape = fm.Landscape(mlp, data, batch_size=32)
        line = fm.Subspace.random(mlp, 2, 0, parameters=scape.parameter_names(moved))
        points = np.random.default_rng(0).normal(size=(30, 2))
        want = scape.losses(line, points)
        monkeypatch.setattr(_meter, "_waits", lambda values: True)
        monkeypatch.setattr(_meter, "_MANY", 7)
        got = fm.Landscape(copy.deepcopy(mlp), data, batch_size=32).losses(line, points)
        monkeypatch.undo()
        assert_array_equal(got.loss, want.loss)
        assert_array_equal(got.metrics["accuracy"], want.metrics["accuracy"])
