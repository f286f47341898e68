"""How a study was set up: against the published setting, and what its comparisons hold equal."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flatminima.report.contents import StudyContents
from flatminima.report.published import NETWORKS, SETTINGS, PublishedSetting

DATASETS = {
    "digits": "scikit-learn's digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}
CLASSES = dict.fromkeys(DATASETS, 10)
MODELS = {"mlp": "MLP", "vgg16": "VGG16"}
AUGMENTATIONS = {"none": "no augmentation", "crop_flip": "random crop and flip"}


def dataset_name(study: StudyContents) -> str:
    """The data set by its usual name."""
    name = str(study.section("data").get("dataset", "unknown data"))
    return DATASETS.get(name, name)


def short_name(study: StudyContents) -> str:
    """What sets a study apart over a panel: "CIFAR-10 (reduced version, test split)"."""
    apart = [] if study.version == "full version" else [study.version]
    if study.split != "train":
        apart.append(f"{study.split} split")
    return dataset_name(study) + (f" ({', '.join(apart)})" if apart else "")


def deviations(study: StudyContents) -> list[str]:
    """Where the study departs from the published setting, each "ours (published: theirs)".

    Empty if it keeps to it, and if no published numbers stand beside it.
    """
    published = SETTINGS.get(study.published)
    return [] if published is None else list(_deviations(study, published))


def setting_note(study: StudyContents) -> str:
    """One sentence on whether this is the published setting, empty without published numbers."""
    if study.published not in SETTINGS:
        return ""
    apart = deviations(study)
    if not apart:
        return "The published setting."
    return f"Not the published setting: {'; '.join(apart)}."


def matched_note(study: StudyContents) -> str:
    """What is held equal where the loss is: "at matched train loss 0.05"."""
    loss = study.section("training").get("match_loss")
    return "at matched train loss" + (f" {loss:g}" if loss is not None else "")


def end_note(study: StudyContents) -> str:
    """What is, or is not, held equal at the end of training, e.g. "at matched epochs"."""
    epochs = [(group, _epochs(study, group)) for group in study.groups]
    different = {text for _, text in epochs}
    if len(epochs) > 1 and len(different) == 1:
        return f"at matched epochs ({different.pop()}, the end of training)"
    told = " against ".join(f"{text} {group}" for group, text in epochs)
    return f"at the end of training (epochs: {told})" if told else "at the end of training"


def checkpoint_note(study: StudyContents, checkpoint: str) -> str:
    """`matched_note` or `end_note`."""
    notes = {"matched": matched_note, "end": end_note}
    return notes[checkpoint](study) if checkpoint in notes else checkpoint


def _epochs(study: StudyContents, group: str) -> str:
    """How many epochs the networks of a group were trained: as it was, or as it was asked for."""
    done = [int(n.history["epoch"].values[-1]) for n in study.networks if n.group == group]
    if not done:
        return str(_asked_epochs(study, group))
    return _range(done)


def _range(values: Sequence[int]) -> str:
    low, high = int(np.min(values)), int(np.max(values))
    return str(low) if low == high else f"{low} to {high}"


def _asked_epochs(study: StudyContents, group: str) -> Any:
    own = [g.get("epochs") for g in study.settings.get("groups", []) if g["name"] == group]
    return (own and own[0]) or study.section("training").get("epochs", "?")


def _deviations(study: StudyContents, published: PublishedSetting) -> Iterator[str]:
    data, training = study.section("data"), study.section("training")
    model = study.section("model")
    limit = data.get("limit")
    if data.get("dataset") != study.published:
        yield f"{dataset_name(study)} (published: {DATASETS[study.published]})"
    elif limit and limit < published.images:
        yield f"{limit:,} training images (published: {published.images:,})"
    if model.get("name") != published.model or model.get("settings"):
        settings = ", ".join(f"{key} {value}" for key, value in model.get("settings", {}).items())
        name = MODELS.get(str(model.get("name")), str(model.get("name")))
        yield f"{name}{f' with {settings}' if settings else ''} (published: {_model(published)})"
    epochs = {group: _asked_epochs(study, group) for group in study.groups}
    if epochs != dict(published.epochs):
        yield f"epochs {_by_group(epochs)} (published: {_by_group(published.epochs)})"
    for key, words, theirs in (
        ("batch_size", "batches of", published.batch_size),
        ("learning_rate", "learning rate", published.learning_rate),
        ("momentum", "momentum", 0.0),
        ("weight_decay", "weight decay", 0.0),
    ):
        if (ours := training.get(key, theirs)) != theirs:
            yield f"{words} {ours:g} (published: {theirs:g})"
    for key, usual in (("optimizer", "sgd"), ("schedule", "constant"), ("stop_at_loss", None)):
        if (ours := training.get(key, usual)) != usual:
            yield f"{key.replace('_', ' ')} {ours} (published: {usual or 'none'})"
    augment = str(training.get("augment", "none"))
    if augment != published.augment:
        theirs_too = AUGMENTATIONS[published.augment]
        yield f"{AUGMENTATIONS.get(augment, augment)} (published: {theirs_too})"
    if (precision := training.get("precision", "float32")) != "float32":
        yield f"trained in {precision} (published: float32)"
    if (networks := training.get("networks", NETWORKS)) != NETWORKS:
        yield f"{networks} networks a group (published: {NETWORKS})"
    yield from _label_deviations(study)


def _label_deviations(study: StudyContents) -> Iterator[str]:
    """Random labels other than half of them redrawn over all classes."""
    for group in study.settings.get("groups", []):
        noise, scheme = float(group.get("noise", 0.0)), group.get("scheme", "replace")
        if noise > 0 and (noise, scheme) != (0.5, "replace"):
            yield f"{group['name']} labels by {scheme} {noise:g} (published: replace 0.5)"


def _model(published: PublishedSetting) -> str:
    return f"{MODELS[published.model]} at full width"


def _by_group(epochs: Any) -> str:
    if len(set(epochs.values())) == 1:
        return str(next(iter(epochs.values())))
    return ", ".join(f"{value} {group}" for group, value in epochs.items())
