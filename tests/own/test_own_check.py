"""Planted faults: each is found by the question that asks for it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
from flatminima.minimum import as_minimum
from flatminima.own import OwnNetworks, check_networks


def data(samples=120):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 6, generator=generator)
    return inputs, inputs[:, :4].argmax(1)


def layers(activation=nn.ReLU, norm=False):
    hidden = [nn.Linear(6, 12), *([nn.BatchNorm1d(12)] if norm else []), activation()]
    return nn.Sequential(*hidden, nn.Linear(12, 12), activation(), nn.Linear(12, 4))


def fitted(network, seed, steps=300):
    inputs, targets = data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for value in network.modules():
            if hasattr(value, "reset_parameters"):
                value.reset_parameters()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 0.03 * (1 - step / steps)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
    return network.eval()


def own(networks, *, dataset=None, loss="cross_entropy"):
    landscape = fm.Landscape(networks[0], dataset or data(), loss=loss, batch_size=40)
    names = tuple(f"network {index + 1}" for index in range(len(networks)))
    states = tuple(as_minimum(network) for network in networks)
    return OwnNetworks(names, states, landscape, networks[0], loss, None, {})


def verdicts(*arguments, threshold=0.05, **named):
    """The worst verdict by question, and all answers to it."""
    found = {}
    order = ["ok", "note", "fail"]
    for finding in check_networks(own(*arguments, **named), threshold=threshold, resolution=5):
        worst, answers = found.get(finding.question, ("ok", []))
        found[finding.question] = (
            max(worst, finding.verdict, key=order.index),
            [*answers, finding.answer],
        )
    return found


def failed(found):
    return {question for question, (verdict, _) in found.items() if verdict == "fail"}


@pytest.fixture(scope="module")
def three():
    return [fitted(layers(), seed) for seed in range(3)]


LOSSES = "What are the losses?"
SAME = "Is the loss the same over two passes?"
BATCH = "Does the loss depend on the batch size?"
STATISTICS = "BatchNorm, and the mode?"
NOISE = "Is the noise of the arithmetic small against the threshold?"
DISTINCT = "Are the checkpoints different networks?"
PLANE = "Are the directions orthonormal, and the networks where they should be?"
MINIMA = "Are they minima of this loss?"
RESCALING = "Can layers be rescaled without changing the network?"


def test_healthy_networks_pass(three):
    found = verdicts(three)
    assert not failed(found)
    assert {LOSSES, SAME, BATCH, STATISTICS, NOISE, DISTINCT, PLANE, MINIMA} <= set(found)
    assert len(found[LOSSES][1]) == 3


class Shaken(nn.Sequential):
    """Random whatever the mode."""

    def forward(self, x):
        return super().forward(x) + 0.1 * torch.randn(len(x), 4)


def test_a_network_random_in_evaluation_mode(three):
    found = verdicts([Shaken(*copy.deepcopy(three[0]))])
    assert failed(found) == {SAME}


def test_a_loss_that_takes_the_mean_of_a_batch(three):
    def mean(outputs, targets):
        each = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return each * (1 + 1e3 * each.mean())

    assert failed(verdicts(three, loss=mean)) == {BATCH}


def test_labels_of_another_order(three):
    inputs, targets = data()
    found = verdicts(three, dataset=(inputs, (targets + 1) % 4))
    assert failed(found) == {LOSSES}
    assert "about that of guessing among 4 classes" in found[LOSSES][1][0]


def test_one_checkpoint_twice_and_three_on_a_line(three):
    twice = verdicts([three[0], three[1], three[0]])
    assert failed(twice) == {DISTINCT}
    middle = copy.deepcopy(three[0])
    with torch.no_grad():
        for value, other in zip(middle.parameters(), three[1].parameters(), strict=True):
            value.copy_((value + other) / 2)
    found = verdicts([three[0], three[1], middle])
    assert PLANE in failed(found)
    assert not failed(found) - {PLANE, LOSSES}


def test_a_threshold_below_the_noise(three):
    assert failed(verdicts(three, threshold=1e-9)) == {NOISE}


def test_broken_weights_end_the_checks(three):
    broken = copy.deepcopy(three[0])
    with torch.no_grad():
        broken[0].weight[0, 0] = torch.inf
    found = verdicts([broken])
    assert failed(found) == {LOSSES}
    assert list(found) == [LOSSES]


def test_running_statistics_that_do_not_belong_to_the_weights():
    good = fitted(layers(norm=True), 0)
    assert not failed(verdicts([good]))
    strange = copy.deepcopy(good)
    strange[1].running_mean += 3.0
    found = verdicts([strange])
    assert found[STATISTICS][0] == "note"
    assert "with the statistics it came with" in found[STATISTICS][1][0]


def test_an_untrained_network_is_not_at_a_minimum():
    assert verdicts([fitted(layers(), 0, steps=0)])[MINIMA][0] == "note"


def test_the_gradient_is_that_of_the_mean_loss(three):
    inputs, targets = data()
    network = copy.deepcopy(three[0])
    network.zero_grad()
    nn.functional.cross_entropy(network(inputs), targets).backward()
    want = np.sqrt(sum(float(value.grad.square().sum()) for value in network.parameters()))
    got = own(three).landscape.gradient_norm(three[0])
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize(
    ("network", "pairs", "alone"),
    [
        (layers(), "2 of 2 pairs", "0 of 3 layers"),
        (layers(nn.Tanh), None, None),
        (layers(norm=True), "1 of 2 pairs", "1 of 3 layers"),
    ],
)
def test_layers_that_can_be_rescaled_are_counted(network, pairs, alone):
    ((answer,),) = [
        answers for q, (_, answers) in verdicts([fitted(network, 0)]).items() if q == RESCALING
    ]
    if pairs is None:
        assert "not by these tests" in answer
    else:
        assert pairs in answer
        assert alone in answer
