"""The numbers of the published study, as data to stand beside ours.

Source: Table 1 of the robustDL study (https://github.com/alexturn/robustDL), made after section IV
of arXiv 1801.02254. Each number is the mean
over 3 networks of the mean over 20 directions; the deviation is the population deviation of the
3 means. The study gives no interval, training loss or norm.
"""

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
