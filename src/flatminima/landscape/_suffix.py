"""Only what moves: the layers before the first moved one run once per batch.

A network is cut behind a module whose output is the same at every point. Where the network is a
chain at that place (a `Sequential`, the blocks of a residual network), its output is all that the
rest needs: it is handed over, and what came before is skipped. Where it is not (a connection that
leads around the cut) the rest computes something else, which the proof on a batch shows.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.func import functional_call

from flatminima._packed import Packed
from flatminima._quick import footprint, quick_products
from flatminima.landscape._affine import Given, replaced
from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._batches import Batch
from flatminima.landscape._layers import Captured
from flatminima.landscape._meter import Meter
from flatminima.landscape._places import Places
from flatminima.landscape._states import MEMORY, States
from flatminima.landscape._threads import in_threads
from flatminima.landscape._world import arguments, room
from flatminima.subspace import Subspace
from flatminima.types import Buffers, Coordinates, Parameters

# How many places are tried: usually the last is the right one, or its parent.
_PLACES = 4


@dataclass(frozen=True)
class Cut:
    """A place behind which a network may be cut.

    Attributes:
        behind: The module whose output is handed over.
        skipped: Modules that are not run any more.
    """

    behind: str
    skipped: tuple[str, ...]


class _Skip(nn.Module):
    """Stands where a module stood whose output nobody needs."""

    def forward(self, first: Any = None, *_others: Any, **_named: Any) -> Any:
        return first


def cuts(network: nn.Module, moved: Collection[str], inputs: Any) -> Iterator[Cut]:
    """Places behind which nothing has moved yet, the last one first; at most a few.

    Only places that leave out parameters, and modules that are called once, are worth it.
    """
    calls = _watched(network, inputs)
    tensors = dict(network.named_parameters())
    ids = {id(tensors[name]) for name in moved}
    # Of tied weights every holder moves.
    every = [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
    moving = {name.rpartition(".")[0] for name, value in every if id(value) in ids}
    if "" in moving or not moving <= calls.left.keys():
        return  # used outside modules' own calls, so nobody knows when
    start = min(calls.entered[name] for name in moving)
    before = {name: ended for name, ended in calls.left.items() if ended < start}
    found = 0
    for name in sorted(before, key=lambda name: -before[name]):
        inner = [other for other in before if before[other] < before[name]]
        skipped = tuple(
            other
            for other in inner
            if not other.startswith(f"{name}.")
            and not any(other.startswith(f"{outer}.") for outer in inner)
        )
        gone = [f"{other}." for other in (name, *skipped)]
        left_out = {id(value) for own, value in every if own.startswith(tuple(gone))}
        needed = {id(value) for own, value in every if not own.startswith(tuple(gone))}
        plain = calls.times[name] == 1 and calls.tensors[name]
        if plain and left_out and not left_out & needed and found < _PLACES:
            found += 1
            yield Cut(name, skipped)


@dataclass
class _Calls:
    """Of each module: when first entered, when last left, how often, and whether with a tensor."""

    clock: Iterator[int] = field(default_factory=count)
    entered: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    tensors: dict[str, bool] = field(default_factory=dict)

    def enter(self, name: str, _module: nn.Module, _args: Any) -> None:
        self.entered.setdefault(name, next(self.clock))

    def leave(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self.left[name] = next(self.clock)
        self.times[name] += 1
        self.tensors[name] = isinstance(output, Tensor)


def _watched(network: nn.Module, inputs: Any) -> _Calls:
    """The calls of all modules in a forward pass."""
    seen = _Calls()
    handles = []
    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(partial(seen.enter, name)))
            handles.append(module.register_forward_hook(partial(seen.leave, name)))
    try:
        args, kwargs = arguments(inputs)
        network(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def evaluate_suffix(
    cut: Cut,
    network: nn.Module,
    formed: States,
    coordinates: Coordinates,
    buffers: Buffers,
    batches: Sequence[Batch],
    meter: Meter,
    arithmetic: Arithmetic,
    *,
    threads: bool,
) -> None:
    """Losses at any points, with everything before the cut run once per batch, exactly."""
    subspace = formed.subspace
    fixed = Packed(subspace.origin.parameters.values())
    with _cut_off(network, cut) as (_, needed):
        pass

    def beside(parameters: Parameters) -> dict[str, Tensor]:
        # A network may write to its buffers; no point must see what another left there.
        return {**parameters, **{name: value.clone() for name, value in buffers.items()}}

    for points in _chunks(subspace, len(coordinates), tiled=arithmetic.tiled):
        origin = beside(subspace.origin.parameters)
        states = []
        for point in points:
            whole = beside(formed.at(coordinates[point]))
            states.append(arithmetic.ready({name: whole[name] for name in needed}))
        chunk = _Behind(
            cut,
            origin,
            points,
            arithmetic,
            states,
            Packed(value for state in states for value in state.values()),
            fixed,
        )

        def one(network: nn.Module, batch: int, chunk: "_Behind" = chunk) -> Meter:
            part = meter.part()
            chunk.evaluate(network, batches[batch], part, meter.open)
            return part

        for part in in_threads(network, range(len(batches)), one, allowed=threads):
            meter.join(part)
        del chunk, one  # before the next points are formed


@dataclass(frozen=True)
class _Behind:
    """Points that share what comes before a cut."""

    cut: Cut
    origin: Parameters
    points: Sequence[int]
    arithmetic: Arithmetic
    states: Sequence[dict[str, Tensor]]
    packed: Packed
    fixed: Packed

    def evaluate(
        self, network: nn.Module, batch: Batch, meter: Meter, wanted: Callable[[int], bool]
    ) -> None:
        """Add the losses of one batch at all points that are still wanted."""
        inputs, targets = batch
        args, kwargs = arguments(inputs)
        with quick_products(self.fixed, convolutions=self.arithmetic.tiled):
            stored = _output_of(network, self.cut.behind, self.origin, inputs)
        with _cut_off(network, self.cut) as (given, _), Places(network) as places:
            for point, state in zip(self.points, self.states, strict=True):
                if not wanted(point):
                    continue
                # A copy: the layers that follow may work in place.
                given.value = self.arithmetic.product(stored).clone()
                places.put(state)
                with self.arithmetic.used(self.packed, affine=True):
                    outputs = network(*args, **kwargs)
                self.arithmetic.add(meter, point, outputs, targets)


def _output_of(network: nn.Module, name: str, state: Parameters, inputs: Any) -> Tensor:
    """The output of a module in a forward pass, which goes no further than there."""
    seen: list[Tensor] = []

    def take(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen.append(output)
        raise Captured

    handle = network.get_submodule(name).register_forward_hook(take)
    try:
        args, kwargs = arguments(inputs)
        functional_call(network, dict(state), args, kwargs, strict=True)
    except Captured:
        pass
    finally:
        handle.remove()
    return seen[0]


class _cut_off:
    """Within, a network begins behind the cut; gives what is handed over, and the tensors left."""

    def __init__(self, network: nn.Module, cut: Cut) -> None:
        self._network, self._cut = network, cut
        self._stack = [replaced(network, name, _Skip()) for name in cut.skipped]

    def __enter__(self) -> tuple[Given, list[str]]:
        given = Given()
        self._stack.append(replaced(self._network, self._cut.behind, given))
        for each in self._stack:
            each.__enter__()
        left = [*self._network.named_parameters(), *self._network.named_buffers()]
        return given, [name for name, _ in left]

    def __exit__(self, *error: object) -> None:
        for each in reversed(self._stack):
            each.__exit__(*error)


def _chunks(subspace: Subspace, points: int, *, tiled: bool) -> Iterator[list[int]]:
    """Runs of points whose moved parameters fit into MEMORY."""
    origin = subspace.origin.parameters
    size = footprint((origin[name] for name in subspace.moved), convolutions=tiled)
    step = max(1, room(next(iter(origin.values())).device, MEMORY) // max(size, 1))
    for first in range(0, points, step):
        yield np.arange(first, min(first + step, points)).tolist()
