"""The definition of the answer: one point, one forward pass over the data."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.func import functional_call

from flatminima.landscape._losses import Meter
from flatminima.types import Buffers, Parameters


def run(network: nn.Module, parameters: Parameters, buffers: Buffers, inputs: Any) -> Any:
    """The network's outputs on one batch, at the given parameters and buffers.

    A dict of inputs is passed as keywords, a tuple as positions. `strict`: by default a misspelt
    name would silently leave the module's own weight in place.
    """
    args, kwargs = arguments(inputs)
    return functional_call(network, {**parameters, **buffers}, args, kwargs, strict=True)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a batch of inputs is handed to a network."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def evaluate(
    network: nn.Module,
    parameters: Parameters,
    buffers: Buffers,
    batches: Iterable[tuple[Any, Any]],
    meter: Meter,
    point: int,
) -> None:
    """Add the losses of one point over all batches to `meter`."""
    # A network may write to its buffers; the point must not see what another point left there.
    own = {name: value.clone() for name, value in buffers.items()}
    for inputs, targets in batches:
        meter.add(point, run(network, parameters, own, inputs), targets)
