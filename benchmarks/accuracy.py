"""How far losses are from those in float64, on trained networks.

At points of the plane through three trained networks the loss is computed in `exact`, in `fast`, by
torch's own float32 (`Landscape.loss_at`, which takes no short cut), and with networks and images in
float64. Distances are shares of 1 + loss.

    python benchmarks/accuracy.py --store results/mnist-paper --study mnist-paper --group natural
    python benchmarks/accuracy.py --store runs --study cifar10-small --group random

It writes a `.json` named after the study and the group.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import add_networks, chosen_points, opened

import flatminima as fm
from flatminima.study.provenance import provenance


def in_float64(minimum: fm.Minimum) -> fm.Minimum:
    """The same network with every number in float64."""
    parameters = {name: value.double() for name, value in minimum.parameters.items()}
    buffers = {
        name: value.double() if value.is_floating_point() else value
        for name, value in minimum.buffers.items()
    }
    return fm.Minimum(parameters, buffers, model=minimum.model)


def measure(
    minima: list[fm.Minimum], dataset: fm.Dataset, points: np.ndarray, policy: str
) -> dict[str, Any]:
    """The losses at the points by every way, and how far they are from float64."""
    plane = fm.Subspace.through(*minima)
    finer = fm.Subspace.through(*(in_float64(minimum) for minimum in minima))
    network = minima[0].module()
    ours = {
        name: fm.Landscape(network, dataset, batchnorm=policy, precision=name)
        for name in ("exact", "fast")
    }
    float64 = fm.Landscape(minima[0].module().double(), dataset, batchnorm=policy)
    found = {name: scape.losses(plane, points) for name, scape in ours.items()}
    losses = {name: here.loss for name, here in found.items()}
    states = ({**plane.parameters_at(at), **minima[0].buffers} for at in points)
    losses["torch's own float32"] = np.concatenate(
        [ours["exact"].loss_at(state, batchnorm=policy).loss for state in states]
    )
    reference = float64.losses(finer, points).loss
    shares = {name: np.abs(here - reference) / (1 + reference) for name, here in losses.items()}
    return {
        "batchnorm": found["exact"].batchnorm,
        "path": {name: here.path for name, here in found.items()},
        "convolves_in_parts": ours["exact"].convolves_in_parts,
        "loss_in_float64": reference.tolist(),
        "largest_share_of_1_plus_loss": {
            name: float(f"{share.max():.3g}") for name, share in shares.items()
        },
        "mean_share_of_1_plus_loss": {
            name: float(f"{share.mean():.3g}") for name, share in shares.items()
        },
    }


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_networks(parser)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def main(words: list[str] | None = None) -> int:
    """Measure and write."""
    options = arguments().parse_args(words)
    torch.set_num_threads(options.threads)
    try:
        minima, dataset, source = opened(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    plane = fm.Subspace.through(*minima)
    weights = chosen_points(options.points, options.seed)
    points = np.concatenate([plane.anchor_coordinates, plane.barycentric(weights)])
    found = []
    for policy in ("keep", "recompute") if minima[0].buffers else ("auto",):
        found.append(measure(minima, dataset, points, policy))
        for name, share in found[-1]["largest_share_of_1_plus_loss"].items():
            print(f"{policy}, {name}: off by {share:.1e} of 1 + loss at most", flush=True)
    about = source | {
        "dataset": {"name": dataset.name, "digest": dataset.digest, "samples": len(dataset)},
        "model": minima[0].model,
        "points": {"minima": len(minima), "others": options.points, "seed": options.seed},
        "measured": found,
        "threads": options.threads,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": provenance(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "-".join([options.study, options.group] if options.study else [dataset.name])
    text = json.dumps(about, indent=1, sort_keys=True)
    (options.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
