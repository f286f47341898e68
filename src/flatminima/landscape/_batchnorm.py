"""What happens to BatchNorm's running statistics when weights move: a named policy.

`keep`: the origin's, at every point. `recompute`: at every point the pooled mean and variance of
each layer's inputs over a fixed clean subset, while the layers normalise by the statistics of full
batches of a fixed size. `interpolate`: the anchors' statistics combined like their weights, which
is what the published figures did; variances can turn negative there. `batch`: each batch of the
evaluation normalises by its own statistics. A network without BatchNorm has the policy `none`, and
layers that store no statistics (`track_running_stats=False`) use each batch's own under any policy.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flatminima._packed import Packed
from flatminima.landscape._arithmetic import Arithmetic
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
    """The policy meant by `auto`: recompute where minima are combined, keep around one state.

    Layers that store nothing normalise by the batch whatever the policy; a network that has no
    others has the policy `batch`.
    """
    if not batchnorm_layers(network):
        return "batch" if any(isinstance(m, _BatchNorm) for m in network.modules()) else "none"
    if policy == "auto":
        return "recompute" if anchors >= 2 else "keep"
    return policy


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Within, BatchNorm layers normalise by their batch; everything else stays in evaluation.

    A layer's running statistics are then those of its last call alone (momentum 1).

    Raises:
        ValueError: On entry for layers that would reach for other processes; within, for a batch
            with one value per channel, which has no variance.
    """
    layers = batchnorm_layers(network)
    for name, layer in layers.items():
        if isinstance(layer, nn.SyncBatchNorm) and _in_process_group():
            raise ValueError(
                f"expected BatchNorm layers that stay in one process, got SyncBatchNorm {name!r}"
                " within a process group; use nn.BatchNorm2d, or batchnorm='keep'"
            )
    names = ("training", "eps", "momentum", "track_running_stats")
    own = [(layer, name, getattr(layer, name)) for layer in layers.values() for name in names]
    handles = [layer.register_forward_pre_hook(_check_batch) for layer in layers.values()]
    for layer in layers.values():
        layer.training = layer.track_running_stats = True
        layer.momentum = 1.0
        # torch refuses eps = 0 in training; the smallest number has the same effect.
        layer.eps = layer.eps or torch.finfo(torch.float64).tiny
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, name, value in own:
            setattr(layer, name, value)


def recomputed(
    network: nn.Module,
    parameters: Parameters,
    buffers: Buffers,
    batches: Iterable[tuple[Any, Any]],
    arithmetic: Arithmetic,
    packed: Packed | None = None,
) -> dict[str, Tensor]:
    """The buffers with every BatchNorm layer's statistics pooled over `batches`.

    The variance is that of the pool (not the mean of the batches' variances) and biased, as
    normalisation uses it. Each batch's moments are those that the layer normalises it by; they are
    combined in float64.
    """
    layers = batchnorm_layers(network)
    calls = {name: _Calls() for name in layers}
    handles = [layer.register_forward_hook(calls[name].add) for name, layer in layers.items()]
    scratch = {name: value.clone() for name, value in buffers.items()}
    for name in layers:
        for key in ("running_mean", "running_var"):
            # A layer weighs what it held by zero, which would keep an infinity.
            scratch[_joined(name, key)].zero_()
    try:
        ready = arithmetic.ready(parameters)
        with batch_statistics(network), arithmetic.used(packed):
            for inputs, _targets in batches:
                run(network, ready, scratch, inputs)
    finally:
        for handle in handles:
            handle.remove()
    result = dict(buffers)
    for times in {len(own.counts) for own in calls.values()} - {0}:  # 0: it was never called
        alike = [name for name, own in calls.items() if len(own.counts) == times]
        for name, found in zip(alike, _pooled([calls[name] for name in alike]), strict=True):
            for key, value in zip(("running_mean", "running_var"), found, strict=True):
                full = _joined(name, key)
                result[full] = value.to(buffers[full].dtype)
    return result


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _in_process_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _check_batch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Refuse a batch whose variance does not exist; a forward pre-hook."""
    if args and args[0].numel() == args[0].shape[1]:
        raise ValueError(
            f"expected two values per channel or more in every batch that {type(module).__name__}"
            f" normalises, got one example of shape {tuple(args[0].shape[1:])}; choose another"
            " batch_size or recompute_batch"
        )


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


class _Calls:
    """What a layer found in each of its calls: counts, means and variances per channel."""

    def __init__(self) -> None:
        self.counts: list[float] = []
        self.shrinks: list[float] = []
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []

    def add(self, layer: nn.Module, args: tuple[Tensor, ...], _output: Any) -> None:
        """Take note of one batch `[N, C, ...]` that the layer has just normalised; a forward hook.

        The moments are those that the layer has found itself, where it is torch's own: another pass
        over the activations would cost up to half as much again as the network.
        """
        assert isinstance(layer, _BatchNorm)
        count = float(args[0].numel() // args[0].shape[1])
        self.counts.append(count)
        if type(layer).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            self.means.append(layer.running_mean.clone())
            self.variances.append(layer.running_var.clone())
            self.shrinks.append((count - 1) / count)  # a layer stores the unbiased variance
        else:
            values = args[0].double().transpose(0, 1).flatten(1)
            variance, mean = torch.var_mean(values, 1, correction=0)
            self.means.append(mean)
            self.variances.append(variance)
            self.shrinks.append(1.0)


def _pooled(layers: Sequence[_Calls]) -> list[tuple[Tensor, Tensor]]:
    """Mean and biased variance over all calls, in float64, of layers called equally often.

    Two sets of values are combined as Chan, Golub and LeVeque (1983) do, which loses no digits
    where the mean is large. The channels of all layers are taken together: on an accelerator many
    small operations would take longer than the network.
    """
    sizes = [layer.means[0].numel() for layer in layers]
    device = layers[0].means[0].device
    made: dict[tuple[float, ...], Tensor] = {}

    def per_channel(numbers: Sequence[float]) -> Tensor:
        key = tuple(numbers)
        if key not in made:
            each = zip(sizes, numbers, strict=True)
            parts = [torch.full((size,), x, dtype=torch.float64, device=device) for size, x in each]
            made[key] = torch.cat(parts)
        return made[key]

    total = mean = squares = per_channel([0.0] * len(layers))
    for call in range(len(layers[0].counts)):
        more = per_channel([layer.counts[call] for layer in layers])
        shrink = per_channel([layer.shrinks[call] for layer in layers])
        found = torch.cat([layer.means[call] for layer in layers]).double()
        variance = torch.cat([layer.variances[call] for layer in layers]).double() * shrink
        before, total = total, total + more
        step = found - mean
        squares = squares + (variance * more + step.square() * (before * more / total))
        mean = mean + step * (more / total)
    return list(zip(torch.split(mean, sizes), torch.split(squares / total, sizes), strict=True))
