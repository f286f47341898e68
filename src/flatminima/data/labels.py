"""Label noise: `randomize_labels`."""

import torch
from torch import Tensor

from flatminima._seeds import derive_seed
from flatminima.data.dataset import Dataset
from flatminima.data.sources import SCHEMES, noisy_digest
from flatminima.types import Real


def randomize_labels(
    dataset: Dataset, fraction: Real, seed: int, *, scheme: str = "replace"
) -> Dataset:
    """A new data set in which a share of the labels is random; the given one is left as it is.

    Every sample is chosen with probability `fraction`, independently. Then, by `scheme`:

    - `"replace"`: its label is drawn uniformly over all classes, so that a share of only
      `fraction * (1 - 1 / classes)` is really wrong. This is the scheme of the original study.
    - `"flip"`: its label is drawn uniformly over the other classes.
    - `"permute"`: the labels of the chosen samples are shuffled among themselves, so that the
      number of samples in each class stays.

    With the same seed, the samples chosen for a smaller fraction are among those chosen for a
    larger one.

    Args:
        dataset: A set whose targets are class labels, int64 `[N]`.
        fraction: Probability that a sample is chosen, from 0 to 1.
        seed: Seed of the choice and of the new labels.
        scheme: `"replace"`, `"flip"` or `"permute"`.

    Returns:
        A set with the same inputs whose `changed` says which labels differ from those of `dataset`.
        With `fraction` 0 nothing is changed and the digest is that of `dataset`.

    Raises:
        ValueError: `fraction` is outside [0, 1], the scheme is unknown, the targets are not class
            labels, or there are fewer than two classes to flip between.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"expected a fraction from 0 to 1, got {fraction}; 0.5 randomises half of the labels"
        )
    if scheme not in SCHEMES:
        raise ValueError(f"expected a scheme out of {SCHEMES}, got {scheme!r}; take one of these")
    labels, classes = dataset.labels.cpu(), dataset.classes
    if classes is None or (scheme == "flip" and classes < 2):
        raise ValueError(
            f"expected labels out of at least two classes, got {classes} classes; "
            "pass classes= to Dataset"
        )
    if fraction == 0:
        changed = torch.zeros_like(labels, dtype=torch.bool).to(dataset.device)
        return dataset.relabelled(dataset.labels, changed, digest=dataset.digest)
    random = _stream(seed, "chosen")
    # In float64 a draw is never rounded up to 1, so that fraction 1 chooses every sample.
    chosen = torch.rand(len(labels), generator=random, dtype=torch.float64) < fraction
    new = _redrawn(labels, chosen, classes, scheme, _stream(seed, scheme))
    return dataset.relabelled(
        new.to(dataset.device),
        (new != labels).to(dataset.device),
        digest=noisy_digest(dataset.digest, float(fraction), seed, scheme),
    )


def _stream(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "labels", purpose))


def _redrawn(
    labels: Tensor, chosen: Tensor, classes: int, scheme: str, random: torch.Generator
) -> Tensor:
    """The labels after noise; draws are made for every sample, so they do not shift each other."""
    if scheme == "permute":
        where = chosen.nonzero().flatten()
        order = torch.randperm(len(where), generator=random)
        return labels.index_put((where,), labels[where[order]])
    if scheme == "flip":
        step = torch.randint(1, classes, labels.shape, generator=random)
        return torch.where(chosen, (labels + step) % classes, labels)
    drawn = torch.randint(classes, labels.shape, generator=random)
    return torch.where(chosen, drawn, labels)
