"""Tensors put into their places against torch's own functional call, which defines it."""

import contextlib

import pytest
import torch
from torch import nn
from torch.func import functional_call

from flatminima.landscape._places import Places


class Tied(nn.Module):
    """Two layers of one weight, a layer used twice, a buffer that is replaced, and one in place."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6, bias=False)
        self.two.weight = self.one.weight
        self.again = self.one
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, inputs, *, scale=1.0):
        self.calls = self.calls + 1
        self.seen.add_(1)
        return self.norm(self.two(self.one(inputs)) + self.again(inputs)) * scale * self.calls


def state_of(network, seed):
    generator = torch.Generator().manual_seed(seed)
    named = [*network.named_parameters(), *network.named_buffers()]
    return {
        name: torch.rand(value.shape, generator=generator).to(value.dtype) for name, value in named
    }


def cloned(state):
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize(
    "build",
    [
        Tied,
        lambda: nn.Linear(6, 3),
        lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
        lambda: nn.LSTM(6, 5, batch_first=True),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_buffers_are_those_of_a_functional_call(build, training):
    network = build().train(training)
    inputs = torch.rand(7, 6)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad(), Places(network) as places:
        for seed in (0, 1, 0):
            given, expected = state_of(network, seed), state_of(network, seed)
            places.put(given)
            found = network(inputs)
            torch.testing.assert_close(
                found, functional_call(build().train(training), expected, (inputs,)), rtol=0, atol=0
            )
            for name in ("seen", "norm.running_mean", "1.num_batches_tracked"):
                if name in given:
                    assert torch.equal(given[name], expected[name])
    for name, value in network.state_dict().items():
        assert torch.equal(value, own[name])
    assert all(isinstance(value, nn.Parameter) for value in network.parameters())


def test_a_tensor_is_put_into_all_places_by_any_of_its_names():
    network = Tied().eval()
    state = state_of(network, 0)
    assert {"one.weight", "two.weight", "again.weight"} & state.keys() == {"one.weight"}
    renamed = cloned(state)
    renamed["two.weight"] = renamed.pop("one.weight")
    inputs = torch.rand(3, 6)
    with torch.no_grad(), Places(network) as places:
        places.put(cloned(state))
        expected = network(inputs)
        places.put(renamed)
        assert network.one.weight is network.again.weight is network.two.weight
        assert torch.equal(network(inputs), expected)


def test_what_a_network_puts_elsewhere_itself_is_not_kept():
    network = Tied().eval()
    state = state_of(network, 0)
    with torch.no_grad(), Places(network) as places:
        places.put(state)
        first = network(torch.ones(2, 6))
        places.put(state)
        assert torch.equal(network(torch.ones(2, 6)), first)


def test_misspelt_and_missing_names_are_refused():
    network = Tied()
    state = state_of(network, 0)
    with Places(network) as places:
        with pytest.raises(KeyError, match="ones"):
            places.put({**state, "ones": torch.ones(())})
        del state["norm.weight"]
        with pytest.raises(KeyError, match=r"no tensors for norm\.weight"):
            places.put(state)


def test_a_networks_own_tensors_are_back_after_an_error():
    network = Tied()
    weight = network.one.weight
    with contextlib.suppress(RuntimeError), Places(network) as places:
        places.put(state_of(network, 0))
        assert network.one.weight is not weight
        raise RuntimeError
    assert network.one.weight is weight
    assert network.two.weight is weight
