"""Checks of losses, networks and counts of networks that are out of the ordinary."""

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
from cases import perceptron, points
from flatminima.minimum import as_minimum
from flatminima.own import OwnNetworks, check_networks

LABELLED = points(dtype=torch.float32)


def own(*networks, data=LABELLED, loss="cross_entropy", weight=None):
    landscape = fm.Landscape(networks[0], data, loss=loss, weight=weight, batch_size=20)
    names = tuple(f"{index}.pt" for index in range(len(networks)))
    states = tuple(as_minimum(network) for network in networks)
    return OwnNetworks(names, states, landscape, networks[0], loss, weight, {})


def answers(given, verdict, **options):
    found = check_networks(given, resolution=3, **options)
    return [(one.question, one.answer) for one in found if one.verdict == verdict]


@pytest.mark.parametrize(
    ("samples", "answer"),
    [(36, "samples of a batch see each other"), (37, "of batches of 20 and 6 the second fails")],
)
def test_a_network_that_normalises_by_its_batch_in_evaluation(samples, answer):
    class Batchwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = perceptron(dtype=torch.float32)
            self.norm = nn.BatchNorm1d(4, track_running_stats=False)

        def forward(self, x):
            return self.norm(self.body(x))

    data = points(samples, dtype=torch.float32)
    failed = dict(answers(own(Batchwise(), data=data), "fail"))
    assert answer in failed["Does the loss depend on the batch size?"]


class Reader(nn.Module):
    """Computes its own loss, without saying what it is the mean over."""

    def __init__(self, seed=0):
        super().__init__()
        self.body = perceptron(seed, dtype=torch.float32)

    def forward(self, x, labels):
        logits = self.body(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_the_networks_own_loss_is_checked_with_its_weight():
    inputs = {"x": LABELLED.inputs, "labels": LABELLED.targets}
    data = fm.Dataset(inputs, LABELLED.targets)
    given = own(Reader(), data=data, loss="model", weight=lambda batch: len(batch["labels"]))
    assert answers(given, "fail") == []
    good = dict(answers(given, "ok"))
    assert good["Does the loss depend on the batch size?"].startswith("no: by ")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_networks_is_checked(count):
    nets = [perceptron(seed, dtype=torch.float32) for seed in range(count)]
    asked = [one.question for one in check_networks(own(*nets), resolution=3)]
    assert ("Are the checkpoints different networks?" in asked) == (count > 1)
    assert any("orthonormal" in question for question in asked) == (count in (2, 3))
    assert asked[-1] == "What would a grid of 3 by 3 cost?"


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan, np.inf])
def test_a_threshold_must_be_a_number_above_zero(threshold):
    with pytest.raises(ValueError, match="expected a positive threshold"):
        list(check_networks(own(perceptron(dtype=torch.float32)), threshold=threshold))


def test_checks_change_nothing():
    network = perceptron(dtype=torch.float32).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(4)
    state = torch.get_rng_state()
    given = own(network)
    list(check_networks(given, resolution=3))
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
    held = given.states[0].parameters
    torch.testing.assert_close(held, before, rtol=0, atol=0)
    assert network.training
