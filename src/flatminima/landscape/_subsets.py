"""Groups of samples, and metrics, that are told apart in results by their names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flatminima.data import Dataset
from flatminima.landscape._losses import PerSample

# Names of variables that a surface has anyhow.
_TAKEN = frozenset(
    {"loss", "accuracy", "standard_error", "outcome", "interpolated", "x", "y", "u", "v"}
)


def members_of(dataset: Dataset, subsets: Mapping[str, Any] | str | None) -> dict[str, Tensor]:
    """For every subset, by name, which examples are in it: bool `[N]`.

    Args:
        dataset: The examples.
        subsets: Masks, or "classes".

    Raises:
        ValueError: If a mask is none, is empty, or is not as long as the dataset.
    """
    if subsets is None:
        return {}
    if isinstance(subsets, str):
        if subsets != "classes":
            raise ValueError(
                f"expected masks by name or 'classes' as subsets, got {subsets!r}; check the name"
            )
        names = dataset.class_names or [f"class_{index}" for index in range(dataset.classes or 0)]
        labels = dataset.labels
        subsets = {name: labels == index for index, name in enumerate(names)}
        subsets = {name: mask for name, mask in subsets.items() if mask.any()}
    masks: dict[str, Tensor] = {}
    for name, given in subsets.items():
        mask = torch.as_tensor(given)
        if mask.dtype != torch.bool or mask.shape != (len(dataset),):
            raise ValueError(
                f"expected a mask [{len(dataset)}] of true and false for subset {name!r}, got"
                f" {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}; compare, such as"
                " labels == 3"
            )
        if not mask.any():
            raise ValueError(f"expected samples in subset {name!r}, got none; leave it out")
        masks[name] = mask.to(dataset.device)
    return masks


def check_metrics(
    metrics: Mapping[str, Any], subsets: Mapping[str, Tensor]
) -> dict[str, PerSample]:
    """The metrics, if results can hold them under their names.

    Raises:
        ValueError: If a name is taken, or what it names cannot be called.
    """
    taken = _TAKEN | {f"{kind}_{name}" for name in subsets for kind in ("loss", "accuracy")}
    for name, metric in metrics.items():
        if name in taken or name.startswith("anchor_"):
            raise ValueError(
                f"expected names of metrics that results do not have anyhow, got {name!r}; choose"
                " another"
            )
        if not callable(metric):
            raise ValueError(
                f"expected metric {name!r} as a function (outputs, targets) -> [N], got"
                f" {type(metric).__name__}; give a function"
            )
    return dict(metrics)
