"""What is evaluated on a subspace, and what a way to evaluate it looks like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._batches import Batch, Batches
from flatminima.landscape._meter import Measures, Meter
from flatminima.landscape._states import States
from flatminima.subspace import Subspace
from flatminima.types import Buffers, Coordinates


@dataclass(frozen=True)
class Problem:
    """A subspace as a landscape evaluates it.

    Attributes:
        network: The landscape's private copy, as points are evaluated by it.
        defining: The same, with its modules as they were given; it holds the same tensors.
        formed: Parameters at points of the subspace, whose origin's tensors are in the network's
            types and on its device; directions are kept from one evaluation to the next.
        buffers: The origin's, likewise.
        policy: What happens to BatchNorm's statistics.
        batches: The data.
        measures: The loss, and what is measured beside it.
        exact: The arithmetic that paths are compared in.
        threads: Whether batches or points may be evaluated side by side.
    """

    network: nn.Module
    defining: nn.Module
    formed: States
    buffers: Buffers
    policy: str
    batches: Batches
    measures: Measures
    exact: Arithmetic
    threads: bool

    @property
    def subspace(self) -> Subspace:
        """What is evaluated."""
        return self.formed.subspace


@runtime_checkable
class Path(Protocol):
    """A way to evaluate points."""

    name: str
    problem: Problem

    def evaluate(
        self,
        coordinates: Coordinates,
        meter: Meter,
        arithmetic: Arithmetic,
        batches: Sequence[Batch],
    ) -> None:
        """Add the losses of all points over `batches` to `meter`."""
        ...
