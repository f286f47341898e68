"""Layers whose output is affine in the coordinates.

`w(c) = w0 + sum_k c_k u_k`, so an affine layer with the same input at every point gives
`layer(x; w(c)) = layer(x; w0) + sum_k c_k layer(x; u_k)`: one product per direction instead of one
per point. Two layers have the same input at every point: the first one of a network that is fed
data (`evaluate_leading`), and the last one when nothing before it moves (`evaluate_top`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from flatminima._linear import quick_linear
from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._layers import inputs_of, own_parameters
from flatminima.landscape._losses import Meter
from flatminima.landscape._world import arguments
from flatminima.subspace import Subspace
from flatminima.types import Buffers, Coordinates

# Parameters and directions formed at once; a chunk of points is cut so that they fit.
MEMORY = 256 * 2**20


class _Layer:
    """An affine layer at the origin and along some directions."""

    def __init__(self, network: nn.Module, name: str, subspace: Subspace, active: list[int]):
        module = network.get_submodule(name)
        weight, *rest = own_parameters(network, name)
        bias = rest[0] if rest else None
        origin = subspace.origin.parameters
        self._product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = (
            module._conv_forward if isinstance(module, _ConvNd) else F.linear
        )
        dtype = origin[weight].dtype
        self._origin = (origin[weight], origin[bias] if bias else None)
        self._directions: dict[int, tuple[Tensor | None, Tensor | None]] = {}
        for index in active:
            direction = subspace.direction(index)
            u = direction.get(weight)
            b = direction.get(bias) if bias else None
            self._directions[index] = (
                None if u is None else u.to(dtype),
                None if b is None else b.to(dtype),
            )

    def products(self, inputs: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The layer's output at the origin, and per direction the change per unit of coordinate."""
        base = self._product(inputs, *self._origin)
        changes = {}
        for index, (weight, bias) in self._directions.items():
            if weight is None and bias is None:
                continue
            if weight is None:
                weight = torch.zeros_like(self._origin[0])
            changes[index] = self._product(inputs, weight, bias)
        return base, changes


def _combine(
    base: Tensor, changes: dict[int, Tensor], coordinate: np.ndarray, out: Tensor | None
) -> Tensor:
    """`base + sum_k c_k change_k`, written into `out` (made once and given back)."""
    out = torch.empty_like(base) if out is None or out.shape != base.shape else out
    moved = [index for index in np.flatnonzero(coordinate) if int(index) in changes]
    if not moved:
        return out.copy_(base)
    first, *others = (int(index) for index in moved)
    torch.add(base, changes[first], alpha=float(coordinate[first]), out=out)
    for index in others:
        out.add_(changes[index], alpha=float(coordinate[index]))
    return out


def evaluate_top(
    name: str,
    network: nn.Module,
    subspace: Subspace,
    coordinates: Coordinates,
    features: Iterable[tuple[Tensor, Any, torch.Size]],
    meter: Meter,
) -> None:
    """Losses when the top layer alone moves, from its stored inputs.

    Args:
        name: The top layer; `network` ends with it.
        network: A private copy of the network.
        subspace: Moves parameters of that layer only.
        coordinates: The points.
        features: Per batch the layer's inputs, the targets and the shape of the outputs.
        meter: Receives the losses.
    """
    active = [int(index) for index in np.flatnonzero(coordinates.any(axis=0))]
    layer = _Layer(network, name, subspace, active)
    out: Tensor | None = None
    for inputs, targets, shape in features:
        base, changes = layer.products(inputs)
        for point, coordinate in enumerate(coordinates):
            out = _combine(base, changes, coordinate, out)
            meter.add(point, out.view(shape), targets)


def evaluate_leading(
    name: str,
    network: nn.Module,
    subspace: Subspace,
    coordinates: Coordinates,
    buffers: Buffers,
    batches: Iterable[tuple[Any, Any]],
    meter: Meter,
    arithmetics: Sequence[Arithmetic],
) -> None:
    """Losses at any points, with the products of the first layer shared between them.

    Batches are outside and points inside: a batch and its products stay in the cache while all
    points of a chunk use them. The shared layer is exact whatever the arithmetic of a point is:
    many points use it.
    """
    own = own_parameters(network, name)
    for points, active in _chunks(subspace, coordinates, own):
        layer = _Layer(network, name, subspace, active)
        states = _rest_of_parameters(subspace, coordinates[points], active, own)
        states = [
            {
                **arithmetics[point].ready(state),
                **{key: value.clone() for key, value in buffers.items()},
            }
            for state, point in zip(states, points, strict=True)
        ]
        out: Tensor | None = None
        with quick_linear():
            for inputs, targets in batches:
                args, kwargs = arguments(inputs)
                base, changes = layer.products(inputs_of(network, name, inputs))
                given = Given()
                with replaced(network, name, given):
                    for state, point in zip(states, points, strict=True):
                        arithmetic = arithmetics[point]
                        out = _combine(base, changes, coordinates[point], out)
                        given.value = arithmetic.product(out)
                        with arithmetic.used():
                            outputs = functional_call(network, state, args, kwargs, strict=True)
                        meter.add(int(point), arithmetic.result(outputs), targets)


class Given(nn.Module):
    """Stands where a layer stood, and returns what it is told."""

    value: Tensor

    def forward(self, *_inputs: Any, **_named: Any) -> Tensor:
        return self.value


class replaced:
    """Within, another module stands where module `name` of `network` stood."""

    def __init__(self, network: nn.Module, name: str, other: nn.Module):
        self._network, self._name, self._other = network, name, other
        self._layer = network.get_submodule(name)

    def __enter__(self) -> None:
        self._network.set_submodule(self._name, self._other)

    def __exit__(self, *_error: object) -> None:
        self._network.set_submodule(self._name, self._layer)


def _chunks(
    subspace: Subspace, coordinates: Coordinates, own: tuple[str, ...]
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Runs of points, with their directions, whose parameters fit into MEMORY.

    A point costs its parameters behind the first layer, a direction its first layer; cutting does
    not change any number, since each point's sums are formed in the order of the directions.
    """
    sizes = {name: value.numel() for name, value in subspace.origin.parameters.items()}
    leading = sum(sizes[name] for name in own)
    # The rest is summed in float64 before it is rounded; products of a batch are about as large
    # again as the layer itself.
    per_point = 12 * (sum(sizes.values()) - leading) + 1
    per_direction = 16 * leading + 1
    points: list[int] = []
    active: set[int] = set()
    for point, coordinate in enumerate(coordinates):
        wanted = active | {int(index) for index in np.flatnonzero(coordinate)}
        if points and (len(points) + 1) * per_point + len(wanted) * per_direction > MEMORY:
            yield np.array(points), sorted(active)
            points, wanted = [], {int(index) for index in np.flatnonzero(coordinate)}
        points.append(point)
        active = wanted
    if points:
        yield np.array(points), sorted(active)


def _rest_of_parameters(
    subspace: Subspace, coordinates: Coordinates, active: list[int], own: tuple[str, ...]
) -> list[dict[str, Tensor]]:
    """Per point the parameters outside the first layer; each direction is drawn once."""
    origin = {name: value for name, value in subspace.origin.parameters.items() if name not in own}
    sums: list[dict[str, Tensor]] = [{} for _ in coordinates]
    for index in active:
        direction = subspace.direction(index)
        for row, coordinate in zip(sums, coordinates, strict=True):
            if coordinate[index] == 0.0:
                continue
            for name, value in direction.items():
                if name in own:
                    continue
                if name not in row:
                    row[name] = origin[name].to(torch.float64, copy=True)
                row[name].add_(value, alpha=float(coordinate[index]))
    return [
        {
            name: row[name].to(value.dtype) if name in row else value
            for name, value in origin.items()
        }
        for row in sums
    ]
