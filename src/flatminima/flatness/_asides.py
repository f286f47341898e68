"""What stands in a summary beside its comparisons, and takes part in none of them.

Each of these adds its variables only where the study asked for what they tell, so that a summary
made without keeps its bytes.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from flatminima.flatness.rays import OUTCOMES, PERTURBED_PROTOCOL, flags

PERTURBED = "as_published_perturbed"
"""The column of the published walk that moved running statistics too."""

INTERPOLATES = 0.999
"""A network interpolates its labels if, at the end of training and without augmentation, it gives
at least this share of them."""

# The published recipe of this data set trains its groups for 30 and 150 epochs, which its study and
# report state; its stored summaries keep their bytes.
_EPOCHS_STATED = ("mnist",)

Histories = Mapping[tuple[str, int], xr.Dataset]


def add_perturbed(summary: xr.Dataset, radii: xr.Dataset) -> None:
    """Add how the walks of the perturbed column ended, if the study has that column.

    Per network, and per group with the prefix `group_`: `ended_non_finite` (walks that ended
    because the loss was no longer finite), `ended_negative` (those of them with a negative running
    variance at that step), `least_non_finite` and `least_negative` (the smallest radius of such a
    walk, infinite if there is none), `first_negative` (the smallest distance at which a variance
    falls below zero on any of the directions, infinite if none does) and `smallest_variance` (of
    the networks themselves). Counts are 0 and the rest NaN for a network that was not measured.
    """
    if PERTURBED not in summary["column"].values:
        return
    groups, networks = summary["group"].values, summary["network"].values
    shape = (len(groups), len(networks))
    counts = {name: np.zeros(shape, np.int64) for name in ("ended_non_finite", "ended_negative")}
    names = ("least_non_finite", "least_negative", "first_negative", "smallest_variance")
    least = {name: np.full(shape, np.nan) for name in names}
    walked = (summary["status"].sel(column=PERTURBED) == 0).any("parameters")
    for at, measured in np.ndenumerate(walked.transpose("group", "network").values):
        if not measured:
            continue
        rays = _walks(radii, summary, str(groups[at[0]]), int(networks[at[1]]))
        ended = rays["outcome"].values == OUTCOMES.index("non_finite")
        negative = ended & (rays["negative_variances"].values > 0)
        counts["ended_non_finite"][at] = ended.sum()
        counts["ended_negative"][at] = negative.sum()
        for name, chosen in (("least_non_finite", ended), ("least_negative", negative)):
            least[name][at] = rays["radius"].values[chosen].min(initial=np.inf)
        for name in ("first_negative", "smallest_variance"):
            least[name][at] = rays[name].values.min()
    for name, values in counts.items():
        summary[name] = (("group", "network"), values)
        summary[f"group_{name}"] = summary[name].sum("network")
    for name, lowest in least.items():
        summary[name] = (("group", "network"), lowest)
        summary[f"group_{name}"] = summary[name].min("network")


def _walks(radii: xr.Dataset, summary: xr.Dataset, group: str, network: int) -> xr.Dataset:
    """The perturbed walks of one network."""
    wanted = {
        "protocol": PERTURBED_PROTOCOL,
        "parameters": "all",
        "split": summary.attrs["split"],
        "group": group,
        "network": network,
    }
    chosen = np.logical_and.reduce([radii[name].values == value for name, value in wanted.items()])
    return radii.isel(ray=np.flatnonzero(chosen))


def end_column(summary: xr.Dataset) -> str:
    """The column that compares networks at the end of training.

    The published walk takes the place of crossings where the study asked for those at matched loss
    alone.
    """
    status = summary["status"]
    unasked = status.attrs["flag_meanings"].split().index("not_measured")
    end, matched = (
        bool((status.sel(column=column) != unasked).any())
        for column in ("measured_end", "measured_matched")
    )
    return "as_published" if matched and not end else "measured_end"


def add_epochs(summary: xr.Dataset, histories: Histories) -> None:
    """Add for how many epochs every network was trained, as `epochs`, and `matched_epochs`.

    The latter is 1 if all networks that are compared at the end of training had the same number.
    Both are left out where nothing is compared there, and where the groups were trained for the
    different numbers of epochs of a published recipe.
    """
    epochs = {where: int(history["epoch"].values[-1]) for where, history in histories.items()}
    trained = _table(summary, epochs).astype(np.int64)
    measured = (summary["status"].sel(column=end_column(summary)) == 0).any("parameters")
    compared = measured.transpose("group", "network").values[:2]
    if len(compared) < 2 or not compared.any(axis=1).all():
        return
    same = len(np.unique(trained[:2][compared])) == 1
    if not same and summary.attrs["published"] in _EPOCHS_STATED:
        return
    summary["epochs"] = (("group", "network"), trained)
    summary.attrs["matched_epochs"] = int(same)


def add_interpolation(
    summary: xr.Dataset, settings: Mapping[str, Any], histories: Histories
) -> None:
    """Add whether the networks interpolate their labels, if they were trained with augmentation.

    Per network `end_accuracy` and `end_loss` of the training set at the end of training, without
    augmentation, and `interpolates`; the attributes `augment`, `interpolation_accuracy` and
    `randomised` (the groups with label noise, whose interpolation is no matter of course).
    """
    augment = str(settings["training"].get("augment", "none"))
    if augment == "none":
        return
    accuracy = {key: float(history["train_accuracy"][-1]) for key, history in histories.items()}
    losses = {key: float(history["train_loss"][-1]) for key, history in histories.items()}
    dims = ("group", "network")
    summary["end_accuracy"] = (dims, _table(summary, accuracy))
    summary["end_loss"] = (dims, _table(summary, losses))
    summary["interpolates"] = (summary["end_accuracy"] >= INTERPOLATES).astype(np.int8)
    summary["interpolates"].attrs.update(flags(("no", "yes")))
    noisy = [str(g["name"]) for g in settings["groups"] if float(g.get("noise", 0.0)) > 0]
    summary.attrs["augment"] = augment
    summary.attrs["interpolation_accuracy"] = INTERPOLATES
    summary.attrs["randomised"] = json.dumps(noisy)


def _table(summary: xr.Dataset, values: Mapping[tuple[str, int], float | int]) -> np.ndarray:
    """One number per network as an array [group, network]."""
    return np.array(
        [
            [values[str(group), int(network)] for network in summary["network"].values]
            for group in summary["group"].values
        ],
        dtype=float,
    )
