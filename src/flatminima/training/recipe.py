"""`Recipe`: how a network is trained."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from flatminima.types import Real

# Settings that joined later, and the values under which they change nothing.
_ADDED = (("augment", "none"), ("precision", "float32"))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: The most passes through the data.
        batch_size: Samples per step; the last batch of an epoch holds what is left.
        optimizer: `"sgd"` or `"adamw"`.
        learning_rate: The rate at the beginning.
        momentum: Momentum of `"sgd"`.
        weight_decay: L2 penalty of `"sgd"`, decoupled decay of `"adamw"`.
        schedule: The rate in epoch e = 0, 1, ... of E: `"constant"`; `"cosine"`, times
            `(1 + cos(pi e / E)) / 2`; or `"step"`, times `step_factor ** (e // step_epochs)`.
        step_epochs: Epochs between two steps of `"step"`.
        step_factor: Factor of each step.
        stop_at_loss: Training ends with the first epoch whose train loss is at or below this.
        augment: `"none"`, or `"crop_flip"`: images are padded by 4 pixels of value 0, cropped at
            random to their size, and mirrored left to right with probability 0.5. It acts in
            training steps only, never where a loss is measured.
        precision: Of the forward and backward passes of training steps: `"float32"`, or
            `"bfloat16"`, autocast over weights that stay in float32. Losses are measured in float32
            either way.

    Raises:
        ValueError: A value is out of its range.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: Real = 0.01
    momentum: Real = 0.0
    weight_decay: Real = 0.0
    schedule: str = "constant"
    step_epochs: int | None = None
    step_factor: Real = 0.1
    stop_at_loss: Real | None = None
    augment: str = "none"
    precision: str = "float32"

    def settings(self) -> dict[str, Any]:
        """All settings as plain values, by name.

        Those that joined later are left out where they change nothing, so that what was trained
        before them keeps its identity.
        """
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if (name, value) not in _ADDED}

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs of at least 1", self.epochs)
        _require(self.batch_size >= 1, "a batch_size of at least 1", self.batch_size)
        _require(
            self.optimizer in ("sgd", "adamw"), "an optimizer 'sgd' or 'adamw'", self.optimizer
        )
        _require(_positive(self.learning_rate), "a positive learning_rate", self.learning_rate)
        _require(0 <= self.momentum < 1, "a momentum from 0 to below 1", self.momentum)
        _require(
            self.momentum == 0 or self.optimizer == "sgd",
            "momentum 0 with 'adamw', which has its own averages",
            self.momentum,
        )
        _require(
            self.weight_decay == 0 or _positive(self.weight_decay),
            "a weight_decay of 0 or above",
            self.weight_decay,
        )
        _require(
            self.schedule in ("constant", "cosine", "step"),
            "a schedule 'constant', 'cosine' or 'step'",
            self.schedule,
        )
        _require(
            self.schedule != "step" or (self.step_epochs is not None and self.step_epochs >= 1),
            "step_epochs of at least 1 for the schedule 'step'",
            self.step_epochs,
        )
        _require(_positive(self.step_factor), "a positive step_factor", self.step_factor)
        _require(
            self.stop_at_loss is None or _positive(self.stop_at_loss),
            "a positive stop_at_loss, or None",
            self.stop_at_loss,
        )
        _require(
            self.augment in ("none", "crop_flip"), "augment 'none' or 'crop_flip'", self.augment
        )
        _require(
            self.precision in ("float32", "bfloat16"),
            "a precision 'float32' or 'bfloat16'",
            self.precision,
        )
        # Whole numbers are the same recipe, and its settings the same bytes.
        for name in ("learning_rate", "momentum", "weight_decay", "step_factor", "stop_at_loss"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))


def _positive(value: Real) -> bool:
    return 0 < value < math.inf


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"expected {expected}, got {got!r}; change the recipe")
