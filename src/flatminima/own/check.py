"""Is it right? Checks of a user's networks, data and loss before anything is believed of them.

Every check measures and says what it found; none assumes. What cannot be decided here (whether a
network has converged, say) is told as numbers.
"""

import copy
import resource
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from flatminima._random import forked
from flatminima.landscape import Landscape
from flatminima.landscape._batchnorm import batch_statistics
from flatminima.landscape._layers import is_affine, trace
from flatminima.landscape._world import arguments, quiet
from flatminima.minimum import Minimum
from flatminima.own.networks import OwnNetworks
from flatminima.subspace import Subspace, norm

GOOD, NOTE, BAD = "ok", "note", "fail"

# Two ways of one computation may differ by rounding: sums of some hundred products, in float32.
_ROUNDING = 1e-5
# Examples that gradients and rescalings are looked at on, at most.
_EXAMPLES, _PROBE = 2000, 64
# The noise of a loss must be this small a part of the threshold to leave a radius alone.
_SHARE = 0.01
# Gradients of so small a norm are those of a network at rest, for a loss of order one.
_AT_REST = 0.01
_FACTOR = 2.0
# A cost is reckoned from so many points at most, or from fewer that take so many seconds.
_POINTS, _LONG = 64, 2.0


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        verdict: "ok", "note" (nothing wrong, but to be known) or "fail".
        question: What was asked.
        answer: What was found, with its numbers.
    """

    verdict: str
    question: str
    answer: str


def check_networks(
    own: OwnNetworks, *, threshold: float = 0.05, resolution: int = 25
) -> Iterator[Finding]:
    """Check networks, data and loss; findings come as they are made.

    Args:
        own: What to check.
        threshold: The rise of the loss that a radius would be measured at.
        resolution: Of the grid whose cost is estimated.

    Raises:
        ValueError: For a threshold that is not above 0.
    """
    if not (np.isfinite(threshold) and threshold > 0):
        raise ValueError(f"expected a positive threshold, got {threshold}; 0.05 is usual")
    # Of broken or random networks the other answers would mean nothing.
    if (yield from _losses(own)):
        return
    yield (same := _deterministic(own))
    if same.verdict == BAD:
        return
    yield _batch_size(own)
    yield from _statistics(own)
    yield _noise(own, threshold)
    if len(own.states) > 1:
        yield (distinct := _distinct(own))
        if distinct.verdict != BAD and len(own.states) <= 3:
            yield from _plane(own)
    yield from _converged(own)
    yield _rescaling(own)
    yield _cost(own, resolution)


def _losses(own: OwnNetworks) -> Generator[Finding, None, bool]:
    """Losses of the networks, and whether one is broken; one no better than chance is a mistake."""
    broken = False
    question = "What are the losses?"
    classes = own.landscape.dataset.classes
    for name, state in zip(own.names, own.states, strict=True):
        losses = own.landscape.loss_at(state)
        if not losses.finite[0]:
            broken = True
            yield Finding(BAD, question, f"{name}: not finite; its weights or the data are broken")
            continue
        answer = f"{name}: {losses.loss[0]:.6g}"
        if losses.standard_error is not None:
            answer += f" ± {losses.standard_error[0]:.2g}"
        verdict = GOOD
        if "accuracy" in losses.metrics:
            accuracy = float(losses.metrics["accuracy"][0])
            answer += f", accuracy {accuracy:.4g}"
            if classes and accuracy < 1.5 / classes:
                verdict = BAD
                answer += (
                    f", about that of guessing among {classes} classes: are these the data it was"
                    " trained on, normalised as in training, with the labels in its order?"
                )
        yield Finding(verdict, question, f"{answer} ({losses.samples:,} samples)")
    return broken


def _deterministic(own: OwnNetworks) -> Finding:
    question = "Is the loss the same over two passes?"
    losses = []
    for seed in range(2):
        # A pass leaves the random state as it was, so each is given one of its own.
        with forked(seed, own.landscape.device):
            losses.append(own.landscape.loss_at(own.states[0]).loss[0])
    first, second = losses
    if first == second:
        return Finding(GOOD, question, "to the last bit")
    gap = abs(first - second) / (1.0 + abs(first))
    if gap < _ROUNDING:
        return Finding(NOTE, question, f"to {gap:.1e} of 1 + loss; sums are not always in order")
    return Finding(
        BAD,
        question,
        f"no: {first:.6g} and {second:.6g}; something in the network is random in evaluation mode",
    )


def _again(own: OwnNetworks, network: nn.Module, batch_size: int) -> Landscape:
    """The same landscape with another network or batch size."""
    return Landscape(
        network,
        own.landscape.dataset,
        loss=own.loss,
        batchnorm=own.landscape.batchnorm,
        batch_size=batch_size,
        device=own.landscape.device,
        weight=own.weight,
    )


def _batch_size(own: OwnNetworks) -> Finding:
    question = "Does the loss depend on the batch size?"
    usual = own.landscape.batch_size
    other = max(1, usual // 3)
    want = own.landscape.loss_at(own.states[0]).loss[0]
    sizes = f"batches of {usual} and {other}"
    try:
        got = _again(own, own.network, other).loss_at(own.states[0]).loss[0]
    except ValueError as error:  # a rest of one sample has no variance
        return Finding(BAD, question, f"yes: of {sizes} the second fails ({error})")
    gap = abs(got - want) / (1.0 + abs(want))
    if gap < _ROUNDING:
        return Finding(GOOD, question, f"no: by {gap:.1e} of 1 + loss between {sizes}")
    return Finding(
        BAD,
        question,
        f"yes: {want:.6g} and {got:.6g} for {sizes}; samples of a batch see each other, or the loss"
        " takes a mean that it should not",
    )


def _statistics(own: OwnNetworks) -> Iterator[Finding]:
    question = "BatchNorm, and the mode?"
    if not own.landscape.stores_statistics:
        yield Finding(GOOD, question, "evaluation mode; no layer keeps running statistics")
        return
    for name, state in zip(own.names, own.states, strict=True):
        kept = own.landscape.loss_at(state, batchnorm="keep").loss[0]
        anew = own.landscape.loss_at(state, batchnorm="recompute").loss[0]
        pooled = f"{own.landscape.recompute_samples:,} samples"
        answer = (
            f"{name}: loss {kept:.4g} with the statistics it came with, {anew:.4g} with those of"
            f" {pooled}; 'auto' keeps them around one network and recomputes them between several"
        )
        far = abs(kept - anew) > 0.1 * (0.1 + min(kept, anew))
        yield Finding(NOTE if far else GOOD, question, answer)


def has_noise(own: OwnNetworks) -> bool:
    """Whether the loss is computed in less than double precision, with which it can be compared."""
    first = next(own.network.parameters(), None)
    wide = first is None or first.dtype == torch.float64
    return not (wide or own.landscape.device.type == "mps")


def _noise(own: OwnNetworks, threshold: float) -> Finding:
    """The loss in the network's own precision against double precision."""
    question = "Is the noise of the arithmetic small against the threshold?"
    if not has_noise(own):
        return Finding(GOOD, question, "the network computes in double precision as it is")
    wide = copy.deepcopy(own.network).double()
    state = own.states[0]
    parameters = {name: value.double() for name, value in state.parameters.items()}
    want = _again(own, wide, own.landscape.batch_size).loss_at(Minimum(parameters, state.buffers))
    got = own.landscape.loss_at(state)
    gap = float(abs(want.loss[0] - got.loss[0]))
    part = f"off by {gap:.1e} from double precision, {gap / threshold:.1e} of the {threshold:g}"
    if gap < _SHARE * threshold:
        return Finding(GOOD, question, f"{part} that a radius asks for")
    return Finding(
        BAD, question, f"{part} that a radius asks for; raise the threshold, or use model.double()"
    )


def _distinct(own: OwnNetworks) -> Finding:
    question = "Are the checkpoints different networks?"
    origin = own.states[0]
    gaps = {}
    for index, one in enumerate(own.states):
        for other in range(index):
            step = {
                name: value.double() - own.states[other].parameters[name].double()
                for name, value in one.parameters.items()
            }
            gaps[own.names[other], own.names[index]] = norm(step)
    length = norm(origin.parameters)
    nearest = min(gaps, key=lambda pair: gaps[pair])
    if gaps[nearest] == 0.0:
        return Finding(BAD, question, f"no: {nearest[0]} and {nearest[1]} have the same weights")
    listed = ", ".join(f"{a} to {b} {gap:.4g}" for (a, b), gap in gaps.items())
    verdict = NOTE if gaps[nearest] < 1e-3 * length else GOOD
    return Finding(verdict, question, f"distances {listed}; the norm of the first is {length:.4g}")


def _plane(own: OwnNetworks) -> Iterator[Finding]:
    """The subspace through the networks gives back the networks."""
    question = "Are the directions orthonormal, and the networks where they should be?"
    try:
        plane = Subspace.through(*own.states)
    except ValueError as error:
        yield Finding(BAD, question, str(error))
        return
    skew = float(np.abs(plane.gram() - np.eye(plane.dimensions)).max())
    losses = own.landscape.losses(plane, plane.anchor_coordinates, precision="exact")
    policy = losses.batchnorm
    wanted = policy if policy in ("recompute", "batch") else "keep"
    own_losses = np.array(
        [own.landscape.loss_at(state, batchnorm=wanted).loss[0] for state in own.states]
    )
    # Under `keep` all points have the first network's statistics, so only it is itself.
    compared = slice(0, 1) if policy == "keep" else slice(None)
    gap = float((np.abs(losses.loss - own_losses) / (1.0 + own_losses))[compared].max())
    answer = (
        f"inner products off by {skew:.1e}; losses at the networks' own coordinates off by"
        f" {gap:.1e} of 1 + loss (policy {policy}, path {losses.path})"
    )
    good = skew < _ROUNDING and gap < _ROUNDING
    yield Finding(GOOD if good else BAD, question, answer)


def _converged(own: OwnNetworks) -> Iterator[Finding]:
    """The norm of the gradient, which is zero at a minimum."""
    question = "Are they minima of this loss?"
    for name, state in zip(own.names, own.states, strict=True):
        length, samples = _gradient(own, state)
        size = norm({key: state.parameters[key] for key in state.parameters})
        answer = (
            f"{name}: gradient of norm {length:.3g} over {samples:,} samples, weights of norm"
            f" {size:.4g}; a step of 0.1 % of the weights may change the loss by up to"
            f" {1e-3 * size * length:.2g} to first order"
        )
        yield Finding(GOOD if length < _AT_REST else NOTE, question, answer)


def _gradient(own: OwnNetworks, state: Minimum) -> tuple[float, int]:
    """Norm of the gradient of the mean loss over examples spread over the data."""
    data = own.landscape.dataset
    count = min(_EXAMPLES, len(data))
    rows = torch.linspace(0, len(data) - 1, count).round().long()
    part = Landscape(
        own.network,
        data.subset(rows),
        loss=own.loss,
        batch_size=own.landscape.batch_size,
        device=own.landscape.device,
        weight=own.weight,
    )
    return part.gradient_norm(state), len(rows)


def _rescaling(own: OwnNetworks) -> Finding:
    """Which neighbouring layers can be rescaled against each other, seen on a few examples."""
    question = "Can layers be rescaled without changing the network?"
    network = copy.deepcopy(own.network).eval().to(own.landscape.device)
    # A layer before BatchNorm can be rescaled alone where statistics are those of the data.
    several = len(own.landscape.dataset) > 1
    pooled = batch_statistics(network) if several else nullcontext()
    with torch.no_grad(), quiet(own.landscape.device), pooled:
        for key, value in [*network.named_parameters(), *network.named_buffers()]:
            value.copy_(own.states[0].state_dict().get(key, value))
        inputs = own.landscape._batches.first(_PROBE)[0]
        found = trace(network, inputs)
        calls = list(dict.fromkeys(found.calls))
        layers = [call for call in calls if is_affine(network.get_submodule(call))]
        if not layers:
            return Finding(NOTE, question, "not tested: no Linear or convolution layer")
        pairs = sum(
            _unmoved(network, inputs, {before: _FACTOR, after: 1.0 / _FACTOR})
            for before, after in pairwise(layers)
        )
        alone = sum(_unmoved(network, inputs, {name: _FACTOR}) for name in layers)
    if not pairs and not alone:
        answer = f"not by these tests, on {len(layers)} layers"
        return Finding(GOOD, question, answer)
    answer = (
        f"yes: {pairs} of {len(layers) - 1} pairs of neighbours by {_FACTOR:g} and its inverse, and"
        f" {alone} of {len(layers)} layers alone: radii, norms and distances depend on such scales"
        " and are comparable between networks trained alike, not between parametrisations"
    )
    return Finding(NOTE, question, answer)


def _unmoved(network: nn.Module, inputs: object, factors: dict[str, float]) -> bool:
    """Whether the outputs stay when weights are multiplied; a first layer's bias goes along."""
    args, kwargs = arguments(inputs)
    before = _tensor(network(*args, **kwargs))
    first = next(iter(factors))
    changed: list[tuple[Tensor, float]] = []
    for name, factor in factors.items():
        for own, weight in network.get_submodule(name).named_parameters(recurse=False):
            if name == first or own != "bias":
                weight.mul_(factor)
                changed.append((weight, factor))
    after = _tensor(network(*args, **kwargs))
    for value, factor in changed:
        value.mul_(1 / factor)
    if before is None or after is None:
        return False
    return bool(torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(before.abs().max())))


def _tensor(outputs: object) -> Tensor | None:
    """The one tensor of outputs, or their logits."""
    if isinstance(outputs, dict):
        outputs = outputs.get("logits")
    return outputs if isinstance(outputs, Tensor) else None


def _cost(own: OwnNetworks, resolution: int) -> Finding:
    """Time of a few points of the grid that would be computed, and memory so far."""
    question = f"What would a grid of {resolution} by {resolution} cost?"
    plane = Subspace.random(own.states[0], 2, 0)
    if len(own.states) == 3:
        with suppress(ValueError):  # they are on one line, as was said before
            plane = Subspace.through(*own.states)
    draws = np.random.default_rng(0).normal(size=(_POINTS, 2))

    def timed(points: int) -> float:
        began = time.perf_counter()
        own.landscape.losses(plane, draws[:points])
        return time.perf_counter() - began

    points, seconds = 1, timed(1)  # the first time a path is chosen, too
    while points < _POINTS and seconds < _LONG:
        points *= 4
        seconds = timed(points)
    each = seconds / points
    total = each * resolution**2
    path = own.landscape.losses(plane, draws[:0]).path
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gib = peak / (2**30 if sys.platform == "darwin" else 2**20)
    return Finding(
        GOOD,
        question,
        f"about {_duration(total)} ({each:.3g} s a point, path {path}); {gib:.2g} GiB of memory at"
        " most so far, which more points do not raise",
    )


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
