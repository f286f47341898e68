"""Radii for `speed.py`, against a walk by whole passes over the data."""

import argparse
from typing import Any

import torch
from _speed_timing import in_turn
from _speed_ways import PlainLoop

import flatminima as fm


def radius(
    options: argparse.Namespace,
    network: torch.nn.Module,
    data: fm.Dataset,
    state: Any,
    parameters: str,
    step: float,
    size: int,
    *,
    directions: int = 20,
) -> dict[str, Any]:
    """Radii along both sides of random directions, against a walk along one by whole passes.

    The walk's passes are counted once; a round times one of them and multiplies.
    """
    asked: dict[str, Any] = {"directions": directions, "parameters": parameters}
    given: dict[str, Any] = {"batchnorm": "keep", "device": options.device}
    scape = fm.Landscape(network, data, **given)
    walked = fm.flatness_radius(scape, state, protocol="stepwise", step=step, **asked)
    passes = int((walked["radius"] / step + 1).round().sum())
    weights = scape.state(state)
    tensors = {
        name: value.to(options.device)
        for name, value in {**weights.parameters, **weights.buffers}.items()
    }
    loop = PlainLoop(network, data, [size])
    measured: dict[str, Any] = {}

    def ours() -> int:
        fresh = fm.Landscape(network, data, **given)
        measured["radii"] = fm.flatness_radius(fresh, state, **asked)
        return 1

    def one_pass() -> int:
        loop.loss(tensors)
        return 1

    result = in_turn({"exact": ours, "one pass of the plain loop": one_pass}, options.turns)
    seconds = result["seconds_per_point"]
    walk = passes * seconds["one pass of the plain loop"]
    radii = measured["radii"]
    return {
        "seconds": {**seconds, "walk, reckoned": round(walk, 2)},
        "rounds": result["rounds"],
        "times_faster_than": {"exact": {"stepwise walk": round(walk / seconds["exact"], 1)}},
        "passes_of_the_walk": passes,
        "evaluations": int(radii["evaluations"].sum()),
        "rays": int(radii["radius"].size),
        "mean_radius": round(float(radii["radius"].mean()), 3),
        "not_crossed": int((radii["outcome"] != 0).sum()),
        "path": radii.attrs["path"],
    }
