"""`as_dataset`: data in the form they come in, as a `Dataset`."""

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from flatminima.data._class_names import class_names
from flatminima.data._passes import (
    CHUNK,
    PAD,
    as_tensors,
    check_sampler,
    check_workers,
    collated,
    first_samples,
    join,
    paths,
    random_states,
    size_of,
    twice,
)
from flatminima.data.dataset import Dataset, _map
from flatminima.types import Nested

_TARGETS = ("labels", "label", "targets", "target", "y")

_ACCEPTED = (
    "a flatminima Dataset, a pair (inputs, targets) or a dict of tensors or arrays, a list of"
    " samples, a torch Dataset, IterableDataset or DataLoader, or a Hugging Face Dataset"
)


def as_dataset(
    data: Any,
    *,
    targets: str | None = None,
    name: str | None = None,
    limit: int | None = None,
    keep_targets: bool = False,
) -> Dataset:
    """Data in one of many forms as a `Dataset`: every sample once, in a fixed order, as stored.

    Accepted are:

    - a flatminima `Dataset`, which is returned as it is;
    - a pair `(inputs, targets)` of tensors or numpy arrays, or nested dicts, tuples or lists of
      them, each with N leading entries. A list of two is a pair too, unless both are samples:
      tuples, lists or dicts of one type;
    - a dict of those, such as a tokenizer returns;
    - a list of samples or a torch `Dataset` with a length. A sample is `(inputs, targets)` or a
      dict; samples are joined by `torch.utils.data.default_collate`;
    - a torch `IterableDataset` of such samples, or a `DataLoader` of batches of them. Without a
      length they need `limit`. Both, and torch datasets, are read twice, and what differs between
      the passes (a shuffled order, random augmentation) is an error;
    - a Hugging Face `datasets.Dataset` with columns of numbers, in the types of its own "torch"
      format (floats in float32, unless that format was set with another `dtype`). With a transform
      set it is read like a torch dataset.

    Everything is held in memory, about twice over while batches are joined. Tensors and arrays that
    are given whole are shared, not copied. Element types stay as they are, but for integer targets
    `[N]`, which are class labels and become int64. Tuples and lists within samples become tuples,
    which networks take by position. Random states, and generators of a loader, are left as found.

    Args:
        data: What to read.
        targets: Which entry of a dict holds the targets; by default the first there is of "labels",
            "label", "targets", "target" and "y".
        name: Name of the set; by default that of its type in lower case (for a `DataLoader`, of
            what it loads), or for Hugging Face sets that of the set or its builder.
        limit: Keep only so many samples, the first ones: classes are not balanced. They are counted
            among those kept, unless the source names them all (a list `classes`, as torchvision's
            sets have, or a Hugging Face `ClassLabel`).
        keep_targets: Whether the targets of a dict stay among the inputs too, as a network that
            computes its own loss needs them.

    Raises:
        ValueError: The form is none of these, there are no samples or no targets, shapes differ
            between samples, inputs are not finite or not numbers, or a loader shuffles, augments,
            repeats or leaves out samples.

    Examples:
        >>> data = as_dataset({"x": torch.zeros(3, 2), "y": torch.tensor([0, 1, 1])}, name="small")
        >>> data.name, len(data), data.classes, list(data.inputs)
        ('small', 3, 2, ['x'])
    """
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit of at least 1, got {limit}; None keeps all samples")
    if isinstance(data, Dataset):
        _check_unnamed("a flatminima Dataset", targets, keep_targets)
        return _own(data, name, limit)
    with random_states(data):
        gathered = _gather(data, limit)
    inputs, found, key = _split(gathered, targets, keep_targets)
    _check_finite(inputs)
    names = class_names(data, key, found)
    if keep_targets:
        inputs = {**inputs, key: found}
    classes = None if names is None else len(names)
    return Dataset(inputs, found, name=name or _name(data), classes=classes, class_names=names)


def _own(data: Dataset, name: str | None, limit: int | None) -> Dataset:
    """A set of this package, shortened or renamed where that is asked for."""
    if limit is not None and limit < len(data):
        data = data.subset(torch.arange(limit))
    if name is not None and name != data.name:
        data = copy.copy(data)
        data.name = name
    return data


def _gather(data: Any, limit: int | None) -> Nested:
    """All samples of any accepted form, as nested tensors."""
    if _is_hub(data):
        return _from_hub(data, limit)
    if isinstance(data, DataLoader):
        return _from_loader(data, limit)
    if isinstance(data, IterableDataset):
        return _from_stream(data, limit)
    if isinstance(data, Mapping) and data and all(map(_is_hub, data.values())):
        raise ValueError(
            f"expected one set, got a {type(data).__name__} of the splits {list(data)}; "
            f"give one of them, such as data[{next(iter(data))!r}]"
        )
    if isinstance(data, Mapping) or _is_pair(data):
        return first_samples(as_tensors(data), limit)
    if isinstance(data, (list, TorchDataset)) and size_of(data) is not None:
        return _from_samples(data, limit)
    raise ValueError(f"expected {_ACCEPTED}, got {type(data).__name__}; convert it to one of these")


def _is_pair(data: Any) -> bool:
    """Whether this is (inputs, targets), told from a list of samples by the types."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    one, other = data
    samples = type(one) is type(other) and isinstance(one, (tuple, list, Mapping))
    return isinstance(data, tuple) or not samples


def _is_hub(data: Any) -> bool:
    """Whether this is a set of Hugging Face's `datasets`, which is not imported for that."""
    wanted = ("features", "with_format", "column_names")
    return not isinstance(data, Mapping) and all(hasattr(data, name) for name in wanted)


def _name(data: Any) -> str:
    """What a set is called without a name of its own."""
    data = data.dataset if isinstance(data, DataLoader) else data
    if _is_hub(data):
        found = getattr(data.info, "dataset_name", None) or data.builder_name
        if found:
            return str(found)
    return type(data).__name__.lower()


def _from_hub(data: Any, limit: int | None) -> Nested:
    """The columns of a Hugging Face set; they are stored, so that one pass is enough."""
    size = size_of(data)
    if size is not None and data.format["type"] == "custom":
        return _from_samples(data, limit)
    columns = data.format["columns"] if size is not None else data.column_names or ()
    features = data.features or {}
    images = [name for name in columns if type(features.get(name)).__name__ == "Image"]
    if images:
        raise ValueError(
            f"expected inputs that a network can take, got images as stored in {images}; turn them "
            "into float tensors of one size in .with_transform(...)"
        )
    if size is None:
        return _from_stream(data.with_format("torch"), limit)
    view = data if data.format["type"] == "torch" else data.with_format("torch", columns=columns)
    parts = []
    for start in range(0, min(size, limit or size), CHUNK):
        part = view[start : min(start + CHUNK, size, limit or size)]
        _check_columns(part)
        parts.append(as_tensors(part, collated=True))
    return join(parts)


def _check_columns(part: dict[str, Any]) -> None:
    """Refuse columns that are no tensors."""
    lists = {name: column for name, column in part.items() if isinstance(column, list)}
    text = [name for name in lists if any(isinstance(value, str) for value in lists[name])]
    if text:
        rest = [name for name in part if name not in text]
        raise ValueError(
            f"expected columns of numbers, got text in {text}; tokenize it, or leave it out with "
            f".select_columns({rest})"
        )
    ragged = [name for name in lists if all(isinstance(value, Tensor) for value in lists[name])]
    if ragged:
        raise ValueError(f"expected rows of one shape, got several in {ragged}; {PAD}")


def _from_samples(data: Any, limit: int | None) -> Nested:
    """The samples of a list or a map-style dataset."""
    size = len(data) if limit is None else min(limit, len(data))
    return twice(lambda: collated(data[index] for index in range(size)), limit)[0]


def _from_stream(data: Iterable[Any], limit: int | None) -> Nested:
    """The samples of an iterable dataset."""
    _check_bounded(data, limit)
    return twice(lambda: collated(itertools.islice(data, limit)), limit)[0]


def _from_loader(loader: DataLoader[Any], limit: int | None) -> Nested:
    """The samples of a loader's batches."""
    batches = loader.batch_sampler
    if batches is None:
        raise ValueError(
            "expected a DataLoader that makes batches, got batch_size=None; give it a batch_size, "
            "or collect what it yields into (inputs, targets)"
        )
    _check_bounded(loader.dataset, limit)
    streamed = isinstance(loader.dataset, IterableDataset)
    if not streamed:
        check_sampler(batches, size_of(loader.dataset), limit)
    joined, hashes = twice(lambda: loader, limit)
    if streamed and isinstance(batches, BatchSampler):
        check_workers(loader, batches, hashes, limit)
    return joined


def _check_bounded(data: Any, limit: int | None) -> None:
    if limit is None and size_of(data) is None:
        raise ValueError(
            f"expected limit= for what has no length, got None for {type(data).__name__}; give the "
            "number of samples to take (one larger than there are takes all)"
        )


def _split(
    nested: Nested, targets: str | None, keep_targets: bool
) -> tuple[Nested, Nested, str | None]:
    """Inputs, targets, and where in a dict the targets were."""
    if isinstance(nested, dict):
        key = targets or next((name for name in _TARGETS if name in nested), None)
        if key not in nested or len(nested) == 1:
            raise ValueError(
                f"expected inputs and targets ({targets or ', '.join(_TARGETS)}), got a dict of "
                f"{list(nested)}; name the targets by targets="
            )
        inputs = {name: value for name, value in nested.items() if name != key}
        return inputs, _map(_labels, nested[key]), key
    _check_unnamed("pairs (inputs, targets)", targets, keep_targets)
    if not isinstance(nested, tuple | list) or len(nested) != 2:
        got = "one tensor" if isinstance(nested, Tensor) else f"{len(nested)} parts"
        raise ValueError(f"expected samples (inputs, targets) or dicts, got {got}; return pairs")
    return nested[0], _map(_labels, nested[1]), None


def _check_unnamed(form: str, targets: str | None, keep_targets: bool) -> None:
    if targets is not None or keep_targets:
        raise ValueError(
            f"expected neither targets= nor keep_targets= with {form}, got targets={targets!r} and "
            f"keep_targets={keep_targets}; leave them out, or give a dict"
        )


def _labels(targets: Tensor) -> Tensor:
    """Class labels as int64; anything else as it is."""
    other = targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool
    return targets if other or targets.ndim != 1 else targets.long()


def _check_finite(inputs: Nested) -> None:
    for where, one in paths(inputs, "inputs"):
        count = int((~torch.isfinite(one)).sum())
        if count:
            raise ValueError(
                f"expected finite inputs, got {count} NaN or infinite values in {where}; fill them "
                "in or leave out their samples"
            )
