"""How many examples does `batchnorm="recompute"` need? The loss against the size of the subset.

At ten points of the plane through three trained networks, five inside their triangle and five
outside it, the loss over the whole dataset is measured with statistics pooled over subsets of
growing size. The largest subset is what the others are compared with.

    python benchmarks/recompute_subset.py --store runs --study cifar10-small --group natural
    python benchmarks/recompute_subset.py --weights a.safetensors b.safetensors c.safetensors \\
        --dataset cifar10 --limit 5000

It writes `recompute-subset.csv` (one row per point and size), `.json` (what was measured, where,
and a summary by size), `.svg` and `.png`.
"""

import argparse
import csv
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import add_networks, chosen_points, opened

import flatminima as fm
from flatminima.landscape import stored_losses
from flatminima.study.provenance import provenance

SIZES = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
NAME = "recompute-subset"


def measure(
    minima: list[fm.Minimum], dataset: fm.Dataset, weights: np.ndarray, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per subset size and point."""
    plane = fm.Subspace.through(*minima)
    sizes = sorted({min(size, len(dataset)) for size in options.sizes})
    rows: list[dict[str, Any]] = []
    for size in sizes:
        landscape = fm.Landscape(
            minima[0].module(),
            dataset,
            batchnorm="recompute",
            recompute_samples=size,
            recompute_batch=options.batch,
        )
        if not landscape.stores_statistics:
            raise ValueError("expected networks with BatchNorm, got none; nothing is recomputed")
        for point, row in enumerate(weights):
            found = landscape.losses(plane, plane.barycentric(row[None]))
            error = None if found.standard_error is None else float(found.standard_error[0])
            rows.append(
                {
                    "samples": landscape.recompute_samples,
                    "point": point,
                    "inside": bool(row.min() >= 0),
                    "x": float(row[0]),
                    "y": float(row[1]),
                    "z": float(row[2]),
                    "loss": float(found.loss[0]),
                    "accuracy": float(found.metrics["accuracy"][0]),
                    "standard_error": error,
                }
            )
            print(f"{size:>6} examples, point {point}: {rows[-1]['loss']:.6g}", flush=True)
    largest = {row["point"]: row["loss"] for row in rows if row["samples"] == rows[-1]["samples"]}
    for row in rows:
        row["difference"] = row["loss"] - largest[row["point"]]
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By size, how far the losses are from those with the largest subset."""
    found = []
    for size in sorted({row["samples"] for row in rows}):
        here = [row for row in rows if row["samples"] == size]
        gaps = np.array([abs(row["difference"]) for row in here])
        shares = gaps / np.array([abs(row["loss"] - row["difference"]) for row in here])
        found.append(
            {
                "samples": size,
                "mean_difference": float(gaps.mean()),
                "largest_difference": float(gaps.max()),
                "largest_relative_difference": float(shares.max()),
            }
        )
    return found


def draw(rows: list[dict[str, Any]], folder: Path, title: str) -> None:
    """The distance from the largest subset's loss against the size of the subset, by point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for point in sorted({row["point"] for row in rows}):
        here = [row for row in rows if row["point"] == point][:-1]
        inside = here[0]["inside"]
        axes.plot(
            [row["samples"] for row in here],
            [abs(row["difference"]) for row in here],
            marker="o" if inside else "s",
            color="tab:blue" if inside else "tab:orange",
            linewidth=1,
            markersize=4,
            label={0: "inside the triangle"}.get(point) or (None if inside else "outside"),
        )
    axes.set(xscale="log", yscale="log", xlabel="examples that statistics are pooled over")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xticks(sorted({row["samples"] for row in rows})[:-1])
    axes.set(ylabel=f"|loss - loss with {rows[-1]['samples']:,} examples|", title=title)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False)
    for ending in ("svg", "png"):
        metadata = {"Date": None} if ending == "svg" else None
        figure.savefig(folder / f"{NAME}.{ending}", dpi=150, metadata=metadata)


def write(
    rows: list[dict[str, Any]], about: dict[str, Any], folder: Path, title: str
) -> list[dict[str, Any]]:
    """All four files; returns the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{NAME}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    found = summary(rows)
    text = json.dumps(about | {"summary": found}, indent=1, sort_keys=True)
    (folder / f"{NAME}.json").write_text(text + "\n", encoding="utf-8")
    draw(rows, folder, title)
    return found


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_networks(parser)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="of the subset")
    parser.add_argument("--batch", type=int, default=100, help="examples a batch")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def main(words: list[str] | None = None) -> int:
    """Measure and write."""
    options = arguments().parse_args(words)
    torch.set_num_threads(options.threads)
    try:
        minima, dataset, source = opened(options)
        weights = chosen_points(options.points, options.seed)
        rows = measure(minima, dataset, weights, options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    scape = fm.Landscape(minima[0].module(), dataset, batchnorm="recompute")
    plane = fm.Subspace.through(*minima)
    about = source | {
        "dataset": {"name": dataset.name, "digest": dataset.digest, "samples": len(dataset)},
        "model": minima[0].model,
        "recompute_batch": options.batch,
        "points": {"count": options.points, "seed": options.seed},
        "minima": {
            "recompute": scape.losses(plane, plane.anchor_coordinates).loss.tolist(),
            "recompute_samples": scape.recompute_samples,
            "stored": np.asarray(stored_losses(scape, plane)).tolist(),
        },
        "threads": options.threads,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": provenance(),
    }
    title = f"{dataset.name}, {len(dataset):,} examples, batches of {options.batch}"
    for row in write(rows, about, options.out, title):
        print(
            f"{row['samples']:>6} examples: differs by {row['mean_difference']:.2e} on average,"
            f" {row['largest_difference']:.2e} at most"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
