"""The published fault: a walk that moves BatchNorm's running statistics with the weights.

The published CIFAR radii treated every entry of a state dict as a weight. One unit vector spans
the parameters, the running means and variances and the counters; along it a variance can fall
below zero, where the root in the normalisation fails, and the loss that is then not a number ended
the walk as if it had risen. This exists to show what that did, never to measure flatness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float64, Int64

from flatminima.flatness._sample import Sample, some_of, stepwise_by_sample
from flatminima.flatness._walk import CENSORED, Radii, Walk, stepwise
from flatminima.landscape import Landscape, Losses
from flatminima.landscape._batchnorm import batchnorm_layers
from flatminima.minimum import Minimum
from flatminima.subspace import Subspace
from flatminima.types import Coordinates, Parameters, PerPoint

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Perturbed:
    """Perturbed walks from one state, one entry per ray in the arrays.

    Attributes:
        radii: As of any other walk.
        negative_variances: How many running variances were negative, with the layer's eps added,
            at the step that ended the walk (the last one where none did).
        first_negative: The distance at which the first variance, with eps, falls below zero, in
            closed form and whether or not the walk went so far; infinite where none ever does.
        smallest_variance: The smallest running variance of the state itself.
        moved_buffers: How many numbers of running statistics and counters were moved.
        sampled: Over how many examples the way was looked for; 0 where over all.
        difference: The largest one found between a rise over them and over all.
        loss: The loss of the state itself.
        path: How losses were computed.
        batchnorm: The policy: the moved statistics are kept.
    """

    radii: Radii
    negative_variances: Int64[np.ndarray, " rays"]
    first_negative: Float64[np.ndarray, " rays"]
    smallest_variance: float
    moved_buffers: int
    sampled: int
    difference: float
    loss: float
    path: str
    batchnorm: str


def perturbed_stepwise(
    landscape: Landscape,
    origin: Minimum,
    names: Sequence[str],
    *,
    indices: range,
    seed: int,
    threshold: float,
    step: float,
    limit: float,
    led: bool = False,
) -> Perturbed:
    """Walk stepwise, moving the running statistics with the parameters `names`.

    Args:
        landscape: The network, data and loss.
        origin: A state of that network.
        names: The parameters that move.
        indices: Of the directions.
        seed: Of the directions.
        threshold: The change of the loss that ends a walk.
        step: Length of a step.
        limit: No step goes further than this, except the first.
        led: Whether a sample of the examples may say which steps are not worth a look.

    Raises:
        ValueError: If the network keeps no running statistics, or its own loss is not finite.
    """
    moved = _Moved(landscape, origin)
    everything = Subspace.random(
        moved.state,
        len(indices),
        seed,
        parameters=[*names, *moved.statistics],
        first=indices.start,
    )
    some = some_of(landscape, origin) if led else None
    few = _Moved(some, origin) if some is not None else None
    # Ray by ray: a direction as large as the network is drawn once, and one is kept at a time.
    rays, negative, first, difference = [], [], [], 0.0
    for ray in range(len(indices)):
        direction = everything.direction(ray)
        # As its own subspace, whose one direction is then not drawn anew at every step.
        alone = Subspace(moved.state, [direction])
        walk = Walk(moved.losses, alone, threshold)
        if few is None:
            found = stepwise(walk, step=step, limit=limit, stride=1)
        else:
            sample = Sample(Walk(few.losses, alone, threshold), few.samples, difference)
            found = stepwise_by_sample(walk, sample, step=step, limit=limit, stride=1)
            difference = sample.difference
        rays.append(found)
        last = found.radius[0] + (step if found.outcome[0] != CENSORED else 0.0)
        negative.append(moved.negative_variances(alone.parameters_at(np.array([last]))))
        first.append(moved.first_negative(direction))
    return Perturbed(
        radii=_joined(rays),
        negative_variances=np.array(negative, dtype=np.int64),
        first_negative=np.array(first),
        smallest_variance=min(
            float(moved.state.parameters[name].min()) for name in moved.variances
        ),
        moved_buffers=sum(moved.state.parameters[name].numel() for name in moved.statistics),
        sampled=few.samples if few is not None else 0,
        difference=difference,
        loss=walk.loss,
        path=walk.path,
        batchnorm=walk.batchnorm,
    )


class _Moved:
    """A landscape as a function of parameters and running statistics alike.

    Attributes:
        samples: Over how many examples the loss is.
        state: The origin with its running statistics among its parameters, in the network's types.
        statistics: Their names.
        variances: The names of the running variances, each with its layer's eps.
    """

    def __init__(self, landscape: Landscape, origin: Minimum) -> None:
        self._landscape = landscape
        self.samples = len(landscape.dataset)
        network = landscape._network
        found = {
            f"{layer}.{name}" if layer else name: module.eps
            for layer, module in batchnorm_layers(network).items()
            for name in _STATISTICS
        }
        self.statistics = tuple(name for name in origin.buffers if name in found)
        if not self.statistics:
            raise ValueError(
                "expected a network with running statistics for buffers='perturb', got"
                f" {type(network).__name__}, which keeps none; leave buffers at 'policy'"
            )
        self.variances = {
            name: found[name] for name in self.statistics if name.endswith("running_var")
        }
        own = dict(network.named_parameters()) | dict(network.named_buffers())
        moving = {name: origin.buffers[name] for name in self.statistics}
        # Formed where and how the network computes: of half-precision weights, in float32.
        self.state = Minimum(
            {name: value.to(own[name]) for name, value in (origin.parameters | moving).items()},
            {name: value for name, value in origin.buffers.items() if name not in moving},
        )
        self._start: Losses | None = None

    def losses(self, subspace: Subspace, coordinates: Coordinates) -> Losses:
        """The losses at points of a subspace of states like `state`, one after the other.

        A sum for a counter is cut to a whole number, as by assignment into a tensor of integers.
        """
        return reduce(Losses.followed_by, (self._loss(subspace, each) for each in coordinates))

    def _loss(self, subspace: Subspace, coordinate: Float64[np.ndarray, " dimensions"]) -> Losses:
        if self._start is not None and not coordinate.any():
            return self._start
        tensors = subspace.parameters_at(coordinate)
        buffers = {name: tensors.pop(name) for name in self.statistics}
        point = Minimum(tensors, self.state.buffers | buffers)
        losses = self._landscape.loss_at(point, batchnorm="keep")
        if not coordinate.any():
            self._start = losses
        return losses

    def negative_variances(self, tensors: Parameters) -> int:
        """How many variances are negative, with their eps."""
        return sum(
            int((tensors[name].double() + eps < 0).sum()) for name, eps in self.variances.items()
        )

    def first_negative(self, direction: Parameters) -> float:
        """How far along a direction the first variance, with eps, falls below zero."""
        nearest = np.inf
        for name, eps in self.variances.items():
            variance = self.state.parameters[name].double() + eps
            falling = direction[name] < 0
            if falling.any():
                distance = variance[falling] / -direction[name][falling]
                nearest = min(nearest, float(distance.min()))
        return nearest


def _joined(rays: Sequence[Radii]) -> Radii:
    """The rays of several walks as those of one."""

    def column(name: str) -> PerPoint | Int64[np.ndarray, " points"]:
        return np.concatenate([getattr(ray, name) for ray in rays])

    return Radii(*(column(name) for name in ("radius", "outcome", "evaluations", "reentries")))
