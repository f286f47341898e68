"""The definition of the answer: one point, one forward pass over the data."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.func import functional_call

from flatminima._packed import Packed
from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._meter import Meter
from flatminima.landscape._world import arguments
from flatminima.types import Buffers, Parameters


def run(network: nn.Module, parameters: Parameters, buffers: Buffers, inputs: Any) -> Any:
    """The network's outputs on one batch, at the given parameters and buffers.

    A dict of inputs is passed as keywords, a tuple as positions. `strict`: by default a misspelt
    name would silently leave the module's own weight in place.
    """
    args, kwargs = arguments(inputs)
    return functional_call(network, {**parameters, **buffers}, args, kwargs, strict=True)


def evaluate(
    network: nn.Module,
    parameters: Parameters,
    buffers: Buffers,
    batches: Iterable[tuple[Any, Any]],
    meter: Meter,
    point: int,
    arithmetic: Arithmetic,
    packed: Packed | None = None,
) -> None:
    """Add the losses of one point over all batches to `meter`.

    Args:
        network: Whose forward passes they are.
        parameters: Of the point.
        buffers: Likewise.
        batches: Inputs and targets.
        meter: Where they are added.
        point: Which of its points this is.
        arithmetic: How products are computed.
        packed: The parameters as that takes them, if somebody else meets them too.
    """
    # A network may write to its buffers; the point must not see what another point left there.
    own = {name: value.clone() for name, value in buffers.items()}
    ready = arithmetic.ready(parameters)
    packed = packed or Packed(ready.values())
    for inputs, targets in batches:
        if not meter.open(point):
            return
        with arithmetic.used(packed):
            outputs = run(network, ready, own, inputs)
        arithmetic.add(meter, point, outputs, targets)
