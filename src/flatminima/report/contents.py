"""What one study has in the store, opened for drawing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from flatminima.store import Store

PARAMETERS = ("all", "top")
RESULTS = ("network", "surface", "summary")
"""Kinds of jobs that are results. What the others, the steps, found is in these, which stand
without them: the radii too are in the summary's table."""


@dataclass(frozen=True)
class Column:
    """A column of the table: what it is called, and how its rays were measured."""

    title: str
    checkpoint: str
    protocol: str


COLUMNS = {
    "as_published": Column("as published, repeated", "end", "stepwise"),
    "measured_end": Column("at the end of training", "end", "crossing"),
    "measured_matched": Column("at matched train loss", "matched", "crossing"),
}
"""By the name that the summary gives them."""
PERTURBED = "as_published_perturbed"
PERTURBED_PROTOCOL = "stepwise_perturb"
"""The published walk that moves running statistics too. It shows a fault: it has a table of its own
and is in no comparison."""

Planes = list["Surface"]
"""The same plane of the same minima under several BatchNorm policies, the study's own first."""


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
    asked: tuple[str, int] = ("", 0)
    """The BatchNorm policy and the resolution in the settings of its job."""

    @property
    def holes(self) -> int:
        """How many grid points have no finite loss."""
        return 0 if self.data is None else int((~np.isfinite(self.data["loss"].values)).sum())

    @property
    def policy(self) -> str:
        """The BatchNorm policy of its losses, "none" for a network without such layers."""
        made = "" if self.data is None else str(self.data.attrs.get("batchnorm", ""))
        return made or self.asked[0] or "unknown"

    @property
    def place(self) -> tuple[str, str, str]:
        """What planes under several policies have in common."""
        return (self.checkpoint, self.split, self.group)


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
        """Whether this is the quick, a reduced or the full version of the study."""
        if self.section("report").get("quick"):
            return "quick version"
        return "reduced version" if self.section("data").get("limit") else "full version"

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
        """Surfaces that belong side by side: one row for each checkpoint and split.

        Under the study's own BatchNorm policy; see `planes` for the others.
        """
        rows: dict[tuple[str, str], list[Surface]] = {}
        for first, *_ in self._by_place():
            rows.setdefault((first.checkpoint, first.split), []).append(first)
        return list(rows.values())

    def planes(self) -> list[Planes]:
        """Every plane that was asked for under several BatchNorm policies, those side by side."""
        return [surfaces for surfaces in self._by_place() if len(surfaces) > 1]

    def _by_place(self) -> list[Planes]:
        """All surfaces by their minima and data: training data first, then in order of groups."""
        own = self.section("surface")
        policy = str(own.get("batchnorm", "auto")).replace("auto", "recompute")
        first = (policy, own.get("resolution"))
        found: dict[tuple[str, str, str], Planes] = {}
        for surface in self.surfaces:
            found.setdefault(surface.place, []).append(surface)
        for surfaces in found.values():
            surfaces.sort(key=lambda s: (s.asked != first, s.asked[0] != policy))
        order = sorted(
            found,
            key=lambda place: (place[1] != "train", place[:2], self.colour_index(place[2])),
        )
        return [found[place] for place in order]


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
            missing += kind in RESULTS
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
    asked = (str(settings.get("batchnorm", "")), int(settings.get("resolution", 0)))
    if status != "made" or "loss" not in data:
        reason = str(data.attrs.get("reason", "")) or status.replace("_", " ")
        return Surface(group, checkpoint, split, None, reason, asked)
    return Surface(group, checkpoint, split, data, asked=asked)
