"""`load_dataset`: the built-in data sets by name."""

import hashlib
import os

import numpy as np
import torch
from jaxtyping import UInt8

from flatminima._seeds import derive_seed
from flatminima.data import sources
from flatminima.data._table import Source, check_split, source_of
from flatminima.data._verify import decoded
from flatminima.data.dataset import Dataset
from flatminima.data.idx import read_idx
from flatminima.types import Labels

# `digits` has no official test split: every fifth sample of each class is taken for it.
_TEST_EVERY = 5


def load_dataset(
    name: str,
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """A built-in data set, fetched on first use; see `flatminima.data.sources` for from where.

    - `"digits"`: 8 x 8 images bundled with scikit-learn (values 0 to 16, scaled to 0 to 255); needs
      nothing. Every fifth sample of each class, in the bundled order, is the test split: 1,442
      samples to train on, 355 to test.
    - `"mnist"`, `"fashion_mnist"`: 28 x 28 images, 60,000 to train on, 10,000 to test.
    - `"cifar10"`: 32 x 32 images in colour, 50,000 to train on, 10,000 to test.

    Args:
        name: Name of the set.
        split: `"train"` or `"test"`.
        root: A folder of your own that holds the official files, instead of `$FLATMINIMA_DATA`.
        limit: Take only so many samples, the same number of each class up to one, and fewer only of
            a class that has no more; they stay in their order. With the same seed, a smaller subset
            lies within a larger one.
        seed: Seed of that choice.

    Returns:
        A `Dataset` of uint8 images `[N, channels, height, width]`, normalised as they are handed
        out.

    Raises:
        ValueError: The set or split is unknown, `limit` is out of range, a file is damaged, or no
            source gave the files.

    Examples:
        >>> digits = load_dataset("digits", limit=100)
        >>> digits.images.shape, digits.labels.bincount().tolist()
        (torch.Size([100, 1, 8, 8]), [10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    """
    source = source_of(name)
    check_split(source, split)
    limit = sources.checked_limit(source, split, limit)
    digest = sources.data_digest(name, split, limit=limit, seed=seed)
    if name == "digits":
        images, labels = _digits(source, split)
    elif name == "cifar10":
        images, labels = _records(name, split, root)
    else:
        images, labels = _idx(name, split, root)
    if limit is not None:
        chosen = _balanced(torch.from_numpy(labels.astype(np.int64)), limit, seed).numpy()
        images, labels = images[chosen], labels[chosen]
    return Dataset(
        torch.from_numpy(images.copy()),  # a copy, because files are read as read-only
        torch.from_numpy(labels.astype(np.int64)),
        name=name,
        split=split,
        classes=source.classes,
        mean=source.mean,
        std=source.std,
        digest=digest,
        class_names=source.class_names,
    )


def _idx(
    name: str, split: str, root: str | os.PathLike[str] | None
) -> tuple[UInt8[np.ndarray, "n c h w"], UInt8[np.ndarray, " n"]]:
    """Images and labels of a set that is kept as two IDX files per split."""
    paths = sources.fetch(name, root=root, split=split)
    images, labels = (
        read_idx(decoded(path.read_bytes()), name=str(path)) for path in paths.values()
    )
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"{name}: expected images [N, H, W] and as many labels, got {images.shape} and "
            f"{labels.shape}; give the official files"
        )
    return images[:, None], labels


def _records(
    name: str, split: str, root: str | os.PathLike[str] | None
) -> tuple[UInt8[np.ndarray, "n c h w"], UInt8[np.ndarray, " n"]]:
    """Images and labels of CIFAR-10: records of one label and 32 x 32 pixels in three planes."""
    paths = sources.fetch(name, root=root, split=split)
    content = b"".join(decoded(path.read_bytes()) for path in paths.values())
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _digits(
    source: Source, split: str
) -> tuple[UInt8[np.ndarray, "n c h w"], UInt8[np.ndarray, " n"]]:
    """Images and labels of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    values, labels = bundled.images.astype(np.uint8), bundled.target.astype(np.uint8)
    for array, digest in zip((values, labels), source.bundled, strict=True):
        got = f"sha256:{hashlib.sha256(array.tobytes()).hexdigest()}"
        if got != digest:
            raise ValueError(
                f"digits: expected {digest}, got {got}: scikit-learn bundles other digits than "
                "this version knows; install another version of it"
            )
    images = np.rint(values * (255 / 16)).astype(np.uint8)
    rank = np.zeros(len(labels), dtype=np.int64)  # of each sample within its class
    for label in range(source.classes):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where))
    for_testing = rank % _TEST_EVERY == _TEST_EVERY - 1
    chosen = for_testing if split == "test" else ~for_testing
    return images[chosen][:, None], labels[chosen]


def _balanced(labels: Labels, limit: int, seed: int) -> torch.Tensor:
    """Positions of a subset with as equal a number of each class as there is, in order."""
    random = torch.Generator().manual_seed(derive_seed(seed, "subset"))
    order = torch.randperm(len(labels), generator=random)
    # The rank of each sample within its class, in random order; samples are taken rank by rank,
    # and within the last rank class by class in an order that is random too.
    shuffled = labels[order]
    classes = int(labels.max()) + 1
    turn = torch.randperm(classes, generator=random)
    rank = torch.zeros_like(shuffled)
    for label in range(classes):
        where = (shuffled == label).nonzero().flatten()
        rank[where] = torch.arange(len(where))
    first = torch.argsort(rank * classes + turn[shuffled])[:limit]
    return order[first].sort().values
