"""A study at one moment: what is done, what runs, what failed and what waits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from flatminima.store import Store
from flatminima.study.config import Study
from flatminima.study.estimate import corrections, job_seconds
from flatminima.study.job import Job
from flatminima.study.live import failure, read_live, read_log, seconds_since, state
from flatminima.study.plan import PARTS, needed
from flatminima.study.run import default_workers

_FEW = 40  # records of a kind are enough to judge by, and a store may hold thousands


@dataclass(frozen=True)
class Count:
    """How many jobs of a part, or of a study, are in which state.

    Attributes:
        done: Stored, or no longer needed because what they led to is stored.
        running: Being computed.
        failed: Tried, and not yet done since.
        waiting: All others.
        seconds: About how long until all are done; less than the sum over parts, which overlap.
    """

    done: int
    running: int
    failed: int
    waiting: int
    seconds: float

    @property
    def total(self) -> int:
        """All jobs."""
        return self.done + self.running + self.failed + self.waiting

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "total": self.total,
            "done": self.done,
            "running": self.running,
            "failed": self.failed,
            "waiting": self.waiting,
            "seconds_left": round(self.seconds, 1),
        }


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Attributes:
        study: Its name.
        live: What its last run says of itself; see `flatminima.study.live`.
        state: Whether that run is at work.
        jobs: Of all jobs.
        parts: Of the jobs of each part that the study has.
        running: The `job`, `label`, `since` and `seconds` of each job that runs.
        failed: The `job`, `label`, `reason` and `log` of each that failed.
        blocked: How many of those that wait need one that failed.
        workers: How many processes the time left is meant for.
    """

    study: str
    live: Mapping[str, Any]
    state: str
    jobs: Count
    parts: Mapping[str, Count]
    running: Sequence[Mapping[str, Any]] = field(default_factory=list)
    failed: Sequence[Mapping[str, Any]] = field(default_factory=list)
    blocked: int = 0
    workers: int = 1

    @property
    def silence(self) -> float | None:
        """Seconds since the run gave a sign of life."""
        return seconds_since(self.live.get("heartbeat"))


def take(study: Study, jobs: Sequence[Job], store: Store | None) -> Snapshot:
    """Look at a store, which may change meanwhile, and change nothing.

    Args:
        study: Its settings.
        jobs: Its plan.
        store: Where its results go, if there is one yet.
    """
    live = read_live(store, study.name) if store is not None else {}
    alive = state(live)
    done = {job.digest for job in jobs if store is not None and store.done(job.kind, job.digest)}
    left = {job.digest: job for job in needed(jobs, done)}
    names = {job.name: digest for digest, job in left.items()}

    chosen = live.get("workers")
    workers = chosen if isinstance(chosen, int) and chosen > 0 else None
    running = []
    # What is begun last waits for a worker: a cluster is given a little more than it can do.
    for entry in live["running"][:workers] if alive == "running" else []:
        seconds = seconds_since(entry.get("since"))
        running.append({**entry, "seconds": round(seconds, 1) if seconds is not None else None})
    at_work = {names[entry["job"]]: entry["seconds"] or 0.0 for entry in running
               if entry["job"] in names}  # fmt: skip
    reasons = _reasons(store, live, [job for job in left.values() if job.digest not in at_work])
    failed = [
        {
            "job": job.name,
            "label": job.label,
            "reason": reasons[job.digest],
            "log": str(store.log_path(job.kind, job.digest)) if store is not None else "",
        }
        for job in left.values()
        if job.digest in reasons
    ]

    workers = workers or max(1, len(running)) if alive == "running" else default_workers(study)
    scale = _corrections(store, jobs)

    def count(jobs: Sequence[Job]) -> Count:
        found = Counter(
            "done" if digest not in left
            else "running" if digest in at_work
            else "failed" if digest in reasons
            else "waiting"
            for digest in (job.digest for job in jobs)
        )  # fmt: skip
        todo = [job for job in jobs if job.digest in left]
        seconds = _seconds_left(todo, at_work, workers, scale)
        return Count(found["done"], found["running"], found["failed"], found["waiting"], seconds)

    parts = {part: [job for job in jobs if job.kind in kinds] for part, kinds in PARTS.items()}
    return Snapshot(
        study.name,
        live,
        alive,
        count(jobs),
        {part: count(members) for part, members in parts.items() if members},
        running,
        failed,
        _blocked(list(left.values()), set(reasons)),
        workers,
    )


def _reasons(store: Store | None, live: Mapping[str, Any], jobs: Sequence[Job]) -> dict[str, str]:
    """Why jobs failed, by their digests: as their logs say, or the last run if those are gone."""
    if store is None:
        return {}
    folder = store.root / "logs"
    logs = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    told = {entry["job"]: str(entry.get("reason")) for entry in live.get("failed", [])}
    reasons = {}
    for job in jobs:
        if store.log_path(job.kind, job.digest).name in logs:
            reason = failure(read_log(store, job.kind, job.digest))
        else:
            reason = told.get(job.name)
        if reason is not None:
            reasons[job.digest] = reason
    return reasons


def _blocked(left: Sequence[Job], failed: set[str]) -> int:
    """How many unfinished jobs need one that failed."""
    stuck = set(failed)
    for job in left:  # each after those it depends on
        if stuck & set(job.dependencies):
            stuck.add(job.digest)
    return len(stuck - failed)


def _corrections(store: Store | None, jobs: Sequence[Job]) -> dict[str, float]:
    """As `corrections`, from some records of each kind, and only those that can be read."""
    if store is None:
        return {}
    records = []
    for kind in {job.kind for job in jobs}:
        found = (store.any_record(job.name) for job in jobs if job.kind == kind)
        legible = (
            record
            for record in found
            if record is not None and isinstance(record.get("provenance"), dict)
        )
        records += list(islice(legible, _FEW))
    return corrections(jobs, [record for record in records if "digest" in record])


def _seconds_left(
    jobs: Sequence[Job],
    at_work: Mapping[str, float],
    workers: int,
    scale: Mapping[str, float],
) -> float:
    """As `run_seconds`, with what running jobs have already taken."""
    chain: dict[str, float] = {}
    total = 0.0
    for job in jobs:
        seconds = job_seconds(job) * scale.get(job.kind, 1.0)
        seconds = max(0.0, seconds - at_work.get(job.digest, 0.0))
        total += seconds
        chain[job.digest] = seconds + max((chain.get(d, 0.0) for d in job.dependencies), default=0)
    return max(total / workers, max(chain.values(), default=0.0))
