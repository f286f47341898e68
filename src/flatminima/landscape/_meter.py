"""What is measured at a point, and its sums over a dataset in double precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from flatminima.landscape._losses import (
    Losses,
    PerSample,
    correct_predictions,
    is_classes,
    split_weights,
    stacked_cross_entropies,
    takes_stacks,
)

# Columns of a row: sum of losses s, of weights w, of s*s, s*w, w*w, and of correct predictions.
_COLUMNS = 6


@dataclass(frozen=True)
class Measures:
    """What is measured of a batch of outputs.

    Attributes:
        per_sample: The loss.
        metrics: Further quantities by name, like losses: one number per sample, or sums and
            weights.
        subsets: Names of groups of samples, whose loss and accuracy are told apart.
        whole_batches: Whether the loss is one number for a batch, so that nothing is known of its
            samples.
    """

    per_sample: PerSample
    metrics: Mapping[str, PerSample] = field(default_factory=dict)
    subsets: tuple[str, ...] = ()
    whole_batches: bool = False

    @property
    def alone(self) -> bool:
        """Whether the loss is all there is."""
        return not (self.metrics or self.subsets)

    def total(self, outputs: Any, targets: Any) -> tuple[Tensor, float]:
        """The sum of a batch's losses, which may be differentiated, and its weight."""
        targets = targets.targets if isinstance(targets, Marked) else targets
        losses, weights = split_weights(self.per_sample(outputs, targets), targets)
        return losses.sum(), float(len(losses) if weights is None else weights.sum())

    @property
    def names(self) -> list[str]:
        """Of everything beside loss and accuracy, in the order in which it is summed."""
        parts = [f"{kind}_{name}" for name in self.subsets for kind in ("loss", "accuracy")]
        return [*self.metrics, *parts]


@dataclass(frozen=True)
class Marked:
    """Targets of a batch together with which of its samples belong to which subset.

    Attributes:
        targets: As the loss takes them.
        members: For every sample and subset, whether it is in.
    """

    targets: Any
    members: Bool[Tensor, "samples subsets"]


@dataclass
class Meter:
    """Sums of losses over batches, one row per point.

    Attributes:
        measures: What is summed.
        points: How many rows.
        clip: A point is closed once its mean is certain to be above.
        samples: Over how many the mean is, in the end; read with `clip` alone.
    """

    measures: Measures
    points: int
    clip: float | None = None
    samples: int = 0
    _sums: Float64[np.ndarray, "points columns"] = field(init=False)
    _beside: Float64[np.ndarray, "points names 2"] = field(init=False)
    _classes: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self._sums = np.zeros((self.points, _COLUMNS))
        # Sums and weights.
        self._beside = np.zeros((self.points, len(self.measures.names), 2))

    def add(self, point: int, outputs: Any, targets: Any) -> None:
        """Add one batch of outputs to the sums of `point`."""
        members = targets.members if isinstance(targets, Marked) else None
        targets = targets.targets if isinstance(targets, Marked) else targets
        losses, weights = split_weights(self.measures.per_sample(outputs, targets), targets)
        s = losses.double()
        if self.clip is not None:
            _check_bounded_below(s, weights)
        w = None if weights is None else weights.double()
        row = self._sums[point]
        row[0] += s.sum().item()
        row[2] += s.dot(s).item()
        if w is None:
            row[1] += len(s)
            row[3] += s.sum().item()
            row[4] += len(s)
        else:
            row[1] += w.sum().item()
            row[3] += s.dot(w).item()
            row[4] += w.dot(w).item()
        correct = correct_predictions(outputs, targets)
        if correct is None:
            self._classes = False
        else:
            row[5] += int(correct.sum())
        if not self.measures.alone:
            self._add_beside(self._beside[point], outputs, targets, members, (s, w), correct)

    def _add_beside(
        self,
        row: Float64[np.ndarray, "names 2"],
        outputs: Any,
        targets: Any,
        members: Tensor | None,
        losses: tuple[Tensor, Tensor | None],
        correct: Tensor | None,
    ) -> None:
        """Add the metrics and the subsets of one batch."""
        sums = [
            _totals(*split_weights(metric(outputs, targets), targets))
            for metric in self.measures.metrics.values()
        ]
        for index in range(len(self.measures.subsets)):
            assert members is not None
            chosen = members[:, index]
            s, w = losses
            sums.append(_totals(s[chosen], None if w is None else w[chosen]))
            known = correct is not None
            sums.append(_totals(correct[chosen], None) if known else (np.nan, np.nan))  # type: ignore[index]
        row += np.array(sums)

    def add_stack(self, points: Sequence[int], outputs: Tensor, targets: Any) -> None:
        """Add one batch of outputs at several points, `[points, N, ...]`.

        Cross entropy of classes is computed for all at once in the quicker way; it differs from
        that of `add` by rounding.
        """
        quick = self.measures.alone and takes_stacks(self.measures.per_sample)
        if not (quick and is_classes(outputs[0], targets)):
            for point, each in zip(points, outputs, strict=True):
                self.add(point, each, targets)
            return
        s = stacked_cross_entropies(outputs, targets).double()
        count = float(s.shape[1])
        sums = s.sum(1).numpy(force=True)
        rows = np.asarray(points)
        self._sums[rows, 0] += sums
        self._sums[rows, 1] += count
        self._sums[rows, 2] += s.square().sum(1).numpy(force=True)
        self._sums[rows, 3] += sums
        self._sums[rows, 4] += count
        self._sums[rows, 5] += (outputs.argmax(2) == targets).sum(1).numpy(force=True)

    def join(self, part: "Meter", first: int = 0) -> None:
        """Add the sums of a part whose points are those from `first` on."""
        rows = slice(first, first + part.points)
        self._sums[rows] += part._sums
        self._beside[rows] += part._beside
        self._classes = self._classes and part._classes

    def part(self, points: int | None = None) -> "Meter":
        """An empty meter for so many points (or as many), to be joined later."""
        count = self.points if points is None else points
        return Meter(self.measures, count, self.clip, self.samples)

    def open(self, point: int) -> bool:
        """Whether more of `point` need be known.

        Losses are never negative: once the sum so far, over all samples, is above the clip, so is
        the mean. Neither order nor timing matters: a sum that is above stays above.
        """
        return self.clip is None or not self.clip * self.samples < self._sums[point, 0] < np.inf

    def losses(self, samples: int, *, path: str, batchnorm: str) -> Losses:
        """The means over everything added."""
        s, w, ss, sw, ww, correct = self._sums.T
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            loss = s / w
            finite = np.isfinite(loss)
            loss = np.where(finite, loss, np.nan)
            # Variance of a ratio of means (here mostly w = 1, where it is the plain variance).
            spread = np.maximum(ss - 2 * loss * sw + loss**2 * ww, 0.0)
            error = np.sqrt(spread * samples / max(samples - 1, 1)) / w
            beside = self._beside[..., 0] / self._beside[..., 1]
        metrics = {"accuracy": correct / samples} if self._classes else {}
        for index, name in enumerate(self.measures.names):
            if self._classes or not name.startswith("accuracy_"):
                metrics[name] = beside[:, index]
        clipped = None
        if self.clip is not None:
            clipped = np.array([not self.open(point) for point in range(self.points)], dtype=bool)
            loss = np.where(clipped, self.clip, loss)
            error = np.where(clipped, np.nan, error)
            metrics = {name: np.where(clipped, np.nan, value) for name, value in metrics.items()}
        known = samples > 1 and not self.measures.whole_batches
        return Losses(
            loss=loss,
            metrics=metrics,
            finite=finite,
            standard_error=error if known else None,
            path=path,
            batchnorm=batchnorm,
            samples=samples,
            clip=self.clip,
            clipped=clipped,
        )


def _totals(values: Tensor, weights: Tensor | None) -> tuple[float, float]:
    """Sum of values, and of weights."""
    total = float(len(values)) if weights is None else weights.double().sum().item()
    return values.to(torch.float64).sum().item(), total


def _check_bounded_below(losses: Tensor, weights: Tensor | None) -> None:
    """Raise `ValueError` unless a sum of some losses is a lower bound of the sum of all."""
    if weights is not None:
        raise ValueError(
            "expected one loss per sample with clip, got weighted sums, whose mean is not known"
            " before the end; leave clip out"
        )
    if len(losses) and float(losses.min()) < 0:
        raise ValueError(
            f"expected losses that are never negative with clip, got {float(losses.min()):.3g};"
            " leave clip out"
        )
