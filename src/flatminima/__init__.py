"""Measure how flat the minima of neural networks are, and draw the loss between them.

Every public name is imported on first use (PEP 562), so that `import flatminima` stays quick and
never loads a plotting library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatminima.checkpoints import load_state
    from flatminima.connectivity import loss_line
    from flatminima.data import Dataset, as_dataset, load_dataset, randomize_labels
    from flatminima.exchange import load_surface, save_surface
    from flatminima.flatness import flatness_radius
    from flatminima.landscape import Landscape, Losses, loss_surface
    from flatminima.minimum import Minimum
    from flatminima.models import build_model
    from flatminima.store import Store
    from flatminima.study import run_study
    from flatminima.subspace import Subspace
    from flatminima.training import Recipe, train

__version__ = "0.1.0"

_HOME = {
    "Dataset": "flatminima.data",
    "Landscape": "flatminima.landscape",
    "Losses": "flatminima.landscape",
    "Minimum": "flatminima.minimum",
    "Recipe": "flatminima.training",
    "Store": "flatminima.store",
    "Subspace": "flatminima.subspace",
    "as_dataset": "flatminima.data",
    "build_model": "flatminima.models",
    "flatness_radius": "flatminima.flatness",
    "load_dataset": "flatminima.data",
    "load_state": "flatminima.checkpoints",
    "load_surface": "flatminima.exchange",
    "loss_line": "flatminima.connectivity",
    "loss_surface": "flatminima.landscape",
    "randomize_labels": "flatminima.data",
    "run_study": "flatminima.study",
    "save_surface": "flatminima.exchange",
    "train": "flatminima.training",
}

__all__ = [  # noqa: RUF022 - in the order of a newcomer's first program
    "load_dataset",
    "randomize_labels",
    "as_dataset",
    "Dataset",
    "build_model",
    "Recipe",
    "train",
    "Minimum",
    "load_state",
    "Subspace",
    "Landscape",
    "Losses",
    "loss_surface",
    "loss_line",
    "flatness_radius",
    "save_surface",
    "load_surface",
    "Store",
    "run_study",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'flatminima' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
