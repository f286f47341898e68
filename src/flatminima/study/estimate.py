"""About how long a job takes and how much it stores, to say so before a run begins.

The rates were measured on one core of a server processor with AVX-512, a second worker beside it;
a store that already holds results of a kind corrects them for its own machine.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import prod
from statistics import median
from typing import Any

from flatminima._processor import has_narrow_vectors, multiplies_halves
from flatminima.data._table import SOURCES
from flatminima.study.job import Job

# Seconds per image and multiplication of a forward pass; a landscape shares work between points.
_TRAIN_RATE = 1.4e-11
_FORWARD_RATE = 0.9e-11
# Forward passes that a step of training is worth, with its backward pass and the update.
_STEP = 3
# Evaluations per ray until a crossing is known to 1e-3; steps per ray of the published protocol.
_EVALUATIONS = {"crossing": 8, "stepwise": 30, "stepwise_perturb": 30}
# The same where a sample of the examples leads the way, with what that costs.
_LED = {"crossing": 5, "stepwise": 5, "stepwise_perturb": 5}
# Opening inputs, building the network, writing results.
_OVERHEAD = {
    "train": 0.2,
    "network": 0.3,
    "tile": 0.3,
    "surface": 0.5,
    "radius": 0.3,
    "summary": 2.0,
}
_VGG16_MULTIPLICATIONS = 313_000_000
# A training step in half precision takes this share of one in float32 where there are units for it
# (AVX-512 BF16), and so many times as long where it is imitated (AVX2).
_HALF_PRECISION, _IMITATED = 0.55, 30.0
# With vectors half as wide everything takes about so many times as long.
_NARROW = 2.0
_MLP_SIZES = (784, 800, 320, 50, 10)
# What a large GPU takes of a core's time for a forward pass and for a training step, and for a step
# at least: roughly, to tell minutes from hours before anything of a kind is in the store.
_GPU_FORWARD, _GPU_STEP, _GPU_LEAST = 0.012, 0.005, 1.5e-4
_FEW = 40  # records per kind are enough for a median


def multiplications(model: Mapping[str, Any]) -> float:
    """Multiplications of one image's forward pass, or what takes as long."""
    settings = model["settings"]
    if model["name"] == "vgg16":
        # A slim network has less to multiply, but moves nearly as much memory for it.
        return float(_VGG16_MULTIPLICATIONS * settings.get("width", 1.0) ** 1.5)
    sizes = settings.get("sizes", _MLP_SIZES)
    return float(sum(prod(pair) for pair in pairwise(sizes)))


def parameters(model: Mapping[str, Any]) -> float:
    """Parameters of a network, nearly."""
    if model["name"] == "vgg16":
        return float(14_728_266 * model["settings"].get("width", 1.0) ** 2)
    return multiplications(model)


def job_seconds(job: Job) -> float:
    """Expected seconds of one job in one worker, before correction."""
    settings, overhead = job.settings, _OVERHEAD[job.kind]
    if job.kind in ("network", "summary"):
        return overhead
    split = settings.get("split", "train")
    limit = settings["data"].get("limit" if split == "train" else "test_limit")
    images = limit or SOURCES[settings["data"]["dataset"]].samples[split]
    work = images * multiplications(settings["model"])
    gpu = settings.get("run", {}).get("device", "cpu") != "cpu"
    if job.kind == "train":
        # Each epoch ends with an evaluation of both splits.
        data = settings["data"]
        test = data.get("test_limit") or SOURCES[data["dataset"]].samples["test"]
        step = _STEP * (_half_precision(gpu=gpu) if half_precision(job) else 1.0)
        epoch = ((step + 1) * images + test) * multiplications(settings["model"])
        if gpu:
            steps: float = images / settings["recipe"]["batch_size"]
            return overhead + job.units * (epoch * _TRAIN_RATE * _GPU_STEP + steps * _GPU_LEAST)
        return overhead + job.units * epoch * _TRAIN_RATE * _narrow()
    # Statistics are recomputed by a pass over a part of the data before the pass over all of it.
    recomputed: int = settings.get("recompute", {}).get("samples", 0)
    passes = job.units * (1 + recomputed / images)
    if job.kind == "radius":
        led = settings["run"]["precision"] == "fast"
        passes *= (_LED if led else _EVALUATIONS)[settings["protocol"]]
        if settings["parameters"] == "top":
            # The top layer's inputs are computed once, and what follows is small.
            passes = 1 + 0.02 * passes
    return overhead + passes * work * _FORWARD_RATE * (_GPU_FORWARD if gpu else _narrow())


def half_precision(job: Job) -> bool:
    """Whether a job trains in half precision."""
    return bool(job.settings.get("recipe", {}).get("precision") == "bfloat16")


def _half_precision(*, gpu: bool) -> float:
    return _HALF_PRECISION if gpu or multiplies_halves("cpu") else _IMITATED


def _narrow() -> float:
    return _NARROW if has_narrow_vectors() else 1.0


def corrections(jobs: Iterable[Job], records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Measured against expected seconds by kind, from the jobs that are already in the store."""
    known = {job.digest: job for job in jobs}
    ratios: dict[str, list[float]] = {}
    for record in records:
        job = known.get(record["digest"])
        seconds = record["provenance"].get("seconds")
        if job is not None and seconds is not None and len(ratios.get(job.kind, ())) < _FEW:
            ratios.setdefault(job.kind, []).append(seconds / job_seconds(job))
    return {kind: median(found) for kind, found in ratios.items()}


def run_seconds(jobs: Sequence[Job], workers: int, scale: Mapping[str, float]) -> float:
    """Expected seconds of a whole run: shared work, or the longest chain if that is longer."""
    chain: dict[str, float] = {}
    total = 0.0
    for job in jobs:
        seconds = job_seconds(job) * scale.get(job.kind, 1.0)
        total += seconds
        chain[job.digest] = seconds + max((chain.get(d, 0.0) for d in job.dependencies), default=0)
    return max(total / workers, max(chain.values(), default=0.0))


def job_bytes(job: Job) -> float:
    """Expected size of a job's artifact."""
    if job.kind not in ("train", "network"):
        return 20_000.0
    weights = 4 * parameters(job.settings["model"])
    if job.kind == "network":
        return 2 * weights
    recipe = job.settings["recipe"]
    copies = 3 if recipe["optimizer"] == "adamw" else 1 + (recipe["momentum"] > 0)
    return copies * weights
