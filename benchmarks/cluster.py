"""What it costs to hand work to a cluster, and how much faster several workers are.

    python benchmarks/cluster.py --out results/cluster

`overhead`: jobs that do nothing, by each executor, for the time that one takes besides its own work
(in the driver, on the way, in the store), and jobs that read and yield the weights of VGG16.
`storing`: what the driver takes to bring tiles of a surface to the disk, one by one and many at
once, as it does with what is done when it looks.
`scaling`: the plane through three networks of results/mnist-paper over all 60,000 images, with one
worker and with two, each with one thread. Rounds alternate; medians are kept with all rounds.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from flatminima.store import Artifact, Finished, Store, sha256
from flatminima.study import run_study
from flatminima.study.config import load_study
from flatminima.study.execute import execute
from flatminima.study.executors import Executor, Takes, open_executor
from flatminima.study.job import Job
from flatminima.study.provenance import provenance

_ROOT = Path(__file__).parents[1]
_WEIGHTS = 14_728_266 * 4  # bytes of VGG16
_FILES = 14  # of a job of an average study
_SETTINGS = {"data": {"dataset": "digits"}, "model": {"name": "mlp", "settings": {}}}


def nothing(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    """A job that takes no time; as many bytes as its settings say."""
    return {"file": bytes(job.settings["bytes"])}


def jobs_of(count: int, size: int, *needs: Job) -> list[Job]:
    """Jobs alike, of a kind whose estimate is above what a task is made of: one job a task."""
    return [
        Job(
            "train",
            {**_SETTINGS, "bytes": size, "number": number, "needs": len(needs)},
            dependencies=tuple(job.digest for job in needs),
            inputs=tuple((job.kind, ("",)) for job in needs),
            label=str(number),
            units=10_000,
        )
        for number in range(count)
    ]


def seconds_per_job(executor: Executor, jobs: list[Job], before: list[Job]) -> float:
    """Wall-clock seconds of a run of `jobs`, by their number."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs", create=True)
        execute([*before, *jobs_of(8, 1)], store, executor, work=nothing)  # workers are up
        fresh = [job for job in jobs if not store.done(job.kind, job.digest)]
        start = time.perf_counter()
        execute(fresh, store, executor, work=nothing)
        return (time.perf_counter() - start) / len(fresh)


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per job of jobs without work, by executor."""
    takes = {"train": Takes(memory=100 << 20)}
    (weights,) = jobs_of(1, _WEIGHTS)
    kinds: dict[str, tuple[list[Job], list[Job]]] = {
        "nothing": (jobs_of(400, 1), []),
        "reads the weights of VGG16": (jobs_of(100, 1, weights), [weights]),
        "yields the weights of VGG16": (jobs_of(20, _WEIGHTS), []),
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name in kinds}
    started: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for way in ("serial", "processes", "ray"):
            start = time.perf_counter()
            with open_executor(way, 2, takes=takes) as executor:
                executor.grain = 0.0  # a task for every job: the worst case
                started.setdefault(way, []).append(time.perf_counter() - start)
                for name, (jobs, before) in kinds.items():
                    seconds = seconds_per_job(executor, jobs, before)
                    found[name].setdefault(way, []).append(seconds)
    return {
        "rounds": options.rounds,
        "seconds_to_open": _medians(started),
        "seconds_per_job": {name: _medians(rows) for name, rows in found.items()},
        "all_rounds": {"seconds_to_open": started, "seconds_per_job": found},
    }


def storing(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds that a tile takes to be stored, by how many are stored at the same time."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs", create=True)
        for number in range(options.rounds):
            for at_once in (1, 10, 100):
                tiles = [
                    Finished(
                        "tile",
                        sha256(f"{number} {at_once} {tile}".encode()),
                        {f"tile.zarr/array/{file}": bytes(200) for file in range(_FILES)},
                        _SETTINGS,
                    )
                    for tile in range(100)
                ]
                start = time.perf_counter()
                for first in range(0, len(tiles), at_once):
                    store.write_all(tiles[first : first + at_once])
                took = (time.perf_counter() - start) / len(tiles)
                found.setdefault(f"{at_once} at once", []).append(took)
    return {
        "files_of_a_tile": _FILES,
        "rounds": options.rounds,
        "seconds_per_tile": _medians(found),
        "all_rounds": found,
    }


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a surface's tiles with one worker and with two."""
    study = load_study(_ROOT / "studies/mnist-paper.toml").model_dump(mode="json")
    study |= {"name": "scaling", "groups": study["groups"][:1], "radius": None}
    study["surface"] |= {"resolution": 12, "tile": 8, "checkpoints": ["end"]}
    study["report"]["published"] = ""
    found: dict[str, list[float]] = {}
    busy: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for way in ("processes", "ray"):
            for workers in (1, 2):
                name = f"{way}, {workers}"
                seconds, share = _tiles(study, way, workers)
                found.setdefault(name, []).append(seconds)
                busy.setdefault(name, []).append(share)
                print(f"{name}: {seconds:.1f} s, busy {share:.0%}", flush=True)
    middle = _medians(found)
    return {
        "points": 12 * 12,
        "tiles": 18,
        "images": 60_000,
        "rounds": options.rounds,
        "seconds": middle,
        "of_ideal": {
            way: middle[f"{way}, 1"] / middle[f"{way}, 2"] / 2 for way in ("processes", "ray")
        },
        "share_of_time_at_work": _medians(busy),
        "all_rounds": found,
    }


def _tiles(study: dict[str, Any], way: str, workers: int) -> tuple[float, float]:
    """Seconds from the first tile's start to the last one's end, and the share spent in tiles."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs", create=True)
        for network in (_ROOT / "results/mnist-paper/jobs").glob("network-*"):
            shutil.copytree(network, store.root / "jobs" / network.name)
        times: list[float] = []
        work: list[float] = []

        def listen(event: str, job: Job, seconds: float) -> None:
            if job.kind == "tile":
                times.append(time.perf_counter())
                work.append(seconds)

        run_study(
            study,
            out=store.root,
            executor=way,
            workers=workers,
            only=["surfaces"],
            listener=listen,
        )
        span = max(times) - min(times)
        return span, sum(work) / (workers * span)


def _medians(rows: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in rows.items()}


WORKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "overhead": overhead,
    "storing": storing,
    "scaling": scaling,
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Workers import this file by its name.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    path = options.out / "cluster.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in options.only:
        date = datetime.now(UTC).date().isoformat()
        measured = WORKS[name](options)
        result[name] = {**measured, "provenance": {**provenance(), "date": date}}
        print(json.dumps({name: measured}, indent=1), flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
