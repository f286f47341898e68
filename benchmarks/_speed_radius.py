"""Radii for `speed.py`, against a walk by whole passes over the data."""

import argparse
from typing import Any

import torch
from _speed_timing import Way, in_turn
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

    The walk's passes are counted once; a round times one of them and multiplies. Of the top layer
    alone all is exact.
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

    def ours(precision: str) -> Way:
        def way() -> int:
            fresh = fm.Landscape(network, data, precision=precision, **given)
            measured[precision] = fm.flatness_radius(fresh, state, **asked)
            return 1

        return way

    def one_pass() -> int:
        loop.loss(tensors)
        return 1

    names = ["exact"] if parameters == "top" else ["exact", "fast"]
    ways = {name: ours(name) for name in names}
    result = in_turn({**ways, "one pass of the plain loop": one_pass}, options.turns)
    seconds = result["seconds_per_point"]
    walk = passes * seconds["one pass of the plain loop"]
    radii = measured["exact"]
    found = {
        "seconds": {**seconds, "walk, reckoned": round(walk, 2)},
        "rounds": result["rounds"],
        "times_faster_than": {
            name: {"stepwise walk": round(walk / seconds[name], 1)} for name in names
        },
        "passes_of_the_walk": passes,
        "evaluations": int(radii["evaluations"].sum()),
        "rays": int(radii["radius"].size),
        "mean_radius": round(float(radii["radius"].mean()), 3),
        "not_crossed": int((radii["outcome"] != 0).sum()),
        "path": radii.attrs["path"],
    }
    if "fast" in measured:
        fast = measured["fast"]
        found["fast"] = {
            "evaluations": int(fast["evaluations"].sum()),
            "samples": fast.attrs["sampled"],
            "largest_difference": round(fast.attrs["largest_difference"], 4),
            "radii_differ_by": float(f"{float(abs(fast.radius / radii.radius - 1).max()):.1e}"),
        }
    return found
