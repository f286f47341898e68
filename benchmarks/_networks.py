"""Three trained networks, their data, and points of the plane through them."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import flatminima as fm
from flatminima.study import stored_minimum
from flatminima.study.work import load_split

# The square of the published figures, in which the points outside the triangle lie.
_SQUARE = (-0.4, 1.3)


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Options that say which networks and which points."""
    parser.add_argument("--store", default="runs", help="where the study was run or published")
    parser.add_argument("--study", help="its name")
    parser.add_argument("--group", help="one of its groups, such as natural")
    parser.add_argument("--weights", nargs=3, help="instead of a study: three saved networks")
    parser.add_argument("--dataset", default="cifar10", help="the data of --weights")
    parser.add_argument("--limit", type=int, help="a balanced subset of the data of --weights")
    parser.add_argument("--points", type=int, default=10, help="half of them in the triangle")
    parser.add_argument("--seed", type=int, default=0, help="of the points")


def opened(options: argparse.Namespace) -> tuple[list[fm.Minimum], fm.Dataset, dict[str, Any]]:
    """Three networks, the data they were trained on, and where both are from."""
    if options.weights:
        minima = [fm.Minimum.load(path) for path in options.weights]
        if any(minimum.model is None for minimum in minima):
            raise ValueError(
                "expected weights saved by flatminima, got a file that does not name its network;"
                " save them with Minimum.save"
            )
        dataset = fm.load_dataset(options.dataset, limit=options.limit, seed=options.seed)
        return minima, dataset, {"weights": [Path(path).name for path in options.weights]}
    if not (options.study and options.group):
        raise ValueError("expected --study and --group, or --weights, got neither; name one")
    store = fm.Store(options.store)
    settings = {}
    for job in store.manifest(options.study)["jobs"]:
        if job["kind"] == "network" and store.done("network", job["digest"]):
            record = store.record("network", job["digest"])["settings"]
            settings[record["group"], record["network"]] = record
    seeds = sorted(seed for group, seed in settings if group == options.group)
    if len(seeds) < 3:
        raise ValueError(
            f"expected three finished networks of {options.study}/{options.group}, got {seeds};"
            " run the study first"
        )
    minima = [
        stored_minimum(store, options.study, group=options.group, network=seed)
        for seed in seeds[:3]
    ]
    dataset = load_split(settings[options.group, seeds[0]]["data"], "train", "cpu")
    return minima, dataset, {"study": options.study, "group": options.group, "networks": seeds[:3]}


def chosen_points(count: int, seed: int) -> np.ndarray:
    """Barycentric weights of points, the first half inside the triangle, the others outside."""
    random = np.random.default_rng(seed)
    inside = random.dirichlet(np.ones(3), size=count // 2)
    outside: list[np.ndarray] = []
    while len(outside) < count - len(inside):
        x, y = random.uniform(*_SQUARE, size=2)
        if min(x, y, 1 - x - y) < 0:
            outside.append(np.array([x, y, 1 - x - y]))
    return np.vstack([inside, *outside])
