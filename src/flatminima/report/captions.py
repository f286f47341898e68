"""Captions: every figure states its data, policy, n, loss and version."""

from collections.abc import Sequence

import numpy as np

from flatminima.report.contents import StudyContents, Surface
from flatminima.report.published import CITATION, PUBLISHED
from flatminima.report.radii import outcomes
from flatminima.report.tables import NOTE, span

_DATASETS = {
    "digits": "scikit-learn's digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}

_SCHEMES = {
    "replace": "each label redrawn uniformly over all classes with probability {noise:g}",
    "flip": "each label changed to another class with probability {noise:g}",
    "permute": "the labels of a share of {noise:g} shuffled among themselves",
}


def data_name(study: StudyContents) -> str:
    """The data set and how much of it, e.g. "MNIST, 10,000 training images"."""
    data = study.section("data")
    name = _DATASETS.get(str(data.get("dataset")), str(data.get("dataset", "unknown data")))
    made = [s.data for s in study.surfaces if s.data is not None and s.split == "train"]
    samples = {int(surface.attrs["samples"]) for surface in made}
    if len(samples) == 1:
        return f"{name}, {samples.pop():,} training samples"
    limit = data.get("limit")
    return f"{name}, {limit:,} training samples" if limit else f"{name}, whole training set"


def labels_note(study: StudyContents) -> str:
    """What the groups' labels are."""
    parts = []
    for group in study.settings.get("groups", []):
        noise, scheme = float(group.get("noise", 0.0)), str(group.get("scheme", "replace"))
        how = _SCHEMES.get(scheme, f"{scheme}, {{noise:g}}").format(noise=noise)
        parts.append(f"{group['name']}: {how if noise > 0 else 'labels as they are'}")
    return "; ".join(parts)


def surfaces_caption(study: StudyContents, row: Sequence[Surface]) -> str:
    """Under the reliefs."""
    return " ".join(
        [
            f"Loss on the plane through three minima of each group. {_surface_facts(study, row)}",
            f"One colour scale, clip and camera; a loss above {study.clip:g} is drawn as a plateau "
            f"at {study.clip:g} (the stored data are not clipped). Pins: the minima and their own "
            "losses. Between grid points the drawing is interpolated.",
            _holes(row, "left open"),
            _version(study),
        ]
    ).replace("  ", " ")


def contours_caption(study: StudyContents, row: Sequence[Surface]) -> str:
    """Under the contour maps."""
    return " ".join(
        [
            f"The same planes as maps. {_surface_facts(study, row)}",
            "u and v are distances in weight space, at one length scale for all maps of a row. "
            "Dots: the minima and their losses; dashed: the distances between them. Colours follow "
            f"the square root of the loss up to {study.clip:g}.",
            _holes(row, "hatched"),
            _version(study),
        ]
    ).replace("  ", " ")


def training_caption(study: StudyContents) -> str:
    """Under the training curves."""
    outcomes = [
        f"{network.group}/{network.index}: {outcome}"
        for network in study.networks
        if (outcome := str(network.history.attrs.get("outcome", "fitted"))) != "fitted"
    ]
    apart = f"Not fitted: {', '.join(outcomes)}." if outcomes else ""
    match_loss = study.section("training").get("match_loss")
    dots = (
        f"Dots: the first epoch end at or below the matched loss {match_loss:g}."
        if match_loss is not None
        else ""
    )
    return " ".join(
        part
        for part in (
            f"{data_name(study)}; {labels_note(study)}.",
            f"{_count(study)}, a line each. Mean cross-entropy and accuracy in evaluation mode "
            "over the whole training set, with the labels it was trained on, and over the test set "
            "with its true labels, after every epoch.",
            dots,
            apart,
            _version(study),
        )
        if part
    )


def radii_caption(study: StudyContents) -> str:
    """Under the radii."""
    assert study.summary is not None
    assert study.radii is not None
    attrs = study.summary.attrs
    not_crossed = (
        "Open triangles and crosses: rays that did not cross, at the last distance known to be "
        "below."
        if outcomes(study.radii) - {"crossed"}
        else ""
    )
    published = (
        f"Open squares: published mean ± deviation ({CITATION})."
        if PUBLISHED.get(study.published)
        else ""
    )
    parts = (
        f"{data_name(study)}; {_count(study)}. Distance along a random direction at which the "
        f"{attrs.get('split', 'train')} loss has risen by {attrs['threshold']:g}; train loss at "
        f"which each was measured: {_losses(study)}.",
        "Small marks: single rays, the same directions for every network; bars: means of the "
        "networks; diamonds: means of the groups with 95 % t intervals on the networks' means.",
        not_crossed,
        published,
        f"BatchNorm policy: {_radius_policy(study)}.",
        _version(study),
    )
    return " ".join(part for part in parts if part)


def table_caption(study: StudyContents) -> str:
    """Over the table."""
    source = f" Published: {CITATION}." if PUBLISHED.get(study.published) else ""
    return f"Flatness radii. {data_name(study)}; {_count(study)}. {NOTE}{source} {_version(study)}"


def _surface_facts(study: StudyContents, row: Sequence[Surface]) -> str:
    """Data, loss, grid and policy of a row of surfaces."""
    made = [s for s in row if s.data is not None]
    if not made or made[0].data is None:
        return f"{data_name(study)}."
    attrs = made[0].data.attrs
    loss = str(attrs.get("loss_name", "loss")).replace("cross_entropy", "cross-entropy")
    size = made[0].data["loss"].shape
    split = made[0].split or "train"
    where = {"end": "at the end of training", "matched": "at matched loss"}
    losses = "; ".join(
        f"{s.group} {_range(s.data['anchor_loss'].values)}" for s in made if s.data is not None
    )
    grid = study.section("surface").get("coordinates", "barycentric")
    return (
        f"{data_name(study)}; mean {loss} over {int(attrs['samples']):,} samples of the {split} "
        f"set, {size[1]} by {size[0]} points ({grid} grid), networks "
        f"{where.get(made[0].checkpoint, made[0].checkpoint)}, n = 3 networks a plane, losses at "
        f"the minima: {losses}. BatchNorm policy: {attrs.get('batchnorm', 'unknown')}."
    )


def _radius_policy(study: StudyContents) -> str:
    """The policy that all rays were measured under; `merge_radii` keeps it if it is one."""
    assert study.radii is not None
    policy = str(study.radii.attrs.get("batchnorm", "see the settings"))
    return "none (the network has no such layer)" if policy == "none" else policy


def _losses(study: StudyContents) -> str:
    """Train losses of every group's networks in the columns that were measured."""
    assert study.summary is not None
    losses = study.summary["train_loss"].isel(parameters=0)
    parts = []
    for column, words in (("measured_matched", "matched"), ("measured_end", "end")):
        values = {
            group: losses.sel(column=column, group=group).dropna("network").values
            for group in study.groups
        }
        if all(found.size for found in values.values()):
            ranges = ", ".join(f"{group} {_range(found)}" for group, found in values.items())
            parts.append(f"{words} {ranges}")
    return "; ".join(parts) or "see the table"


def _range(values: np.ndarray) -> str:
    return span(float(np.min(values)), float(np.max(values)))


def _holes(row: Sequence[Surface], how: str) -> str:
    holes = [f"{surface.group} {surface.holes}" for surface in row if surface.holes]
    return f"Points without a finite loss are {how}: {', '.join(holes)}." if holes else ""


def _count(study: StudyContents) -> str:
    networks = study.section("training").get("networks", "?")
    return f"n = {networks} networks a group"


def _version(study: StudyContents) -> str:
    return f"{study.version.capitalize()} of the study."
