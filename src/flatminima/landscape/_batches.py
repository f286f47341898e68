"""A dataset as a network and its loss take it, batch by batch, always in the same order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from flatminima.data import Dataset
from flatminima.landscape._importance import Weighted
from flatminima.landscape._layers import largest_output
from flatminima.landscape._meter import Marked
from flatminima.landscape._world import as_dtype, channels_last

Batch: TypeAlias = tuple[Any, Any]
"""Inputs and targets."""

# A batch's largest activation should stay in a core's share of cache (1 to 2 MiB). An accelerator
# needs much more at once, or it waits for its next operation.
_CACHE, _ACCELERATOR = 1_600_000, 640 * 2**20
_MOST, _ACCELERATOR_MOST = 1000, 2**16
# Examples on which a path is compared with the reference, at most.
_PROBE = 64
# Examples that tell how a network is made.
_FEW = 2


@dataclass(frozen=True)
class Batches(Sequence[Batch]):
    """All of a dataset in batches of one size, and a clean subset in full batches of another.

    Attributes:
        dataset: On the device where it is used.
        dtype: What floating inputs are turned into; `None` leaves them.
        channels_last: Whether images are laid out so.
        size: Examples per batch.
        clean_samples: How many examples the subset has, spread evenly over the dataset.
        clean_size: Examples per batch of the subset.
        own_loss: Whether the network computes its loss itself: it is given the labels, and the
            targets are its inputs.
        members: Which examples belong to which subset.
        weights: How much each example weighs, if they differ; there are no subsets then.
    """

    dataset: Dataset
    dtype: torch.dtype | None
    channels_last: bool = False
    size: int = 1
    clean_samples: int = 1
    clean_size: int = 1
    own_loss: bool = False
    members: Tensor | None = None
    weights: Tensor | None = None

    @property
    def probe(self) -> int:
        """On how many examples paths are compared."""
        return min(self.size, _PROBE, len(self.dataset))

    @property
    def few(self) -> Batch:
        """Some examples, for whoever wants to know how a network is made."""
        return self.first(_FEW)

    def whole_bytes(self, of_few: Tensor) -> float:
        """What the like of it takes for all examples, where it was found for a few."""
        return of_few.nbytes / min(_FEW, len(self.dataset)) * len(self.dataset)

    def first(self, count: int) -> Batch:
        """The first examples."""
        return self._rows(slice(0, min(count, len(self.dataset))))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.size)

    def __getitem__(self, index: Any) -> Any:
        """One batch; all of them are all examples in their order."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.size
        return self._rows(slice(start, min(start + self.size, len(self.dataset))))

    def clean(self) -> Iterator[Batch]:
        """The subset."""
        rows = torch.linspace(0, len(self.dataset) - 1, self.clean_samples).round().long()
        rows = rows.to(self.dataset.device)
        # Interleaved, so that a dataset sorted by class does not give batches of one class.
        for chunk in rows.view(self.clean_size, -1).T:
            yield self._rows(chunk)

    def spread(self, count: int) -> Sequence[Batch]:
        """So many examples, spread evenly over the dataset; all of them if there are no more."""
        if len(self.dataset) <= count:
            return self
        rows = torch.linspace(0, len(self.dataset) - 1, count, dtype=torch.float64).round().long()
        return _Spread(self, rows.to(self.dataset.device), -(-count // self.size))

    def only(self, rows: Tensor, weights: Tensor) -> "Batches":
        """Some examples, each with its weight, as a dataset of their own."""
        size = min(self.size, len(rows))
        return replace(
            self, dataset=self.dataset.subset(rows), size=size, members=None, weights=weights
        )

    def _rows(self, rows: slice | Tensor) -> Batch:
        inputs, targets = self.dataset.batch(rows)
        if self.dtype is not None:
            inputs = as_dtype(inputs, self.dtype)
        if self.channels_last:
            inputs = channels_last(inputs)
        if self.own_loss:
            inputs = inputs if "labels" in inputs else {**inputs, "labels": targets}
            targets = inputs
        if self.members is not None:
            targets = Marked(targets, self.members[rows])
        if self.weights is not None:
            targets = Weighted(targets, self.weights[rows])
        return inputs, targets


@dataclass(frozen=True)
class _Spread(Sequence[Batch]):
    """Some examples in so many batches, interleaved like those of the clean subset."""

    batches: Batches
    rows: Tensor
    number: int

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.number:
            raise IndexError(index)
        return self.batches._rows(self.rows[index :: self.number])


def usual_size(network: nn.Module, example: Any, device: torch.device, half: bool) -> int:
    """So many examples that the largest activation fits the cache, within 100 to 1000.

    In half precision it takes half the room. On an accelerator the largest activation may be
    larger, and the examples be more.
    """
    if device.type == "cpu":
        limit, most = _CACHE * (2 if half else 1), _MOST
    else:
        limit, most = _ACCELERATOR, _ACCELERATOR_MOST
    return int(np.clip(limit // largest_output(network, example), 100, most))
