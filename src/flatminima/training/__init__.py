"""Training: a `Recipe`, `train`, and `TrainingRun`, the same thing in resumable pieces."""

from flatminima.training.recipe import Recipe
from flatminima.training.run import TrainingRun, train

__all__ = ["Recipe", "TrainingRun", "train"]
