"""What happens to BatchNorm's running statistics when weights move: a named policy.

`keep`: the origin's, at every point. `recompute`: at every point the pooled mean and variance of
each layer's inputs over a fixed clean subset, while the layers normalise by the statistics of full
batches of a fixed size. `interpolate`: the anchors' statistics combined like their weights, which
is what the published figures did; variances can turn negative there. `batch`: each batch of the
evaluation normalises by its own statistics. A network without BatchNorm has the policy `none`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flatminima.landscape._reference import run
from flatminima.minimum import Minimum
from flatminima.subspace import Subspace
from flatminima.types import Buffers, Parameters

POLICIES = ("auto", "recompute", "keep", "interpolate", "batch")


def check_policy(policy: str) -> None:
    """Raise `ValueError` for an unknown policy."""
    if policy not in POLICIES:
        raise ValueError(
            f"expected a BatchNorm policy among {list(POLICIES)}, got {policy!r}; check the name"
        )


def batchnorm_layers(network: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def resolve(policy: str, network: nn.Module, anchors: int) -> str:
    """The policy meant by `auto`: recompute where minima are combined, keep around one state."""
    if not batchnorm_layers(network):
        return "none"
    if policy == "auto":
        return "recompute" if anchors >= 2 else "keep"
    return policy


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Within, BatchNorm layers normalise by their batch; everything else stays in evaluation."""
    layers = batchnorm_layers(network).values()
    eps = [layer.eps for layer in layers]
    for layer in layers:
        layer.training = True
        # torch refuses eps = 0 in training; the smallest number has the same effect.
        layer.eps = layer.eps or torch.finfo(torch.float64).tiny
    try:
        yield
    finally:
        for layer, own in zip(layers, eps, strict=True):
            layer.training = False
            layer.eps = own


def recomputed(
    network: nn.Module,
    parameters: Parameters,
    buffers: Buffers,
    batches: Iterable[tuple[Any, Any]],
) -> dict[str, Tensor]:
    """The buffers with every BatchNorm layer's statistics pooled over `batches`.

    The variance is that of the pool (not the mean of the batches' variances) and biased, as
    normalisation uses it. Sums are in float64.
    """
    layers = batchnorm_layers(network)
    pools: dict[str, _Pool] = {name: _Pool() for name in layers}
    handles = [layer.register_forward_pre_hook(pools[name].add) for name, layer in layers.items()]
    scratch = {name: value.clone() for name, value in buffers.items()}
    try:
        with batch_statistics(network):
            for inputs, _targets in batches:
                run(network, parameters, scratch, inputs)
    finally:
        for handle in handles:
            handle.remove()
    result = dict(buffers)
    for name, pool in pools.items():
        for key, value in zip(("running_mean", "running_var"), pool.moments(), strict=True):
            full = f"{name}.{key}" if name else key
            if value is not None:
                result[full] = value.to(buffers[full].dtype)
    return result


def interpolation(
    subspace: Subspace,
) -> Callable[[Float64[np.ndarray, " dimensions"], Buffers], dict[str, Tensor]]:
    """The buffers of the anchors combined with the barycentric weights of a coordinate.

    Raises:
        ValueError: Unless the anchors are one more than the dimensions, affinely independent.
    """
    anchors = subspace.anchors
    corners = np.vstack([subspace.anchor_coordinates.T, np.ones(len(anchors))])
    if len(anchors) != subspace.dimensions + 1 or np.linalg.matrix_rank(corners) < len(anchors):
        raise ValueError(
            f"expected {subspace.dimensions + 1} anchors that span the subspace for batchnorm="
            f"'interpolate', got {len(anchors)}; use Subspace.through, or another policy"
        )

    def buffers_at(coordinate: np.ndarray, origin: Buffers) -> dict[str, Tensor]:
        weights = np.linalg.solve(corners, np.append(coordinate, 1.0))
        return {
            # Counters and other integers stay the origin's.
            name: _weighted(name, value, weights, anchors) if value.is_floating_point() else value
            for name, value in origin.items()
        }

    return buffers_at


def _weighted(name: str, like: Tensor, weights: np.ndarray, anchors: tuple[Minimum, ...]) -> Tensor:
    total = torch.zeros_like(like, dtype=torch.float64)
    for weight, anchor in zip(weights, anchors, strict=True):
        total.add_(anchor.buffers[name].to(like.device), alpha=float(weight))
    return total.to(like.dtype)


class _Pool:
    """Sums of a layer's inputs per channel, over all batches."""

    def __init__(self) -> None:
        self._count = 0
        self._total: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Add one batch `[N, C, ...]`; a forward pre-hook."""
        values = args[0].double().transpose(0, 1).flatten(1)
        total, squares = values.sum(1), values.square().sum(1)
        self._count += values.shape[1]
        self._total = total if self._total is None else self._total + total
        self._squares = squares if self._squares is None else self._squares + squares

    def moments(self) -> tuple[Tensor | None, Tensor | None]:
        """Mean and biased variance; `None` for a layer that was never called."""
        if self._total is None or self._squares is None:
            return None, None
        mean = self._total / self._count
        return mean, (self._squares / self._count - mean**2).clamp_min(0.0)
