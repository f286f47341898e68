"""Proof on the spot: a faster path against the reference, per sample, on one batch."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flatminima.landscape._losses import PerSample, split_weights
from flatminima.landscape._meter import Measures, Meter

# Largest difference per sample, relative to 1 + loss, that counts as rounding. Sums of some hundred
# products differ by about 1e-6 in float32 when their order does; a wrong assumption differs by 1.
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-11}


def disagreement(
    per_sample: PerSample,
    points: int,
    fast: Callable[[Meter], None],
    slow: Callable[[Meter], None],
) -> float:
    """The largest difference per sample between two evaluations of the same points.

    Non-finite losses must be at the same samples; the difference is infinite otherwise.
    """
    got, want = _recorded(per_sample, points, fast), _recorded(per_sample, points, slow)
    if got.shape != want.shape or not torch.equal(got.isfinite(), want.isfinite()):
        return math.inf
    gaps = ((got - want).abs() / (1 + want.abs()))[want.isfinite()]
    return float(gaps.max()) if len(gaps) else 0.0


def _recorded(per_sample: PerSample, points: int, evaluation: Callable[[Meter], None]) -> Tensor:
    losses: list[Tensor] = []

    def record(outputs: Any, targets: Any) -> Tensor | tuple[Tensor, Tensor]:
        result = per_sample(outputs, targets)
        losses.append(split_weights(result, targets)[0].double())
        return result

    evaluation(Meter(Measures(record), points))
    return torch.cat(losses)
