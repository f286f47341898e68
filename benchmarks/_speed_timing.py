"""How `speed.py` measures time: a clock that waits for a GPU, ways that run in turn, and where."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import torch

from flatminima.study.provenance import provenance

Way: TypeAlias = Callable[[], int]
"""Computes some points and says how many."""


@dataclass(frozen=True)
class Turns:
    """How often ways run in turn, and on what.

    Attributes:
        device: "cpu" or "cuda".
        rounds: How often at most.
        budget: Seconds after which no further round is begun, so that a lent GPU is not held up.
    """

    device: str
    rounds: int
    budget: float = float("inf")


def now(device: str) -> float:
    """Seconds, once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(ways: Mapping[str, Way], turns: Turns) -> dict[str, Any]:
    """Seconds per point of every way, round by round, with medians and ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # once for everything that happens only once
    began = now(turns.device)
    for done in range(turns.rounds):
        if done and now(turns.device) - began > turns.budget:
            break
        for name, way in ways.items():
            start = now(turns.device)
            points = way()
            seconds[name].append((now(turns.device) - start) / points)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = [name for name in ways if name.startswith(("exact", "fast"))]
    places = 4 if turns.device == "cpu" else 7  # a point takes a GPU some hundred microseconds
    return {
        "seconds_per_point": {name: round(value, places) for name, value in medians.items()},
        "rounds": {name: [round(v, places) for v in values] for name, values in seconds.items()},
        "times_faster_than": {
            mine: {
                name: round(value / medians[mine], 2)
                for name, value in medians.items()
                if name not in ours
            }
            for mine in ours
        },
    }


def about(device: str) -> dict[str, Any]:
    """Where a result comes from, with the date and the GPU; `device` is "cpu" or "cuda"."""
    result = provenance(device)
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        result["gpu"] = {
            "name": gpu.name,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "multiprocessors": gpu.multi_processor_count,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {**result, "date": datetime.now(UTC).date().isoformat()}
