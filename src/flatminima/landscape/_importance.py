"""A sample of a dataset by importance, over which a loss is known more closely than by lot.

The rise of a loss around a minimum comes from few examples, and mostly from those that the network
is least sure of. They are drawn more often than others, and every example that is drawn weighs as
many as it stands for, so that means stay what they are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from flatminima._packed import Packed
from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._losses import PerSample, split_weights
from flatminima.landscape._meter import unmarked
from flatminima.landscape._reference import run
from flatminima.types import Buffers, Parameters

# Examples are drawn in proportion to this power of their loss, as if no loss were below a share of
# the mean. Tried on the published networks, it roughly halved the error of drawing by lot; the
# square root, which was best on natural labels, gained little on random ones.
_POWER, _LEAST = 0.25, 1e-6
# Those that come out certain leave others a smaller share, and may make some of them certain.
_ROUNDS = 30

PerExample: TypeAlias = Float64[np.ndarray, " examples"]
Drawn: TypeAlias = tuple[Int64[np.ndarray, " drawn"], Float64[np.ndarray, " drawn"]]


@dataclass(frozen=True)
class Weighted:
    """Targets of a batch, and how much each of its examples weighs."""

    targets: Any
    weights: Tensor


def weighted(per_sample: PerSample) -> PerSample:
    """The same loss of `Weighted` targets, as sums and weights."""

    def each(outputs: Any, targets: Weighted) -> tuple[Tensor, Tensor]:
        losses, weights = split_weights(per_sample(outputs, targets.targets), targets.targets)
        own = targets.weights.to(losses)
        return losses * own, own if weights is None else weights * own

    return each


def losses_of_examples(
    network: nn.Module,
    state: tuple[Parameters, Buffers],
    batches: Iterable[tuple[Any, Any]],
    per_sample: PerSample,
    arithmetic: Arithmetic,
) -> PerExample:
    """The loss of every example at a state."""
    parameters, buffers = state
    # A network may write to its buffers, which are the state's own.
    own = {name: value.clone() for name, value in buffers.items()}
    ready = arithmetic.ready(parameters)
    found = []
    with arithmetic.used(Packed(ready.values()), affine=True):
        for inputs, targets in batches:
            given = unmarked(targets)
            outputs = run(network, ready, own, inputs)
            found.append(split_weights(per_sample(outputs, given), given)[0])
    return torch.cat(found).double().numpy(force=True)


def draw(losses: PerExample, count: int) -> Drawn:
    """About so many examples by importance: their positions, ascending, and their weights.

    Systematically in the order of the losses, so that the same losses give the same sample.

    Args:
        losses: Of all examples, finite.
        count: How many to draw.
    """
    mean = np.abs(losses).mean() or 1.0
    share = np.maximum(np.abs(losses), _LEAST * mean) ** _POWER
    likely = np.minimum(1.0, share * (count / share.sum()))
    for _ in range(_ROUNDS):
        open_ = likely < 1.0
        left = count - np.count_nonzero(~open_)
        if not open_.any() or likely[open_].sum() >= left * (1.0 - 1e-9):
            break
        likely[open_] = np.minimum(1.0, share[open_] * (left / share[open_].sum()))
    order = np.argsort(losses, kind="stable")
    passed = np.floor(np.cumsum(likely[order]) + 0.5)
    drawn = np.sort(order[np.diff(passed, prepend=0.0) > 0.0])
    return drawn, 1.0 / likely[drawn]


def as_tensors(drawn: Drawn, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions and weights where the data are, the largest weight between a half and 1.

    Paths are compared by what samples add to the sum, and a weight must not make rounding larger.
    """
    rows, weights = drawn
    scaled = np.ldexp(weights, -int(np.ceil(np.log2(weights.max()))))
    return torch.from_numpy(rows).to(device), torch.from_numpy(scaled).to(device, torch.float32)
