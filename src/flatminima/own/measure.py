"""Measurements of a user's networks, in steps that a store keeps: a stop costs one step.

What a measurement consists of is known before it runs, and so is each step's digest: over the
model's and the loss's source files with what they import, the weights, the data, and all settings.
Running it again does what is missing; changing anything measures anew.
"""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
import xarray as xr

from flatminima.connectivity import loss_line
from flatminima.flatness import flatness_radius
from flatminima.landscape import (
    assemble_surface,
    losses_as_tile,
    stored_losses,
    surface_grid,
    tiles_as_losses,
)
from flatminima.landscape.surface import grid_coordinates
from flatminima.own.networks import OwnNetworks
from flatminima.store import Artifact, Store, dataset_to_files, files_to_dataset
from flatminima.study.execute import Listener, execute
from flatminima.study.executors import Executor
from flatminima.study.executors.local import Serial
from flatminima.study.job import Job
from flatminima.study.worker import Work
from flatminima.subspace import Subspace

# Points of a surface, and directions of a radius, that are computed and stored together.
_TILE, _BLOCK = 50, 5
# Raised when the same settings begin to mean other bytes.
_VERSION = 2

Step: TypeAlias = Callable[[Sequence[xr.Dataset]], xr.Dataset]
"""What a step computes from the datasets of the steps it depends on."""


@dataclass
class Measurement:
    """What was asked for, as steps of which the last is the result.

    Attributes:
        kind: "surface", "line" or "radius".
        settings: Of the result, as plain values.
        plane: Of a surface.
        steps: Jobs with what they compute, each after those it depends on.
    """

    kind: str
    settings: dict[str, Any]
    plane: Subspace | None = None
    steps: list[tuple[Job, Step]] = field(default_factory=list)

    @property
    def result(self) -> Job:
        """The job whose artifact is the result."""
        return self.steps[-1][0]

    def add(
        self, kind: str, settings: Mapping[str, Any], step: Step, *, after: Sequence[Job] = (),
        label: str, units: int = 1,
    ) -> Job:  # fmt: skip
        """Add a step; its digest is over the settings of the whole and its own."""
        job = Job(
            kind,
            {"own": _VERSION, **self.settings, **settings},
            dependencies=tuple(job.digest for job in after),
            inputs=tuple((job.kind, (_file(job.kind),)) for job in after),
            label=label,
            units=units,
        )
        self.steps.append((job, step))
        return job

    def do(self, job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
        """Do one of the steps.

        Args:
            job: Which.
            inputs: The files of those it depends on, by their digest.

        Raises:
            ValueError: If the step is none of this measurement.
        """
        known = {each.digest: step for each, step in self.steps}
        if job.digest not in known:
            raise ValueError(
                f"expected the code, weights and data on {platform.node()} to be those that were"
                " asked for, got others; give every machine the same files"
            )
        kinds = [kind for kind, _ in job.inputs]
        given = [
            files_to_dataset(_file(kind), inputs[digest])
            for digest, kind in zip(job.dependencies, kinds, strict=True)
        ]
        return dataset_to_files(_file(job.kind), known[job.digest](given))


def _file(kind: str) -> str:
    """The file of a step's dataset in its artifact."""
    return f"{kind}.zarr"


def plan_surface(
    own: OwnNetworks,
    *,
    resolution: int = 25,
    extent: tuple[float, float] | None = None,
    coordinates: str = "isometric",
    clip: float | None = None,
    seed: int = 0,
    scaling: str = "filter",
    parameters: str = "all",
) -> Measurement:
    """The surface on the plane through three networks, or on a random plane around one.

    Args:
        own: Three networks, or one.
        resolution: Grid points along each axis.
        extent: From and to along both axes; by default the minima with a margin, and -1 to 1 on a
            random plane.
        coordinates: "isometric" or "barycentric".
        clip: Stop points that are certain to be above.
        seed: Of a random plane's directions.
        scaling: Of a random plane's directions; see `Subspace.random`.
        parameters: What moves on a random plane.

    Raises:
        ValueError: For another number of networks, and as `surface_grid` does.
    """
    if len(own.states) == 3:
        if parameters != "all":
            raise ValueError(
                f"expected all parameters on the plane through three networks, got {parameters!r};"
                " name one network for a random plane in which only some move"
            )
        plane = Subspace.through(*own.states)
        chosen: dict[str, Any] = {"plane": "through"}
    elif len(own.states) == 1:
        moved = own.landscape.parameter_names(parameters)
        plane = Subspace.random(
            own.states[0], 2, seed, parameters=moved, scaling=scaling, orthogonal=True
        )
        plane = _anchored(plane, own)
        chosen = {"plane": "random", "seed": seed, "scaling": scaling, "parameters": parameters}
        extent = extent or (-1.0, 1.0)
    else:
        raise ValueError(
            f"expected three networks for the plane through them, or one for a random plane, got"
            f" {len(own.states)}; name one or three checkpoints"
        )
    grid = surface_grid(plane, resolution=resolution, extent=extent, coordinates=coordinates)
    points = grid_coordinates(grid)
    about = {"resolution": resolution, "coordinates": coordinates, "clip": clip, **chosen}
    about["extent"] = list(extent) if extent is not None else None
    made = Measurement("surface", _whole(own, about), plane)

    def tile(rows: slice) -> Step:
        def work(_: Sequence[xr.Dataset]) -> xr.Dataset:
            losses = own.landscape.losses(plane, points[rows], clip=clip)
            return losses_as_tile(losses)

        return work

    def whole(tiles: Sequence[xr.Dataset]) -> xr.Dataset:
        return _laid_together(own, plane, grid, tiles, clip)

    tiles = []
    for first in range(0, len(points), _TILE):
        last = min(first + _TILE, len(points))
        label = f"points {first + 1}-{last} of {len(points)}"
        rows = {"first": first, "count": last - first}
        tiles.append(
            made.add("tile", rows, tile(slice(first, last)), label=label, units=last - first)
        )
    made.add("surface", {}, whole, after=tiles, label="surface")
    return made


def _anchored(plane: Subspace, own: OwnNetworks) -> Subspace:
    """A random plane with the network that it lies around as its anchor."""
    directions = [plane.direction(index) for index in range(plane.dimensions)]
    return Subspace(own.states[0], directions, anchors=own.states)


def _laid_together(
    own: OwnNetworks,
    plane: Subspace,
    grid: xr.Dataset,
    tiles: Sequence[xr.Dataset],
    clip: float | None,
) -> xr.Dataset:
    """A surface of its tiles, with the networks' own losses beside the grid."""
    anchors = own.landscape.losses(plane, plane.anchor_coordinates, precision="exact")
    losses = tiles_as_losses(tiles, anchors, clip)
    stored = stored_losses(own.landscape, plane)
    surface = assemble_surface(grid, losses, own.landscape, stored=stored)
    return surface.assign_attrs(networks=list(own.names), **_beside(own))


def _beside(own: OwnNetworks) -> dict[str, list[Any]]:
    """What results say of groups and metrics, if there are any."""
    said: dict[str, list[Any]] = {
        "subsets": list(own.subsets),
        "subset_samples": list(own.subsets.values()),
        "metrics": list(own.metrics),
    }
    return {name: values for name, values in said.items() if values}


def plan_line(own: OwnNetworks, *, resolution: int = 25) -> Measurement:
    """The loss on the straight line between two networks.

    Raises:
        ValueError: For another number of networks.
    """
    if len(own.states) != 2:
        raise ValueError(
            f"expected two networks for the line between them, got {len(own.states)}; name two"
            " checkpoints"
        )
    made = Measurement("line", _whole(own, {"resolution": resolution}))

    def work(_: Sequence[xr.Dataset]) -> xr.Dataset:
        line = loss_line(own.landscape, *own.states, resolution=resolution)
        return line.assign_attrs(networks=list(own.names), **_beside(own))

    made.add("line", {}, work, label=f"line of {resolution} points", units=resolution)
    return made


def plan_radii(
    own: OwnNetworks,
    *,
    directions: int = 10,
    threshold: float = 0.05,
    seed: int = 0,
    parameters: str = "all",
    tolerance: float = 1e-3,
    max_radius: float | None = None,
) -> Measurement:
    """The flatness radii of every network along the same directions; see `flatness_radius`."""
    about = {
        "directions": directions,
        "threshold": threshold,
        "seed": seed,
        "parameters": parameters,
        "tolerance": tolerance,
        "max_radius": max_radius,
    }
    made = Measurement("radius", _whole(own, about))

    def block(network: int, first: int, count: int) -> Step:
        def work(_: Sequence[xr.Dataset]) -> xr.Dataset:
            return flatness_radius(
                own.landscape,
                own.states[network],
                threshold=threshold,
                directions=count,
                first=first,
                seed=seed,
                parameters=parameters,
                tolerance=tolerance,
                max_radius=max_radius,
            )

        return work

    def whole(blocks: Sequence[xr.Dataset]) -> xr.Dataset:
        per = -(-directions // _BLOCK)
        networks = [
            xr.concat(blocks[i * per : (i + 1) * per], "direction", combine_attrs="override")
            for i in range(len(own.states))
        ]
        joined = xr.concat(
            [each.assign(norm=each.attrs["norm"], start=each.attrs["loss"]) for each in networks],
            "network",
            combine_attrs="override",
        ).assign_coords(network=list(own.names))
        for name in ("loss", "norm", "path"):
            joined.attrs.pop(name, None)
        for name in ("sampled", "largest_difference"):
            if name in joined.attrs:
                joined.attrs[name] = max(block.attrs[name] for block in blocks)
        return joined.rename(start="loss")

    blocks = []
    for network, name in enumerate(own.names):
        for first in range(0, directions, _BLOCK):
            count = min(_BLOCK, directions - first)
            settings = {"network": network, "first": first, "count": count}
            label = f"{name} directions {first + 1}-{first + count}"
            work = block(network, first, count)
            blocks.append(made.add("radius", settings, work, label=label, units=2 * count))
    made.add("radius", {}, whole, after=blocks, label="radii")
    return made


def _whole(own: OwnNetworks, about: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all steps of a measurement share, if they can be kept."""
    for name, value in about.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"expected a finite {name}, got {value}; give a number")
    threads = torch.get_num_threads()
    found = {"networks": own.identity, "about": dict(about), "threads": threads}
    # Of such networks losses were rounded otherwise before.
    return found | ({"convolutions": "in parts"} if own.landscape.convolves_in_parts else {})


def exact_anyway(own: OwnNetworks, made: Measurement) -> bool:
    """Whether a surface or line is computed in full precision whatever was asked for."""
    plane = made.plane or Subspace.through(*own.states)
    # From stored inputs of the last layer a point costs next to nothing, also in full precision.
    return own.landscape.losses(plane, np.empty((0, plane.dimensions))).path == "top"


def run_measurement(
    made: Measurement,
    store: Store,
    *,
    executor: Executor | None = None,
    work: Work | None = None,
    listener: Listener | None = None,
) -> xr.Dataset:
    """Do the steps that the store lacks, and give the result.

    Args:
        made: What to measure.
        store: Where steps are kept; the caller holds its lock.
        executor: Where they are computed: by default in this process.
        work: Does a step, where that is another process; see `Anew`.
        listener: Told of every step's start and end.

    Raises:
        StudyFailed: Some steps failed; those that do not need them are done and kept.
        OSError: Nothing more can be written.
    """
    execute(
        left_to_do(made, store),
        store,
        executor or Serial(),
        work=work or made.do,
        seconds=lambda job: float(job.units),
        listener=listener,
    )
    return _read(store, made, made.result.digest)


def left_to_do(made: Measurement, store: Store) -> list[Job]:
    """The steps that the store lacks and the result needs."""
    todo = _left(made, store)
    return [job for job, _ in made.steps if job.digest in todo]


def _left(made: Measurement, store: Store) -> set[str]:
    if store.done(made.result.kind, made.result.digest):
        return set()
    return {job.digest for job, _ in made.steps if not store.done(job.kind, job.digest)}


def _read(store: Store, made: Measurement, digest: str) -> xr.Dataset:
    """A finished step's dataset, its bytes checked."""
    kind = next(job.kind for job, _ in made.steps if job.digest == digest)
    return files_to_dataset(_file(kind), store.read(kind, digest))
