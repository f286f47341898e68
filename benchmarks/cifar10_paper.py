"""What would the published CIFAR-10 study cost here? One epoch, and one point of each kind.

    python benchmarks/cifar10_paper.py --out results/cifar10-paper
    python benchmarks/cifar10_paper.py --device cuda --out results/cifar10-paper

On a processor, seconds are CPU time of the process, which a busy machine changes little.

It trains one network of `studies/cifar10-paper.toml` for one epoch, at full size and by its recipe,
evaluates one point of a plane under `recompute` and one under `keep`, measures the memory that each
took, and reckons the whole study from these. It writes `cost-DEVICE.json`.
"""

import argparse
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flatminima as fm
from flatminima.study.config import load_study, parse_study
from flatminima.study.plan import plan_study, resolve
from flatminima.study.provenance import provenance
from flatminima.study.work import load_split, make_landscape
from flatminima.training import TrainingRun

STUDY = Path(__file__).parents[1] / "studies" / "cifar10-paper.toml"
# Evaluations of a ray: see flatminima.study.estimate.
EVALUATIONS = {"crossing": 14, "stepwise": 20, "stepwise_perturb": 20}


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

    def train() -> fm.Minimum:
        return fm.train(first.settings["model"], data, recipe, seed=0, test=test)

    # Points first: the peak of a process never falls, and training needs more.
    start = TrainingRun.start(first.settings["model"], data, recipe, seed=0).minimum()
    settings = next(job for job in jobs if job.kind == "tile").settings
    times: dict[str, float] = {}
    memory: dict[str, float] = {}
    plane, point = fm.Subspace.random(start, 2, 0), np.array([[0.5, 0.5]])
    for policy in ("keep", "recompute"):
        landscape = make_landscape({**settings, "batchnorm": policy}, "train")
        _, times[policy], memory[policy] = measured(
            device, lambda scape=landscape: scape.losses(plane, point)
        )
    # A history begins with an evaluation of both splits before the first step.
    minimum, epoch, train_memory = measured(device, train)
    history = minimum.history
    return {
        "precision_of_steps": recipe.precision,
        "seconds": {
            "one epoch, with the losses of both splits before and after it": round(epoch, 1),
            **{f"one point under {policy}": round(value, 2) for policy, value in times.items()},
        },
        "peak_memory_gib": {
            "training": round(train_memory, 2),
            **{f"one point under {policy}": round(value, 2) for policy, value in memory.items()},
        },
        "train_loss": [round(float(loss), 4) for loss in history["train_loss"]],
        "test_accuracy": [round(float(value), 4) for value in history["test_accuracy"]],
        "reckoned_hours_of_one_worker": reckoned(jobs, epoch, times),
    }


def reckoned(jobs: list[Any], epoch: float, times: dict[str, float]) -> dict[str, float]:
    """Hours that the whole study would take, by part."""
    # An epoch of a long run is followed by one evaluation of both splits (1.2 passes), not two.
    epoch -= 1.2 * times["keep"]
    hours: Counter[str] = Counter()
    for job in jobs:
        if job.kind == "train":
            hours["training"] += job.units * epoch / 3600
        elif job.kind == "tile":
            policy = "recompute" if job.settings["batchnorm"] == "recompute" else "keep"
            hours["planes"] += job.units * times[policy] / 3600
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
        "provenance": {**provenance(), "date": datetime.now(UTC).date().isoformat()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"cost-{options.device}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
