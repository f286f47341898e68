"""What each kind of job does: a pure function from a job and its inputs to an artifact.

This runs in workers. Nothing here writes to a store; torch, xarray and the library are imported
when the first job runs, so that the module is cheap to import in the driver.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zlib import crc32

from flatminima.store import Artifact, canonical, dataset_to_files, files_to_dataset
from flatminima.study.job import Job

if TYPE_CHECKING:
    import xarray as xr

    from flatminima.data import Dataset
    from flatminima.landscape import Landscape
    from flatminima.minimum import Minimum
    from flatminima.subspace import Subspace
    from flatminima.training import TrainingRun


# One byte in so many tells networks apart; a prime, so that all bytes of a number get their turn.
_SHARE = 1021


def run_job(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    """Do one job.

    Args:
        job: What to do.
        inputs: The files that `job.inputs` names, by the digest of the job that made them.

    Returns:
        The job's artifact, serialised: equal results are equal bytes.
    """
    import torch

    work = {
        "train": _train,
        "network": _network,
        "tile": _tile,
        "surface": _surface,
        "radius": _radius,
        "summary": _summary,
    }[job.kind]
    threads = torch.get_num_threads()
    torch.set_num_threads(job.settings.get("run", {}).get("threads", threads))
    try:
        return work(job.settings, [inputs[digest] for digest in job.dependencies])
    finally:
        torch.set_num_threads(threads)


def load_split(data: Mapping[str, Any], split: str, device: str) -> "Dataset":
    """The data that a job's settings name, kept in memory for the process's next jobs.

    The limit and the noise of the settings concern the training set only.
    """
    return _load_split(canonical(dict(data)).decode(), split, device)


@lru_cache(maxsize=4)
def _load_split(data_json: str, split: str, device: str) -> "Dataset":
    """The cached body of `load_split`."""
    from flatminima.data import load_dataset, randomize_labels

    data = json.loads(data_json)
    if split == "test":
        limit = data.get("test_limit")
        return load_dataset(data["dataset"], "test", limit=limit, seed=data["seed"]).to(device)
    dataset = load_dataset(data["dataset"], "train", limit=data["limit"], seed=data["seed"])
    if "noise" in data:
        noise = data["noise"]
        dataset = randomize_labels(
            dataset, noise["fraction"], noise["seed"], scheme=noise["scheme"]
        )
    return dataset.to(device)


def make_landscape(settings: Mapping[str, Any], split: str) -> "Landscape":
    """The landscape of a tile's, surface's or radius's settings, kept for the next job."""
    names = ("data", "model", "batchnorm", "recompute", "run")
    used = {name: settings[name] for name in names if name in settings}
    return _make_landscape(canonical(used).decode(), split)


@lru_cache(maxsize=2)
def _make_landscape(settings_json: str, split: str) -> "Landscape":
    """The cached body of `make_landscape`."""
    import torch

    from flatminima.landscape import Landscape
    from flatminima.models import build_model

    settings = json.loads(settings_json)
    run = settings["run"]
    with torch.random.fork_rng(devices=[]):  # the caller's random state is the caller's
        model = build_model(settings["model"]["name"], **settings["model"]["settings"])
    return Landscape(
        model,
        load_split(settings["data"], split, run["device"]),
        batchnorm=settings["batchnorm"],
        precision=run["precision"],
        batch_size=run["batch_size"],
        device=run["device"],
        **{f"recompute_{name}": value for name, value in settings.get("recompute", {}).items()},
    )


def _training_run(settings: Mapping[str, Any], state: bytes | None) -> "TrainingRun":
    """A network at initialisation, or where `state` left it."""
    from flatminima.training import Recipe, TrainingRun

    device, model = settings["run"]["device"], settings["model"]
    dataset = load_split(settings["data"], "train", device)
    recipe = Recipe(**settings["recipe"])
    options: dict[str, Any] = {
        "seed": settings["seed"],
        "test": load_split(settings["data"], "test", device),
        "match_loss": settings["match_loss"],
    }
    if state is None:
        return TrainingRun.start(model, dataset, recipe, **options)
    return TrainingRun.resume(state, model, dataset, recipe, **options)


def _train(settings: Mapping[str, Any], inputs: Sequence[Artifact]) -> dict[str, bytes]:
    """One segment: the state after it, and the matched checkpoint if it was reached here."""
    first, last = settings["segment"]
    run = _training_run(settings, inputs[0]["state.safetensors"] if inputs else None)
    if not run.finished:
        run.advance(last - first)
    files = {"state.safetensors": run.to_bytes()}
    if run.matched is not None:  # reached in this segment
        files["matched.safetensors"] = run.matched.to_bytes()
    return files


def _network(settings: Mapping[str, Any], inputs: Sequence[Artifact]) -> dict[str, bytes]:
    """The weights at both checkpoints and the history of one chain of segments."""
    run = _training_run({**settings, "seed": settings["network"]}, inputs[-1]["state.safetensors"])
    files = {"last.safetensors": run.minimum().to_bytes()}
    for artifact in inputs:
        if "matched.safetensors" in artifact:
            files["matched.safetensors"] = artifact["matched.safetensors"]
    history = run.history.assign_attrs(group=settings["group"], network=settings["network"])
    return files | dataset_to_files("history.zarr", history)


def _problem(checkpoint: str, artifact: Artifact) -> dict[str, str]:
    """Why a network cannot be measured at `checkpoint`, or nothing: an outcome is data."""
    attrs = json.loads(artifact["history.zarr/.zattrs"])
    who = f"network {attrs['network']} of group {attrs['group']}"
    if attrs["outcome"] == "diverged":
        return {"status": "excluded", "reason": f"{who} diverged in training"}
    if checkpoint == "matched" and "matched.safetensors" not in artifact:
        loss = attrs["match_loss"]
        return {"status": "not_reached", "reason": f"{who} never reached a train loss of {loss}"}
    return {}


_FILES = {"end": "last.safetensors", "matched": "matched.safetensors"}


def _weights(checkpoint: str, artifact: Artifact) -> "Minimum":
    """A network's state at `checkpoint`."""
    from flatminima.minimum import Minimum

    file = _FILES[checkpoint]
    return Minimum.from_bytes(artifact[file], source=file)


# The plane that the last job saw: a landscape remembers how it evaluates it, and most jobs of a
# process see the same one.
_kept_plane: "dict[tuple[tuple[int, int], ...], Subspace]" = {}


def _plane_through(checkpoint: str, networks: Sequence[Artifact]) -> "Subspace":
    """The plane through some networks."""
    from flatminima.subspace import Subspace

    files = [artifact[_FILES[checkpoint]] for artifact in networks]
    # A share of the bytes: two networks differ in nearly all of them.
    key = tuple((len(file), crc32(file[::_SHARE])) for file in files)
    if key not in _kept_plane:
        plane = Subspace.through(*(_weights(checkpoint, artifact) for artifact in networks))
        _kept_plane.clear()
        _kept_plane[key] = plane
    return _kept_plane[key]


def make_plane(
    settings: Mapping[str, Any], networks: Sequence[Artifact]
) -> "tuple[Subspace, xr.Dataset] | dict[str, str]":
    """The plane through the networks and its grid, or why there is none."""
    from flatminima.landscape import surface_grid

    for artifact in networks:
        problem = _problem(settings["checkpoint"], artifact)
        if problem:
            return problem
    plane = _plane_through(settings["checkpoint"], networks)
    grid = surface_grid(
        plane,
        resolution=settings["resolution"],
        extent=tuple(settings["extent"]) if settings["extent"] is not None else None,
        coordinates=settings["coordinates"],
    )
    return plane, grid


def _tile(settings: Mapping[str, Any], inputs: Sequence[Artifact]) -> dict[str, bytes]:
    """Losses at a block of the grid's points, in the order of its rows."""
    import xarray as xr

    from flatminima.landscape import losses_as_tile
    from flatminima.landscape.surface import grid_coordinates

    found = make_plane(settings, inputs)
    if isinstance(found, dict):
        return dataset_to_files("tile.zarr", xr.Dataset(attrs=found))
    plane, grid = found
    block = grid_coordinates(grid)[settings["first"] : settings["first"] + settings["count"]]
    landscape = make_landscape(settings, settings["split"])
    losses = landscape.losses(plane, block, clip=settings.get("clip"))
    return dataset_to_files("tile.zarr", losses_as_tile(losses))


def _surface(settings: Mapping[str, Any], inputs: Sequence[Artifact]) -> dict[str, bytes]:
    """The tiles laid together, with the losses at the minima themselves beside the grid."""
    import xarray as xr

    from flatminima.landscape import assemble_surface, stored_losses, tiles_as_losses

    about = {name: settings[name] for name in ("group", "checkpoint", "split")}
    found = make_plane(settings, [item for item in inputs if "tile.zarr/.zattrs" not in item])
    if isinstance(found, dict):
        return dataset_to_files("surface.zarr", xr.Dataset(attrs=about | found))
    plane, grid = found
    landscape = make_landscape(settings, settings["split"])
    minima = landscape.losses(plane, plane.anchor_coordinates, precision="exact")
    tiles = [files_to_dataset("tile.zarr", item) for item in inputs if "tile.zarr/.zattrs" in item]
    losses = tiles_as_losses(tiles, minima, settings.get("clip"))
    stored = stored_losses(landscape, plane)
    surface = assemble_surface(grid, losses, landscape, stored=stored).assign_attrs(about)
    return dataset_to_files("surface.zarr", surface)


def _radius(settings: Mapping[str, Any], inputs: Sequence[Artifact]) -> dict[str, bytes]:
    """The radii of one network in a block of directions."""
    import xarray as xr

    from flatminima.flatness import flatness_radius

    about = {
        name: settings[name]
        for name in ("group", "network", "split", "checkpoint", "parameters", "protocol")
    }
    problem = _problem(settings["checkpoint"], inputs[0])
    if problem:
        return dataset_to_files("radius.zarr", xr.Dataset(attrs=about | problem))
    options = {name: settings[name] for name in ("step", "tolerance") if name in settings}
    perturbed = settings["protocol"] == "stepwise_perturb"
    if perturbed:
        options["buffers"] = "perturb"
    radii = flatness_radius(
        make_landscape(settings, settings["split"]),
        _weights(settings["checkpoint"], inputs[0]),
        threshold=settings["threshold"],
        directions=settings["count"],
        first=settings["first"],
        seed=settings["seed"],
        parameters=settings["parameters"],
        protocol="stepwise" if perturbed else settings["protocol"],
        max_radius=settings["max_radius"],
        **options,
    )
    return dataset_to_files("radius.zarr", radii.assign_attrs(about, status="measured"))


def _summary(settings: Mapping[str, Any], inputs: Sequence[Artifact]) -> dict[str, bytes]:
    """All radii in one table, and what they say."""
    from flatminima.flatness.summary import merge_radii, summarise

    histories = [
        files_to_dataset("history.zarr", item) for item in inputs if "history.zarr/.zattrs" in item
    ]
    blocks = [
        files_to_dataset("radius.zarr", item) for item in inputs if "radius.zarr/.zattrs" in item
    ]
    radii = merge_radii(blocks)
    summary = summarise(settings, histories, radii)
    return dataset_to_files("summary.zarr", summary) | dataset_to_files("radii.zarr", radii)
