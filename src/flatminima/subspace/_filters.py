"""What one filter of a parameter is, and directions scaled filter by filter (Li et al. 2018).

A filter is the slice of a weight that makes one output: axis 0 of linear and convolution weights;
axis 1, within a group, of transposed convolutions. Their shapes do not tell which.
"""

import math
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from flatminima.minimum import State
from flatminima.subspace._tensors import BASIS
from flatminima.types import Parameters

# The shape in which a parameter is looked at, and the axes of it that run within one filter.
_View: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


class Filters:
    """The filters of a state's parameters, and their norms.

    Args:
        weights: The parameters that move.
        whole: Whether each parameter is one filter ("layer" scaling).
        groups: Of those whose outputs lie on axis 1, in how many groups.

    Raises:
        ValueError: If all weights are zero, so that nothing would move.
    """

    def __init__(self, weights: Parameters, *, whole: bool, groups: Mapping[str, int]) -> None:
        self._views = {
            name: _one(value) if whole or value.ndim < 2 else _many(value, groups.get(name))
            for name, value in weights.items()
        }
        # Of the state itself: a subspace that is cast to another precision keeps its directions.
        self._norms = {name: self._norm(name, value.cpu()) for name, value in weights.items()}
        if not any(bool(norms.any()) for norms in self._norms.values()):
            raise ValueError(
                f"expected weights to scale directions by, got zeros only in {', '.join(weights)};"
                " use scaling='unit'"
            )

    def scaled(self, draws: Parameters) -> dict[str, Tensor]:
        """Draws in float64 with every filter as long as the state's: `d / ||d|| * ||w||`.

        A filter of zero norm does not move, and neither does one whose draw is zero.
        """
        result = {}
        for name, draw in draws.items():
            own = self._norm(name, draw)
            ratio = torch.where(own > 0, self._norms[name].to(own.device) / own, 0.0)
            shape, _ = self._views[name]
            result[name] = (draw.to(BASIS).reshape(shape) * ratio).reshape(draw.shape)
        return result

    def _norm(self, name: str, value: Tensor) -> Tensor:
        """One norm per filter, in a shape that broadcasts against the parameter's view."""
        shape, axes = self._views[name]
        filters = value.to(BASIS).reshape(shape)
        norms: Tensor = torch.linalg.vector_norm(filters, dim=axes, keepdim=True)
        return norms


def groups_of_transposed(
    state: State, names: Collection[str], transposed: str | Collection[str]
) -> dict[str, int]:
    """The parameters whose outputs lie on axis 1, each with its number of groups.

    Args:
        state: A module is searched for transposed convolutions; tied weights are what the module
            that comes first makes of them.
        names: Of all parameters.
        transposed: Globs of further ones, which have one group.

    Raises:
        ValueError: If a glob matches no name.
    """
    found: dict[str, int] = {}
    for glob in (transposed,) if isinstance(transposed, str) else transposed:
        matching = [name for name in names if fnmatchcase(name, glob)]
        if not matching:
            raise ValueError(
                f"expected transposed to match names of parameters, got {glob!r}, which matches"
                f" none; the names are {', '.join(list(names)[:8])}"
            )
        found.update(dict.fromkeys(matching, 1))
    if isinstance(state, nn.Module):
        owners: dict[int, nn.Module] = {}
        for module in state.modules():
            for value in module.parameters(recurse=False):
                owners.setdefault(id(value), module)
        for name, value in state.named_parameters():
            owner = owners[id(value)]
            if isinstance(owner, _ConvTransposeNd):
                found[name] = owner.groups
    return found


def _one(value: Tensor) -> _View:
    return (value.numel(),), (0,)


def _many(value: Tensor, groups: int | None) -> _View:
    """Filters along axis 0; along axis 1, within each of `groups` blocks of axis 0, if given."""
    if groups is None:
        return (value.shape[0], math.prod(value.shape[1:])), (1,)
    rest = math.prod(value.shape[2:])
    return (groups, value.shape[0] // groups, value.shape[1], rest), (1, 3)
