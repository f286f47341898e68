"""How long does a point take, against the ways in which it is usually computed?

    python benchmarks/speed.py --out results/speed
    python benchmarks/speed.py --rivals FOLDER --out results/speed

FOLDER holds other packages (`pip install --no-deps --target FOLDER loss-landscapes==3.0.6
landscaper==1.3.1 tqdm`); without it those alternatives are left out, and the result says so.

All ways of one work run in turn, A B C A B C, and medians over the rounds are compared. A way whose
cost per point is constant does a few of the points only. It writes `cpu.json` and `scaling.svg`.
"""

import argparse
import contextlib
import importlib
import io
import json
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import flatminima as fm
from flatminima._linear import product
from flatminima.landscape._losses import Losses
from flatminima.landscape._refine import refine_losses
from flatminima.minimum import Minimum
from flatminima.store import Store
from flatminima.study.provenance import provenance

ROOT = Path(__file__).parents[1]
POINTS = 25
FEW = 5  # points of a way whose cost per point is constant
OF_PUBLISHED = 1
# Multiply-adds of the MLP per image: of its first layer, and of the others.
FIRST, REST = 784 * 800, 800 * 320 + 320 * 50 + 50 * 10

Way = Callable[[], int]
"""Computes some points and says how many."""


def trained(group: str) -> list[Minimum]:
    """The three published networks of a group at the end of their training."""
    store = Store(ROOT / "results" / "mnist-paper")
    jobs = store.manifest("mnist-paper")["jobs"]
    file = "last.safetensors"
    return [
        Minimum.from_bytes(store.read("network", job["digest"], under=[file])[file])
        for job in jobs
        if job["kind"] == "network" and job["label"].startswith(group)
    ]


def plain_pass(
    network: nn.Module, state: Mapping[str, Tensor], images: Tensor, labels: Tensor, size: int
) -> float:
    """The loss of one point by a loop over tensors in memory."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(images), size):
            outputs = functional_call(network, dict(state), (images[start : start + size],))
            losses = F.cross_entropy(outputs, labels[start : start + size], reduction="none")
            total += float(losses.double().sum())
    return total / len(images)


def best_size(network: nn.Module, images: Tensor, labels: Tensor, sizes: list[int]) -> int:
    """The batch size at which the plain loop is quickest."""
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    seconds = {}
    for size in sizes:
        plain_pass(network, state, images[: 4 * size], labels[: 4 * size], size)
        start = time.perf_counter()
        plain_pass(network, state, images, labels, size)
        seconds[size] = time.perf_counter() - start
    return min(seconds, key=lambda size: seconds[size])


class _PerImage(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images that are turned into tensors and normalised one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.numpy(), labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self._images[index]).float().div(255)
        return image.sub(0.1307).div(0.3081), self._labels[index]


def published_pass(state: Mapping[str, Tensor], data: _PerImage) -> float:
    """One point the published study's way: a new network, and a data loader with transforms."""
    network = fm.build_model("mlp")
    network.load_state_dict(dict(state))
    total = 0.0
    with torch.no_grad():
        for images, labels in torch.utils.data.DataLoader(data, batch_size=100):
            total += float(F.cross_entropy(network(images), labels, reduction="sum"))
    return total / len(data)


def loss_landscapes_plane(folder: Path, minima: list[Minimum], data: fm.Dataset, size: int) -> Way:
    """The plane of the package loss-landscapes, over the same images in memory."""
    sys.path.insert(0, str(folder))
    import loss_landscapes
    from loss_landscapes.metrics import Metric

    images, labels = data.images, data.labels

    class Loss(Metric):  # type: ignore[misc]
        def __call__(self, model: Any) -> float:
            total = 0.0
            with torch.no_grad():
                for start in range(0, len(images), size):
                    outputs = model.forward(images[start : start + size])
                    part = labels[start : start + size]
                    total += float(F.cross_entropy(outputs, part, reduction="sum"))
            return total / len(images)

    def way() -> int:
        modules = [minimum.module() for minimum in minima]
        steps = 2
        loss_landscapes.planar_interpolation(*modules, Loss(), steps, deepcopy_model=True)
        return steps * steps

    return way


def landscaper_plane(folder: Path, minima: list[Minimum], data: fm.Dataset, size: int) -> Way:
    """The plane of the package landscaper: along two directions, for it has none through minima.

    Only its file of computations is loaded; the package itself wants plotting libraries.
    """
    sys.path.insert(0, str(folder))
    package = types.ModuleType("landscaper")
    package.__path__ = [str(folder / "landscaper")]
    sys.modules["landscaper"] = package
    compute = importlib.import_module("landscaper.compute")
    network = minima[0].module()
    directions = [[torch.randn_like(p) for p in network.parameters()] for _ in range(2)]
    images, labels = data.images, data.labels

    def loss(model: nn.Module, _data: Any) -> float:
        return plain_pass(model, dict(model.named_parameters()), images, labels, size)

    def way() -> int:
        steps = 2
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            compute.compute_loss_landscape(
                network, None, directions, loss, steps=steps, distance=0.5, dim=2, device="cpu"
            )
        return steps * steps

    return way


def in_turn(ways: Mapping[str, Way], rounds: int) -> dict[str, Any]:
    """Seconds per point of every way, round by round, with medians and ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # once for everything that happens only once
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            points = way()
            seconds[name].append((time.perf_counter() - start) / points)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = [name for name in ways if name.startswith(("exact", "fast"))]
    return {
        "seconds_per_point": {name: round(value, 4) for name, value in medians.items()},
        "rounds": {name: [round(v, 4) for v in values] for name, values in seconds.items()},
        "times_faster_than": {
            mine: {
                name: round(value / medians[mine], 2)
                for name, value in medians.items()
                if name not in ours
            }
            for mine in ours
        },
    }


def mnist_plane(options: argparse.Namespace) -> dict[str, Any]:
    """A plane of the MLP over all 60,000 images."""
    data = fm.load_dataset("mnist")
    raw = (data.images * 0.3081 + 0.1307).mul(255).round().to(torch.uint8)
    minima = trained("natural")
    plane = fm.Subspace.through(*minima)
    axis = np.linspace(-0.4, 1.3, 50)[[4, 14, 24, 34, 44]]
    points = plane.barycentric(np.array([[x, y, 1 - x - y] for x in axis for y in axis]))
    network = fm.build_model("mlp").eval()
    size = best_size(network, data.images, data.labels, [250, 500, 1000, 2000, 5000])
    per_image = _PerImage(raw, data.labels)
    spread = points[:: POINTS // FEW]
    found: dict[str, np.ndarray] = {}

    def ours(precision: str, clip: float | None = None) -> Way:
        def way() -> int:
            scape = fm.Landscape(network, data, precision=precision)
            losses = scape.losses(plane, points, clip=clip).loss
            found[precision if clip is None else "clipped"] = losses
            return len(points)

        return way

    def plain() -> int:
        states = [plane.parameters_at(point) for point in spread]
        found["plain"] = np.array(
            [plain_pass(network, state, data.images, data.labels, size) for state in states]
        )
        return len(states)

    def published() -> int:
        for point in spread[:OF_PUBLISHED]:
            published_pass(plane.parameters_at(point), per_image)
        return OF_PUBLISHED

    ways: dict[str, Way] = {
        "exact": ours("exact"),
        "fast": ours("fast"),
        "exact, clip 3.5": ours("exact", 3.5),
        "plain loop": plain,
        "published way": published,
    }
    if options.rivals:
        folder = options.rivals
        ways["loss-landscapes 3.0.6"] = loss_landscapes_plane(folder, minima, data, size)
        ways["landscaper 1.3.1"] = landscaper_plane(folder, minima, data, size)
    result = in_turn(ways, options.rounds)
    gap = np.abs(found["exact"][:: POINTS // FEW] - found["plain"]) / (1 + found["plain"])
    off = np.abs(found["fast"] - found["exact"])
    peak = rates()
    share = {
        name: 2 * 60_000 * (3 * FIRST / POINTS + REST) / 1e9 / result["seconds_per_point"][name]
        for name in ("exact", "fast")
    }
    return {
        **result,
        "points": POINTS,
        "plain_batch_size": size,
        "largest_relative_difference_of_exact_from_plain": float(gap.max()),
        "largest_difference_of_fast": float(off.max()),
        "above_clip": int((found["exact"] > 3.5).sum()),
        "gflop_per_second": {**peak, **{name: round(value) for name, value in share.items()}},
    }


def rates() -> dict[str, float]:
    """Products per second of the network's second layer, in GFLOP, each way of computing them."""
    inputs, weight, bias = torch.randn(500, 800), torch.randn(320, 800), torch.randn(320)
    half = [value.bfloat16() for value in (inputs, weight, bias)]
    ways: dict[str, Callable[[], Any]] = {
        "float32 product, oneDNN": lambda: product(inputs, weight, bias),
        "float32 product, as torch chooses": lambda: F.linear(inputs, weight, bias),
        "bfloat16 product": lambda: F.linear(*half),
    }
    result = {}
    for name, way in ways.items():
        seconds = []
        for _ in range(50):
            start = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - start)
        result[name] = round(2 * 500 * 800 * 320 / statistics.median(seconds) / 1e9)
    return result


def radius(
    network: nn.Module,
    data: fm.Dataset,
    state: Any,
    parameters: str,
    step: float,
    size: int,
    rounds: int,
    *,
    directions: int = 20,
) -> dict[str, Any]:
    """Radii along both sides of random directions, against a walk along one by whole passes.

    The walk's passes are counted once; a round times one of them and multiplies.
    """
    options: dict[str, Any] = {"directions": directions, "parameters": parameters}
    scape = fm.Landscape(network, data, batchnorm="keep")
    walked = fm.flatness_radius(scape, state, protocol="stepwise", step=step, **options)
    passes = int((walked["radius"] / step + 1).round().sum())
    weights = fm.Landscape(network, data).state(state)
    tensors = {**weights.parameters, **weights.buffers}
    measured: dict[str, Any] = {}

    def ours() -> int:
        fresh = fm.Landscape(network, data, batchnorm="keep")
        measured["radii"] = fm.flatness_radius(fresh, state, **options)
        return 1

    def one_pass() -> int:
        plain_pass(network, tensors, data.images, data.labels, size)
        return 1

    result = in_turn({"exact": ours, "one pass of the plain loop": one_pass}, rounds)
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


def mnist_radius(
    options: argparse.Namespace, parameters: str, step: float, directions: int
) -> dict[str, Any]:
    """Radii of the MLP, on natural and on random labels."""
    natural = fm.load_dataset("mnist")
    groups = {
        "natural": natural,
        "random": fm.randomize_labels(natural, fraction=0.5, seed=options.noise_seed),
    }
    network = fm.build_model("mlp").eval()
    size = best_size(network, natural.images, natural.labels, [500, 1000, 2000])
    return {
        group: radius(
            network,
            data,
            trained(group)[0],
            parameters,
            step,
            size,
            options.rounds,
            directions=directions,
        )
        for group, data in groups.items()
    }


def vgg(options: argparse.Namespace) -> dict[str, Any]:
    """VGG16 at initialisation on 1,000 images: points of all, of the last third, top radii."""
    data = fm.load_dataset("cifar10", limit=1000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = fm.build_model("vgg16").eval()
    size = best_size(network, data.images, data.labels, [50, 100, 200])
    names = [name for name, _ in network.named_parameters()]
    everything = fm.Subspace.random(network, 2, 0)
    last = fm.Subspace.random(network, 2, 0, parameters=names[2 * len(names) // 3 :])
    points = 0.1 * np.random.default_rng(0).normal(size=(8, 2))

    def ours(subspace: fm.Subspace, precision: str) -> Way:
        def way() -> int:
            scape = fm.Landscape(network, data, batchnorm="keep", precision=precision)
            scape.losses(subspace, points)
            return len(points)

        return way

    def plain() -> int:
        tensors = everything.parameters_at(points[0]) | dict(network.named_buffers())
        plain_pass(network, tensors, data.images, data.labels, size)
        return 1

    whole = {"exact": ours(everything, "exact"), "fast": ours(everything, "fast")}
    return {
        "plane": {**in_turn({**whole, "plain loop": plain}, options.rounds), "points": len(points)},
        "last third": {
            **in_turn({"exact": ours(last, "exact"), "plain loop": plain}, options.rounds),
            "points": len(points),
        },
        "radius, top": radius(network, data, network, "top", 1.0, size, options.rounds),
        "plain_batch_size": size,
    }


_PARTS = {
    "products": ("mkldnn::_linear_pointwise", "aten::addmm"),
    "activations": ("aten::clamp_min",),
    "adding directions": ("aten::add", "aten::add_"),
    "losses": ("aten::_log_softmax", "aten::argmax", "aten::sum", "aten::gather", "aten::dot"),
    "copies and casts": ("aten::copy_",),
}


def profiled(_options: argparse.Namespace) -> dict[str, Any]:
    """Shares of the time of a plane of the MLP on one thread, by what is computed."""
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    data, plane = fm.load_dataset("mnist"), fm.Subspace.through(*trained("natural"))
    points = np.random.default_rng(0).normal(size=(100, 2))
    result: dict[str, Any] = {"threads": 1, "points": len(points)}
    for precision in ("exact", "fast"):
        scape = fm.Landscape(fm.build_model("mlp"), data, precision=precision)
        scape.losses(plane, points[:1])
        with profile(activities=[ProfilerActivity.CPU]) as found:
            scape.losses(plane, points)
        events = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
        whole = sum(events.values())
        shares = {
            part: round(sum(events.get(name, 0.0) for name in names) / whole, 3)
            for part, names in _PARTS.items()
        }
        result[precision] = {"seconds": round(whole, 1), **shares}
        result[precision]["rest"] = round(1 - sum(shares.values()), 3)
    return result


_MEMORY = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np, torch, flatminima as fm, speed
torch.set_num_threads(int(sys.argv[2]))
data, plane = fm.load_dataset("mnist"), fm.Subspace.through(*speed.trained("natural"))
scape = fm.Landscape(fm.build_model("mlp"), data)
Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is forgotten
peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
before = peak()
points = np.random.default_rng(0).normal(size=(int(sys.argv[3]), 2))
scape.losses(plane, points)
print(before, peak())
"""


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a plane over all images, in fresh processes, for few and for many points."""
    result: dict[str, Any] = {}
    for points in (25, 250, 750):
        command = [sys.executable, "-c", _MEMORY, str(Path(__file__).parent)]
        command += [str(options.threads), str(points)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        before, peak = (int(value) / 2**20 for value in out.split())
        result[f"{points} points"] = {
            "GiB_before": round(before, 2),
            "GiB_above": round(peak - before, 2),
        }
    return result


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
    data = fm.load_dataset("mnist")

    def measure(points: int, images: int, width: float) -> dict[str, Any]:
        sizes = [784, *(round(width * size) for size in (800, 320, 50)), 10]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = fm.build_model("mlp", sizes=sizes).eval()
        some = fm.Dataset(data.images[:images], data.labels[:images])
        plane = fm.Subspace.random(network, 2, 0)
        around = np.random.default_rng(0).normal(size=(points, 2))
        size = min(images, 1000)

        def ours(precision: str) -> Way:
            def way() -> int:
                fm.Landscape(network, some, precision=precision).losses(plane, around)
                return 1

            return way

        def plain() -> int:
            state = plane.parameters_at(around[0])
            for _ in range(min(points, FEW)):
                plain_pass(network, state, some.images, some.labels, size)
            return 1

        ways = {"exact": ours("exact"), "fast": ours("fast"), "plain loop": plain}
        seconds = in_turn(ways, 3)["seconds_per_point"]
        seconds["plain loop"] *= points / min(points, FEW)
        parameters = sum(value.numel() for value in network.parameters())
        return {"points": points, "images": images, "parameters": parameters, "seconds": seconds}

    result = {
        "points": [measure(points, 10_000, 1.0) for points in (1, 5, 25, 100, 400)],
        "images": [measure(25, images, 1.0) for images in (1_000, 5_000, 20_000, 60_000)],
        "parameters": [measure(25, 10_000, width) for width in (0.25, 0.5, 1.0, 2.0)],
    }
    _draw(result, options.out / "scaling.svg")
    return result


def _draw(result: dict[str, Any], path: Path) -> None:
    """One panel per quantity that grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    about = {
        "points": "points (10,000 images)",
        "images": "images (25 points)",
        "parameters": "parameters (10,000 images, 25 points)",
    }
    styles = {"plain loop": ("#8a8a8a", "s"), "exact": ("#1f5fa8", "o"), "fast": ("#d1495b", "^")}
    for axes, (name, label) in zip(panels, about.items(), strict=True):
        rows = result[name]
        for way, (colour, mark) in styles.items():
            values = [row["seconds"][way] for row in rows]
            axes.loglog([row[name] for row in rows], values, color=colour, marker=mark, label=way)
        values = [row[name] for row in rows]
        axes.set_xticks(values, [EngFormatter(places=0, sep="")(value) for value in values])
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds")
    panels[0].legend(frameon=False)
    figure.suptitle("A plane of the MLP: time against what grows", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


WORKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "mnist-plane": mnist_plane,
    "mnist-radius": lambda options: mnist_radius(options, "all", 1.0, 5),
    "mnist-radius-top": lambda options: mnist_radius(options, "top", 0.2, 20),
    "mnist-memory": memory,
    "mnist-profile": profiled,
    "mnist-refined": refined,
    "scaling": scaling,
    "vgg16": vgg,
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--noise-seed", type=int, default=42)
    parser.add_argument("--rivals", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.out / "cpu.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"works": {}}
    for name in options.only:
        about = {**provenance(), "date": datetime.now(UTC).date().isoformat()}
        torch.set_num_threads(options.threads)
        measured = WORKS[name](options)
        result["works"][name] = {
            "threads": options.threads,
            **measured,
            "provenance": about,
        }
        print(json.dumps({name: measured}, indent=1), flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
