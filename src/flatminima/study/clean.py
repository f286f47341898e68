"""What a store holds that no study asks for any more, and how it goes: first a plan, then deeds."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatminima.store import Store, StoreError
from flatminima.study.job import Job
from flatminima.study.run import Plan

WHAT = ("reports", "studies", "jobs", "logs", "leftovers")
"""What there is to remove, in the order in which it goes: a manifest before the jobs it lists."""

# Only what is called as this program calls it is touched.
_JOB = re.compile(r"[a-z]+-(?P<digest>[0-9a-f]{20})")


@dataclass(frozen=True)
class Item:
    """A file or folder that goes: one of `WHAT`, where it is, and its bytes."""

    what: str
    path: Path
    size: int


@dataclass(frozen=True)
class Cleaning:
    """What goes and what stays.

    Attributes:
        items: What goes, in the order in which it does.
        kept: How many jobs stay.
        own: How many of them measure own networks and are kept for that alone.
    """

    items: list[Item] = field(default_factory=list)
    kept: int = 0
    own: int = 0

    @property
    def size(self) -> int:
        """Bytes of all that goes."""
        return sum(item.size for item in self.items)


def plan_cleaning(store: Store, plans: Sequence[Plan], *, own: bool = False) -> Cleaning:
    """See what none of some studies refers to. Nothing is changed.

    A study refers to the jobs of its plan, and to those that its manifest lists from its last run;
    its report, its logs and the records of its discarded steps stay with them.

    Args:
        store: The store.
        plans: Of the studies to keep.
        own: Also let go what was measured of own networks, which belongs to no study.

    Raises:
        StoreError: None of the studies was ever run here, which looks like the wrong folder, or a
            manifest is damaged, so that nobody can say what it refers to.
    """
    named = {plan.study.name for plan in plans}
    manifests = {name: store.manifest(name) for name in store.studies()}
    if not named & set(manifests):
        raise StoreError(
            f"expected a study that was run in {store.root}, got {', '.join(sorted(named))};"
            f" there are: {', '.join(manifests) or 'none'}; name one of them, or another folder"
            " with --out"
        )
    networks = {name for name, manifest in manifests.items() if _is_own(manifest)}
    keep = named if own else named | networks
    wanted = _digests(job for plan in plans for job in plan.jobs)
    wanted |= _listed(manifests[name] for name in named & set(manifests))
    beside = set() if own else _listed(manifests[name] for name in networks)

    going, kept, spared = [], 0, 0
    for folder, digest in _jobs(store.root / "jobs"):
        if digest in wanted:
            kept += 1
        elif not own and (digest in beside or _measures_own(store, folder)):
            spared += 1
        else:
            going.append(folder)
    logs = (path for path, digest in _jobs(store.root / "logs", ".log") if digest not in wanted)
    found = [
        ("reports", _reports(store, set(manifests), keep)),
        ("studies", (store.root / "studies" / name for name in sorted(set(manifests) - keep))),
        ("jobs", going),
        ("logs", logs),
        ("leftovers", _leftovers(store, keep & set(manifests))),
    ]
    items = [Item(what, path, _size(path)) for what, paths in found for path in paths]
    return Cleaning(items, kept + spared, spared)


def clean(store: Store, cleaning: Cleaning) -> None:
    """Remove what a plan says. The caller holds the lock.

    Each thing goes in one step, so that a kill leaves a store without some of it.

    Raises:
        OSError: Something cannot be removed.
    """
    for item in cleaning.items:
        if item.path.exists() or item.path.is_symlink():
            store.remove(item.path)


def unreferenced(store: Store, jobs: Iterable[Job]) -> list[str]:
    """The names of stored jobs that belong neither to `jobs` nor to any manifest.

    Raises:
        StoreError: A manifest is damaged.
    """
    wanted = _digests(jobs) | _listed(store.manifest(name) for name in store.studies())
    return [
        folder.name
        for folder, digest in _jobs(store.root / "jobs")
        if digest not in wanted and not _measures_own(store, folder)
    ]


def _is_own(manifest: dict[str, Any]) -> bool:
    """Whether it lists measurements of own networks: a study has data."""
    return "data" not in manifest["settings"]


def _measures_own(store: Store, folder: Path) -> bool:
    """Whether a job is a step of a measurement of own networks, as its record says."""
    record = store.any_record(folder.name)
    return record is not None and "own" in record["settings"]


def _digests(jobs: Iterable[Job]) -> set[str]:
    """The digests of jobs as they are in the names of folders."""
    return {job.digest[:20] for job in jobs}


def _listed(manifests: Iterable[dict[str, Any]]) -> set[str]:
    """The digests of the jobs in manifests and of what they were made of, cut likewise."""
    return {
        digest[:20]
        for manifest in manifests
        for job in manifest["jobs"]
        for digest in (job["digest"], *job["dependencies"])
    }


def _jobs(folder: Path, ending: str = "") -> Iterator[tuple[Path, str]]:
    """What in a folder is named after a job, with the digest in its name."""
    for path in _entries(folder):
        if path.name.endswith(ending):
            found = _JOB.fullmatch(path.name.removesuffix(ending))
            if found:
                yield path, found["digest"]


def _reports(store: Store, known: set[str], keep: set[str]) -> Iterator[Path]:
    """Reports on studies that do not stay; a page on several is called after all of them."""
    for path in _entries(store.root / "reports"):
        names = set(path.name.split("+"))
        if names <= known and not names <= keep:
            yield path


def _leftovers(store: Store, keep: set[str]) -> Iterator[Path]:
    """What killed runs left behind."""
    yield from _entries(store.root / "tmp")
    for folder in ("jobs", "logs", *(f"studies/{name}" for name in sorted(keep))):
        yield from (path for path in _entries(store.root / folder) if path.name.startswith("."))


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing if it is not there."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what goes meanwhile has none."""
    if path.is_dir() and not path.is_symlink():
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    else:
        files = [path]
    total = 0
    for file in files:
        try:
            total += file.lstat().st_size
        except FileNotFoundError:
            continue
    return total
