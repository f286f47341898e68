"""The numbers of the published study, as data to stand beside ours.

Source: Table 1 of the robustDL study (https://github.com/alexturn/robustDL), made after section IV
of arXiv 1801.02254. Each number is the mean
over 3 networks of the mean over 20 directions; the deviation is the population deviation of the
3 means. The study gives no interval, training loss or norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass

CITATION = "Table 1 of github.com/alexturn/robustDL, after section IV of arXiv 1801.02254"
NETWORKS = 3
RAYS = 20


@dataclass(frozen=True)
class PublishedRadius:
    """A published mean flatness radius and the population deviation of its three means."""

    mean: float
    deviation: float


PUBLISHED: dict[str, dict[tuple[str, str], PublishedRadius]] = {
    "mnist": {
        ("all", "natural"): PublishedRadius(13.9833, 0.1670),
        ("all", "random"): PublishedRadius(4.6333, 0.2461),
        ("top", "natural"): PublishedRadius(2.3400, 0.1393),
        ("top", "random"): PublishedRadius(3.8600, 0.0497),
    },
    "cifar10": {
        ("all", "natural"): PublishedRadius(14.2999, 0.2943),
        ("all", "random"): PublishedRadius(7.3167, 0.1312),
        ("top", "natural"): PublishedRadius(10.2667, 0.5632),
        ("top", "random"): PublishedRadius(4.8333, 0.0471),
    },
}
"""By the study file's `report.published` key, then by (parameters, group)."""


@dataclass(frozen=True)
class PublishedSetting:
    """How the published networks of one data set were trained."""

    images: int
    model: str
    epochs: Mapping[str, int]
    batch_size: int
    learning_rate: float
    augment: str


SETTINGS: dict[str, PublishedSetting] = {
    "mnist": PublishedSetting(60_000, "mlp", {"natural": 30, "random": 150}, 64, 0.01, "none"),
    "cifar10": PublishedSetting(
        50_000, "vgg16", {"natural": 150, "random": 150}, 128, 0.01, "crop_flip"
    ),
}
"""By the same key. All by plain SGD without momentum or decay, with each network's usual settings;
random labels redrawn uniformly with probability 0.5."""
EXTENT, RESOLUTION = (-0.4, 1.3), 50
"""The published square in barycentric coordinates, and its grid points along each axis."""
FIGURES: dict[tuple[str, str], int] = {
    ("mnist", "natural"): 1,
    ("mnist", "random"): 2,
    ("cifar10", "natural"): 3,
    ("cifar10", "random"): 4,
}
"""The published figures' numbers, by the same key and the group."""
