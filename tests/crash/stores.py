"""What is in a store, read without the code that wrote it, and what of it must not be so."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash.course import Course
from crash.study import NAME

# Files of which the bytes say when and where they were made; their names are compared all the same.
_TOLD = ("report.html", "live.json", ".log", ".lock")


def content(out: Path) -> dict[str, str]:
    """What must be the same in two stores of one study: digests by the names of the files.

    Records count without their provenance. Of logs, locks, the page of the report and what a run
    says of itself, which tell when and where things were done, only the names count.
    """
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if name.endswith(_TOLD):
            found[name] = ""
        elif path.name in ("run.json", "discarded.json") and name.startswith("jobs/"):
            record = read(path)
            record.pop("provenance", None)
            found[name] = digest_of(json.dumps(record, sort_keys=True).encode())
        else:
            found[name] = digest_of(path.read_bytes())
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """A line for each file that one of two stores lacks or that differs."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: not in the undisturbed store" for name in sorted(found.keys() - expected)]
    both = sorted(found.keys() & expected.keys())
    return lines + [f"{name}: differs" for name in both if found[name] != expected[name]]


@dataclass(frozen=True)
class Trained:
    """A study of which nothing but the training was asked for, and done.

    Attributes:
        study: Its file.
        out: The store.
        content: What `content` says of it.
    """

    study: Path
    out: Path
    content: dict[str, str]


def said_finished(said: Sequence[tuple[float, str]]) -> set[str]:
    """The labels of the jobs that a run has said to be finished; see `Driver.said`."""
    lines = (line for _, line in said if line.startswith("["))
    return {line.partition("] ")[2].rpartition(": ")[0] for line in lines if ": " in line}


def finished(out: Path) -> set[str]:
    """The labels of the jobs that a store has a record of."""
    manifest = json.loads((out / "studies" / NAME / "manifest.json").read_bytes())
    names = {path.parent.name for path in (out / "jobs").glob("*/*.json")}
    return {
        job["label"] for job in manifest["jobs"] if f"{job['kind']}-{job['digest'][:20]}" in names
    }


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Look:
    """What is in a store whose run was killed.

    Attributes:
        records: Digests of the records of finished jobs, by the names of their folders.
        waste: What is in the folder for things that are being made.
        doing: What was going on.
        faults: Whatever must not be.
    """

    records: dict[str, str]
    waste: frozenset[str]
    doing: str
    faults: list[str]


def look(out: Path, reference: "Reference", before: Look | None) -> Look:
    """See what a killed run left, and compare it with what the last one did."""
    records, faults, half = {}, [], []
    jobs = out / "jobs"
    for folder in sorted(jobs.iterdir()) if jobs.exists() else ():
        path = folder / "run.json"
        gone = not path.exists()
        if gone:
            path = folder / "discarded.json"
            if not path.exists():
                continue  # being replaced
            if (folder / "payload").exists():
                half.append(folder.name)
        payload = read(path).get("payload")
        if payload is None:
            faults.append(f"{folder.name}/{path.name}: cannot be read")
            continue
        records[folder.name] = digest_of(path.read_bytes())
        if payload != reference.payloads.get(folder.name):
            faults.append(f"{folder.name}: records another payload than the undisturbed run")
        for name, digest in {} if gone else payload.items():
            file = folder / "payload" / name
            if not file.is_file() or digest_of(file.read_bytes()) != digest:
                faults.append(f"{folder.name}/payload/{name}: missing or altered")
    if before is not None:
        for name, digest in before.records.items():
            if records.get(name) != digest:
                faults.append(f"{name}: was finished, and is lost or was done again")
    empty = [path for path in _needed(out) if not path.stat().st_size]
    faults += [f"{path.relative_to(out)}: empty" for path in empty]
    aside = out / "tmp"
    waste = frozenset(path.name for path in aside.iterdir()) if aside.exists() else frozenset()
    new = sorted(waste - (before.waste if before is not None else frozenset()))
    return Look(records, waste, _doing(out, reference, records, new, half), faults)


def _needed(out: Path) -> Iterator[Path]:
    """Files that must hold something as soon as they are there."""
    for pattern in ("*.json", "studies/*/manifest.json", "reports/*/*"):
        yield from out.glob(pattern)


def read(path: Path) -> dict[str, Any]:
    """A record, or nothing where it cannot be read."""
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value


def _doing(
    out: Path,
    reference: "Reference",
    records: dict[str, str],
    new: Sequence[str],
    half: Sequence[str],
) -> str:
    """What a run was at, as far as its store tells."""
    path = out / "studies" / NAME / "manifest.json"
    manifest = read(path)
    if not manifest:
        return "starting"
    if new:
        return f"storing {', '.join(name.rpartition('.')[0] for name in new)}"
    if half:
        return f"discarding {', '.join(half)}"
    left = [label for name, label in reference.labels.items() if name not in records]
    if left:
        return f"computing {left[0]}"
    if "report" in manifest:
        return "ending"
    page = out / "reports" / NAME
    drawn = len(list(page.iterdir())) if page.exists() else 0
    return f"writing the report, {drawn} files so far"


@dataclass(frozen=True)
class Reference:
    """A serial run that nothing disturbed.

    Attributes:
        content: What `content` says of its store.
        payloads: The recorded digests of each job's files, by the names of the folders.
        labels: What jobs are called, by the names of their folders, in the order of the plan.
        course: How long a run takes, by executor; "serial" stands for others.
        changes: How many changes the serial run made, by the part of the store; "." is its root.
    """

    content: dict[str, str]
    payloads: dict[str, dict[str, str]]
    labels: dict[str, str]
    course: dict[str, Course]
    changes: dict[str, int]

    def change(self, jobs: int, draw: random.Random) -> tuple[str, int]:
        """One of the changes that a run with so many jobs left makes: the part, and which there."""
        parts = sorted(self.changes) if jobs else ["reports", "studies"]
        part = draw.choice(parts)
        count = self.changes[part]
        if part not in ("reports", "."):
            count = count * jobs // len(self.labels)
        return part, draw.randint(1, max(1, count))

    @property
    def digest(self) -> str:
        """One digest of everything that is compared."""
        return digest_of(json.dumps(self.content, sort_keys=True).encode())
