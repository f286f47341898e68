"""What a set from elsewhere calls its classes, those included of which no sample is kept."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, Subset

from flatminima.data.dataset import _are_labels
from flatminima.types import Nested


def class_names(source: Any, key: str | None, targets: Nested) -> list[str] | None:
    """The names by label, where the source has them and all labels are among them.

    They are the list `classes` of torchvision's sets, and in sets of Hugging Face's `datasets` what
    the `ClassLabel` of the column `key` holds.
    """
    while isinstance(source, (DataLoader, Subset)):
        source = source.dataset
    found = _stored(source, key)
    if not _are_labels(targets) or not isinstance(found, (list, tuple)):
        return None
    # Torchvision's ImageNet has a tuple of synonyms for each class.
    names = [", ".join(name) if _all_text(name) else name for name in found]
    # Labels that are not known are stored as -1; others beyond the names are of another kind.
    within = int(targets.min()) >= 0 and int(targets.max()) < len(names)
    return names if within and all(isinstance(name, str) for name in names) else None


def _stored(source: Any, key: str | None) -> Any:
    """Where the names are, if anywhere."""
    features = getattr(source, "features", None)
    if isinstance(features, Mapping):
        feature: Any = features.get(key) if key is not None else None
        return feature.names if type(feature).__name__ == "ClassLabel" else None
    # What turns labels into others leaves the names of the old ones in place.
    changed = getattr(source, "target_transform", None) is not None
    return None if changed else getattr(source, "classes", None)


def _all_text(name: Any) -> bool:
    return isinstance(name, tuple) and all(isinstance(part, str) for part in name)
