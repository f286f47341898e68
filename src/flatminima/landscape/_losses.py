"""Losses of a batch's samples, and what comes of them over a dataset."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor

from flatminima.types import PerPoint

_IGNORED = -100  # the class that torch's losses leave out

PerSample: TypeAlias = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Losses:
    """The loss at K points of a subspace.

    Attributes:
        loss: Weighted mean over the whole dataset; not a number where `finite` is false.
        metrics: Further means by name: `accuracy` where the targets are classes, the landscape's
            metrics, and `loss_NAME` and `accuracy_NAME` of its subsets.
        finite: Whether the loss came out finite.
        standard_error: Sampling error of the mean over examples, or `None` where it is not defined.
        path: How it was computed ("reference", "affine", "suffix", "top"), with the reason if a
            faster way was given up.
        batchnorm: The BatchNorm policy; "none" for a network without BatchNorm.
        samples: Number of examples.
        repeated: How many of the points were computed again in full precision; 0 if all were.
        compared: Over how many examples.
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
    compared: int = 0
    difference: float = 0.0
    clip: float | None = None
    clipped: Bool[np.ndarray, " points"] | None = None

    def part(self, points: slice | Int64[np.ndarray, " chosen"]) -> "Losses":
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

    def difference_from(self, exact: "Losses") -> float:
        """The largest difference in loss at the same points; infinite if one is not finite.

        Of points that were stopped early nothing is known.
        """
        known = np.ones(len(self.loss), dtype=bool) if self.clipped is None else ~self.clipped
        if not np.array_equal(self.finite[known], exact.finite[known]):
            return float("inf")
        gaps = np.abs(self.loss - exact.loss)[known & exact.finite]
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
            compared=max(self.compared, other.compared),
            difference=max(self.difference, other.difference),
            clipped=None if self.clip is None else joined(clipped(self), clipped(other)),
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
        if part is not None and isinstance(targets, Tensor) and len(part) != len(targets):
            raise ValueError(
                f"expected one loss per sample, here {len(targets)}, got {len(part)}; average over"
                " what is not a sample"
            )
    return losses, weights


def correct_predictions(outputs: Any, targets: Any) -> Bool[Tensor, " samples"] | None:
    """Which samples have their largest output at the target class; `None` if not classes."""
    outputs = main_output(outputs)
    if not is_classes(outputs, targets):
        return None
    correct: Tensor = outputs.argmax(1) == targets
    return correct


def main_output(outputs: Any) -> Any:
    """The logits of outputs that hold them by name, as those of many libraries do."""
    return outputs["logits"] if isinstance(outputs, dict) and "logits" in outputs else outputs


def is_classes(outputs: Any, targets: Any) -> bool:
    """Whether there is one class per sample, and one output per class."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return False
    return outputs.ndim == 2 and targets.ndim == 1 and targets.dtype == torch.int64


def check_classes(outputs: Any, targets: Any, number: int) -> None:
    """Raise `ValueError` for labels that no output belongs to.

    An accelerator answers such a label by refusing all further work of the process.

    Args:
        outputs: Of some samples.
        targets: Of the whole dataset, `number` of them.
        number: How many samples there are.
    """
    logits = main_output(outputs)
    labels = isinstance(targets, Tensor) and targets.dtype == torch.int64 and targets.numel()
    if not (labels and isinstance(logits, Tensor) and logits.ndim >= 2 and len(targets) == number):
        return
    known = targets[targets != _IGNORED]
    lowest, highest = (int(known.min()), int(known.max())) if known.numel() else (0, 0)
    if lowest < 0 or highest >= logits.shape[1]:
        raise ValueError(
            f"expected labels from 0 to {logits.shape[1] - 1} for the network's"
            f" {logits.shape[1]} outputs, got labels from {lowest} to {highest}; check the labels,"
            " or give the network more outputs"
        )


def _cross_entropy(outputs: Any, targets: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    outputs = main_output(outputs)
    losses = F.cross_entropy(outputs, targets, reduction="none")
    if losses.ndim == 1:
        return losses
    # Several targets a sample (segmentation, language): a sample weighs as many as it has.
    return losses.flatten(1).sum(1), (targets != _IGNORED).flatten(1).sum(1).to(losses.dtype)


def takes_stacks(per_sample: PerSample) -> bool:
    """Whether `stacked_cross_entropies` computes this loss."""
    return per_sample is _cross_entropy


def stacked_cross_entropies(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropies of outputs `[points, N, classes]`, and which predictions are correct.

    With the classes outermost, torch (2.13, on a CPU) finds the logarithms of a few probabilities
    many numbers at a time; with the classes innermost, one row at a time.

    Returns:
        Both `[points, N]`.
    """
    points, samples, _ = outputs.shape
    # Looked up with others: to ask whether there are any would wait for an accelerator.
    ignored = targets == _IGNORED
    logarithms = F.log_softmax(outputs.movedim(2, 0).contiguous(), 0)
    known = targets.masked_fill(ignored, 0)
    found = logarithms.gather(0, known.expand(1, points, samples))[0]
    correct = _largest(logarithms, found)
    correct = outputs.argmax(2) == targets if correct is None else correct & ~ignored
    return (-found).masked_fill_(ignored, 0.0), correct


def _largest(values: Tensor, chosen: Tensor) -> Tensor | None:
    """Where the chosen one of `values` (along their first axis) is the largest, at a glance.

    `None` where one has to look more closely: there are several largest ones or what is not a
    number, or to ask that would wait for an accelerator.
    """
    if values.device.type != "cpu":
        return None
    largest = values.amax(0)
    alone = torch.count_nonzero(values == largest) == largest.numel()
    return chosen == largest if alone and not largest.isnan().any() else None


def _mse(outputs: Any, targets: Tensor) -> Tensor:
    outputs = main_output(outputs)
    if outputs.shape != targets.shape:
        raise ValueError(
            f"expected outputs and targets of one shape, got {tuple(outputs.shape)} and"
            f" {tuple(targets.shape)}; reshape one, broadcasting would compare all with all"
        )
    errors: Tensor = (outputs - targets).square()
    return errors.flatten(1).mean(1) if errors.ndim > 1 else errors


def _next_token(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the tokens of a sample, each predicted from those before it, and their number."""
    logits = main_output(outputs)
    if logits.ndim != 3 or logits.shape[:2] != targets.shape:
        raise ValueError(
            f"expected logits [N, length, tokens] and targets [N, length] for 'next_token', got"
            f" {tuple(logits.shape)} and {tuple(targets.shape)}; check what the network returns"
        )
    following = targets[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), following, reduction="none")
    return losses.sum(1), (following != _IGNORED).sum(1).to(losses.dtype)


def _binary_cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    logits = main_output(outputs)
    if logits.shape != targets.shape:
        raise ValueError(
            f"expected one target for each logit, got shapes {tuple(logits.shape)} and"
            f" {tuple(targets.shape)}; give targets of 0 and 1 for every label"
        )
    losses: Tensor = F.binary_cross_entropy_with_logits(
        logits, targets.to(logits), reduction="none"
    )
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


_NAMED: dict[str, PerSample] = {
    "binary_cross_entropy": _binary_cross_entropy,
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "next_token": _next_token,
}
