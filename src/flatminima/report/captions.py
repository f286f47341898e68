"""Captions: every figure states its data, policy, n, loss and version."""

from collections.abc import Sequence

import numpy as np

from flatminima.report.contents import StudyContents, Surface
from flatminima.report.planes import plane_facts, stored_difference, what_to_see
from flatminima.report.published import CITATION, PUBLISHED
from flatminima.report.radii import drawn_outcomes
from flatminima.report.setting import (
    AUGMENTATIONS,
    CLASSES,
    checkpoint_note,
    dataset_name,
    end_note,
    matched_note,
    setting_note,
)
from flatminima.report.tables import NOTE
from flatminima.report.words import series, span

_SCHEMES = {
    "replace": "each label redrawn uniformly over all classes with probability {noise:g}",
    "flip": "each label changed to another class with probability {noise:g}",
    "permute": "the labels of a share of {noise:g} shuffled among themselves",
}


# The code of points that were stopped early, among the outcomes of a surface.
_ABOVE_CLIP = 2
_INTERPOLATES = 0.999
"""Share of the train labels from which on a network counts as one that interpolates them."""


def data_name(study: StudyContents) -> str:
    """The data set and how much of it, e.g. "MNIST, 10,000 training images"."""
    data = study.section("data")
    name = dataset_name(study)
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
    whole = "" if _clipped(row) else " (the stored data are not clipped)"
    return " ".join(
        [
            f"Loss on the plane through three minima of each group. {_surface_facts(study, row)}",
            f"One colour scale, clip and camera; a loss above {study.clip:g} is drawn as a plateau "
            f"at {study.clip:g}{whole}. Pins: the minima and their own "
            "losses. Between grid points the drawing is interpolated.",
            _holes(row, "left open"),
            _version(study),
        ]
    ).replace("  ", " ")


def plane_caption(study: StudyContents, surface: Surface) -> str:
    """Under one relief by itself."""
    parts = (_surface_facts(study, [surface]), _holes([surface], "left open"), _version(study))
    return " ".join(part for part in parts if part)


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
    augment = str(study.section("training").get("augment", "none"))
    seen = (
        f" Trained with {AUGMENTATIONS.get(augment, augment)}, measured without."
        if augment != "none"
        else ""
    )
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
            f"with its true labels, after every epoch.{seen}",
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
        if drawn_outcomes(study.radii) - {"crossed"}
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
        _sampled(study),
        _version(study),
    )
    return " ".join(part for part in parts if part)


def _sampled(study: StudyContents) -> str:
    """Over how many examples the way to the crossings was looked for, if not over all."""
    assert study.radii is not None
    attrs = study.radii.attrs
    if not attrs.get("sampled"):
        return ""
    return (
        "Radii of more than the top layer: bracketed over all samples; the way there was looked for"
        f" over {int(attrs['sampled']):,} of them, drawn by importance, where a rise differed by"
        f" {attrs['largest_difference']:.2g} at most."
    )


def table_caption(study: StudyContents) -> str:
    """Over the table."""
    source = f" Published: {CITATION}." if PUBLISHED.get(study.published) else ""
    return (
        f"Flatness radii. {data_name(study)}; {_count(study)}. The primary comparison is "
        f"{matched_note(study)}; the others are {end_note(study)}. {NOTE}{source} "
        f"{_version(study)} {setting_note(study)}"
    ).strip()


def planes_caption(study: StudyContents, surfaces: Sequence[Surface]) -> str:
    """Under one plane drawn under several BatchNorm policies: a line, then one for each policy."""
    first = surfaces[0]
    classes = CLASSES.get(str(study.section("data").get("dataset")))
    facts = plane_facts(surfaces, classes) if classes else []
    about = (
        f"One plane, {first.group} labels, networks {checkpoint_note(study, first.checkpoint)}, "
        f"{data_name(study)}: the same minima and colour scale under "
        f"{series([surface.policy for surface in surfaces])}.",
        _holes_by(surfaces),
        _version(study),
    )
    head = " ".join(part for part in about if part)
    return "\n".join([head, *(what_to_see(facts, classes) if classes else [])])


def interpolation_notes(study: StudyContents) -> list[str]:
    """For every group with random labels, whether its networks interpolate them.

    To interpolate is to fit every label; what was reached is given whatever it is.
    """
    augment = str(study.section("training").get("augment", "none"))
    how = AUGMENTATIONS.get(augment, augment)
    notes = []
    for group in study.settings.get("groups", []):
        found = [n.history for n in study.networks if n.group == group["name"]]
        if not found or float(group.get("noise", 0.0)) <= 0:
            continue
        accuracy = [float(history["train_accuracy"].values[-1]) for history in found]
        best = [float(history["train_accuracy"].max()) for history in found]
        notes.append(
            f"{str(group['name']).capitalize()} labels, {how}: {_fitted(accuracy)} At the end of "
            "training the accuracy on the labels they were trained on is "
            f"{span(min(accuracy), max(accuracy))} (best epochs: {span(min(best), max(best))}), "
            f"the train loss {_range(np.array([h['train_loss'].values[-1] for h in found]))}."
        )
    return notes


def _fitted(accuracy: Sequence[float]) -> str:
    """How many networks interpolate, in words."""
    full = sum(value >= _INTERPOLATES for value in accuracy)
    least = f"at least {100 * _INTERPOLATES:g} % of the labels fitted"
    if full == len(accuracy):
        return f"all {full} networks interpolate ({least})."
    if full == 0:
        return f"none of the {len(accuracy)} networks interpolates ({least})."
    return f"{full} of {len(accuracy)} networks interpolate ({least})."


def _surface_facts(study: StudyContents, row: Sequence[Surface]) -> str:
    """Data, loss, grid and policy of a row of surfaces."""
    made = [s for s in row if s.data is not None]
    if not made or made[0].data is None:
        return f"{data_name(study)}."
    attrs = made[0].data.attrs
    loss = str(attrs.get("loss_name", "loss")).replace("cross_entropy", "cross-entropy")
    size = made[0].data["loss"].shape
    split = made[0].split or "train"
    losses = "; ".join(
        f"{s.group} {_range(s.data['anchor_loss'].values)}" for s in made if s.data is not None
    )
    grid = study.section("surface").get("coordinates", "barycentric")
    return (
        f"{data_name(study)}; mean {loss} over {int(attrs['samples']):,} samples of the {split} "
        f"set, {size[1]} by {size[0]} points ({grid} grid), networks "
        f"{checkpoint_note(study, made[0].checkpoint)}, n = 3 networks a plane, losses at "
        f"the minima: {losses}. BatchNorm policy: {_policy(made[0])}."
        f"{_stored(made)}{_precision(made)}{_clipped(made)}"
    )


def _precision(made: Sequence[Surface]) -> str:
    """What half precision has cost, where a surface was computed in it."""
    attrs = [s.data.attrs for s in made if s.data is not None and "repeated" in s.data.attrs]
    if not attrs:
        return ""
    repeated = sum(int(each["repeated"]) for each in attrs)
    if not repeated:
        return " Fast precision was asked for; nothing was to be gained by it, and all is exact."
    off = max(float(each["largest_difference"]) for each in attrs)
    # Over all of them, where nothing is told.
    fewer = {int(each.get("compared_samples", each["samples"])) for each in attrs}
    fewer -= {int(each["samples"]) for each in attrs}
    over = f" (over {min(fewer):,} examples)" if fewer else ""
    return (
        f" Products in bfloat16: at {repeated} points computed in float32 too{over} the loss "
        f"differed by {off:.2g} at most; the minima's own losses are exact."
    )


def _clipped(made: Sequence[Surface]) -> str:
    """How many points were stopped early, where a surface was computed so."""
    found = [s.data for s in made if s.data is not None and "clip" in s.data.attrs]
    if not found:
        return ""
    points = sum(int((data["outcome"] == _ABOVE_CLIP).sum()) for data in found)
    return (
        f" {points} of {sum(data['outcome'].size for data in found)} points were stopped as soon as"
        f" their loss was certain to be above {found[0].attrs['clip']:g}."
    )


def _policy(surface: Surface) -> str:
    """The policy, and how many samples `recompute` pooled over."""
    samples = None if surface.data is None else surface.data.attrs.get("recompute_samples")
    if surface.policy != "recompute" or not samples:
        return surface.policy
    return f"recompute (statistics pooled over {int(samples):,} samples)"


def _stored(made: Sequence[Surface]) -> str:
    """How far the losses at the minima are from those with the statistics of training."""
    found = {s.group: stored_difference(s.data) for s in made if s.data is not None}
    parts = [
        f"{group} {_range(difference, signed=True)}"
        for group, difference in found.items()
        if difference is not None
    ]
    if not parts:
        return ""
    return f" Difference from those with the statistics that training left: {'; '.join(parts)}."


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


def _range(values: np.ndarray, *, signed: bool = False) -> str:
    """From the least to the largest of the finite values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "not finite"
    return span(float(finite.min()), float(finite.max()), signed=signed)


def _holes(row: Sequence[Surface], how: str) -> str:
    holes = [f"{surface.group} {surface.holes}" for surface in row if surface.holes]
    return f"Points without a finite loss are {how}: {', '.join(holes)}." if holes else ""


def _holes_by(surfaces: Sequence[Surface]) -> str:
    """The holes of every plane, by its policy."""
    holes = [f"{surface.policy} {surface.holes}" for surface in surfaces if surface.holes]
    return f"Holes (hatched on maps, left open in reliefs): {', '.join(holes)}." if holes else ""


def _count(study: StudyContents) -> str:
    networks = study.section("training").get("networks", "?")
    return f"n = {networks} networks a group"


def _version(study: StudyContents) -> str:
    return f"{study.version.capitalize()} of the study."
