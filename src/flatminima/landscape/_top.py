"""When the top layer alone moves: its inputs are stored, and a point costs sums of outputs.

Its outputs are affine in the coordinates, `f(x; w0) + sum_k c_k f(x; u_k)`, and its inputs are the
same at every point. What is left of a pass are the sums, the losses, and the calls: so there are
few, large batches, and the classes are outermost, which is how losses of few classes are computed
quickest.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from flatminima.landscape._affine import AffineLayer, combine
from flatminima.landscape._meter import Marked, Meter, unmarked
from flatminima.landscape._states import States
from flatminima.landscape._threads import in_threads
from flatminima.types import Coordinates

Features: TypeAlias = tuple[Tensor, Any, torch.Size]
"""Of one batch the top layer's inputs, the targets, and the shape of the network's outputs."""

# Outputs of so many bytes are turned into losses at once: nearly in a processor's cache, and enough
# that threads do not wait for each other's calls, or an accelerator for the next one.
STACK, ACCELERATOR_STACK = 2**20, 2**26
# Batches are put together until a point's outputs take a share of that, or so few are left, which
# threads go through side by side.
_SHARE, _FEWEST = 2, 8
# Outputs of so many directions are kept, beside those of the origin, while points use them.
_DIRECTIONS = 32


def gathered(features: list[Features]) -> list[Features]:
    """The same examples in fewer and larger batches, where inputs and targets are plain tensors.

    How many hangs on sizes alone, so that it moves no bits.

    Args:
        features: In the end empty if they were put together: they may be large.
    """
    if not all(map(_plain, features)) or not features:
        return features
    inputs, _, shape = features[0]
    outputs = inputs.element_size() * shape.numel()
    limit = STACK if inputs.device.type == "cpu" else ACCELERATOR_STACK
    together = max(1, min(limit // _SHARE // max(outputs, 1), len(features) // _FEWEST))
    found = []
    while features:
        found.append(_joined(features[:together]))
        del features[:together]
    return found


def _plain(feature: Features) -> bool:
    inputs, targets, shape = feature
    targets = unmarked(targets)
    tensors = isinstance(targets, Tensor) and len(targets) == len(inputs)
    return tensors and inputs.ndim == 2 and len(shape) == 2 and shape[0] == len(inputs)


def _joined(features: Sequence[Features]) -> Features:
    inputs, targets, shapes = zip(*features, strict=True)
    if isinstance(targets[0], Marked):
        marked: Any = Marked(
            torch.cat([each.targets for each in targets]),
            torch.cat([each.members for each in targets]),
        )
    else:
        marked = torch.cat(targets)
    together = torch.cat(inputs)
    return together, marked, torch.Size([len(together), *shapes[0][1:]])


def evaluate_top(
    name: str,
    network: nn.Module,
    formed: States,
    coordinates: Coordinates,
    features: Sequence[Features],
    meter: Meter,
    *,
    threads: bool,
) -> None:
    """Losses when the top layer alone moves, from its stored inputs.

    Args:
        name: The top layer; `network` ends with it.
        network: A private copy of the network.
        formed: Of a subspace that moves parameters of that layer only.
        coordinates: The points.
        features: Batches of the layer's inputs.
        meter: Receives the losses.
        threads: Whether batches may be spread over threads.
    """
    active = [int(index) for index in np.flatnonzero(coordinates.any(axis=0))]
    layer = AffineLayer(network, name, formed, active)
    groups = list(_groups(coordinates))

    def one(_network: nn.Module, batch: int) -> Meter:
        inputs, targets, shape = features[batch]
        part = meter.part()
        for points, directions in groups:
            base, changes = layer.outputs(inputs, directions)
            limit = STACK if base.device.type == "cpu" else ACCELERATOR_STACK
            step = min(max(1, limit // base.nbytes), len(points))
            stack = _stack(base, step)
            for first in range(0, len(points), step):
                chosen = points[first : first + step]
                for point, out in zip(chosen, stack, strict=False):
                    combine(base, changes, coordinates[point], out)
                outputs = stack[: len(chosen)]
                if outputs.shape[1:] != shape:
                    outputs = outputs.reshape(len(chosen), *shape)
                part.add_stack(chosen, outputs, targets)
        return part

    for part in in_threads(network, range(len(features)), one, allowed=threads):
        meter.join(part)


def _groups(coordinates: Coordinates) -> Iterator[tuple[range, list[int]]]:
    """Runs of points, with the directions that move them, which are not too many."""
    first, active = 0, set[int]()
    for point, coordinate in enumerate(coordinates):
        own = {int(index) for index in np.flatnonzero(coordinate)}
        if point > first and len(active | own) > _DIRECTIONS:
            yield range(first, point), sorted(active)
            first, active = point, set()
        active |= own
    if len(coordinates):
        yield range(first, len(coordinates)), sorted(active)


def _stack(base: Tensor, points: int) -> Tensor:
    """Room for outputs of so many points `[points, ...]`, the classes outermost where they are."""
    if base.ndim == 2 and base.stride(0) == 1:
        samples, classes = base.shape
        return base.new_empty((classes, points, samples)).movedim(0, 2)
    return base.new_empty((points, *base.shape))
