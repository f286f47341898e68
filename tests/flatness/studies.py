"""Studies with made-up radii and histories, for the tests of their summaries."""

import json

import numpy as np
import xarray as xr

from flatminima.flatness.summary import COLUMNS, merge_radii, summarise

GROUPS = ("natural", "random")
MISSING = {"status": "not_reached"}


def settings(**changes):
    base = {
        "name": "case",
        "data": {"dataset": "digits", "split": ["train"]},
        "groups": [{"name": name} for name in GROUPS],
        "training": {"match_loss": 0.05},
        "radius": {
            "threshold": 0.05,
            "parameters": ["all", "top"],
            "protocols": ["crossing", "stepwise"],
        },
        "summary": {"exclude": ["diverged", "chance"]},
        "report": {"published": "mnist"},
    }
    return {**base, **changes}


def history(
    group, network, *, matched=1, outcome="fitted", last=0.01, epochs=2, accuracy=(0.1, 0.7, 0.9)
):
    return xr.Dataset(
        {"train_loss": ("epoch", [2.3, 0.04, last]), "train_accuracy": ("epoch", list(accuracy))},
        coords={"epoch": [0, 1, epochs]},
        attrs={"group": group, "network": network, "matched_epoch": matched, "outcome": outcome},
    )


def block(radii, group, network, checkpoint="end", parameters="all", protocol="crossing", **more):
    """Radii [directions, signs] of one network."""
    radii = np.asarray(radii, dtype=float)
    outcome = np.asarray(more.pop("outcome", np.zeros(radii.shape)), dtype=np.int8)
    first = more.pop("first", 0)
    dims = ("direction", "sign")
    return xr.Dataset(
        {
            "radius": (dims, radii),
            "outcome": (dims, outcome),
            "evaluations": (dims, np.full(radii.shape, 9)),
            "reentries": (dims, np.zeros(radii.shape, dtype=np.int64)),
        },
        coords={
            "direction": np.arange(first, first + radii.shape[0]),
            "sign": [1, -1][: radii.shape[1]],
        },
        attrs={
            "group": group,
            "network": network,
            "checkpoint": checkpoint,
            "parameters": parameters,
            "protocol": protocol,
            "norm": 20.0,
            "moved": 100,
            "loss": 0.01,
            "threshold": 0.05,
            **more,
        },
    )


def study(radius_of, *, networks=3, histories=None, **changes):
    """A whole study whose radii are `radius_of(column, parameters, group, network)`."""
    used = settings(**changes)
    histories = histories or [history(g, n) for g in GROUPS for n in range(networks)]
    reached = {(h.attrs["group"], h.attrs["network"]): h.attrs["matched_epoch"] for h in histories}
    blocks = []
    for column, (checkpoint, protocol) in COLUMNS.items():
        for parameters in used["radius"]["parameters"]:
            for (group, network), epoch in reached.items():
                key = (group, network, checkpoint, parameters, protocol)
                if checkpoint == "matched" and epoch < 0:
                    blocks.append(xr.Dataset(attrs=block([[1]], *key).attrs | MISSING))
                    continue
                blocks.append(block(radius_of(column, parameters, group, network), *key))
    radii = merge_radii(blocks)
    return summarise(used, histories, radii), radii


def apart(column, parameters, group, network):
    """All parameters: natural clearly larger; top layer: random clearly larger."""
    far = (group == "natural") == (parameters == "all")
    return (10.0 if far else 4.0) + 0.1 * network + np.array([[-0.2, 0.2], [-0.1, 0.1]])


def alike(column, parameters, group, network):
    return 5.0 + network + np.array([[-0.2, 0.2]]) + 0.01 * (group == "natural")


def said(summary):
    return " ".join(json.loads(summary.attrs["sentences"]))
