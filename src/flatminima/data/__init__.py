"""Labelled data, held in memory as tensors.

Imported lazily (PEP 562): `flatminima.data.sources` is used by commands that must not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatminima.data.adapters import as_dataset
    from flatminima.data.dataset import Dataset
    from flatminima.data.labels import randomize_labels
    from flatminima.data.loading import load_dataset

_HOME = {
    "as_dataset": "flatminima.data.adapters",
    "Dataset": "flatminima.data.dataset",
    "load_dataset": "flatminima.data.loading",
    "randomize_labels": "flatminima.data.labels",
}

__all__ = ["Dataset", "as_dataset", "load_dataset", "randomize_labels"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'flatminima.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
