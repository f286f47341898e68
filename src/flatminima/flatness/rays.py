"""All radii of a study as one table with a row per ray."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

OUTCOMES = ("crossed", "censored", "non_finite")

PERTURBED_PROTOCOL = "stepwise_perturb"
"""The protocol of blocks measured with `protocol="stepwise", buffers="perturb"`."""

_KEYS = ("group", "network", "checkpoint", "parameters", "protocol", "split")
_PER_RAY = {"radius": float, "outcome": np.int8, "evaluations": np.int64, "reentries": np.int64}
_PER_BLOCK = {"norm": float, "loss": float, "moved": np.int64}
# What the walks of the published fault say besides. Along other rays no running variance moves, so
# none is ever negative, and the smallest of those that move is infinite.
_PERTURBED = {
    "negative_variances": (np.int64, 0),
    "first_negative": (float, np.inf),
    "smallest_variance": (float, np.inf),
}
# Of the blocks that were looked for over a sample of the examples, the largest.
_SAMPLED = ("sampled", "largest_difference")
_SHARED = ("threshold", "seed", "samples", "batchnorm", "buffers", "precision", "dataset")


def merge_radii(blocks: Sequence[xr.Dataset]) -> xr.Dataset:
    """Lay all blocks of radii of a study end to end, one row per ray.

    Args:
        blocks: Datasets as `flatness_radius` returns them, with the attributes `group`,
            `network` (its seed), `checkpoint` ("end" or "matched"), `parameters` and `protocol`,
            and optionally `split` ("train" unless given). A block whose attribute `status` is
            "not_reached" or "excluded" has no rays; it is remembered in the attribute
            `unmeasured` of the result. Blocks measured with `buffers="perturb"` have the protocol
            "stepwise_perturb".

    Returns:
        A dataset over the dimension `ray` with the variables group, network, checkpoint,
        parameters, protocol, split, direction, sign, radius, outcome, evaluations, reentries,
        norm, loss (at the origin of the ray) and moved (the number of moved parameters). Where a
        block moved running variances also negative_variances, first_negative and smallest_variance
        (of the state), which are 0, infinite and infinite along rays that moved none. Its rows do
        not depend on the order of the blocks.

    Raises:
        ValueError: If a block lacks an attribute, or two blocks hold the same ray.
    """
    rows: list[dict[str, Any]] = []
    unmeasured: list[dict[str, Any]] = []
    for block in blocks:
        key = _key(block)
        status = str(block.attrs.get("status", "measured"))
        if status != "measured":
            unmeasured.append({**key, "status": status})
            continue
        rows.extend(_rays(block, key))
    rows.sort(key=_ray_order)
    for before, after in pairwise(rows):
        if _ray_order(before) == _ray_order(after):
            raise ValueError(
                f"expected every ray once, got direction {after['direction']} of "
                f"{describe(after)} twice; merge blocks whose directions do not overlap"
            )
    variables = {
        name: (
            "ray",
            np.array([row[name] for row in rows], dtype=kind if rows or kind is not str else "U1"),
        )
        for name, kind in _column_types().items()
    }
    if any(row["protocol"] == PERTURBED_PROTOCOL for row in rows):
        for name, (kind, neutral) in _PERTURBED.items():
            values = [row.get(name, neutral) for row in rows]
            variables[name] = ("ray", np.array(values, dtype=kind))
    measured = [block for block in blocks if block.attrs.get("status", "measured") == "measured"]
    shared = {
        name: measured[0].attrs[name]
        for name in _SHARED
        if measured and len({str(block.attrs.get(name)) for block in measured}) == 1
        if name in measured[0].attrs
    }
    sampled = [block.attrs for block in measured if "sampled" in block.attrs]
    if sampled:
        shared |= {name: max(attrs[name] for attrs in sampled) for name in _SAMPLED}
    unmeasured.sort(key=lambda key: [str(value) for value in key.values()])
    merged = xr.Dataset(variables, attrs={**shared, "unmeasured": json.dumps(unmeasured)})
    merged["outcome"].attrs.update(flags(OUTCOMES))
    return merged


def _key(block: xr.Dataset) -> dict[str, Any]:
    """Which network, checkpoint, parameters and protocol a block of radii belongs to."""
    given = {"split": "train", **block.attrs}
    missing = [name for name in _KEYS if name not in given]
    if missing:
        raise ValueError(
            f"expected a block of radii with the attributes {', '.join(_KEYS)}, got one without "
            f"{', '.join(missing)}; add them with block.assign_attrs(...)"
        )
    return {name: int(given[name]) if name == "network" else str(given[name]) for name in _KEYS}


def _rays(block: xr.Dataset, key: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each direction and sign of a block."""
    flat = block.stack(ray=("direction", "sign")).transpose("ray")
    whole = {name: block.attrs[name] for name in _PER_BLOCK}
    per_ray = list(_PER_RAY)
    if key["protocol"] == PERTURBED_PROTOCOL:
        whole["smallest_variance"] = block.attrs["smallest_variance"]
        per_ray += ["negative_variances", "first_negative"]
    return [
        {
            **key,
            **whole,
            "direction": int(flat["direction"].values[ray]),
            "sign": int(flat["sign"].values[ray]),
            **{name: flat[name].values[ray] for name in per_ray},
        }
        for ray in range(flat.sizes["ray"])
    ]


def _ray_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in _KEYS), row["direction"], -row["sign"])


def _column_types() -> dict[str, Any]:
    """The type of every variable of the merged radii, in their order."""
    keys = {name: np.int64 if name == "network" else str for name in _KEYS}
    return {**keys, "direction": np.int64, "sign": np.int8, **_PER_RAY, **_PER_BLOCK}


def flags(meanings: Sequence[str]) -> dict[str, Any]:
    """The CF attributes that say what the values of a small integer mean."""
    return {"flag_values": list(range(len(meanings))), "flag_meanings": " ".join(meanings)}


def describe(key: Mapping[str, Any]) -> str:
    """Name a network, checkpoint, parameters and protocol in an error."""
    return (
        f"network {key['network']} of group {key['group']!r} "
        f"({key['checkpoint']}, {key['parameters']}, {key['protocol']})"
    )
