"""Networks by name: the two of the published study.

`build_model(name, **settings)` returns an `nn.Module` that maps images to logits.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

# Channels of the convolutions of VGG16 (configuration D); "M" halves the image.
_VGG16: tuple[int | str, ...] = (
    *(64, 64, "M"),
    *(128, 128, "M"),
    *(256, 256, 256, "M"),
    *(512, 512, 512, "M"),
    *(512, 512, 512, "M"),
)


def mlp(*, sizes: Sequence[int] = (784, 800, 320, 50, 10)) -> nn.Module:
    """A ReLU network of affine layers; 900,880 parameters at its default sizes.

    Args:
        sizes: Units per layer, from the flattened input to the logits.
    """
    if len(sizes) < 2 or any(size < 1 for size in sizes):
        raise ValueError(
            f"expected sizes of at least two layers, each at least 1, got {list(sizes)};"
            " give for example [784, 100, 10]"
        )
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def vgg16(*, classes: int = 10, channels: int = 3, width: float = 1.0) -> nn.Module:
    """VGG16 for 32 x 32 images, with BatchNorm and one affine layer; 14,728,266 parameters.

    Args:
        classes: Number of logits.
        channels: Channels of the images.
        width: Factor on the number of channels of every convolution, for slim versions.
    """
    if width <= 0:
        raise ValueError(f"expected a positive width, got {width}; 1.0 is the published network")
    layers: list[nn.Module] = []
    before = channels
    for entry in _VGG16:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
            continue
        after = max(1, round(entry * width))
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, classes))


_MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "vgg16": vgg16}


def build_model(name: str, **settings: object) -> nn.Module:
    """Build the network `name`, freshly initialised from torch's global generator.

    Args:
        name: "mlp" or "vgg16".
        **settings: The network's own settings; see `flatminima.models.mlp` and `vgg16`.

    Raises:
        ValueError: For an unknown name or setting.

    Examples:
        >>> sum(p.numel() for p in build_model("mlp").parameters())
        900880
    """
    if name not in _MODELS:
        raise ValueError(
            f"expected a network among {sorted(_MODELS)}, got {name!r}; check the name"
        )
    try:
        return _MODELS[name](**settings)
    except TypeError as error:
        raise ValueError(f"expected settings of {name!r}, got {settings} ({error})") from None
