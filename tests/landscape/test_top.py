"""Losses from the stored inputs of the top layer, in large batches and with classes outermost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import flatminima as fm
from cases import perceptron, points
from flatminima.landscape import _affine, _top
from flatminima.landscape._losses import stacked_cross_entropies
from flatminima.landscape._meter import Marked
from flatminima.landscape._top import gathered
from flatminima.subspace import Subspace


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features(sizes, *, marked=False, width=5, classes=3):
    found = []
    for index, size in enumerate(sizes):
        targets = torch.arange(size) % classes
        if marked:
            targets = Marked(targets, torch.arange(size)[:, None] % 2 == index % 2)
        found.append((draw(size, width, seed=index), targets, torch.Size([size, classes])))
    return found


@pytest.mark.parametrize("marked", [False, True])
def test_batches_are_put_together_in_their_order(marked):
    given = features([7] * 40 + [3], marked=marked)
    found = gathered([*given])
    assert len(found) == 9  # five of them together, and what is left
    assert torch.equal(torch.cat([f[0] for f in found]), torch.cat([f[0] for f in given]))
    for inputs, targets, shape in found:
        parts = (targets.targets, targets.members) if marked else (targets,)
        assert {len(part) for part in parts} == {len(inputs)} == {shape[0]}
        assert shape[1:] == given[0][2][1:]
    if marked:
        together = torch.cat([f[1].members for f in found])
        assert torch.equal(together, torch.cat([f[1].members for f in given]))


def test_no_batch_is_larger_than_is_computed_at_once(monkeypatch):
    monkeypatch.setattr(_top, "STACK", 2 * 21 * 3 * 4)  # outputs of 21 samples are half of it
    assert {len(inputs) for inputs, *_ in gathered(features([7] * 60))} == {21}
    monkeypatch.setattr(_top, "STACK", 1)
    assert {len(inputs) for inputs, *_ in gathered(features([7] * 60))} == {7}


def test_what_is_not_plain_stays_as_it_is():
    plain = features([7] * 20)
    odd = [
        (plain[0][0][:, None], plain[0][1], torch.Size([7, 3])),  # a row of inputs for each sample
        (plain[0][0], {"labels": plain[0][1]}, torch.Size([7, 3])),
        (plain[0][0], plain[0][1], torch.Size([7, 3, 2])),
        (torch.cat([plain[0][0]] * 2), plain[0][1], torch.Size([7, 3])),
    ]
    for one in odd:
        assert len(gathered([*plain, one])) == 21
    assert gathered([]) == []


def _case(parameters=("4.weight", "4.bias"), dimensions=70, **how):
    network, data = perceptron(sizes=(6, 20, 9, 4)), points(90)
    rays = Subspace.random(network, dimensions, 0, parameters=parameters)
    at = np.random.default_rng(0).normal(size=(150, dimensions))
    at[np.random.default_rng(1).random(at.shape) < 0.9] = 0.0
    return fm.Landscape(network, data, batch_size=4, **how), rays, at


@pytest.mark.parametrize("moved", [("4.weight", "4.bias"), ("4.weight",), ("4.bias",)])
@pytest.mark.parametrize(
    ("directions", "together"), [(1, 2**25), (3, 2**25), (3, 0), (1000, 2**25)]
)
def test_losses_are_those_of_whole_passes(monkeypatch, moved, directions, together):
    monkeypatch.setattr(_top, "_DIRECTIONS", directions)
    monkeypatch.setattr(_affine, "_TOGETHER", together)
    monkeypatch.setattr(_top, "STACK", 2000)
    scape, rays, at = _case(moved)
    found = scape.losses(rays, at)
    assert found.path == "top"
    for point in (0, 17, 149):
        want = scape.loss_at(rays.parameters_at(at[point]))
        np.testing.assert_allclose(found.loss[point], want.loss[0], rtol=1e-12)
        assert found.metrics["accuracy"][point] == want.metrics["accuracy"][0]


def test_subsets_and_metrics_are_those_of_whole_passes():
    mask = torch.arange(90) % 3 == 0
    scape, rays, at = _case(
        subsets={"third": mask}, metrics={"size": lambda outputs, targets: outputs.abs().sum(1)}
    )
    found = scape.losses(rays, at)
    for point in (3, 99):
        want = scape.loss_at(rays.parameters_at(at[point]))
        for name in ("size", "loss_third", "accuracy_third"):
            np.testing.assert_allclose(found.metrics[name][point], want.metrics[name][0], rtol=1e-9)


def test_a_top_layer_without_bias_is_one_too():
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)).double()
    rays = Subspace.random(network, 3, 0, parameters=("2.weight",))
    scape = fm.Landscape(network, points(90))
    found = scape.losses(rays, np.eye(3))
    assert found.path == "top"
    want = [scape.loss_at(rays.parameters_at(row)).loss[0] for row in np.eye(3)]
    np.testing.assert_allclose(found.loss, want, rtol=1e-12)


# Few values, so that several are the largest; and what is not a number.
_VALUES = st.sampled_from([-1.0, 0.0, 1e-30, 0.5, 0.5, 2.0, float("inf"), float("nan")])


@settings(max_examples=200)
@given(st.lists(st.lists(_VALUES, min_size=3, max_size=3), min_size=1, max_size=6), st.data())
def test_predictions_are_those_of_torch_whatever_is_largest(rows, data):
    outputs = torch.tensor([rows, rows[::-1]])
    classes = st.sampled_from([0, 1, 2, -100])
    targets = torch.tensor(data.draw(st.lists(classes, min_size=len(rows), max_size=len(rows))))
    losses, correct = stacked_cross_entropies(outputs, targets)
    assert torch.equal(correct, outputs.argmax(2) == targets)
    for own, each in zip(losses, outputs, strict=True):
        want = functional.cross_entropy(each, targets, reduction="none")
        torch.testing.assert_close(own, want, equal_nan=True)
