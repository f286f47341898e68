"""Random changes of images in training, as tensor operations on a whole batch."""

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor

from flatminima.data.dataset import Dataset
from flatminima.types import Nested

_PAD = 4


def augmentation(name: str, random: torch.Generator) -> Callable[[Nested], Nested] | None:
    """What `Dataset.batch` is to do with the stored images of each batch in turn.

    Args:
        name: `"none"` or `"crop_flip"`.
        random: Where the draws come from, on the CPU; it is moved on with every batch.

    Returns:
        A function of a batch of images, or None where nothing is to be done.
    """
    if name == "none":
        return None

    def change(images: Nested) -> Nested:
        return crop_flip(images, random)

    return change


def check_augmentation(name: str, dataset: Dataset) -> None:
    """Refuse to augment what is not images.

    Raises:
        ValueError: The stored inputs are not one tensor `[N, C, H, W]`.
    """
    inputs, _ = dataset.batch(slice(0, 1))
    if name != "none" and not (isinstance(inputs, Tensor) and inputs.ndim == 4):
        shape = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(
            f"expected images [N, C, H, W] for augment {name!r}, got {shape} from {dataset.name}; "
            "set augment to 'none'"
        )


def crop_flip(
    images: Shaped[Tensor, "n c h w"], random: torch.Generator, *, pad: int = _PAD
) -> Shaped[Tensor, "n c h w"]:
    """Each image shifted by up to `pad` pixels either way, and mirrored every second time.

    What comes in from outside an image is 0: black, where the images are stored pixels. The same
    as a random crop of the padded image and a random horizontal flip.

    Args:
        images: A batch in any element type.
        random: A generator on the CPU. It gives, for the whole batch, first the rows, then the
            columns of the crops, then the flips.
        pad: The largest shift.
    """
    count, channels, height, width = images.shape
    row = torch.randint(2 * pad + 1, (count, 1), generator=random)
    column = torch.randint(2 * pad + 1, (count, 1), generator=random)
    mirrored = torch.randint(2, (count, 1), generator=random).bool()
    across = torch.arange(width)
    rows = (row + torch.arange(height)).to(images.device)
    columns = (column + torch.where(mirrored, across.flip(0), across)).to(images.device)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    each = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[each, channel, rows[:, None, :, None], columns[:, None, None, :]]
