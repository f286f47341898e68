"""Layers whose output is affine in the coordinates.

`w(c) = w0 + sum_k c_k u_k`, so an affine layer with the same input at every point gives
`layer(x; w(c)) = layer(x; w0) + sum_k c_k layer(x; u_k)`: one product per direction instead of one
per point. Two layers have the same input at every point: the first one of a network that is fed
data (`evaluate_leading`), and the last one when nothing before it moves (see `_top`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from flatminima._packed import Packed
from flatminima._quick import footprint, quick_products
from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._batches import Batch
from flatminima.landscape._chain import Chain, chain_behind
from flatminima.landscape._layers import inputs_of, own_parameters
from flatminima.landscape._meter import Meter
from flatminima.landscape._places import Places
from flatminima.landscape._states import MEMORY, States
from flatminima.landscape._threads import in_threads
from flatminima.landscape._world import arguments, room
from flatminima.subspace import Subspace
from flatminima.types import Buffers, Coordinates

# Outputs of so many bytes are turned into losses at once: they stay in a processor's cache.
_STACK = 2**19
# Weights of several directions are put together, and so copied, up to this size.
_TOGETHER = 2**25


class AffineLayer:
    """An affine layer at the origin and along some directions."""

    def __init__(
        self,
        network: nn.Module,
        name: str,
        formed: States,
        active: list[int],
    ) -> None:
        module = network.get_submodule(name)
        weight, *rest = own_parameters(network, name)
        bias = rest[0] if rest else None
        origin = formed.subspace.origin.parameters
        self._product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = (
            module._conv_forward if isinstance(module, _ConvNd) else F.linear
        )
        dtype = origin[weight].dtype
        self._origin = (origin[weight], origin[bias] if bias else None)
        self._directions: dict[int, tuple[Tensor | None, Tensor | None]] = {}
        for index in active:
            along = formed.direction(index)
            u = along.get(weight)
            b = along.get(bias) if bias else None
            self._directions[index] = (
                None if u is None else u.to(dtype),
                None if b is None else b.to(dtype),
            )

    @property
    def directions(self) -> tuple[int, ...]:
        """Those that move the layer."""
        return tuple(index for index, own in self._directions.items() if own != (None, None))

    def product(self, index: int | None, inputs: Tensor) -> Tensor:
        """The output at the origin (`None`), or the change per unit of a direction's coordinate."""
        if index is None:
            return self._product(inputs, *self._origin)
        weight, bias = self._directions[index]
        if weight is None:
            weight = torch.zeros_like(self._origin[0])
        return self._product(inputs, weight, bias)

    def products(self, inputs: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The product at the origin, and those of all directions that move the layer."""
        changes = {index: self.product(index, inputs) for index in self.directions}
        return self.product(None, inputs), changes

    def outputs(
        self, inputs: Tensor, directions: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The product at the origin, and those of some directions if they move the layer.

        Of a small linear layer they are one product of all weights together, `[classes, N]`
        transposed.
        """
        moving = [index for index in directions if self._directions[index] != (None, None)]
        weight, bias = self._origin
        large = weight.nbytes * (1 + len(moving)) > _TOGETHER
        if large or self._product is not F.linear or inputs.ndim != 2:
            changes = {index: self.product(index, inputs) for index in moving}
            return self.product(None, inputs), changes
        own = [self._origin, *(self._directions[index] for index in moving)]
        weights = torch.cat([weight.new_zeros(weight.shape) if w is None else w for w, _ in own])
        found = weights @ inputs.T
        if bias is not None:
            biases = [bias.new_zeros(bias.shape) if b is None else b for _, b in own]
            found += torch.cat(biases)[:, None]
        base, *changed = found.view(len(own), len(weight), -1).transpose(1, 2)
        return base, dict(zip(moving, changed, strict=True))


class Kept:
    """Products of a layer over a whole dataset, for the directions that were met last.

    A search along rays comes back to the same directions with every round.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._products: OrderedDict[int | None, dict[int, Tensor]] = OrderedDict()

    def expect(self, layer: AffineLayer, inputs: Tensor, batches: int) -> None:
        """Make room for the directions of a layer, over so many batches like this one.

        What does not fit is not kept; what is not expected goes first.
        """
        room = self._limit // max(layer.product(None, inputs).nbytes * batches, 1)
        for index in [None, *layer.directions][:room]:
            self._products.setdefault(index, {})
            self._products.move_to_end(index)
        while len(self._products) > room:
            self._products.popitem(last=False)

    def products(
        self, layer: AffineLayer, batch: int, inputs: Callable[[], Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """As the layer gives them for a batch; computed only where they are not kept."""
        found: dict[int | None, Tensor] = {}
        given: Tensor | None = None
        for index in (None, *layer.directions):
            kept = self._products.get(index)
            value = None if kept is None else kept.get(batch)
            if value is None:
                given = inputs() if given is None else given
                value = layer.product(index, given)
                if kept is not None:
                    kept[batch] = value
            found[index] = value
        base = found.pop(None)
        return base, {index: value for index, value in found.items() if index is not None}


def combine(
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


def evaluate_leading(
    name: str,
    network: nn.Module,
    formed: States,
    coordinates: Coordinates,
    buffers: Buffers,
    batches: Sequence[Batch],
    meter: Meter,
    arithmetic: Arithmetic,
    *,
    threads: bool,
    kept: Kept | None = None,
) -> None:
    """Losses at any points, with the products of the first layer shared between them.

    Batches are outside and points inside: a batch and its products stay in the cache while all
    points of a chunk use them. The shared layer is exact whatever the arithmetic of the points is:
    many of them use it.
    """
    own = own_parameters(network, name)
    # An accelerator is kept at work by the order of things, not by what lies between them.
    on_cpu = next(network.parameters()).device.type == "cpu"
    chain = chain_behind(network, name) if on_cpu else None
    for points, active in _chunks(formed.subspace, coordinates, own, tiled=arithmetic.tiled):
        behind = [arithmetic.ready(formed.at(coordinates[point], without=own)) for point in points]
        chunk = _Leading(
            name,
            AffineLayer(network, name, formed, active),
            points,
            coordinates[points],
            arithmetic,
            # A network may write to its buffers; no point must see what another left there.
            [
                {**state, **{key: value.clone() for key, value in buffers.items()}}
                for state in behind
            ],
            Packed(value for state in behind for value in state.values()),
            chain,
        )

        if kept is not None:
            kept.expect(chunk.layer, inputs_of(network, name, batches[0][0]), len(batches))

        def one(network: nn.Module, batch: int, chunk: "_Leading" = chunk) -> Meter:
            part = meter.part()
            inputs, targets = batches[batch]

            def given() -> Tensor:
                return inputs_of(network, name, inputs)

            with quick_products():
                if kept is None:
                    products = chunk.layer.products(given())
                else:
                    products = kept.products(chunk.layer, batch, given)
            chunk.evaluate(network, (inputs, targets), products, part, meter.open)
            return part

        for part in in_threads(network, range(len(batches)), one, allowed=threads):
            meter.join(part)
        del behind, chunk, one  # before the next points are formed


@dataclass(frozen=True)
class _Leading:
    """Points that share the products of the first layer."""

    name: str
    layer: AffineLayer
    points: np.ndarray
    coordinates: Coordinates
    arithmetic: Arithmetic
    states: Sequence[dict[str, Tensor]]
    packed: Packed
    chain: Chain | None

    def evaluate(
        self,
        network: nn.Module,
        batch: Batch,
        products: tuple[Tensor, dict[int, Tensor]],
        meter: Meter,
        wanted: Callable[[int], bool],
    ) -> None:
        """Add the losses of one batch at all points that are still wanted."""
        if self.chain is not None:
            self._evaluate_chain(self.chain, batch[1], products, meter, wanted)
            return
        inputs, targets = batch
        args, kwargs = arguments(inputs)
        out: Tensor | None = None
        given = Given()
        each = zip(self.points, self.coordinates, self.states, strict=True)
        base, changes = products
        with replaced(network, self.name, given), Places(network) as places:
            for point, coordinate, state in each:
                if not wanted(int(point)):
                    continue
                out = combine(base, changes, coordinate, out)
                given.value = self.arithmetic.product(out)
                places.put(state)
                with self.arithmetic.used(self.packed, affine=True):
                    outputs = network(*args, **kwargs)
                self.arithmetic.add(meter, int(point), outputs, targets)

    def _evaluate_chain(
        self,
        chain: Chain,
        targets: Any,
        products: tuple[Tensor, dict[int, Tensor]],
        meter: Meter,
        wanted: Callable[[int], bool],
    ) -> None:
        """The same where the rest of the network is a chain; losses of many points at once."""
        base, changes = products
        out: Tensor | None = None
        found: dict[int, Tensor] = {}

        def add() -> None:
            if found:
                meter.add_stack([*found], torch.stack([*found.values()]), targets)
                found.clear()

        for point, coordinate, state in zip(
            self.points, self.coordinates, self.states, strict=True
        ):
            if not wanted(int(point)):
                continue
            out = combine(base, changes, coordinate, out)
            outputs = chain(out, state, self.packed, self.arithmetic.product).to(base.dtype)
            found[int(point)] = outputs
            if outputs.nbytes * len(found) >= _STACK:
                add()
        add()


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
    subspace: Subspace, coordinates: Coordinates, own: tuple[str, ...], *, tiled: bool
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Runs of points, with their directions, whose parameters fit into MEMORY.

    A point costs its parameters behind the first layer, a direction its first layer; cutting does
    not change any number, since each point's sums are formed in the order of the directions.
    """
    origin = subspace.origin.parameters
    leading = sum(origin[name].nbytes for name in own)
    behind = [value for name, value in origin.items() if name not in own]
    per_point = footprint(behind, convolutions=tiled) + 1
    # In float64 when it is drawn, and as a layer; products of a batch are about as large again.
    per_direction = 4 * leading + 1
    limit = room(next(iter(origin.values())).device, MEMORY)
    points: list[int] = []
    active: set[int] = set()
    for point, coordinate in enumerate(coordinates):
        wanted = active | {int(index) for index in np.flatnonzero(coordinate)}
        if points and (len(points) + 1) * per_point + len(wanted) * per_direction > limit:
            yield np.array(points), sorted(active)
            points, wanted = [], {int(index) for index in np.flatnonzero(coordinate)}
        points.append(point)
        active = wanted
    if points:
        yield np.array(points), sorted(active)
