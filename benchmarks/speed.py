"""How long does a point take, against the ways in which it is usually computed?

    python benchmarks/speed.py --out results/speed
    python benchmarks/speed.py --rivals FOLDER --out results/speed
    python benchmarks/speed.py --device cuda --out results/speed

FOLDER holds other packages (`pip install --no-deps --target FOLDER loss-landscapes==3.0.6
landscaper==1.3.1 tqdm`); without it those alternatives are left out, and the result says so.

All ways of one work run in turn, A B C A B C, and medians over the rounds are compared. A way whose
cost per point is constant does a few of the points only. It writes `cpu.json` and `scaling.svg`; on
a GPU `cuda.json`, and `scaling-cuda.svg` where `--only` names `scaling`. There data, networks and
directions of every way but the published one lie on the GPU before the clock starts, and the plain
loop is measured in TF32 and in bfloat16, too.

Its pieces lie beside it: `_speed_timing.py` runs ways in turn, `_speed_ways.py` has the
alternatives, `_speed_radius.py` and `_speed_vgg.py` measure radii and VGG16, `_speed_inside.py`
what a time is made of, and `_speed_draw.py` draws.
"""

import argparse
import gc
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _speed_draw import draw_scaling
from _speed_inside import gpu_rates, memory, profiled, rates
from _speed_radius import radius
from _speed_timing import Turns, Way, about, in_turn
from _speed_vgg import vgg, vgg_more
from _speed_ways import (
    GPU_SIZES,
    LOOPS,
    ROOT,
    PerImage,
    PlainLoop,
    at_hand,
    largest_gap,
    published_pass,
    rivals,
    trained,
)

import flatminima as fm
from flatminima.landscape._losses import Losses
from flatminima.landscape._refine import refine_losses
from flatminima.store import Store

POINTS = 25
MANY = 400  # on a GPU, where 25 are done before what happens once has paid
FEW = 5  # points of a way whose cost per point is constant
OF_PUBLISHED = 1
# Multiply-adds of the MLP per image: of its first layer, and of the others.
FIRST, REST = 784 * 800, 800 * 320 + 320 * 50 + 50 * 10


def mnist_plane(options: argparse.Namespace) -> dict[str, Any]:
    """A plane of the MLP over all 60,000 images."""
    device = options.device
    stored = fm.load_dataset("mnist")
    raw = (stored.images * 0.3081 + 0.1307).mul(255).round().to(torch.uint8)
    per_image = PerImage(raw, stored.labels)
    data = stored.to(device)
    minima = trained("natural")
    plane = fm.Subspace.through(*minima)
    points = _spread(plane, [4, 14, 24, 34, 44])
    network = fm.build_model("mlp").eval().to(device)
    sizes = {"cpu": [250, 500, 1000, 2000, 5000], "cuda": GPU_SIZES["mlp"]}[device]
    loop, here = PlainLoop(network, data, sizes), at_hand(plane, device)
    few = points[:: POINTS // FEW]
    found: dict[str, np.ndarray] = {}

    def ours(name: str, precision: str, at: np.ndarray, clip: float | None = None) -> Way:
        def way() -> int:
            scape = fm.Landscape(network, data, precision=precision, device=device)
            found[name] = scape.losses(plane, at, clip=clip).loss
            return len(at)

        return way

    def plain(name: str) -> Way:
        def way() -> int:
            states = [here.parameters_at(point) for point in few]
            found[name] = np.array([loop.loss(state, name) for state in states])
            return len(states)

        return way

    def published() -> int:
        for point in few[:OF_PUBLISHED]:
            published_pass(plane.parameters_at(point), per_image, device)
        return OF_PUBLISHED

    ways: dict[str, Way] = {
        "exact": ours("exact", "exact", points),
        "fast": ours("fast", "fast", points),
        "exact, clip 3.5": ours("exact, clip 3.5", "exact", points, 3.5),
        **{name: plain(name) for name in LOOPS[device]},
        "published way": published,
    }
    counts = {"exact": POINTS, "fast": POINTS}
    if device == "cuda":
        many = _spread(plane, np.linspace(0, 49, 20).round().astype(int).tolist())
        for precision in ("exact", "fast"):
            name = f"{precision}, {MANY} points"
            ways[name], counts[name] = ours(name, precision, many), len(many)
    if options.rivals:
        ways |= rivals(options.rivals, minima, data, loop.sizes["plain loop"])
    result = in_turn(ways, options.turns)
    gap = np.abs(found["exact"][:: POINTS // FEW] - found["plain loop"]) / (1 + found["plain loop"])
    loops_off = {
        name: largest_gap(found[name], found["exact"][:: POINTS // FEW])
        for name in LOOPS[device][1:]
    }
    peak = rates() if device == "cpu" else gpu_rates(device)
    share = {
        name: 2 * len(data) * (3 * FIRST / count + REST) / 1e9 / result["seconds_per_point"][name]
        for name, count in counts.items()
    }
    return {
        **result,
        "points": POINTS,
        **loop.about(),
        "largest_relative_difference_of_exact_from_plain": float(gap.max()),
        "largest_difference_of_fast": largest_gap(found["fast"], found["exact"]),
        **({"largest_difference_of_loops": loops_off} if loops_off else {}),
        "above_clip": int((found["exact"] > 3.5).sum()),
        "gflop_per_second": {**peak, **{name: round(value) for name, value in share.items()}},
    }


def _spread(plane: fm.Subspace, indices: list[int]) -> np.ndarray:
    """Points of the published grid of 50 x 50, at these indices along both of its sides."""
    axis = np.linspace(-0.4, 1.3, 50)[indices]
    return plane.barycentric(np.array([[x, y, 1 - x - y] for x in axis for y in axis]))


def mnist_radius(
    options: argparse.Namespace, parameters: str, step: float, directions: int
) -> dict[str, Any]:
    """Radii of the MLP, on natural and on random labels."""
    stored = fm.load_dataset("mnist")
    noisy = fm.randomize_labels(stored, fraction=0.5, seed=options.noise_seed)
    groups = {"natural": stored.to(options.device), "random": noisy.to(options.device)}
    network = fm.build_model("mlp").eval().to(options.device)
    sizes = {"cpu": [500, 1000, 2000], "cuda": GPU_SIZES["mlp"]}[options.device]
    size = PlainLoop(network, groups["natural"], sizes).sizes["plain loop"]
    return {
        group: radius(
            options,
            network,
            data,
            trained(group)[0],
            parameters,
            step,
            size,
            directions=directions,
        )
        for group, data in groups.items()
    }


def refined(_options: argparse.Namespace) -> dict[str, Any]:
    """What refinement costs and misses on the published planes, whose points are all known."""
    store = Store(ROOT / "results" / "mnist-paper")
    result: dict[str, Any] = {"tolerance": 0.1}
    for job in store.manifest("mnist-paper")["jobs"]:
        if job["kind"] != "surface":
            continue
        truth = store.open_payload("surface", job["digest"], "surface.zarr")["loss"].to_numpy()
        asked: list[int] = []

        def look(chosen: np.ndarray, truth: np.ndarray = truth, asked: list[int] = asked) -> Losses:
            asked.extend(chosen.tolist())
            loss = truth.ravel()[chosen]
            return Losses(loss, {}, np.isfinite(loss), None, "known", "none", 60_000)

        losses, refinement = refine_losses(look, *truth.shape, 0.1)
        off = np.abs(np.arcsinh(losses.loss) - np.arcsinh(truth.ravel()))
        result[job["label"]] = {
            "share_evaluated": round(len(asked) / truth.size, 3),
            "largest_error": round(float(off.max()), 4),
            "held_out_largest": round(refinement.largest, 4),
        }
    return result


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds for a plane of the MLP, against its points, its images and its parameters."""
    device = options.device
    stored = fm.load_dataset("mnist")
    images, labels = stored.images, stored.labels
    turns = Turns(device, 3)

    def measure(points: int, count: int, width: float) -> dict[str, Any]:
        sizes = [784, *(round(width * size) for size in (800, 320, 50)), 10]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = fm.build_model("mlp", sizes=sizes).eval().to(device)
        some = fm.Dataset(images[:count], labels[:count]).to(device)
        plane = fm.Subspace.random(network, 2, 0)
        around = np.random.default_rng(0).normal(size=(points, 2))
        loop = PlainLoop(network, some, [1000] if device == "cpu" else GPU_SIZES["mlp"])
        here = at_hand(plane, device)

        def ours(precision: str) -> Way:
            def way() -> int:
                scape = fm.Landscape(network, some, precision=precision, device=device)
                scape.losses(plane, around)
                return 1

            return way

        def plain(name: str) -> Way:
            def way() -> int:
                state = here.parameters_at(around[0])
                for _ in range(min(points, FEW)):
                    loop.loss(state, name)
                return 1

            return way

        loops = {name: plain(name) for name in LOOPS[device]}
        ways = {"exact": ours("exact"), "fast": ours("fast"), **loops}
        seconds = in_turn(ways, turns)["seconds_per_point"]
        for name in loops:
            seconds[name] *= points / min(points, FEW)
        parameters = sum(value.numel() for value in network.parameters())
        return {"points": points, "images": count, "parameters": parameters, "seconds": seconds}

    return {
        "points": [measure(points, 10_000, 1.0) for points in (1, 5, 25, 100, 400)],
        "images": [measure(25, count, 1.0) for count in (1_000, 5_000, 20_000, 60_000)],
        "parameters": [measure(25, 10_000, width) for width in (0.25, 0.5, 1.0, 2.0)],
    }


WORKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "mnist-plane": mnist_plane,
    "mnist-radius": lambda options: mnist_radius(
        options, "all", 1.0, 5 if options.device == "cpu" else 20
    ),
    "mnist-radius-top": lambda options: mnist_radius(options, "top", 0.2, 20),
    "mnist-memory": memory,
    "mnist-profile": profiled,
    "mnist-refined": refined,
    "scaling": scaling,
    "vgg16": vgg,
    "vgg16-10000": vgg_more,
}
# Left out unless asked for: a CPU would take too long, and a GPU has nothing to do, or is lent.
NOT_USUAL = {"cpu": {"vgg16-10000"}, "cuda": {"mnist-refined", "scaling"}}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=WORKS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--budget",
        type=float,
        help="seconds after which no further round of a work is begun (a GPU: 30, else none)",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--noise-seed", type=int, default=42)
    parser.add_argument("--rivals", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("expected a GPU for --device cuda, got none; use --device cpu")
    if options.only is None:
        options.only = [name for name in WORKS if name not in NOT_USUAL[device]]
    budget = options.budget or (float("inf") if device == "cpu" else 30.0)
    options.turns = Turns(device, options.rounds, budget)
    return options


def main() -> int:
    """Measure, print and write; 1 if a work failed."""
    options = arguments()
    path = options.out / f"{options.device}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"works": {}}
    failed = []
    for name in options.only:
        torch.set_num_threads(options.threads)
        where = about(options.device)
        try:
            measured = WORKS[name](options)
        except Exception as error:  # the others may be all right
            failed.append(name)
            print(f"{name} failed: {error!r}", file=sys.stderr, flush=True)
            traceback.print_exc()
            continue
        finally:
            gc.collect()
            if options.device == "cuda":
                torch.cuda.empty_cache()
        result["works"][name] = {"threads": options.threads, **measured, "provenance": where}
        print(json.dumps({name: measured}, indent=1), flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if name == "scaling":
            figure = "scaling.svg" if options.device == "cpu" else "scaling-cuda.svg"
            draw_scaling(measured, options.out / figure)
    print(f"written: {path}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
