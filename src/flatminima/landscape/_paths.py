"""The ways to evaluate a subspace, and the choice among them.

The reference is right by definition. The others save work where a network and the directions allow
it; each is taken only after it has agreed with the reference on a batch, at two points.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from flatminima._linear import quick_linear
from flatminima._seeds import derive_seed
from flatminima.landscape import _batchnorm, _layers
from flatminima.landscape._affine import evaluate_leading, evaluate_top
from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._batches import Batch, Batches
from flatminima.landscape._losses import Meter, PerSample
from flatminima.landscape._proof import AGREEMENT, disagreement
from flatminima.landscape._reference import evaluate
from flatminima.landscape._suffix import Cut, cuts, evaluate_suffix
from flatminima.subspace import Subspace, norm
from flatminima.types import Buffers, Coordinates, Parameters

# Inputs of the top layer are kept for a whole dataset up to this size.
_FEATURES = 2 * 2**30
# Examples on which a path is compared with the reference.
_PROBE = 64


@dataclass(frozen=True)
class Problem:
    """A subspace as a landscape evaluates it.

    Attributes:
        network: The landscape's private copy.
        subspace: With the origin's tensors in the network's types and on its device.
        buffers: The origin's, likewise.
        policy: What happens to BatchNorm's statistics.
        batches: The data.
        per_sample: The loss.
        exact: The arithmetic that paths are compared in.
    """

    network: nn.Module
    subspace: Subspace
    buffers: Buffers
    policy: str
    batches: Batches
    per_sample: PerSample
    exact: Arithmetic


@runtime_checkable
class Path(Protocol):
    """A way to evaluate points."""

    name: str
    problem: Problem

    def evaluate(
        self,
        coordinates: Coordinates,
        meter: Meter,
        arithmetics: Sequence[Arithmetic],
        batches: Iterable[Batch],
    ) -> None:
        """Add the losses of all points over `batches`, each in its arithmetic, to `meter`."""
        ...


@dataclass
class Reference:
    """One forward pass over the data per point."""

    problem: Problem
    name: str = "reference"

    def evaluate(
        self,
        coordinates: Coordinates,
        meter: Meter,
        arithmetics: Sequence[Arithmetic],
        batches: Iterable[Batch],
    ) -> None:
        """As `Path` says."""
        given = self.problem
        mixed = given.policy == "interpolate"
        combined = _batchnorm.interpolation(given.subspace) if mixed else None
        for point, coordinate in enumerate(coordinates):
            buffers = combined(coordinate, given.buffers) if combined else given.buffers
            evaluate_point(
                given.network,
                (given.subspace.parameters_at(coordinate), buffers),
                given.policy,
                meter,
                point,
                arithmetics[point],
                clean=given.batches.clean(),
                batches=batches,
            )


@dataclass
class Affine:
    """The products of the first layer shared by all points."""

    problem: Problem
    layer: str
    name: str = "affine"

    def evaluate(
        self,
        coordinates: Coordinates,
        meter: Meter,
        arithmetics: Sequence[Arithmetic],
        batches: Iterable[Batch],
    ) -> None:
        """As `Path` says."""
        given = self.problem
        evaluate_leading(
            self.layer,
            given.network,
            given.subspace,
            coordinates,
            given.buffers,
            batches,
            meter,
            arithmetics,
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
        arithmetics: Sequence[Arithmetic],
        batches: Iterable[Batch],
    ) -> None:
        """As `Path` says."""
        given = self.problem
        evaluate_suffix(
            self.cut,
            given.network,
            given.subspace,
            coordinates,
            given.buffers,
            batches,
            meter,
            arithmetics,
        )


@dataclass
class Top:
    """The inputs of the top layer, which alone moves, are kept for the whole dataset.

    A point then costs next to nothing and is exact in any arithmetic.
    """

    problem: Problem
    layer: str
    name: str = "top"
    features: list[tuple[Tensor, Any, torch.Size]] = field(default_factory=list)

    def evaluate(
        self,
        coordinates: Coordinates,
        meter: Meter,
        arithmetics: Sequence[Arithmetic],
        batches: Iterable[Batch],
    ) -> None:
        """As `Path` says; of all batches the inputs are those that were kept."""
        given = self.problem
        features: Iterable[tuple[Tensor, Any, torch.Size]] = self.features
        if batches is not given.batches:
            features = self._inputs(batches)
        elif not self.features:
            with quick_linear():
                features = self.features = list(self._inputs(batches))
        evaluate_top(self.layer, given.network, given.subspace, coordinates, features, meter)

    def _inputs(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Any, torch.Size]]:
        """Inputs of the layer at the origin, targets and shape of the outputs, batch by batch."""
        given = self.problem
        load(given.network, given.subspace.origin.parameters, given.buffers)
        for inputs, targets in batches:
            found, outputs = _layers.inputs_and_outputs(given.network, self.layer, inputs)
            yield found, targets, outputs.shape


def evaluate_point(
    network: nn.Module,
    state: tuple[Parameters, Buffers],
    policy: str,
    meter: Meter,
    point: int,
    arithmetic: Arithmetic,
    *,
    clean: Iterable[Batch],
    batches: Iterable[Batch],
) -> None:
    """Add the losses of one state over `batches`, under a policy, to `meter`."""
    parameters, buffers = state
    if policy == "recompute":
        buffers = _batchnorm.recomputed(network, parameters, buffers, clean, arithmetic)
    own = _batchnorm.batch_statistics(network) if policy == "batch" else nullcontext()
    with own:
        evaluate(network, parameters, buffers, batches, meter, point, arithmetic)


def load(network: nn.Module, parameters: Parameters, buffers: Buffers) -> None:
    """Put a state into a private copy, for passes that read its own weights."""
    state = {**parameters, **buffers}
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if name in state:
            value.copy_(state[name])


def choose_path(given: Problem) -> Path:
    """The fastest path that its proof supports.

    Where one was given up on its proof, the name of what is taken instead says so.
    """
    reference = Reference(given)
    if given.policy not in ("none", "keep"):
        return reference
    probe = given.batches.first(min(given.batches.size, _PROBE))
    for find in (_top, _suffix, _affine):
        for path in find(given, probe):
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


def _top(given: Problem, probe: Batch) -> Iterator[Path | str]:
    """The path of stored top-layer inputs if that layer alone moves."""
    network = given.network
    try:
        name = _layers.top_layer(network, probe[0])
    except ValueError:
        return
    if not set(given.subspace.moved) <= set(_layers.own_parameters(network, name)):
        return
    if not _layers.ends_with(network, name, probe[0]):
        return
    one = _layers.inputs_of(network, name, probe[0])
    if one.nbytes / len(probe[1]) * len(given.batches.dataset) > _FEATURES:
        yield " (the inputs of the top layer are too large to keep)"
    else:
        yield Top(given, name)


def _suffix(given: Problem, _probe: Batch) -> Iterator[Path | str]:
    """Places where the network may be cut, the last one first."""
    for cut in cuts(given.network, given.subspace.moved, given.batches.first(2)[0]):
        yield Suffix(given, cut)


def _affine(given: Problem, probe: Batch) -> Iterator[Path | str]:
    """The path of the shared first layer if the network starts with one."""
    name = _layers.leading_layer(given.network, probe[0])
    if name is not None:
        yield Affine(given, name)


def _gap(given: Problem, path: Path, probe: Batch) -> float | None:
    """By how much a path differs from the reference on a batch at two points, if it does."""
    here = given.subspace
    scale = 0.1 * norm({name: here.origin.parameters[name] for name in here.moved})
    if len(here.anchors):
        scale = float(np.abs(here.anchor_coordinates).max())
    points = np.zeros((2, here.dimensions))
    draws = np.random.default_rng(derive_seed(0, "probe"))
    points[:, :2] = scale * draws.normal(size=points[:, :2].shape)
    as_usual = [given.exact] * len(points)

    def on_probe(path: Path) -> Callable[[Meter], None]:
        return lambda meter: path.evaluate(points, meter, as_usual, [probe])

    try:
        gap = disagreement(
            given.per_sample, len(points), on_probe(path), on_probe(Reference(given))
        )
    except Exception:
        if not isinstance(path, Suffix):
            raise
        # What is left of the network cannot run without what was cut off; it may say so anyhow.
        return float("inf")
    dtype = next(iter(here.origin.parameters.values())).dtype
    return gap if gap > AGREEMENT.get(dtype, 0.0) else None
