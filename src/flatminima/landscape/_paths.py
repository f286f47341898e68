"""The ways to evaluate a subspace, and the choice among them.

The reference is right by definition. The others save work where a network and the directions allow
it; each is taken only after it has agreed with the reference on a batch, at two points.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from flatminima._packed import Packed
from flatminima._quick import quick_products
from flatminima._seeds import derive_seed
from flatminima.landscape import _layers
from flatminima.landscape._affine import Kept, evaluate_leading
from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._batches import Batch
from flatminima.landscape._meter import Meter
from flatminima.landscape._passes import Reference
from flatminima.landscape._problem import Path, Problem
from flatminima.landscape._proof import AGREEMENT, disagreement
from flatminima.landscape._suffix import Cut, cuts, evaluate_suffix
from flatminima.landscape._threads import in_threads
from flatminima.landscape._top import Features, evaluate_top, gathered
from flatminima.landscape._world import room
from flatminima.subspace import norm
from flatminima.types import Buffers, Coordinates, Parameters

# Inputs of the top layer, or products of the first, are kept for a whole dataset up to this size.
_FEATURES = 2 * 2**30
# A layer with fewer products for each of its outputs is computed anew, if these outgrow the cache.
_FEW_PRODUCTS, _CACHE = 64, 2**22


@dataclass
class Affine:
    """The products of the first layer shared by all points."""

    problem: Problem
    layer: str
    name: str = "affine"
    kept: Kept = field(init=False)

    def __post_init__(self) -> None:
        self.kept = Kept(room(self.problem.exact.device, _FEATURES))

    def evaluate(
        self,
        coordinates: Coordinates,
        meter: Meter,
        arithmetic: Arithmetic,
        batches: Sequence[Batch],
    ) -> None:
        """As `Path` says."""
        given = self.problem
        # A plane is evaluated once, rays again and again.
        rays = len(given.subspace.anchors) < 2 and batches is given.batches
        evaluate_leading(
            self.layer,
            given.network,
            given.formed,
            coordinates,
            given.buffers,
            batches,
            meter,
            arithmetic,
            threads=given.threads,
            kept=self.kept if rays else None,
        )


@dataclass
class Suffix:
    """The layers before the first that moves run once per batch."""

    problem: Problem
    cut: Cut
    name: str = "suffix"

    def evaluate(
        self,
        coordinates: Coordinates,
        meter: Meter,
        arithmetic: Arithmetic,
        batches: Sequence[Batch],
    ) -> None:
        """As `Path` says."""
        given = self.problem
        evaluate_suffix(
            self.cut,
            given.network,
            given.formed,
            coordinates,
            given.buffers,
            batches,
            meter,
            arithmetic,
            threads=given.threads,
        )


@dataclass
class Top:
    """The inputs of the top layer, which alone moves, are kept for the whole dataset.

    A point then costs next to nothing and is exact in any arithmetic.
    """

    problem: Problem
    layer: str
    name: str = "top"
    features: list[Features] = field(default_factory=list)

    def evaluate(
        self,
        coordinates: Coordinates,
        meter: Meter,
        arithmetic: Arithmetic,
        batches: Sequence[Batch],
    ) -> None:
        """As `Path` says; of all batches the inputs are those that were kept."""
        given = self.problem
        if batches is not given.batches:
            features = self._inputs(batches)
        else:
            features = self.features = self.features or gathered(self._inputs(batches))
        evaluate_top(
            self.layer,
            given.network,
            given.formed,
            coordinates,
            features,
            meter,
            threads=given.threads,
        )

    def _inputs(self, batches: Sequence[Batch]) -> list[Features]:
        """Inputs of the layer at the origin, targets and shape of the outputs, batch by batch."""
        given = self.problem
        load(given.network, given.subspace.origin.parameters, given.buffers)
        packed = Packed(given.network.parameters())

        def one(network: nn.Module, batch: int) -> Features:
            inputs, targets = batches[batch]
            with quick_products(packed, convolutions=given.exact.tiled):
                found, outputs = _layers.inputs_and_outputs(network, self.layer, inputs)
            return found, targets, outputs.shape

        return list(in_threads(given.network, range(len(batches)), one, allowed=given.threads))


def load(network: nn.Module, parameters: Parameters, buffers: Buffers) -> None:
    """Put a state into a private copy, for passes that read its own weights."""
    state = {**parameters, **buffers}
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if name in state:
            value.copy_(state[name])


def choose_path(given: Problem) -> Path:
    """The fastest path that its proof supports.

    Where one was given up on its proof, the name of what is taken instead says so. The network and
    its exact arithmetic are those of the path's own problem: they are proven and given up likewise.
    """
    probe = given.batches.first(given.batches.probe)
    reference = Reference(given)
    if given.network is not given.defining or given.exact.tiled:
        kept = replace(given, policy="keep", threads=False)
        gap = _gap(kept, Reference(kept), probe)
        if gap is not None:
            given = _by_definition(given)
            reference = Reference(given)
            reference.name += f" (convolutions in parts differed by {gap:.1e} on a probe)"
    if given.policy not in ("none", "keep"):
        return reference
    for find in (_top, _suffix, _affine):
        for path in find(given, given.batches.few):
            if isinstance(path, str):
                reference.name += path
                continue
            gap = _gap(given, path, probe)
            if gap is None:
                return path
            if not isinstance(path, Suffix):  # there it is the usual way to find the place
                what = {"top": "top-layer"}.get(path.name, path.name)
                reference.name += f" (the {what} path differed by {gap:.1e} on a probe)"
    return reference


def _top(given: Problem, few: Batch) -> Iterator[Path | str]:
    """The path of stored top-layer inputs if that layer alone moves."""
    network = given.network
    try:
        name = _layers.top_layer(network, few[0])
    except ValueError:
        return
    if not set(given.subspace.moved) <= set(_layers.own_parameters(network, name)):
        return
    # Of all that paths are compared on: what follows the layer may leave a few examples alone.
    if not _layers.ends_with(network, name, given.batches.first(given.batches.probe)[0]):
        return
    kept = given.batches.whole_bytes(_layers.inputs_of(network, name, few[0]))
    if kept > room(given.exact.device, _FEATURES):
        yield " (the inputs of the top layer are too large to keep)"
    else:
        yield Top(given, name)


def _suffix(given: Problem, few: Batch) -> Iterator[Path | str]:
    """Places where the network may be cut, the last one first."""
    for cut in cuts(given.network, given.subspace.moved, few[0]):
        yield Suffix(given, cut)


def _affine(given: Problem, few: Batch) -> Iterator[Path | str]:
    """The path of the shared first layer if the network starts with one that is worth it."""
    name = _layers.leading_layer(given.network, few[0])
    if name is not None and not _cheap(given, name, few):
        yield Affine(given, name)


def _cheap(given: Problem, name: str, few: Batch) -> bool:
    """Whether a layer's products cost less than adding those of the directions would.

    So for the first convolution of an image network: 27 products for every number, against three
    numbers that are fetched from memory.
    """
    weight = next(given.network.get_submodule(name).parameters(recurse=False))
    batches = given.batches
    whole = batches.whole_bytes(_layers.trace(given.network, few[0]).last[name])
    batch = whole / len(batches.dataset) * batches.size
    return weight[0].numel() < _FEW_PRODUCTS and batch > _CACHE


def _by_definition(given: Problem) -> Problem:
    """The same with modules and products as they were given."""
    return replace(given, network=given.defining, exact=replace(given.exact, tiled=False))


def _gap(given: Problem, path: Path, probe: Batch) -> float | None:
    """By how much a path differs from the reference on a batch at two points, if it does."""
    here = given.subspace
    scale = 0.1 * norm({name: here.origin.parameters[name] for name in here.moved})
    if len(here.anchors) > 1:
        scale = float(np.abs(here.anchor_coordinates).max())
    elif here.dimensions:  # directions scaled like the weights are longer than 1
        scale /= norm(here.direction(0)) or 1.0
    points = np.zeros((2, here.dimensions))
    draws = np.random.default_rng(derive_seed(0, "probe"))
    points[:, :2] = scale * draws.normal(size=points[:, :2].shape)

    def on_probe(path: Path, arithmetic: Arithmetic) -> Callable[[Meter], None]:
        return lambda meter: path.evaluate(points, meter, arithmetic, [probe])

    # Losses of samples are compared in the order in which they come.
    defining = replace(_by_definition(given), threads=False)
    try:
        gap = disagreement(
            given.measures.per_sample,
            len(points),
            on_probe(path, given.exact),
            on_probe(Reference(defining), defining.exact),
        )
    except Exception:
        if not isinstance(path, Suffix):
            raise
        # What is left of the network cannot run without what was cut off; it may say so anyhow.
        return float("inf")
    dtype = next(iter(here.origin.parameters.values())).dtype
    return gap if gap > AGREEMENT.get(dtype, 0.0) else None
