"""From single radii to a table with intervals and verdicts: the trained network is the unit.

Directions are shared by all networks, hence crossed with them and not nested: forty rays from one
network are one observation of that network, not forty. Every interval and every contrast below is
therefore computed on the networks' means, by Welch's t (`scipy.stats.ttest_ind`).
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float64
from scipy import stats

from flatminima.flatness._asides import (
    PERTURBED,
    add_epochs,
    add_interpolation,
    add_perturbed,
)
from flatminima.flatness.rays import OUTCOMES, PERTURBED_PROTOCOL, describe, flags, merge_radii
from flatminima.flatness.sentences import sentences

__all__ = ["merge_radii", "summarise", "welch"]

COLUMNS = {
    "as_published": ("end", "stepwise"),
    "measured_end": ("end", "crossing"),
    "measured_matched": ("matched", "crossing"),
}
"""The checkpoint and the protocol behind each column of the table; they are never mixed."""

# A column that only a study with this protocol has: it shows a fault and enters no comparison.
_ASIDE = {PERTURBED: ("end", PERTURBED_PROTOCOL)}

SCALES = ("absolute", "relative")
STATUSES = ("measured", "not_reached", "excluded", "not_measured")
VERDICTS = ("none", "first_flatter", "second_flatter", "unmatched")

_STATISTICS = ("mean", "geometric", "harmonic", "least", "median", "norm", "train_loss")
_CONFIDENCE = 0.95
# Networks whose means differ by less than this share of the mean show no spread but rounding, and
# a t statistic made of rounding errors says nothing.
_NO_SPREAD = 1e-12


def summarise(
    settings: Mapping[str, Any], networks: Sequence[xr.Dataset], radii: xr.Dataset
) -> xr.Dataset:
    """Summarise the radii of a study: per network, per group, and first group against second.

    Per network the rays give the arithmetic mean (comparable with published tables), the geometric
    mean, and the harmonic form `(mean r^-2)^(-1/2)`, which on a quadratic estimates
    `sqrt(2 threshold n / tr H)` without the bias of the arithmetic mean. Rays that did not cross
    enter with the last distance known to be below the threshold, so the mean is then a lower bound.

    Args:
        settings: The study's settings as plain mappings in the form of the study file; read are
            `name`, `data` (dataset, split), `groups` (name, noise), `training` (match_loss,
            augment), `radius` (threshold, parameters, protocols, checkpoints), `summary` (exclude)
            and `report` (published).
        networks: The training history of every network, as in `Minimum.history`, with the
            attributes `group` and `network` (its seed) beside `outcome` and `matched_epoch`.
        radii: What `merge_radii` returned. A network is left out if its outcome is one that
            `[summary] exclude` names, or if its blocks say so themselves (it diverged, so that
            there is nothing to measure).

    Returns:
        A dataset with the coordinates column, parameters, group, network, scale and bound. A
        statistic is NaN only where `status` is not "measured". A verdict for the first or the
        second group is given only where the Welch 95 % interval of the difference excludes 0 and
        the smaller mean is not a mere lower bound; it is "unmatched" where a network never reached
        the loss at which the groups were to be compared. `sentences` (a JSON list) puts the result
        into words; `match_loss` is absent where no loss was named to compare at.

        A study with the protocol "stepwise_perturb" has a further column `as_published_perturbed`,
        for all parameters only, without contrasts and verdicts, and variables that say how its
        walks ended (see `add_perturbed`). Where networks are compared at the end of training,
        `epochs` and the attribute `matched_epochs` say whether after equally many epochs (see
        `add_epochs`); where they were trained with augmentation, `interpolates` whether they fit
        their labels nevertheless (see `add_interpolation`).

    Raises:
        ValueError: If the history or the radii of a network are missing, or histories repeat.
    """
    settings = _with_defaults(settings)
    histories = _by_network(settings, networks)
    summary = _empty(settings, sorted({seed for _, seed in histories}))
    for column in summary["column"].values:
        for (group, seed), history in histories.items():
            _fill_network(summary, settings, str(column), group, seed, history, radii)
    _fill_groups(summary)
    _fill_contrasts(summary)
    data, training = settings["data"], settings["training"]
    summary.attrs = {
        "study": str(settings.get("name", "")),
        "dataset": str(data.get("dataset", "")),
        "split": _split(settings),
        "threshold": float(settings["radius"].get("threshold", 0.05)),
        **({} if training["match_loss"] is None else {"match_loss": training["match_loss"]}),
        "excluded": json.dumps(_left_out(summary, histories)),
        "published": str(settings["report"].get("published", "")),
    }
    add_perturbed(summary, radii)
    add_epochs(summary, histories)
    add_interpolation(summary, settings, histories)
    summary.attrs["sentences"] = json.dumps(sentences(summary), ensure_ascii=False)
    return summary


def _with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every section present that a summary reads."""
    return {
        **settings,
        "data": settings.get("data", {}),
        "training": {"match_loss": None, **settings.get("training", {})},
        "radius": {"parameters": ["all", "top"], "protocols": [], **settings["radius"]},
        "summary": {"exclude": [], **settings.get("summary", {})},
        "report": settings.get("report", {}),
    }


def _split(settings: Mapping[str, Any]) -> str:
    """The split whose radii are summarised: the first of those that were measured."""
    split = settings["data"].get("split", "train")
    return split if isinstance(split, str) else str([*split, "train"][0])


def _by_network(
    settings: Mapping[str, Any], networks: Sequence[xr.Dataset]
) -> dict[tuple[str, int], xr.Dataset]:
    """The histories by group and network, each network of every group once."""
    groups = [str(group["name"]) for group in settings["groups"]]
    found: dict[tuple[str, int], xr.Dataset] = {}
    for history in networks:
        where = (str(history.attrs["group"]), int(history.attrs["network"]))
        if where[0] not in groups or where in found:
            raise ValueError(
                f"expected one history for each network of the groups {', '.join(groups)}, got "
                f"network {where[1]} of group {where[0]!r} {'twice' if where in found else ''}"
                "; give each network of the study once"
            )
        found[where] = history
    seeds = sorted({seed for _, seed in found})
    for group in groups:
        for seed in seeds:
            if (group, seed) not in found:
                raise ValueError(
                    f"expected a history for network {seed} of group {group!r}, got none; give the "
                    "histories of all networks, also of those that diverged"
                )
    return {(group, seed): found[group, seed] for group in groups for seed in seeds}


def _empty(settings: Mapping[str, Any], seeds: Sequence[int]) -> xr.Dataset:
    """The summary with its coordinates, nothing measured yet."""
    protocols = settings["radius"]["protocols"]
    aside = [name for name, (_, protocol) in _ASIDE.items() if protocol in protocols]
    coordinates: dict[str, list[Any]] = {
        "column": [*COLUMNS, *aside],
        "parameters": [str(name) for name in settings["radius"]["parameters"]],
        "group": [str(group["name"]) for group in settings["groups"]],
        "network": list(seeds),
        "scale": list(SCALES),
        "bound": ["low", "high"],
    }
    summary = xr.Dataset(coords=coordinates)
    per_network = ("column", "parameters", "group", "network")
    per_group, contrast = per_network[:3], ("column", "parameters", "scale")

    def add(dims: tuple[str, ...], fill: float | int, kind: type, *names: str) -> None:
        shape = [len(coordinates[dim]) for dim in dims]
        for name in names:
            summary[name] = (dims, np.full(shape, fill, dtype=kind))

    add(per_network, np.nan, float, *_STATISTICS)
    add(per_network, 0, np.int64, "rays", "censored", "non_finite")
    add(per_network, STATUSES.index("not_measured"), np.int8, "status")
    add(per_group, np.nan, float, "group_mean", "group_deviation", "group_relative")
    add(per_group, np.nan, float, "group_geometric", "group_harmonic", "group_least")
    add(per_group, np.nan, float, "group_train_loss")
    add((*per_group, "bound"), np.nan, float, "group_interval", "group_relative_interval")
    add(per_group, 0, np.int64, "group_n", "group_rays", "group_not_crossed")
    add(per_group, 0, np.int64, "not_reached", "excluded")
    add(contrast, np.nan, float, "difference", "p_value", "ratio")
    add((*contrast, "bound"), np.nan, float, "interval")
    add(contrast, VERDICTS.index("none"), np.int8, "verdict")
    summary["status"].attrs.update(flags(STATUSES))
    summary["verdict"].attrs.update(flags(VERDICTS))
    return summary


def _fill_network(
    summary: xr.Dataset,
    settings: Mapping[str, Any],
    column: str,
    group: str,
    seed: int,
    history: xr.Dataset,
    radii: xr.Dataset,
) -> None:
    """Write the statistics of one network in one column, or why there are none."""
    checkpoint, protocol = (COLUMNS | _ASIDE)[column]
    epoch = -1 if checkpoint == "end" else int(history.attrs["matched_epoch"])
    wanted = protocol in settings["radius"]["protocols"] and (
        checkpoint == "end" or settings["training"]["match_loss"] is not None
    )
    if protocol == "crossing":
        wanted = wanted and checkpoint in settings["radius"].get("checkpoints", [checkpoint])
    for parameters in summary["parameters"].values:
        at = {"column": column, "parameters": parameters, "group": group, "network": seed}
        key = {
            "group": group,
            "network": seed,
            "checkpoint": checkpoint,
            "parameters": str(parameters),
            "protocol": protocol,
            "split": _split(settings),
        }
        if not wanted or (column in _ASIDE and parameters != "all"):
            status = "not_measured"
        elif str(history.attrs["outcome"]) in settings["summary"]["exclude"]:
            status = "excluded"
        elif checkpoint == "matched" and epoch < 0:
            status = "not_reached"
        else:
            status = _remembered(radii, key)
        summary["status"].loc[at] = STATUSES.index(status)
        if status != "measured":
            continue
        chosen = np.logical_and.reduce([radii[name].values == value for name, value in key.items()])
        if not chosen.any():
            raise ValueError(
                f"expected radii of {describe(key)}, got none; measure them, or name the outcome "
                f"{history.attrs['outcome']!r} in [summary] exclude"
            )
        rays = radii.isel(ray=np.flatnonzero(chosen))
        values = {
            **_ray_statistics(rays["radius"].values),
            "norm": float(rays["norm"].values[0]),
            "train_loss": float(_at_epoch(history, epoch)),
            "rays": rays.sizes["ray"],
            "censored": int((rays["outcome"] == OUTCOMES.index("censored")).sum()),
            "non_finite": int((rays["outcome"] == OUTCOMES.index("non_finite")).sum()),
        }
        for name, value in values.items():
            summary[name].loc[at] = value


def _remembered(radii: xr.Dataset, key: Mapping[str, Any]) -> str:
    """Why a block of radii has no rays, as it said itself, or "measured"."""
    for record in json.loads(radii.attrs["unmeasured"]):
        if all(record[name] == value for name, value in key.items()):
            return str(record["status"])
    return "measured"


def _left_out(
    summary: xr.Dataset, histories: Mapping[tuple[str, int], xr.Dataset]
) -> list[dict[str, Any]]:
    """The networks that are in no column, with the outcome of their training."""
    excluded = (summary["status"] == STATUSES.index("excluded")).any(["column", "parameters"])
    return [
        {"group": group, "network": seed, "outcome": str(history.attrs["outcome"])}
        for (group, seed), history in histories.items()
        if excluded.sel(group=group, network=seed)
    ]


def _at_epoch(history: xr.Dataset, epoch: int) -> float:
    """The whole-set train loss at an epoch's end; -1 is the end of training."""
    losses = history["train_loss"]
    return float(losses[-1] if epoch < 0 else losses.sel(epoch=epoch))


def _ray_statistics(radii: Float64[np.ndarray, " rays"]) -> dict[str, float]:
    """The arithmetic, geometric and harmonic forms, the least and the median of one network."""
    # A radius of 0 (non-finite at once, a first step that was too long) makes the others 0.
    positive = bool((radii > 0).all())
    return {
        "mean": float(radii.mean()),
        "geometric": float(stats.gmean(radii)) if positive else 0.0,
        "harmonic": float(np.mean(radii**-2.0) ** -0.5) if positive else 0.0,
        "least": float(radii.min()),
        "median": float(np.median(radii)),
    }


def _fill_groups(summary: xr.Dataset) -> None:
    """Write the statistics over the networks of each group."""
    status = summary["status"]
    measured = status == STATUSES.index("measured")
    over = "network"
    summary["group_n"] = measured.sum(over)
    summary["not_reached"] = (status == STATUSES.index("not_reached")).sum(over)
    summary["excluded"] = (status == STATUSES.index("excluded")).sum(over)
    summary["group_mean"] = summary["mean"].mean(over)
    summary["group_deviation"] = summary["mean"].std(over, ddof=0)
    summary["group_relative"] = (summary["mean"] / summary["norm"]).mean(over)
    summary["group_geometric"] = summary["geometric"].mean(over)
    summary["group_harmonic"] = summary["harmonic"].mean(over)
    summary["group_least"] = summary["least"].min(over)
    summary["group_train_loss"] = summary["train_loss"].mean(over)
    summary["group_rays"] = summary["rays"].sum(over)
    summary["group_not_crossed"] = (summary["censored"] + summary["non_finite"]).sum(over)
    for at in _cells(summary, "column", "parameters", "group"):
        for scale, name in zip(SCALES, ("group_interval", "group_relative_interval"), strict=True):
            summary[name].loc[at] = np.array(_interval(_means(summary, at, scale)))


def _fill_contrasts(summary: xr.Dataset) -> None:
    """Compare the first group with the second in every column, by Welch's t on networks' means."""
    if summary.sizes["group"] < 2:
        return
    groups = summary["group"].values[:2]
    for at in _cells(summary, "column", "parameters", "scale"):
        if at["column"] in _ASIDE:
            continue
        column = {name: at[name] for name in ("column", "parameters")}
        cells = [{**column, "group": group} for group in groups]
        if any(int(summary["not_reached"].loc[cell]) > 0 for cell in cells):
            summary["verdict"].loc[at] = VERDICTS.index("unmatched")
            continue
        first, second = (_means(summary, cell, at["scale"]) for cell in cells)
        if not (len(first) and len(second)):
            continue
        lower_bound = [int(summary["group_not_crossed"].loc[cell]) > 0 for cell in cells]
        interval, p_value = welch(first, second)
        summary["difference"].loc[at] = first.mean() - second.mean()
        summary["interval"].loc[at] = np.array(interval)
        summary["p_value"].loc[at] = p_value
        if second.mean() > 0:
            summary["ratio"].loc[at] = first.mean() / second.mean()
        # What may be larger than it looks must not lose a comparison.
        if interval[0] > 0 and not lower_bound[1]:
            summary["verdict"].loc[at] = VERDICTS.index("first_flatter")
        elif interval[1] < 0 and not lower_bound[0]:
            summary["verdict"].loc[at] = VERDICTS.index("second_flatter")


def _cells(summary: xr.Dataset, *dims: str) -> list[dict[str, Any]]:
    """Every combination of the values of some coordinates."""
    cells: list[dict[str, Any]] = [{}]
    for dim in dims:
        cells = [{**cell, dim: value} for cell in cells for value in summary[dim].values]
    return cells


def _means(summary: xr.Dataset, at: Mapping[str, Any], scale: str) -> Float64[np.ndarray, " n"]:
    """The means of the networks that were measured, absolute or relative to their norms."""
    means = summary["mean"].loc[at].values
    if scale == "relative":
        means = means / summary["norm"].loc[at].values
    chosen: Bool[np.ndarray, " networks"] = summary["status"].loc[at].values == 0
    return np.asarray(means[chosen], dtype=float)


def _no_spread(*samples: Float64[np.ndarray, " _"]) -> bool:
    """Whether no sample varies beyond rounding."""
    return all(np.ptp(sample) <= _NO_SPREAD * np.abs(sample).max() for sample in samples)


def _interval(means: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % t interval of the mean of n networks; NaN for one network or without spread."""
    if len(means) < 2 or _no_spread(means):
        return (np.nan, np.nan)
    bounds = stats.ttest_1samp(means, 0.0).confidence_interval(_CONFIDENCE)
    return (float(bounds.low), float(bounds.high))


def welch(
    first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " m"]
) -> tuple[tuple[float, float], float]:
    """Welch's t of two groups of networks (Welch, Biometrika 34, 1947).

    Args:
        first: One mean per network of the first group.
        second: One mean per network of the second group.

    Returns:
        The 95 % interval of the difference of the groups' means, and the two-sided p value; NaN
        where a group has fewer than two networks or neither group shows any spread, since nothing
        can then be said about how far two networks of one kind differ.
    """
    if min(len(first), len(second)) < 2 or _no_spread(first, second):
        return (np.nan, np.nan), np.nan
    with warnings.catch_warnings():
        # One group alone may be without spread (all its networks censored at one limit).
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        result = stats.ttest_ind(first, second, equal_var=False)
    bounds = result.confidence_interval(_CONFIDENCE)
    return (float(bounds.low), float(bounds.high)), float(result.pvalue)
