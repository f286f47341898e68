"""Samples of loaders and sets as nested tensors, read over two passes that must agree."""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, default_collate

from flatminima.data.dataset import _leaves, _map
from flatminima.types import Nested

CHUNK = 256  # samples collated at a time; only memory and speed depend on it
PAD = "pad all to one length (for a tokenizer: padding='max_length')"


def size_of(data: Any) -> int | None:
    """The length of what has one."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def twice(batches: Callable[[], Iterable[Any]], limit: int | None) -> tuple[Nested, list[bytes]]:
    """All samples and a hash of each, after a second pass has shown that they stay the same."""
    with _plain_errors():
        parts = list(_read(batches(), limit))
        # Not from the same random states: equal draws would hide what is random.
        second = [value for part in _read(batches(), limit) for value in _hashes(part)]
    first = [value for part in parts for value in _hashes(part)]
    if len(first) != len(second):
        raise ValueError(
            f"expected two equal passes, got {len(first)} and {len(second)} samples; let __iter__ "
            "start anew each time"
        )
    differ = sum(one != other for one, other in zip(first, second, strict=True))
    if differ and Counter(first) == Counter(second):
        raise ValueError(
            "expected a fixed order, got another one in a second pass; turn shuffling off"
        )
    if differ:
        raise ValueError(
            f"expected the same samples in two passes, got {differ} of {len(first)} that differ; "
            "take out random augmentation, masking and shuffling"
        )
    return join(parts), first


@contextmanager
def random_states(data: Any) -> Iterator[None]:
    """Leave the random states of torch, numpy, Python and a loader as they are."""
    batches = getattr(data, "batch_sampler", None)
    owners = (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    own = [one for one in found if isinstance(one, torch.Generator)]
    states = [one.get_state() for one in own]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for one, state in zip(own, states, strict=True):
            one.set_state(state)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Say in one line what samples cannot be collated for."""
    try:
        yield
    except (TypeError, RuntimeError) as error:
        text = str(error)
        # In a worker process, tensors of several shapes fail where their memory is shared.
        if "equal size" in text or "resize storage that is not resizable" in text:
            raise ValueError(
                f"expected samples of one shape, got several within a batch; {PAD}, images to one "
                "size"
            ) from error
        other = re.search(r"batch must contain .*; found (?:<class ')?([^'>\n]+)", text)
        if other:
            raise ValueError(_not_numbers("a sample", other[1])) from error
        raise


def _not_numbers(where: str, kind: str) -> str:
    """The message about a value that is no tensor, with the cure for its kind."""
    cure = "turn it into a tensor with torch.as_tensor, or leave it out"
    if "PIL" in kind:
        cure = "turn images into tensors (torchvision: transform=ToTensor())"
    elif kind == "str" or "<U" in kind:
        cure = "tokenize text, or leave it out"
    return f"expected tensors or arrays of numbers in {where}, got {kind}; {cure}"


def collated(samples: Iterable[Any]) -> Iterator[Any]:
    """Batches of samples."""
    samples = iter(samples)
    while chunk := list(itertools.islice(samples, CHUNK)):
        _check_sample(chunk[0])
        yield default_collate(chunk)


def _check_sample(sample: Any) -> None:
    """Refuse lists of numbers, which `default_collate` takes apart into a tensor a position."""
    listing = isinstance(sample, (tuple, list))
    for key, value in enumerate(sample) if listing else getattr(sample, "items", tuple)():
        if isinstance(value, list) and value and isinstance(value[0], (int, float)):
            raise ValueError(_not_numbers(f"[{key!r}] of a sample", "list of numbers"))


def _read(batches: Iterable[Any], limit: int | None) -> Iterator[Nested]:
    """Batches as nested tensors, until there are enough samples."""
    left = limit
    for batch in batches:
        part = first_samples(as_tensors(batch, collated=True), left)
        yield part
        if left is not None:
            left -= _length(part)
            if left <= 0:
                return


def as_tensors(value: Any, where: str = "", *, collated: bool = False) -> Nested:
    """Nested tensors from nested tensors and arrays; tuples from lists in a collated batch."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        # Torch takes neither foreign byte orders nor negative strides nor what is read-only.
        return torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))
    if isinstance(value, Mapping):
        return {
            key: as_tensors(part, f"{where}[{key!r}]", collated=collated)
            for key, part in value.items()
        }
    if isinstance(value, (tuple, list)):
        parts = [
            as_tensors(part, f"{where}[{at}]", collated=collated) for at, part in enumerate(value)
        ]
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        return tuple(parts) if collated else type(value)(parts)
    kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise ValueError(_not_numbers(where or "a sample", kind))


def paths(nested: Nested, where: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a structure, in the order of `_map`, and where they are in it."""
    if isinstance(nested, Tensor):
        yield where, nested
        return
    for key, part in nested.items() if isinstance(nested, dict) else enumerate(nested):
        yield from paths(part, f"{where}[{key!r}]")


def _length(nested: Nested) -> int:
    """The number of samples, which all tensors of a set or a batch share."""
    lengths = {where: len(one) if one.ndim else 0 for where, one in paths(nested)}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"expected tensors with one entry for each sample, got leading lengths {lengths}; pair "
            "every input with a target"
        )
    if not any(lengths.values()):
        raise ValueError("expected at least one sample, got none; give data that hold some")
    return next(iter(lengths.values()))


def first_samples(nested: Nested, limit: int | None) -> Nested:
    """The first samples, of at least one."""
    length = _length(nested)
    return nested if limit is None or limit >= length else _map(lambda one: one[:limit], nested)


def _hashes(batch: Nested) -> list[bytes]:
    """A hash of the values of each sample."""
    size = _length(batch)
    rows = [
        one.cpu().reshape(size, math.prod(one.shape[1:])).contiguous().view(torch.uint8).numpy()
        for one in _leaves(batch)
    ]
    return [
        blake2b(b"".join(row[at].tobytes() for row in rows), digest_size=16).digest()
        for at in range(size)
    ]


def join(parts: list[Nested]) -> Nested:
    """Batches end to end."""
    _length(parts[0] if parts else ())
    tensors = [dict(paths(part)) for part in parts]
    layouts = [
        {where: f"{one.dtype} {list(one.shape[1:])}" for where, one in part.items()}
        for part in tensors
    ]
    for layout in layouts:
        if layout != layouts[0]:
            odd = {*layout.items()} ^ {*layouts[0].items()}
            raise ValueError(
                f"expected batches of one shape and type, got {sorted(odd)} in different ones; "
                f"{PAD} in the dataset or collate_fn"
            )
    joined = (torch.cat([part[where] for part in tensors]) for where in layouts[0])
    return _map(lambda _: next(joined), parts[0])


def check_sampler(batches: Any, size: int | None, limit: int | None) -> None:
    """Refuse what makes a loader's pass other than every sample of its dataset once, in order."""
    if size is None:
        return
    plain = type(batches) is BatchSampler
    source = batches.sampler if plain else batches
    order = source if plain else itertools.chain.from_iterable(batches)
    # One more than there are is enough to know that some are repeated; a sampler may never end.
    drawn = itertools.islice(order, size + 1)
    indices = [index.item() if isinstance(index, Tensor) else index for index in drawn]
    kept = size - size % batches.batch_size if plain and batches.drop_last else size
    kind, problem = type(source).__name__, None
    if len(set(indices)) < len(indices):
        problem = f"{kind}, which repeats some of {size}; leave out sampler="
    elif len(indices) < size:
        problem = f"{kind}, which leaves out {size - len(indices)} of {size}; load a Subset instead"
    elif isinstance(source, RandomSampler):
        problem = f"{kind}, which shuffles; set shuffle=False"
    elif kept < min(size, limit or size):
        problem = f"drop_last, which leaves out {size - kept} of {size}; set drop_last=False"
    if problem is not None:
        raise ValueError(f"expected every sample once and in a fixed order, got {problem}")


def check_workers(
    loader: DataLoader[Any], batches: BatchSampler, hashes: list[bytes], limit: int | None
) -> None:
    """Refuse streams that a loader cuts short, or reads once in every worker."""
    length = size_of(loader.dataset)
    wanted = min(value for value in (length, limit) if value is not None)
    if batches.drop_last and len(hashes) < wanted:
        raise ValueError(
            f"expected {wanted} samples, got {len(hashes)} with drop_last=True; set drop_last=False"
        )
    size = batches.batch_size
    copies = loader.num_workers > 1 and len(hashes) >= 2 * size
    copies = copies and hashes[:size] == hashes[size : 2 * size]
    if copies or (length is not None and len(hashes) > length):
        raise ValueError(
            f"expected every sample once, got repeats from {loader.num_workers} workers; set "
            "num_workers=0, or share the samples out by torch.utils.data.get_worker_info()"
        )
