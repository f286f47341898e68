"""Settings become jobs. A job is a value: what it will be called is known before it has run."""

from collections.abc import Iterator, Sequence
from typing import Any

from flatminima.data.sources import data_digest
from flatminima.study.config import Checkpoint, Group, Parameters, Study, Surface
from flatminima.study.job import Job

RESULTS = ("network", "surface", "summary")
"""The kinds that are results. The others are steps: what they found is in the results, which stand
without them (segments in networks, tiles in surfaces, blocks of radii in the summary's table)."""

PARTS = {
    "training": ("train", "network"),
    "surfaces": ("tile", "surface"),
    "radii": ("radius", "summary"),
}
"""The parts of a study that progress is told in, and that a run can be limited to."""

RECOMPUTE_BATCH = 100
"""Images per batch by whose statistics layers normalise under the policy `recompute`."""


def plan_study(study: Study) -> list[Job]:
    """All jobs of a study, each after those it depends on.

    Args:
        study: Settings without `auto`; see `resolve`.
    """
    jobs: dict[str, Job] = {}

    def add(job: Job) -> Job:
        return jobs.setdefault(job.digest, job)

    networks: dict[str, list[Job]] = {}
    # The groups in turn: when a run is cut short, what is finished can be compared.
    for seed in _seeds(study):
        for group in study.groups:
            chain = [add(job) for job in _chain(study, group, seed)]
            networks.setdefault(group.name, []).append(add(_network(group, seed, chain)))
    if study.surface is not None:
        for group in study.groups:
            corners = networks[group.name][:3]
            for surface in (study.surface, *_beside(study.surface)):
                for checkpoint in surface.checkpoints:
                    for split in study.data.split:
                        about = _surface_settings(study, surface, group, split, checkpoint)
                        data = _data(study, group, split)
                        tiles = [add(job) for job in _tiles(surface, about, data, corners)]
                        add(_surface(about, data, corners, tiles))
    if study.radius is not None:
        for split in study.data.split:
            radii = [
                add(job)
                for group in study.groups
                for seed, network in zip(_seeds(study), networks[group.name], strict=True)
                for job in _radii(study, group, split, seed, network)
            ]
            everyone = [job for group in networks.values() for job in group]
            add(_summary(study, split, everyone, radii))
    return list(jobs.values())


def needed(jobs: Sequence[Job], done: set[str], kinds: Sequence[str] = RESULTS) -> list[Job]:
    """The unfinished jobs that must run so that all results of `kinds` exist.

    A step whose result is stored is not needed, whether or not the step itself is still there.

    Args:
        jobs: A plan.
        done: Digests of the jobs that are in the store.
        kinds: The kinds of results that are wanted.
    """
    wanted = {job.digest for job in jobs if job.kind in kinds and job.kind in RESULTS}
    for job in reversed(jobs):
        if job.digest in wanted and job.digest not in done:
            wanted.update(job.dependencies)
    return [job for job in jobs if job.digest in wanted and job.digest not in done]


def _seeds(study: Study) -> range:
    return range(study.training.seed, study.training.seed + study.training.networks)


def data_settings(study: Study, group: Group, *splits: str) -> dict[str, Any]:
    """What decides a group's data; settings of noise or of a split only where they matter."""
    data: dict[str, Any] = {
        "dataset": study.data.dataset,
        "limit": study.data.limit,
        "seed": study.data.seed,
    }
    if "test" in splits and study.data.test_limit is not None:
        data["test_limit"] = study.data.test_limit
    if group.noise > 0:
        data["noise"] = {
            "fraction": group.noise,
            "seed": group.noise_seed,
            "scheme": group.scheme,
        }
    return data


def _data(study: Study, group: Group, *splits: str) -> dict[str, str]:
    """Digests of the data by split; limit and noise concern the training set only."""
    digests = {}
    for split in splits:
        if split == "test":
            digests[split] = data_digest(
                study.data.dataset, "test", limit=study.data.test_limit, seed=study.data.seed
            )
            continue
        noise: dict[str, Any] = {}
        if group.noise > 0:
            noise = {
                "fraction": group.noise,
                "noise_seed": group.noise_seed,
                "scheme": group.scheme,
            }
        digests[split] = data_digest(
            study.data.dataset, "train", limit=study.data.limit, seed=study.data.seed, **noise
        )
    return digests


def _execution(study: Study, *, landscape: bool = True) -> dict[str, Any]:
    """The settings of `[run]` that a job reads."""
    run: dict[str, Any] = {"threads": study.run.threads, "device": study.run.device}
    if landscape:
        run |= {"batch_size": study.run.batch_size, "precision": study.run.precision}
    return run


def _chain(study: Study, group: Group, seed: int) -> Iterator[Job]:
    """The segments in which one network is trained."""
    training = study.training
    epochs = group.epochs or training.epochs
    recipe = {
        "epochs": epochs,
        "batch_size": training.batch_size,
        "optimizer": training.optimizer,
        "learning_rate": training.learning_rate,
        "momentum": training.momentum,
        "weight_decay": training.weight_decay,
        "schedule": training.schedule,
        "step_epochs": training.step_epochs,
        "step_factor": training.step_factor,
        "stop_at_loss": training.stop_at_loss,
        "augment": training.augment,
        "precision": training.precision,
    }
    before: tuple[str, ...] = ()
    for first in range(0, epochs, training.segment_epochs):
        last = min(first + training.segment_epochs, epochs)
        job = Job(
            "train",
            {
                "data": data_settings(study, group, "train", "test"),
                "model": study.model.model_dump(),
                "recipe": recipe,
                "seed": seed,
                "match_loss": training.match_loss,
                "segment": [first, last],
                "run": _execution(study, landscape=False),
            },
            dependencies=before,
            inputs=(("train", ("state.safetensors",)),) * len(before),
            data=_data(study, group, "train", "test"),
            label=f"{group.name}/{seed} epochs {first + 1}-{last}",
            units=last - first,
        )
        yield job
        before = (job.digest,)


def _network(group: Group, seed: int, chain: Sequence[Job]) -> Job:
    """The job that collects a chain of segments: weights at both checkpoints, and the history."""
    matched = ("matched.safetensors",)
    return Job(
        "network",
        {
            "group": group.name,
            "network": seed,
            "model": chain[-1].settings["model"],
            "recipe": chain[-1].settings["recipe"],
            "match_loss": chain[-1].settings["match_loss"],
            "data": chain[-1].settings["data"],
            "run": chain[-1].settings["run"],
        },
        dependencies=tuple(job.digest for job in chain),
        inputs=(*((("train", matched),) * (len(chain) - 1)), ("train", ("",))),
        data=chain[-1].data,
        label=f"{group.name}/{seed} network",
    )


def _weights(checkpoint: str) -> tuple[str, tuple[str, ...]]:
    """What is read of a network by jobs that measure it at `checkpoint`."""
    file = "last.safetensors" if checkpoint == "end" else "matched.safetensors"
    return ("network", (file, "history.zarr/"))


def _beside(surface: Surface) -> Iterator[Surface]:
    """The further planes of a surface, each as a surface of its own."""
    for plane in surface.beside:
        resolution = plane.resolution or surface.resolution
        update: dict[str, Any] = {
            "batchnorm": plane.batchnorm,
            "resolution": resolution,
            "beside": [],
        }
        yield surface.model_copy(update=update)


def _surface_settings(
    study: Study, surface: Surface, group: Group, split: str, checkpoint: str
) -> dict[str, Any]:
    """What decides the numbers on a surface."""
    settings = {
        "group": group.name,
        "split": split,
        "data": data_settings(study, group, split),
        "model": study.model.model_dump(),
        "resolution": surface.resolution,
        "coordinates": surface.coordinates,
        "extent": list(surface.extent) if surface.extent is not None else None,
        "checkpoint": checkpoint,
        "batchnorm": surface.batchnorm,
        "run": _execution(study),
    }
    if surface.batchnorm == "recompute" and study.model.name != "mlp":
        settings["recompute"] = {"samples": surface.recompute_samples, "batch": RECOMPUTE_BATCH}
    if surface.clip is not None:
        settings["clip"] = surface.clip
    return settings


def _tiles(
    surface: Surface, about: dict[str, Any], data: dict[str, str], corners: Sequence[Job]
) -> Iterator[Job]:
    """The tiles of one surface: blocks of points in the order of the grid's rows."""
    points = surface.resolution**2
    count = -(-points // surface.tile)
    for index in range(count):
        first = index * surface.tile
        size = min(surface.tile, points - first)
        yield Job(
            "tile",
            {**about, "first": first, "count": size},
            dependencies=tuple(job.digest for job in corners),
            inputs=(_weights(about["checkpoint"]),) * len(corners),
            data=data,
            label=f"{_surface_label(about)} tile {index + 1}/{count}",
            units=size,
        )


def _surface(
    about: dict[str, Any], data: dict[str, str], corners: Sequence[Job], tiles: Sequence[Job]
) -> Job:
    """The job that lays the tiles together and adds the minima themselves."""
    return Job(
        "surface",
        about,
        dependencies=tuple(job.digest for job in (*corners, *tiles)),
        inputs=(
            *((_weights(about["checkpoint"]),) * len(corners)),
            *((("tile", ("",)),) * len(tiles)),
        ),
        data=data,
        label=_surface_label(about),
        units=len(corners),
    )


def _surface_label(about: dict[str, Any]) -> str:
    """What to call a surface; with its policy where the network has BatchNorm."""
    policy = "" if about["model"]["name"] == "mlp" else f" {about['batchnorm']}"
    return f"{about['group']} {about['split']} surface {about['checkpoint']}{policy}"


def _precision(study: Study, parameters: str) -> dict[str, str]:
    """In what a radius is measured: exactly where nothing else is quicker.

    So a study in both shares the top layer's radii.
    """
    return {"precision": "exact" if parameters == "top" else study.run.precision}


def _radii(study: Study, group: Group, split: str, seed: int, network: Job) -> Iterator[Job]:
    """All blocks of directions of one network, under every protocol and checkpoint."""
    radius = study.radius
    assert radius is not None
    given = radius.max_radius
    limits = given if isinstance(given, dict) else dict.fromkeys(radius.parameters, given)
    for protocol in radius.protocols:
        # The published protocol knows no matched checkpoint: it is repeated as it was.
        checkpoints: list[Checkpoint] = radius.checkpoints if protocol == "crossing" else ["end"]
        for checkpoint in checkpoints:
            # The published fault concerns walks that move everything.
            moved: list[Parameters] = (
                ["all"] if protocol == "stepwise_perturb" else radius.parameters
            )
            for parameters in moved:
                settings: dict[str, Any] = {
                    "group": group.name,
                    "network": seed,
                    "split": split,
                    "data": data_settings(study, group, split),
                    "model": study.model.model_dump(),
                    "checkpoint": checkpoint,
                    "parameters": parameters,
                    "protocol": protocol,
                    "batchnorm": "keep",
                    "threshold": radius.threshold,
                    "max_radius": limits.get(parameters),
                    "seed": radius.seed,
                    "run": _execution(study) | _precision(study, parameters),
                }
                if protocol == "crossing":
                    settings["tolerance"] = radius.tolerance
                else:
                    settings["step"] = radius.steps[parameters]
                for first in range(0, radius.directions, radius.block):
                    count = min(radius.block, radius.directions - first)
                    yield Job(
                        "radius",
                        {**settings, "first": first, "count": count},
                        dependencies=(network.digest,),
                        inputs=(_weights(checkpoint),),
                        data=_data(study, group, split),
                        label=(
                            f"{group.name}/{seed} {split} radius {parameters} {protocol}"
                            f" {checkpoint}"
                            f" {first + 1}-{first + count}"
                        ),
                        units=count * (2 if protocol == "crossing" else 1),
                    )


def _summary(study: Study, split: str, networks: Sequence[Job], radii: Sequence[Job]) -> Job:
    """The job that turns all radii into the table, its intervals and its sentences."""
    assert study.radius is not None
    training: dict[str, Any] = {
        "match_loss": study.training.match_loss,
        "networks": len(_seeds(study)),
    }
    if study.training.augment != "none":
        training["augment"] = study.training.augment
    radius: dict[str, Any] = {
        "threshold": study.radius.threshold,
        "parameters": study.radius.parameters,
        "protocols": study.radius.protocols,
    }
    if set(study.radius.checkpoints) != {"end", "matched"}:
        radius["checkpoints"] = study.radius.checkpoints
    settings = {
        "name": study.name,
        "data": {"dataset": study.data.dataset, "split": split},
        "groups": [{"name": group.name, "noise": group.noise} for group in study.groups],
        "training": training,
        "radius": radius,
        "summary": study.summary.model_dump(),
        "report": {"published": study.report.published},
    }
    return Job(
        "summary",
        settings,
        dependencies=tuple(job.digest for job in (*networks, *radii)),
        inputs=(
            *((("network", ("history.zarr/",)),) * len(networks)),
            *((("radius", ("",)),) * len(radii)),
        ),
        label=f"{split} summary",
    )
