"""The answer to a study's question in plain sentences, no stronger than its numbers.

The comparison at matched train loss leads, since a flatter minimum at a lower loss is no news. A
difference is claimed only where `summarise` gave a verdict.
"""

import json
from typing import SupportsFloat

import numpy as np
import xarray as xr

from flatminima.flatness._asides import PERTURBED, end_column

# What the published table says of the top layer of the MNIST network, against its own trend.
_PUBLISHED_EXCEPTION = {"mnist": "The published exception, a larger top-layer radius for {second},"}
_PLACE = {"all": "over all parameters", "top": "in the top layer"}
_RELATIVE = "r/||w||"


def sentences(summary: xr.Dataset) -> list[str]:
    """Say what a summary shows.

    Args:
        summary: As `summarise` fills it, with its attributes except `sentences`.

    Returns:
        One to three sentences of comparison, led by the matched one, and where they apply which of
        them is at matched epochs, one on rays that did not cross, one on excluded networks, whether
        networks interpolate in spite of augmentation, and what perturbed running statistics did.
    """
    return [*_comparison(summary), *_interpolation(summary), *_perturbed(summary)]


def _comparison(summary: xr.Dataset) -> list[str]:
    """What the comparisons of the first group with the second say, and what limits them."""
    if summary.sizes["group"] < 2:
        return ["The study has one group of networks, so there is nothing to compare."]
    said = [
        *_matched(summary),
        *_at_end(summary),
        *_which(summary),
        *_bounds(summary),
        *_excluded(summary),
    ]
    if said:
        return said
    if _comparable(summary.sel(column="as_published")):
        return [
            "Only the published protocol was repeated: the table compares the groups by it, at the"
            f" train losses they ended with ({_losses(summary.sel(column='as_published'))})."
        ]
    return ["No radius was measured, so there is nothing to compare."]


def _matched(summary: xr.Dataset) -> list[str]:
    """The comparison between checkpoints of matched train loss, or why there is none."""
    column = summary.sel(column="measured_matched")
    if not _asked(column):
        return []
    first, second = _groups(summary)
    loss = summary.attrs["match_loss"]
    total = summary.sizes["network"]
    missing = [
        f"{group}: not reached ({count} of {total})"
        for group in (first, second)
        if (count := int(column["not_reached"].sel(group=group).max()))
    ]
    if missing:
        return [
            f"No comparison at matched train loss is made, since not every network reached "
            f"{loss:g} ({'; '.join(missing)}): the question is open at matched loss."
        ]
    if not _comparable(column):
        return ["No comparison at matched train loss is made, since a group has no network left."]
    opening = (
        f"At matched train loss (first epoch end at or below {loss:g}: {_losses(column)}; "
        f"{_sizes(column)})"
    )
    said = []
    for parameters in column["parameters"].values:
        cell = column.sel(parameters=parameters)
        exception = _PUBLISHED_EXCEPTION.get(summary.attrs["published"])
        if parameters == "top" and exception:
            said.append(_exception(cell, exception.format(second=second)))
        else:
            said.append(
                f"{opening}, {_claim(cell, 'absolute')} {_place(cell)}: mean radius "
                f"{_numbers(cell, 'absolute')}; {_relative(cell)} ({_numbers(cell, 'relative')})."
            )
        opening = "At matched train loss"
    return said


def _at_end(summary: xr.Dataset) -> list[str]:
    """The comparison at the end of training, at whatever losses the groups ended with."""
    name = end_column(summary)
    column = summary.sel(column=name)
    if not _comparable(column):
        return []
    cells = [column.sel(parameters=parameters) for parameters in column["parameters"].values]
    clauses = [
        f"{_claim(cell, 'absolute')} {_place(cell)} (mean radius {_numbers(cell, 'absolute')}; "
        f"{_relative(cell)})"
        for cell in cells
    ]
    how = "" if name == "measured_end" else " by the published walk,"
    return [
        f"At the end of training,{how} with the train losses the groups ended with "
        f"({_losses(column)}; {_sizes(column)}), {', and '.join(clauses)}."
    ]


def _which(summary: xr.Dataset) -> list[str]:
    """Which comparison is at matched loss and is the primary one, and which at matched epochs."""
    if "matched_epochs" not in summary.attrs:
        return []
    measured = (summary["status"].sel(column=end_column(summary)) == 0).any("parameters")
    epochs = summary["epochs"].where(measured)
    ranges = [_span(epochs.sel(group=group), ".0f") for group in _groups(summary)]
    if summary.attrs["matched_epochs"]:
        how = f"at matched epochs ({ranges[0]} for every network)"
    else:
        told = zip(_groups(summary), ranges, strict=True)
        how = f"not at matched epochs ({', '.join(f'{group} {text}' for group, text in told)})"
    matched = summary.sel(column="measured_matched")
    if _comparable(matched) and not (matched["not_reached"] > 0).any():
        return [
            "The comparison at matched train loss is the primary one; that at the end of training"
            f" is {how} and not at matched loss."
        ]
    return [f"The comparison at the end of training is {how} and not at matched train loss."]


def _interpolation(summary: xr.Dataset) -> list[str]:
    """Whether networks trained with augmentation fit the random labels they were given."""
    if "augment" not in summary.attrs:
        return []
    meanings = summary["status"].attrs["flag_meanings"].split()
    kept = (summary["status"] != meanings.index("excluded")).all(["column", "parameters"])
    said = []
    for group in json.loads(summary.attrs["randomised"]):
        own = summary.sel(group=group).isel(network=np.flatnonzero(kept.sel(group=group)))
        total, fitted = own.sizes["network"], int(own["interpolates"].sum())
        if not total:
            continue
        count = {total: f"all {total}", 0: f"none of the {total}"}
        said.append(
            f"Trained with augmentation ({summary.attrs['augment']}), "
            f"{count.get(fitted, f'{fitted} of the {total}')} {group} networks interpolate their "
            f"labels (a train accuracy of {summary.attrs['interpolation_accuracy']:g} or more at "
            "the end of training, without augmentation): the accuracy is "
            f"{_span(own['end_accuracy'], '.4f')}, the train loss {_span(own['end_loss'])}."
        )
    return said


def _perturbed(summary: xr.Dataset) -> list[str]:
    """Whether negative variances end walks that move running statistics, when, and how many."""
    if PERTURBED not in summary["column"].values or "all" not in summary["parameters"].values:
        return []
    cells = summary.sel(parameters="all")
    walks, means = [], []
    for group in summary["group"].values:
        cell, alone = (cells.sel(group=group, column=name) for name in (PERTURBED, "as_published"))
        if not int(cell["group_n"]):
            continue
        walks.append(_ended(cell))
        without = f" (weights alone: {_short(alone['group_mean'])})" if alone["group_n"] else ""
        means.append(f"{_short(cell['group_mean'])} for {group}{without}")
    if not walks:
        return []
    return [
        "Where the walk moves the running statistics too, as the published one did, a negative"
        f" variance ends {', and '.join(walks)}. The mean radius is then {', and '.join(means)}."
        " This shows a fault and enters no comparison."
    ]


def _ended(cell: xr.Dataset) -> str:
    """How many of a group's perturbed walks a negative variance ended, and from which radius."""
    rays, negative = int(cell["group_rays"]), int(cell["group_ended_negative"])
    others = int(cell["group_ended_non_finite"]) - negative
    more = f", and {others} more ended at a loss that was not finite" if others else ""
    whose = f"{rays} walks of the {cell['group'].item()} networks"
    nearest = float(cell["group_first_negative"])
    if negative:
        least = _short(cell["group_least_negative"])
        return f"{negative} of {whose} (the first after radius {least}{more})"
    if np.isfinite(nearest):
        never = f"the first variance would fall below zero at {_short(nearest)}"
    else:
        never = "no variance falls"
    return f"none of the {whose} ({never}{more})"


def _exception(cell: xr.Dataset, exception: str) -> str:
    """Whether the published exception holds at matched loss, in each normalisation."""
    words = {"second_flatter": "holds", "first_flatter": "does not hold"}
    absolute, relative = (
        words.get(_verdict(cell, scale), "is not confirmed") for scale in ("absolute", "relative")
    )
    numbers = [_numbers(cell, scale) for scale in ("absolute", "relative")]
    joint = "and" if absolute == relative else f"but {relative}"
    return (
        f"{exception} {absolute} at matched train loss in absolute radius ({numbers[0]}) "
        f"{joint} in {_RELATIVE} ({numbers[1]})."
    )


def _claim(cell: xr.Dataset, scale: str) -> str:
    """Which minima are flatter, if the verdict names any."""
    first, second = _groups(cell)
    verdict = _verdict(cell, scale)
    if verdict == "first_flatter":
        return f"the {first} minima are flatter than the {second} ones"
    if verdict == "second_flatter":
        return f"the {second} minima are flatter than the {first} ones"
    return "no difference in flatness is claimed"


def _relative(cell: xr.Dataset) -> str:
    """What the radius relative to the norm of the moved parameters says beside the absolute one."""
    if _verdict(cell, "absolute") == _verdict(cell, "relative"):
        return f"{_RELATIVE} says the same"
    return f"by {_RELATIVE}, {_claim(cell, 'relative')}"


def _numbers(cell: xr.Dataset, scale: str) -> str:
    """Both means, the interval of their difference, and why it gives no verdict."""
    name = "group_mean" if scale == "absolute" else "group_relative"
    means = [float(cell[name].sel(group=group)) for group in _groups(cell)]
    low, high = (float(bound) for bound in cell["interval"].sel(scale=scale))
    values = f"{_short(means[0])} against {_short(means[1])}"
    if np.isnan(low):
        return f"{values}, no interval without spread between two or more networks of a group"
    values = f"{values}, 95 % interval of the difference {_short(low)} to {_short(high)}"
    if low <= 0 <= high:
        return f"{values}, which includes 0"
    if _verdict(cell, scale) == "none":
        return f"{values}, but the smaller mean is only a lower bound"
    return values


def _bounds(summary: xr.Dataset) -> list[str]:
    """Which means are lower bounds, since rays ended without a crossing."""
    parts = []
    for column in summary["column"].values:
        if column == PERTURBED:
            continue
        for parameters in summary["parameters"].values:
            for group in _groups(summary):
                cell = summary.sel(column=column, parameters=parameters, group=group)
                count, rays = int(cell["group_not_crossed"]), int(cell["group_rays"])
                if count:
                    parts.append(
                        f"{group}, {parameters}, {str(column).replace('_', ' ')}: "
                        f"{count} of {rays} rays"
                    )
    if not parts:
        return []
    return [f"Means are lower bounds where rays did not cross ({'; '.join(parts)})."]


def _excluded(summary: xr.Dataset) -> list[str]:
    """Which networks are left out, and what became of them."""
    parts = [
        f"{record['group']} network {record['network']} ({record['outcome']})"
        for record in json.loads(summary.attrs["excluded"])
    ]
    return [f"Left out of every number here: {', '.join(parts)}."] if parts else []


def _asked(column: xr.Dataset) -> bool:
    """Whether the study asked for a column at all."""
    meanings = column["status"].attrs["flag_meanings"].split()
    return bool((column["status"] != meanings.index("not_measured")).any())


def _comparable(column: xr.Dataset) -> bool:
    """Whether both groups have a measured network."""
    return bool((column["group_n"].sel(group=_groups(column)) > 0).all())


def _verdict(cell: xr.Dataset, scale: str) -> str:
    verdict = cell["verdict"]
    return str(verdict.attrs["flag_meanings"].split()[int(verdict.sel(scale=scale))])


def _losses(column: xr.Dataset) -> str:
    """The train losses of the groups' networks, which are the same for all parameters.

    From the least to the largest, not their mean: one network that ended on a spike of its loss
    must not hide among the others.
    """
    losses = column["train_loss"].isel(parameters=0)
    ranges = []
    for group in _groups(column):
        ranges.append(_span(losses.sel(group=group)))
    return " against ".join(ranges)


def _span(values: xr.DataArray, digits: str = "") -> str:
    """The least and the largest of the networks' values, or the one that all have."""
    known = values.dropna("network")
    ends = [float(known.reduce(bound)) for bound in (np.min, np.max)]
    low, high = (format(end, digits) if digits else _short(end) for end in ends)
    return low if low == high else f"{low} to {high}"


def _sizes(column: xr.Dataset) -> str:
    sizes = column["group_n"].isel(parameters=0).sel(group=_groups(column))
    return f"n = {int(sizes[0])} against {int(sizes[1])} networks"


def _groups(summary: xr.Dataset) -> list[str]:
    return [str(group) for group in summary["group"].values[:2]]


def _place(cell: xr.Dataset) -> str:
    parameters = str(cell["parameters"].item())
    return _PLACE.get(parameters, f"for the parameters {parameters!r}")


def _short(value: SupportsFloat) -> str:
    """Three significant digits, zeros kept."""
    return f"{float(value):#.3g}".rstrip(".")
