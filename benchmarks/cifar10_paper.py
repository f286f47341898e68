"""What would the published CIFAR-10 study cost here? One epoch, and one point of each kind.

    python benchmarks/cifar10_paper.py --out results/cifar10-paper
    python benchmarks/cifar10_paper.py --device cuda --out results/cifar10-paper

On a processor, seconds are CPU time of the process, which a busy machine changes little.

It trains one network of `studies/cifar10-paper.toml` for one epoch, at full size and by its recipe,
evaluates one point of a plane under `recompute` and one under `keep`, measures the memory that each
took, and reckons the whole study from these. On a GPU a little of each is done first and not
counted, several points are measured, and all that in both precisions. It writes `cost-DEVICE.json`.
"""

import argparse
import gc
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _speed_timing import about
from _speed_ways import at_hand

import flatminima as fm
from flatminima.landscape._arithmetic import repeated_points
from flatminima.study.auto import resolve
from flatminima.study.config import load_study, parse_study
from flatminima.study.plan import plan_study
from flatminima.study.work import _make_landscape, load_split, make_landscape
from flatminima.training import TrainingRun

STUDY = Path(__file__).parents[1] / "studies" / "cifar10-paper.toml"
# Evaluations of a ray: see flatminima.study.estimate.
EVALUATIONS = {"crossing": 14, "stepwise": 20, "stepwise_perturb": 20}
# Images to train on before a GPU's epoch is measured.
WARM_UP = 2560


def measured(device: torch.device, what: Callable[[], Any]) -> tuple[Any, float, float]:
    """A result, its seconds, and the peak of memory so far in GiB (of the process, or the GPU)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    result = what()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result, clock() - start, peak / 2**30


def settings_on(device: str, threads: int) -> Any:
    """The study as it is resolved on this device."""
    table = load_study(STUDY).model_dump(mode="json")
    table["run"] |= {"device": device, "threads": threads}
    return resolve(parse_study(table))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of one epoch and of one point."""
    study = settings_on(options.device, options.threads)
    jobs = plan_study(study)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    first = next(job for job in jobs if job.kind == "train")
    data = load_split(first.settings["data"], "train", options.device)
    test = load_split(first.settings["data"], "test", options.device)
    recipe = replace(fm.Recipe(**first.settings["recipe"]), epochs=1)

    def begun() -> TrainingRun:
        return TrainingRun.start(first.settings["model"], data, recipe, seed=0, test=test)

    # Points first: the peak of a process never falls, and training needs more.
    start = TrainingRun.start(first.settings["model"], data, recipe, seed=0).minimum()
    settings = next(job for job in jobs if job.kind == "tile").settings
    if options.device == "cuda":
        times, memory = points_on_gpu(start, settings, device, options.points)
    else:
        times, memory = points_on_cpu(start, settings, device)
    if options.device == "cuda":
        few = data.subset(torch.arange(WARM_UP))
        fm.train(first.settings["model"], few, recipe, seed=0)
        run, before, _ = measured(device, begun)
        _, epoch, train_memory = measured(device, lambda: run.advance(1))
        history, evaluations = run.history, 0.0
        seconds = {
            "losses of both splits": round(before, 2),
            "one epoch, with the losses of both splits after it": round(epoch, 2),
        }
    else:
        # A history begins with an evaluation of both splits before the first step.
        run, epoch, train_memory = measured(device, lambda: trained(begun()))
        # An epoch of a long run is followed by one evaluation of both splits (1.2 passes), not two.
        history, evaluations = run.history, 1.2 * times["keep"]
        seconds = {"one epoch, with the losses of both splits before and after it": round(epoch, 1)}
    hours = {"reckoned_hours_of_one_worker": reckoned(jobs, epoch - evaluations, times)}
    if options.device == "cuda":
        hours["reckoned_hours_of_one_worker_fast"] = reckoned(
            jobs, epoch - evaluations, times, fast=True
        )
    places = 2 if options.device == "cpu" else 4
    return {
        "precision_of_steps": recipe.precision,
        "seconds": {
            **seconds,
            **{f"one point under {way}": round(value, places) for way, value in times.items()},
        },
        "peak_memory_gib": {
            "training": round(train_memory, 2),
            **{f"one point under {way}": round(value, 2) for way, value in memory.items()},
        },
        "train_loss": [round(float(loss), 4) for loss in history["train_loss"]],
        "test_accuracy": [round(float(value), 4) for value in history["test_accuracy"]],
        **hours,
    }


def trained(run: TrainingRun) -> TrainingRun:
    """A run after its epoch."""
    run.advance(1)
    return run


def points_on_cpu(
    start: fm.Minimum, settings: dict[str, Any], device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of one point under each policy, and the peak of memory so far."""
    times: dict[str, float] = {}
    memory: dict[str, float] = {}
    plane, point = fm.Subspace.random(start, 2, 0), np.array([[0.5, 0.5]])
    for policy in ("keep", "recompute"):
        landscape = make_landscape({**settings, "batchnorm": policy}, "train")
        _, times[policy], memory[policy] = measured(
            device, lambda scape=landscape: scape.losses(plane, point)
        )
    return times, memory


def points_on_gpu(
    start: fm.Minimum, settings: dict[str, Any], device: torch.device, count: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of one point of many under each policy in each precision, and the peak of memory."""
    times: dict[str, float] = {}
    memory: dict[str, float] = {}
    # A study's planes lead through minima: their directions are not drawn.
    plane = at_hand(fm.Subspace.random(start, 2, 0), device.type)
    points = np.random.default_rng(0).uniform(0.2, 0.8, (count, 2))
    for policy in ("keep", "recompute"):
        for precision in ("exact", "fast"):
            _make_landscape.cache_clear()  # what others hold is no part of this one's memory
            gc.collect()
            run = {**settings["run"], "precision": precision}
            landscape = make_landscape({**settings, "batchnorm": policy, "run": run}, "train")
            landscape.losses(plane, points)  # all, for a landscape may prepare for many
            losses, seconds, peak = measured(
                device, lambda scape=landscape: scape.losses(plane, points)
            )
            name = policy if precision == "exact" else f"{policy}, fast"
            # Of so few points in half precision too large a share is computed exactly, too.
            again = losses.repeated * times[policy] if precision == "fast" else 0.0
            times[name], memory[name] = (seconds - again) / count, peak
            del landscape, losses
    _make_landscape.cache_clear()
    return times, memory


def reckoned(
    jobs: list[Any], epoch: float, times: dict[str, float], *, fast: bool = False
) -> dict[str, float]:
    """Hours that the whole study would take, by part; radii are exact whatever planes are."""
    hours: Counter[str] = Counter()
    for job in jobs:
        if job.kind == "train":
            hours["training"] += job.units * epoch / 3600
        elif job.kind == "tile":
            policy = "recompute" if job.settings["batchnorm"] == "recompute" else "keep"
            seconds = job.units * times[policy]
            if fast:
                again = len(repeated_points(job.units)) * times[policy]
                seconds = job.units * times[f"{policy}, fast"] + again
            hours["planes"] += seconds / 3600
        elif job.kind == "radius":
            passes = job.units * EVALUATIONS[job.settings["protocol"]]
            if job.settings["parameters"] == "top":
                passes = 1  # its inputs are computed once
            hours["radii"] += passes * times["keep"] / 3600
    hours["all"] = sum(hours.values())
    return {part: round(value, 1) for part, value in hours.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--points", type=int, default=8, help="points measured on a GPU")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("expected a GPU for --device cuda, got none; use --device cpu")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "one process"
    result = {
        "study": STUDY.stem,
        "device": name,
        "threads": options.threads,
        **measure(options),
        "evaluations_of_a_ray": EVALUATIONS,
        "provenance": about(options.device),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"cost-{options.device}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
