"""VGG16 for `speed.py`: points where everything moves, or the last third, and radii."""

import argparse
from typing import Any

import numpy as np
import torch
from _speed_radius import radius
from _speed_timing import Way, in_turn
from _speed_ways import GPU_SIZES, LOOPS, PlainLoop, at_hand

import flatminima as fm


class _Vgg:
    """VGG16 at initialisation on some images, and the ways to evaluate points around it."""

    def __init__(self, options: argparse.Namespace, images: int) -> None:
        self.options, self.device = options, options.device
        self.data = fm.load_dataset("cifar10", limit=images).to(self.device)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = fm.build_model("vgg16").eval().to(self.device)
        sizes = {"cpu": [50, 100, 200], "cuda": GPU_SIZES["vgg16"]}[self.device]
        self.loop = PlainLoop(self.network, self.data, sizes)
        self.everything = fm.Subspace.random(self.network, 2, 0)
        self.points = 0.1 * np.random.default_rng(0).normal(size=(8, 2))

    def ours(self, subspace: fm.Subspace, precision: str, at: np.ndarray | None = None) -> Way:
        points = self.points if at is None else at

        def way() -> int:
            scape = fm.Landscape(
                self.network,
                self.data,
                batchnorm="keep",
                precision=precision,
                device=self.device,
            )
            scape.losses(subspace, points)
            return len(points)

        return way

    def plain(self) -> dict[str, Way]:
        """The plain loop in its arithmetics; it moves everything, whatever it is compared with."""
        here = at_hand(self.everything, self.device)
        buffers = dict(self.network.named_buffers())
        points = self.points[: 1 if self.device == "cpu" else None]

        def plain(name: str) -> Way:
            def way() -> int:
                for point in points:
                    self.loop.loss(here.parameters_at(point) | buffers, name)
                return len(points)

            return way

        return {name: plain(name) for name in LOOPS[self.device]}

    def plane(self, many: int = 0) -> dict[str, Any]:
        """Points where everything moves; on a GPU also so many at once."""
        ways = {name: self.ours(self.everything, name) for name in ("exact", "fast")}
        if self.device == "cuda":
            # Directions are drawn on the processor; here they are as near as to the plain loop.
            here = at_hand(self.everything, self.device)
            for name in ("exact", "fast"):
                ways[f"{name}, directions at hand"] = self.ours(here, name)
                if many:
                    at = 0.1 * np.random.default_rng(1).normal(size=(many, 2))
                    ways[f"{name}, {many} points"] = self.ours(self.everything, name, at)
        result = in_turn({**ways, **self.plain()}, self.options.turns)
        return {**result, "points": len(self.points)}


def vgg(options: argparse.Namespace) -> dict[str, Any]:
    """VGG16 at initialisation on 1,000 images: points of all, of the last third, top radii."""
    given = _Vgg(options, 1000)
    names = [name for name, _ in given.network.named_parameters()]
    last = fm.Subspace.random(given.network, 2, 0, parameters=names[2 * len(names) // 3 :])
    size = given.loop.sizes["plain loop"]
    return {
        "plane": given.plane(many=100),
        "last third": {
            **in_turn({"exact": given.ours(last, "exact"), **given.plain()}, options.turns),
            "points": len(given.points),
        },
        "radius, top": radius(options, given.network, given.data, given.network, "top", 1.0, size),
        **given.loop.about(),
    }


def vgg_more(options: argparse.Namespace) -> dict[str, Any]:
    """The plane of VGG16 on 10,000 images, which take a GPU as long as 1,000 take a processor."""
    given = _Vgg(options, 10_000)
    return {"plane": given.plane(), **given.loop.about()}
