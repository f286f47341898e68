"""A small synthetic store: every number in it is made up by a formula, nothing was measured."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from flatminima.flatness.summary import merge_radii, summarise
from flatminima.store import Store, dataset_to_files

GROUPS = ("natural", "random")
NETWORKS = (0, 1, 2)
SENTENCES = (
    "Synthetic answer: at matched training loss the natural minima are flatter in all parameters.",
    "For the top layer no difference is shown <b>beyond</b> the interval.",
)


@dataclass
class SyntheticStudy:
    """What the fixture may vary."""

    name: str = "synthetic"
    title: str = "Synthetic numbers & <shapes>"
    surfaces: tuple[str, ...] = GROUPS
    made: bool = True
    matched: bool = True
    summary: bool = True
    splits: tuple[str, ...] = ("train",)
    holes: bool = True
    censored: bool = True
    quick: bool = True
    resolution: int = 16
    dataset: str = "mnist"
    policies: tuple[str, ...] = ()
    perturbed: bool = False
    job_count: int = field(default=0, init=False)


def _settings(study: SyntheticStudy) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "name": study.name,
        "title": study.title,
        "data": {"dataset": study.dataset, "limit": 10_000, "seed": 0, "split": ["train"]},
        "groups": [
            {"name": "natural", "noise": 0.0, "noise_seed": 0, "scheme": "replace"},
            {"name": "random", "noise": 0.5, "noise_seed": 0, "scheme": "replace", "epochs": 40},
        ],
        "model": {"name": "mlp", "settings": {}},
        "training": {
            "epochs": 20,
            "batch_size": 64,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "networks": 3,
            "seed": 0,
            "match_loss": 0.1,
        },
        "radius": {
            "directions": 10,
            "seed": 0,
            "threshold": 0.05,
            "tolerance": 1e-3,
            "parameters": ["all", "top"],
            "protocols": ["crossing", "stepwise", *["stepwise_perturb"] * study.perturbed],
        },
        "summary": {"exclude": ["diverged", "chance"]},
        "run": {"threads": 1, "batch_size": 500, "precision": "exact", "device": "cpu"},
        "report": {"clip": 3.5, "published": study.dataset, "quick": study.quick},
    }
    if study.surfaces:
        settings["surface"] = {
            "resolution": study.resolution,
            "coordinates": "barycentric",
            "extent": [-0.4, 1.3],
            "checkpoint": "end",
            "batchnorm": "auto",
            "beside": [{"batchnorm": policy} for policy in study.policies],
        }
    if study.dataset == "cifar10":
        settings["model"] = {"name": "vgg16", "settings": {"width": 0.5}}
    return settings


def history(group: str, network: int) -> xr.Dataset:
    epochs = 20 if group == "natural" else 40
    rate, floor = (0.32, 0.006) if group == "natural" else (0.11, 0.02)
    epoch = np.arange(epochs + 1)
    wobble = 1 + 0.05 * np.sin(epoch * (2 + network))
    loss = floor + 2.3 * np.exp(-rate * (1 + 0.05 * network) * epoch) * wobble
    test = loss + (0.08 if group == "natural" else 0.09 * epoch / 2) * (1 - np.exp(-0.2 * epoch))
    values = {
        "train_loss": loss,
        "train_accuracy": 1 - loss / 2.6,
        "test_loss": test,
        "test_accuracy": np.clip(1 - test / 2.6, 0.1, 1),
    }
    below = np.flatnonzero(loss <= 0.1)
    return xr.Dataset(
        {name: ("epoch", data) for name, data in values.items()},
        coords={"epoch": epoch},
        attrs={
            "matched_epoch": int(below[0]) if below.size else -1,
            "match_loss": 0.1,
            "outcome": "fitted",
        },
    )


def surface(
    group: str, resolution: int, holes: bool, *, policy: str = "recompute", stored: bool = False
) -> xr.Dataset:
    """Under `keep` constant but at the first minimum, under `interpolate` a hole in the middle."""
    spacing, width = (24.0, 0.34) if group == "natural" else (33.0, 0.2)
    anchors = spacing * np.array([[0.0, 0.0], [1.0, 0.0], [0.48, 0.9]])
    x = np.linspace(-0.4, 1.3, resolution)
    y = np.linspace(-0.4, 1.3, resolution)
    weights = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1 - x[None, :] - y[:, None]), -1)
    u, v = np.moveaxis(weights @ anchors, -1, 0)
    centre = anchors.mean(0)

    def loss_at(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        distance = np.min([np.hypot(u - a, v - b) for a, b in anchors], axis=0) / spacing
        away = np.hypot(u - centre[0], v - centre[1]) / spacing
        basin = 1.9 * (1 - np.exp(-((distance / width) ** 2)))
        return np.asarray(0.008 + basin + 2.2 * np.clip(away - 0.55, 0, None) ** 1.6)

    loss = loss_at(u, v)
    if policy != "recompute":
        near = np.exp(-((np.hypot(u - anchors[0, 0], v - anchors[0, 1]) / (0.5 * spacing)) ** 2))
        loss = np.log(10) + near * (loss - np.log(10))
    outcome = np.zeros(loss.shape, np.int8)
    if policy == "interpolate":
        outcome[np.hypot(u - centre[0], v - centre[1]) < 0.3 * spacing] = 1
    if holes and group == "random":
        outcome[-3:, -3:] = 1
        outcome[resolution // 2, resolution // 2] = 1
    loss = np.where(outcome == 0, loss, np.nan)
    gap = np.linalg.norm(anchors[:, None] - anchors[None], axis=-1)
    flags = {"flag_values": [0, 1], "flag_meanings": "finite non_finite"}
    anchor_loss = np.array([0.0071, 0.0082, 0.0078]) * (1 if group == "natural" else 3)
    own = {}
    if stored:
        own["anchor_stored_loss"] = ("anchor", anchor_loss + 0.0003)
    if policy == "keep":
        anchor_loss = anchor_loss + np.array([0.0, 2.25, 2.31])
    return xr.Dataset(
        {
            **own,
            "loss": (("y", "x"), loss),
            "accuracy": (("y", "x"), np.clip(1 - loss / 2.6, 0.1, 1)),
            "outcome": (("y", "x"), outcome, flags),
            "u": (("y", "x"), u),
            "v": (("y", "x"), v),
            "anchor_u": ("anchor", anchors[:, 0]),
            "anchor_v": ("anchor", anchors[:, 1]),
            "anchor_x": ("anchor", [1.0, 0.0, 0.0]),
            "anchor_y": ("anchor", [0.0, 1.0, 0.0]),
            "anchor_loss": ("anchor", anchor_loss),
            "anchor_accuracy": ("anchor", [0.999, 0.998, 0.999]),
            "anchor_distance": (("anchor", "other"), gap),
        },
        coords={"x": x, "y": y},
        attrs={
            "coordinates": "barycentric",
            "batchnorm": policy,
            "recompute_samples": 2000,
            "samples": 10_000,
            "dataset": "mnist",
            "split": "train",
            "data_digest": "0" * 64,
            "loss_name": "cross_entropy",
            "precision": "exact",
            "path": "reference",
            "dimensions": 2,
            "group": group,
            "checkpoint": "end",
        },
    )


_CENTRE = {
    ("all", "natural"): 14.0,
    ("all", "random"): 5.0,
    ("top", "natural"): 2.4,
    ("top", "random"): 3.7,
}


def radius_block(
    study: SyntheticStudy, group: str, network: int, parameters: str, protocol: str, checkpoint: str
) -> xr.Dataset:
    """Rays of one network in the form of `flatness_radius`, around a mean that was made up."""
    identity = {
        "group": group,
        "network": network,
        "checkpoint": checkpoint,
        "parameters": parameters,
        "protocol": protocol,
    }
    if not study.matched and checkpoint == "matched" and group == "random" and network > 0:
        return xr.Dataset(attrs={**identity, "status": "not_reached"})
    random = np.random.default_rng([network, len(group), len(parameters), len(checkpoint)])
    signs = [1, -1] if protocol == "crossing" else [1]
    shrunk = 0.3 if protocol == "stepwise_perturb" else 1.0
    radius = (
        shrunk
        * _CENTRE[parameters, group]
        * random.normal(1 + 0.01 * network, 0.05, (10, len(signs)))
    )
    outcome = np.zeros(radius.shape, np.int8)
    if protocol != "crossing":
        step = 1.0 if parameters == "all" else 0.2
        radius = np.floor(radius / step) * step
        outcome[:4] = 2 if protocol == "stepwise_perturb" else 0
    elif study.censored and checkpoint == "end" and network == 0:
        outcome[3, 0], outcome[4, 0] = 1, 2
    ray = ("direction", "sign")
    flags = {"flag_values": [0, 1, 2], "flag_meanings": "crossed censored non_finite"}
    moved = {}
    if protocol == "stepwise_perturb":
        moved["negative_variances"] = (ray, 3 * (outcome == 2))
        moved["first_negative"] = (ray, np.where(outcome == 2, radius + 0.4, np.inf))
    return xr.Dataset(
        {
            **moved,
            "radius": (ray, radius),
            "outcome": (ray, outcome, flags),
            "evaluations": (ray, np.full(radius.shape, 20)),
            "reentries": (ray, np.zeros(radius.shape, int)),
        },
        coords={"direction": np.arange(10), "sign": signs},
        attrs={
            **identity,
            "loss": 0.0931 if checkpoint == "matched" else 0.0075 if group == "natural" else 0.024,
            "threshold": 0.05,
            "norm": 26.1 if parameters == "all" else 3.1 if group == "natural" else 5.2,
            "moved": 900_880 if parameters == "all" else 510,
            "layer": "" if parameters == "all" else "layers.8",
            "samples": 10_000,
            "smallest_variance": 1e-4,
        },
    )


def summary_and_radii(study: SyntheticStudy) -> tuple[xr.Dataset, xr.Dataset]:
    measured = [("crossing", "end"), ("crossing", "matched"), ("stepwise", "end")]
    if study.perturbed:
        measured.append(("stepwise_perturb", "end"))
    blocks = [
        radius_block(study, group, network, parameters, protocol, checkpoint)
        for group in GROUPS
        for network in NETWORKS
        for parameters in ("all", "top")
        for protocol, checkpoint in measured
        if parameters == "all" or protocol != "stepwise_perturb"
    ]
    histories = []
    for group in GROUPS:
        for network in NETWORKS:
            record = history(group, network).assign_attrs(group=group, network=network)
            if not study.matched and group == "random" and network > 0:
                record.attrs["matched_epoch"] = -1
            histories.append(record)
    radii = merge_radii(blocks)
    summary = summarise(_settings(study), histories, radii)
    summary.attrs["sentences"] = json.dumps(SENTENCES)
    return summary, radii


def _write_job(
    store: Store,
    study: SyntheticStudy,
    kind: str,
    settings: dict[str, Any],
    payload: dict[str, xr.Dataset],
) -> dict[str, Any]:
    study.job_count += 1
    label = json.dumps([study.name, kind, settings], sort_keys=True)
    digest = hashlib.sha256(label.encode()).hexdigest()
    artifact: dict[str, bytes] = {}
    for name, dataset in payload.items():
        artifact |= dataset_to_files(name, dataset)
    provenance = {
        "started": f"2026-01-02T03:{study.job_count:02d}:00+00:00",
        "seconds": 12.5,
        "host": "synthetic-host",
        "cpu": "Synthetic CPU <64>",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "flatminima": "0.1.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "threads": 1,
    }
    store.write(kind, digest, artifact, settings=settings, provenance=provenance)
    return {"kind": kind, "digest": digest, "label": f"{kind} {settings}", "dependencies": []}


def write_store(root: Path, *studies: SyntheticStudy) -> Store:
    """A store at `root` that holds the studies."""
    store = Store(root, create=True)
    for study in studies:
        jobs = []

        def add(kind: str, settings: dict[str, Any], **payload: xr.Dataset) -> None:
            files = {f"{name}.zarr": data for name, data in payload.items()}
            jobs.append(_write_job(store, study, kind, settings, files))  # noqa: B023

        for group in GROUPS:
            for network in NETWORKS:
                settings = {"group": group, "network": network}
                add("network", settings, history=history(group, network))
        for group in study.surfaces:
            stored = bool(study.policies)
            made = surface(group, study.resolution, study.holes, stored=stored)
            if not study.made and group == "random":
                reason = "1 of 3 networks ended at chance"
                made = xr.Dataset(attrs={**made.attrs, "status": "not_made", "reason": reason})
            settings = {"group": group, "checkpoint": "end", "split": "train"}
            add("surface", {**settings, "batchnorm": "recompute"}, surface=made)
            for policy in study.policies:
                size = study.resolution - 4 if policy == "interpolate" else study.resolution
                plane = surface(group, size, study.holes, policy=policy, stored=True)
                add("surface", {**settings, "batchnorm": policy}, surface=plane)
        if study.summary:
            summary, radii = summary_and_radii(study)
            for split in study.splits:
                told = summary.assign_attrs(split=split)
                add("summary", {"split": split}, summary=told, radii=radii)
        store.write_manifest(study.name, {"settings": _settings(study), "jobs": jobs})
    return store


@pytest.fixture(scope="session")
def synthetic_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """A function from study options to a fresh store that holds one such study."""

    def build(**options: Any) -> Store:
        return write_store(tmp_path_factory.mktemp("store"), SyntheticStudy(**options))

    return build
