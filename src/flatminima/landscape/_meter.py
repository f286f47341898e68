"""What is measured at a point, and its sums over a dataset in double precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
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
# Sums that wait on an accelerator are fetched when they are so many.
_MANY = 1000


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
        targets = unmarked(targets)
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


def unmarked(targets: Any) -> Any:
    """Targets as the loss takes them."""
    return targets.targets if isinstance(targets, Marked) else targets


@dataclass
class Meter:
    """Sums of losses over batches, one row per point.

    On a processor sums are added up at once. An accelerator works through a queue, and a number
    that is asked for would let it run dry: there sums wait until they are read, or are many.

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
    _waiting: list[tuple[Int64[np.ndarray, " rows"], Float64[Tensor, "rows columns"]]] = field(
        init=False, default_factory=list
    )

    def __post_init__(self) -> None:
        self._sums = np.zeros((self.points, _COLUMNS))
        # Sums and weights.
        self._beside = np.zeros((self.points, len(self.measures.names), 2))

    def add(self, point: int, outputs: Any, targets: Any) -> None:
        """Add one batch of outputs to the sums of `point`."""
        members = targets.members if isinstance(targets, Marked) else None
        targets = unmarked(targets)
        losses, weights = split_weights(self.measures.per_sample(outputs, targets), targets)
        s = losses.double()
        if self.clip is not None:
            _check_bounded_below(s, weights)
        w = None if weights is None else weights.double()
        correct = correct_predictions(outputs, targets)
        self._classes = self._classes and correct is not None
        total = s.sum()
        right: Tensor | float = 0.0 if correct is None else correct.sum()
        if w is None:
            count = float(len(s))
            self._take([point], [total, count, s.dot(s), total, count, right])
        else:
            self._take([point], [total, w.sum(), s.dot(s), s.dot(w), w.dot(w), right])
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
        members = targets.members if isinstance(targets, Marked) else None
        plain = unmarked(targets)
        if not (takes_stacks(self.measures.per_sample) and is_classes(outputs[0], plain)):
            for point, each in zip(points, outputs, strict=True):
                self.add(point, each, targets)
            return
        losses, correct = stacked_cross_entropies(outputs, plain)
        s = losses.double()
        count = float(s.shape[1])
        total = s.sum(1)
        self._take(points, [total, count, s.square().sum(1), total, count, correct.sum(1)])
        if not self.measures.alone:
            for index, point in enumerate(points):
                own, right = (s[index], None), correct[index]
                self._add_beside(self._beside[point], outputs[index], plain, members, own, right)

    def _take(self, points: Sequence[int], columns: Sequence[Tensor | float]) -> None:
        """Add to the rows of some points; a column is a number, or holds one for each of them."""
        first = columns[0]
        assert isinstance(first, Tensor)
        if not _waits(first):
            known = [each.tolist() if isinstance(each, Tensor) else each for each in columns]
            if len(points) == 1 and first.ndim == 0:  # one batch at one point: the usual case
                self._sums[points[0]] += known
            else:
                for index, values in enumerate(known):
                    self._sums[points, index] += values
            return
        rows = np.asarray(points)
        sums = first.new_empty((len(rows), _COLUMNS))
        for index, column in enumerate(columns):
            sums[:, index] = column
        self._waiting.append((rows, sums))
        if len(self._waiting) >= _MANY:
            self.settle()

    def settle(self) -> None:
        """Add up what waits, in the order in which it came."""
        if not self._waiting:
            return
        rows = np.concatenate([rows for rows, _ in self._waiting])
        np.add.at(self._sums, rows, self.waiting.numpy(force=True))
        self._waiting.clear()

    @property
    def waiting(self) -> Float64[Tensor, "rows columns"]:
        """The sums that wait, on the accelerator."""
        return torch.cat([sums for _, sums in self._waiting])

    def add_sums(self, point: int, sums: Float64[Tensor, "rows columns"], *, like: "Meter") -> None:
        """Add to `point` what another meter had waiting for one point, in the same order."""
        self._classes = self._classes and like._classes
        self._waiting.append((np.full(len(sums), point), sums))
        if len(self._waiting) >= _MANY:
            self.settle()

    def join(self, part: "Meter", first: int = 0) -> None:
        """Add the sums of a part whose points are those from `first` on."""
        rows = slice(first, first + part.points)
        self._sums[rows] += part._sums
        self._beside[rows] += part._beside
        self._waiting += [(own + first, sums) for own, sums in part._waiting]
        if len(self._waiting) >= _MANY:
            self.settle()
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
        if self.clip is None:
            return True
        self.settle()
        return not self.clip * self.samples < self._sums[point, 0] < np.inf

    def losses(self, samples: int, *, path: str, batchnorm: str) -> Losses:
        """The means over everything added."""
        self.settle()
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


def _waits(values: Tensor) -> bool:
    """Whether to ask for these numbers would be to wait for everything before them."""
    return values.device.type != "cpu"


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
