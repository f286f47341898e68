"""Per-sample losses, and their sums over a dataset in double precision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from flatminima.types import PerPoint

PerSample: TypeAlias = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Losses:
    """The loss at K points of a subspace.

    Attributes:
        loss: Weighted mean over the whole dataset; not a number where `finite` is false.
        metrics: Further means by name; `accuracy` where the targets are classes.
        finite: Whether the loss came out finite.
        standard_error: Sampling error of the mean over examples, or `None` where it is not defined.
        path: How it was computed ("reference", "affine", "suffix", "top"), with the reason if a
            faster way was given up.
        batchnorm: The BatchNorm policy; "none" for a network without BatchNorm.
        samples: Number of examples.
        repeated: How many of the points were computed again in full precision; 0 if all were.
        difference: The largest difference in loss found there; infinite where only one was finite.
        clip: The loss above which points were stopped early, if any.
        clipped: Which points were: their `loss` is `clip`, certainly less than the true one, and
            nothing else is known of them.
    """

    loss: PerPoint
    metrics: Mapping[str, PerPoint]
    finite: Bool[np.ndarray, " points"]
    standard_error: PerPoint | None
    path: str
    batchnorm: str
    samples: int
    repeated: int = 0
    difference: float = 0.0
    clip: float | None = None
    clipped: Bool[np.ndarray, " points"] | None = None

    def part(self, points: slice) -> "Losses":
        """Some of the points."""
        error = self.standard_error
        return replace(
            self,
            loss=self.loss[points],
            metrics={name: values[points] for name, values in self.metrics.items()},
            finite=self.finite[points],
            standard_error=None if error is None else error[points],
            clipped=None if self.clipped is None else self.clipped[points],
        )

    def difference_from(self, exact: "Losses", points: Int64[np.ndarray, " repeated"]) -> float:
        """The largest difference in loss at the repeated points; infinite if one is not finite."""
        if not np.array_equal(self.finite[points], exact.finite):
            return float("inf")
        known = exact.finite.copy()
        for clipped in (exact.clipped, None if self.clipped is None else self.clipped[points]):
            if clipped is not None:
                known &= ~clipped
        gaps = np.abs(self.loss[points] - exact.loss)[known]
        return float(gaps.max()) if len(gaps) else 0.0

    def followed_by(self, other: "Losses") -> "Losses":
        """These points, then those of `other`, which were evaluated on the same landscape."""

        def joined(ours: Any, theirs: Any) -> Any:
            return np.concatenate([ours, theirs])

        def clipped(losses: "Losses") -> np.ndarray:
            given = losses.clipped
            return np.zeros(len(losses.loss), dtype=bool) if given is None else given

        error = self.standard_error is not None and other.standard_error is not None
        return replace(
            self,
            loss=joined(self.loss, other.loss),
            metrics={
                name: joined(values, other.metrics[name]) for name, values in self.metrics.items()
            },
            finite=joined(self.finite, other.finite),
            standard_error=joined(self.standard_error, other.standard_error) if error else None,
            repeated=self.repeated + other.repeated,
            difference=max(self.difference, other.difference),
            clipped=None if self.clip is None else joined(clipped(self), clipped(other)),
        )


@dataclass
class Meter:
    """Sums of losses over batches, one row per point.

    Attributes:
        per_sample: The loss.
        points: How many rows.
        clip: A point is closed once its mean is certain to be above.
        samples: Over how many the mean is, in the end; read with `clip` alone.
    """

    per_sample: PerSample
    points: int
    clip: float | None = None
    samples: int = 0
    _sums: Float64[np.ndarray, "points 6"] = field(init=False)
    _classes: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        # Columns: sum of losses s, of weights w, of s*s, s*w, w*w, and of correct predictions.
        self._sums = np.zeros((self.points, 6))

    def add(self, point: int, outputs: Any, targets: Any) -> None:
        """Add one batch of outputs to the sums of `point`."""
        losses, weights = split_weights(self.per_sample(outputs, targets), targets)
        s = losses.double()
        if self.clip is not None:
            _check_bounded_below(s, weights)
        row = self._sums[point]
        row[0] += s.sum().item()
        row[2] += s.dot(s).item()
        if weights is None:
            row[1] += len(s)
            row[3] += s.sum().item()
            row[4] += len(s)
        else:
            w = weights.double()
            row[1] += w.sum().item()
            row[3] += s.dot(w).item()
            row[4] += w.dot(w).item()
        correct = count_correct(outputs, targets)
        if correct is None:
            self._classes = False
        else:
            row[5] += correct

    def add_stack(self, points: Sequence[int], outputs: Tensor, targets: Any) -> None:
        """Add one batch of outputs at several points, `[points, N, ...]`.

        Cross entropy of classes is computed for all at once in the quicker way; it differs from
        that of `add` by rounding.
        """
        if not (self.per_sample is _cross_entropy and _is_classes(outputs[0], targets)):
            for point, each in zip(points, outputs, strict=True):
                self.add(point, each, targets)
            return
        s = _cross_entropies(outputs, targets).double()
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
        self._sums[first : first + part.points] += part._sums
        self._classes = self._classes and part._classes

    def part(self, points: int | None = None) -> "Meter":
        """An empty meter for so many points (or as many), to be joined later."""
        count = self.points if points is None else points
        return Meter(self.per_sample, count, self.clip, self.samples)

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
        accuracy = correct / samples
        clipped = None
        if self.clip is not None:
            clipped = np.array([not self.open(point) for point in range(self.points)], dtype=bool)
            loss = np.where(clipped, self.clip, loss)
            accuracy, error = (np.where(clipped, np.nan, values) for values in (accuracy, error))
        metrics = {"accuracy": accuracy} if self._classes else {}
        return Losses(
            loss=loss,
            metrics=metrics,
            finite=finite,
            standard_error=error if samples > 1 else None,
            path=path,
            batchnorm=batchnorm,
            samples=samples,
            clip=self.clip,
            clipped=clipped,
        )


def per_sample_loss(loss: str | PerSample) -> PerSample:
    """The function behind a loss's name; a callable is taken as it is.

    Raises:
        ValueError: For an unknown name.
    """
    if callable(loss):
        return loss
    if loss not in _NAMED:
        raise ValueError(
            f"expected a loss among {sorted(_NAMED)} or a callable (outputs, targets) -> [N], got"
            f" {loss!r}; check the name"
        )
    return _NAMED[loss]


def split_weights(result: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
    """Check what a per-sample loss returned: losses `[N]`, or sums `[N]` and weights `[N]`."""
    losses, weights = result if isinstance(result, tuple) else (result, None)
    for part in (losses, weights):
        if part is not None and (not isinstance(part, Tensor) or part.ndim != 1):
            got = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(
                f"expected one loss per sample, a tensor [N] (or sums [N] and weights [N]), got"
                f" {got}; use reduction='none' and average over what is not a sample"
            )
    return losses, weights


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


def count_correct(outputs: Any, targets: Any) -> int | None:
    """How many samples have their largest output at the target class; `None` if not classes."""
    if not _is_classes(outputs, targets):
        return None
    return int((outputs.argmax(1) == targets).sum())


def _is_classes(outputs: Any, targets: Any) -> bool:
    """Whether there is one class per sample, and one output per class."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return False
    return outputs.ndim == 2 and targets.ndim == 1 and targets.dtype == torch.int64


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    losses = F.cross_entropy(outputs, targets, reduction="none")
    if losses.ndim == 1:
        return losses
    # Several targets a sample (segmentation, language): a sample weighs as many as it has.
    return losses.flatten(1).sum(1), (targets != -100).flatten(1).sum(1).to(losses.dtype)


def _cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropies `[points, N]` of outputs `[points, N, classes]`.

    With the classes outermost, torch (2.13, on a CPU) finds the logarithms of a few probabilities
    many numbers at a time; with the classes innermost, one row at a time.
    """
    if int(targets.min()) < 0:  # to be ignored
        return torch.stack([F.cross_entropy(each, targets, reduction="none") for each in outputs])
    logarithms = F.log_softmax(outputs.movedim(2, 0).contiguous(), 0)
    points, samples, _ = outputs.shape
    return -logarithms.gather(0, targets.expand(1, points, samples))[0]


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:
        raise ValueError(
            f"expected outputs and targets of one shape, got {tuple(outputs.shape)} and"
            f" {tuple(targets.shape)}; reshape one, broadcasting would compare all with all"
        )
    return (
        (outputs - targets).square().flatten(1).mean(1)
        if outputs.ndim > 1
        else (outputs - targets).square()
    )


_NAMED: dict[str, PerSample] = {"cross_entropy": _cross_entropy, "mse": _mse}
