"""Parameters at many points, formed one after the other from directions drawn as seldom as may be.

`Subspace.parameters_at` is the definition. This gives the same bits, and keeps the directions that
it has met last: drawing one anew costs as much as several batches.
"""

import functools
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from flatminima.landscape._world import room
from flatminima.subspace import Subspace
from flatminima.types import Parameters

# Bytes for directions, and for the parameters of the points that share a pass over the data; on
# an accelerator they may be more.
MEMORY = 512 * 2**20


class States:
    """Parameters at points of a subspace.

    Args:
        subspace: Its directions may be random; those are kept within MEMORY, at least two.

    Attributes:
        subspace: The same.
        direction: One of its directions by number.
    """

    def __init__(self, subspace: Subspace) -> None:
        self.subspace = subspace
        self._origin = subspace.origin.parameters
        size = 8 * sum(self._origin[name].numel() for name in subspace.moved)
        first = next(iter(self._origin.values()))
        keep = max(2, room(first.device, MEMORY) // max(size, 1))
        self.direction = functools.lru_cache(maxsize=keep)(subspace.direction)

    def at(self, coordinate: np.ndarray, *, without: Collection[str] = ()) -> dict[str, Tensor]:
        """The parameters at one coordinate, except some; those that do not move are the origin's.

        The sum is formed in float64 and rounded once.
        """
        sums: dict[str, Tensor] = {}
        for index in np.flatnonzero(coordinate):
            direction: Parameters = self.direction(int(index))
            for name, value in direction.items():
                if name in without:
                    continue
                if name not in sums:
                    sums[name] = self._origin[name].to(torch.float64, copy=True)
                sums[name].add_(value, alpha=float(coordinate[index]))
        return {
            name: sums[name].to(value.dtype) if name in sums else value
            for name, value in self._origin.items()
            if name not in without
        }
