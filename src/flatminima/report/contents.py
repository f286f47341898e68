"""What one study has in the store, opened for drawing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from flatminima.store import Store

PARAMETERS = ("all", "top")
STEPS = ("train", "tile")
"""Kinds of jobs that are no results: once those are there, nobody misses the steps."""


@dataclass(frozen=True)
class Column:
    """A column of the table: what it is called, and how its rays were measured."""

    title: str
    checkpoint: str
    protocol: str


COLUMNS = {
    "as_published": Column("as published, repeated", "end", "stepwise"),
    "measured_end": Column("at the end of training", "end", "crossing"),
    "measured_matched": Column("at matched loss", "matched", "crossing"),
}
"""By the name that the summary gives them."""


@dataclass(frozen=True)
class Network:
    """The training history of one network."""

    group: str
    index: int
    history: xr.Dataset


@dataclass(frozen=True)
class Surface:
    """One loss surface, or the reason why there is none."""

    group: str
    checkpoint: str
    split: str
    data: xr.Dataset | None
    reason: str = ""

    @property
    def holes(self) -> int:
        """How many grid points have no finite loss."""
        return 0 if self.data is None else int((~np.isfinite(self.data["loss"].values)).sum())


@dataclass(frozen=True)
class StudyContents:
    """Everything the report shows of one study. A part that is not there yet is empty or None."""

    name: str
    settings: Mapping[str, Any]
    networks: tuple[Network, ...]
    surfaces: tuple[Surface, ...]
    summary: xr.Dataset | None
    radii: xr.Dataset | None
    runs: tuple[Mapping[str, Any], ...]
    missing: int
    further: tuple["StudyContents", ...] = ()
    """The same study by the radii of each further split; `summary` and `radii` are the first's."""

    @property
    def title(self) -> str:
        """The study's title, or its name."""
        return str(self.settings.get("title") or self.name)

    @property
    def groups(self) -> list[str]:
        """The groups' names in the order of the study file."""
        return [str(group["name"]) for group in self.settings.get("groups", [])]

    @property
    def clip(self) -> float:
        """Losses above this are drawn as a plateau at this height."""
        return float(self.section("report").get("clip") or 3.5)

    @property
    def published(self) -> str:
        """The key of the published numbers to compare with, or an empty string."""
        return str(self.section("report").get("published") or "")

    @property
    def version(self) -> str:
        """Whether this is the quick or the full version of the study."""
        return "quick version" if self.section("report").get("quick") else "full version"

    @property
    def sentences(self) -> list[str]:
        """The answer to the study's question, as the summary job worded it."""
        if self.summary is None:
            return []
        return [str(text) for text in json.loads(self.summary.attrs.get("sentences", "[]"))]

    @property
    def has_radii(self) -> bool:
        """Whether any ray is there to be drawn."""
        return self.summary is not None and self.radii is not None and self.radii.sizes["ray"] > 0

    @property
    def split(self) -> str:
        """The split that the radii were measured on."""
        return "train" if self.summary is None else str(self.summary.attrs.get("split", "train"))

    @property
    def heading(self) -> str:
        """The title, with the split that was measured unless it is the training data."""
        return self.title if self.split == "train" else f"{self.title}, {self.split} split"

    def section(self, name: str) -> Mapping[str, Any]:
        """One table of the study file, empty if it is absent."""
        return self.settings.get(name) or {}

    def colour_index(self, group: str) -> int:
        """The place of `group` in the palette."""
        return self.groups.index(group) if group in self.groups else len(self.groups)

    def surface_rows(self) -> list[list[Surface]]:
        """Surfaces that belong side by side: one row for each checkpoint and split."""
        rows: dict[tuple[str, str], list[Surface]] = {}
        for surface in self.surfaces:
            rows.setdefault((surface.checkpoint, surface.split), []).append(surface)
        order = sorted(rows, key=lambda key: (key[1] != "train", key))
        return [sorted(rows[key], key=lambda s: self.colour_index(s.group)) for key in order]


def read_study(store: Store, name: str) -> StudyContents:
    """Open all finished results of the study `name`.

    Raises:
        StoreError: if the store has no study of that name, or a result is damaged.
    """
    manifest = store.manifest(name)
    summarised: list[tuple[xr.Dataset, xr.Dataset]] = []
    missing = 0
    networks, surfaces, runs = [], [], []
    for job in manifest["jobs"]:
        kind, digest = str(job["kind"]), str(job["digest"])
        if not store.done(kind, digest):
            missing += kind not in STEPS
            continue
        run = store.record(kind, digest)
        settings = run["settings"]
        runs.append(run)
        if kind == "network":
            history = store.open_payload(kind, digest, "history.zarr")
            networks.append(Network(str(settings["group"]), int(settings["network"]), history))
        elif kind == "surface":
            surfaces.append(_surface(store.open_payload(kind, digest, "surface.zarr"), settings))
        elif kind == "summary":
            found = store.open_payload(kind, digest, "summary.zarr")
            summarised.append((found, store.open_payload(kind, digest, "radii.zarr")))
    summary, radii = summarised[0] if summarised else (None, None)
    study = StudyContents(
        name=name,
        settings=manifest["settings"],
        networks=tuple(networks),
        surfaces=tuple(surfaces),
        summary=summary,
        radii=radii,
        runs=tuple(runs),
        missing=missing,
    )
    further = (replace(study, summary=summary, radii=radii) for summary, radii in summarised[1:])
    return replace(study, further=tuple(further))


def _surface(data: xr.Dataset, settings: Mapping[str, Any]) -> Surface:
    """A surface from its stored dataset; a job that could not make one says why."""
    keys = ("group", "checkpoint", "split")
    group, checkpoint, split = (str(data.attrs.get(k, settings.get(k, ""))) for k in keys)
    status = str(data.attrs.get("status", "made"))
    if status != "made" or "loss" not in data:
        reason = str(data.attrs.get("reason", "")) or status.replace("_", " ")
        return Surface(group, checkpoint, split, None, reason)
    return Surface(group, checkpoint, split, data)
