"""A whole study, from its settings to results in a store."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatminima._devices import check_device, visible_gpus
from flatminima.data.sources import fetch
from flatminima.store import Store
from flatminima.study.auto import resolve
from flatminima.study.config import Study, StudyError, load_study, parse_study
from flatminima.study.execute import Event, Listener, execute
from flatminima.study.executors import Takes, open_executor
from flatminima.study.job import Job
from flatminima.study.live import Live
from flatminima.study.plan import PARTS, RESULTS, needed, plan_study


@dataclass(frozen=True)
class Plan:
    """What a study consists of and what of it is still to do.

    Attributes:
        study: The settings, with nothing left to "auto".
        store: Where results are kept.
        jobs: All jobs, each after those it depends on.
        todo: The jobs that must run.
    """

    study: Study
    store: Store
    jobs: list[Job]
    todo: list[Job]

    def manifest(self) -> dict[str, Any]:
        """What the store remembers of the study: settings and jobs."""
        return {
            "settings": self.study.model_dump(mode="json"),
            "jobs": [
                {
                    "kind": job.kind,
                    "digest": job.digest,
                    "label": job.label,
                    "dependencies": list(job.dependencies),
                }
                for job in self.jobs
            ],
        }


def make_plan(
    study: str | Path | Mapping[str, Any] | Study,
    *,
    out: str | Path = "runs",
    threads: int | None = None,
    device: str | None = None,
    only: Sequence[str] = (),
    create: bool = True,
) -> Plan:
    """Read a study and see what of it is still to do. Nothing runs.

    Args:
        study: Its file, or its settings.
        out: The folder of the store.
        threads: Threads per job, instead of the study's own.
        device: Device, instead of the study's own.
        only: Parts to do, of "training", "surfaces" and "radii", with all they need; none means
            all.
        create: Make the store if there is none.

    Raises:
        StudyError: The settings cannot be used.
        StoreError: The folder is no store, or one that a newer version wrote.
    """
    if isinstance(study, str | Path):
        study = load_study(study)
    elif not isinstance(study, Study):
        study = parse_study(study)
    changed = {"threads": threads, "device": device}
    changed = {name: value for name, value in changed.items() if value is not None}
    if changed:
        settings = study.model_dump(mode="json")
        settings["run"] |= changed
        study = parse_study(settings)
    for part in only:
        if part not in PARTS:
            raise StudyError(f"expected parts among {', '.join(PARTS)}, got {part!r}; name one")
    store = Store(out, create=create)
    earlier = store.manifest(study.name) if study.name in store.studies() else None
    if earlier is not None and "data" not in earlier["settings"]:
        raise StudyError(
            f"expected a name that nothing else in {store.root} has, got {study.name!r}, under"
            " which own networks were measured; give the study another name, or name another folder"
        )
    study = resolve(study, earlier["settings"] if earlier is not None else None)
    jobs = plan_study(study)
    done = {job.digest for job in jobs if store.done(job.kind, job.digest)}
    kinds = [kind for part in only for kind in PARTS[part]] or RESULTS
    return Plan(study, store, jobs, needed(jobs, done, kinds))


def default_workers(study: Study, executor: str = "processes") -> int:
    """One process per usable core, at most eight; one alone where an accelerator does the work.

    A cluster of its own takes as many as this machine's GPUs have room for.
    """
    # By the smallest share: Ray itself gives no GPU more jobs than it has room for.
    shares = [takes.gpus for takes in job_takes(study).values() if takes.gpus]
    return usual_workers(study.run.device, executor, share=min(shares, default=1.0))


def usual_workers(device: str, executor: str, *, share: float = 1.0) -> int:
    """How many processes to compute with on this machine, where a job takes a share of a GPU."""
    if device == "cuda" and executor == "ray":
        return max(1, int(visible_gpus() / share))
    if device != "cpu":
        return 1
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))


def run_plan(
    plan: Plan,
    *,
    executor: str = "serial",
    workers: int | None = None,
    address: str | None = None,
    listener: Listener | None = None,
) -> None:
    """Do what is left of a plan. The caller holds the store's lock.

    Args:
        plan: What is to be done.
        executor: One of `flatminima.study.executors.NAMES`.
        workers: Number of processes.
        address: Of a Ray cluster.
        listener: See `run_study`.

    Raises:
        ValueError: The study's device is not here.
        StudyFailed: Some jobs failed; all that do not depend on them are done.
        OSError: Nothing more can be written.
    """
    if plan.todo and address is None:
        check_device(plan.study.run.device)
        workers = min(workers or default_workers(plan.study, executor), len(plan.todo))
    remember(plan)
    discard_steps(plan)
    if not plan.todo:
        return

    def tell(event: Event, job: Job, seconds: float) -> None:
        if event == "finished" and job.kind == "network":
            discard_steps(plan)
        if listener is not None:
            listener(event, job, seconds)

    with Live(
        plan.store,
        plan.study.name,
        executor=executor,
        workers=1 if executor == "serial" else workers,
        address=address,
        listener=tell,
    ) as live:
        fetch(plan.study.data.dataset)  # once, before several workers ask for it
        takes = job_takes(plan.study)
        with open_executor(executor, workers, address=address, takes=takes, tell=live) as opened:
            execute(plan.todo, plan.store, opened, listener=live)


def job_takes(study: Study) -> dict[str, Takes]:
    """What a job of each kind takes of a cluster's node, by the study's settings."""
    takes = {}
    for part, kinds in PARTS.items():
        asked = getattr(study.resources, part)
        for kind in kinds:
            # Collecting results needs no accelerator, except where losses are evaluated.
            gpus = asked.gpus if asked.gpus is not None else float(study.run.device == "cuda")
            memory = asked.memory or (4.0 if kind == "radius" else 2.0)
            takes[kind] = Takes(
                cpus=asked.cpus or float(study.run.threads),
                gpus=0.0 if kind == "summary" else gpus,
                memory=int(memory * 2**30),
            )
    return takes


def discard_steps(plan: Plan) -> None:
    """Delete the segments of training that no unfinished job of the plan reads.

    A segment holds a whole network and its optimiser; once the network is stored, nobody asks for
    them again. Records of when and where they ran are kept.
    """
    store = plan.store
    needed_by: dict[str, list[Job]] = {}
    for job in plan.jobs:
        for digest in job.dependencies:
            needed_by.setdefault(digest, []).append(job)
    for job in plan.jobs:
        if job.kind != "train" or not store.folder(job.kind, job.digest).exists():
            continue
        networks = [user for user in needed_by.get(job.digest, ()) if user.kind == "network"]
        if networks and all(store.done(user.kind, user.digest) for user in networks):
            store.discard(job.kind, job.digest)


def half_discarded(plan: Plan) -> bool:
    """Whether a kill came between a step's record and its files while it was discarded."""
    folders = (plan.store.folder(job.kind, job.digest) for job in plan.jobs if job.kind == "train")
    return any(
        (folder / "discarded.json").exists() and (folder / "payload").exists() for folder in folders
    )


def remember(plan: Plan) -> None:
    """Write the study's manifest if it is new or has changed, keeping what it says of a report."""
    manifest = plan.manifest()
    name = plan.study.name
    earlier = plan.store.manifest(name) if name in plan.store.studies() else {}
    if "report" in earlier:
        manifest["report"] = earlier["report"]
    if manifest != earlier:
        plan.store.write_manifest(name, manifest)


def run_study(
    study: str | Path | Mapping[str, Any] | Study,
    *,
    out: str | Path = "runs",
    executor: str = "serial",
    workers: int | None = None,
    address: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    only: Sequence[str] = (),
    listener: Listener | None = None,
) -> Store:
    """Train and measure whatever of a study is not in the store yet.

    Killed at any moment and called again, it does only what is unfinished, and the results are the
    same bytes. The report is `flatminima.report.write_report`'s business.

    Args:
        study: A study file, or its settings as nested mappings.
        out: The folder of the store.
        executor: "serial" (in this process), "processes" (a script that uses them needs
            `if __name__ == "__main__":`) or "ray".
        workers: Number of processes.
        address: For "ray", a cluster that is there already; else one of its own on this machine.
        threads: Threads per job, instead of the study's own.
        device: Device, instead of the study's own.
        only: Parts to do, of "training", "surfaces" and "radii"; none means all.
        listener: Called with "started", "finished", "failed" or "lost" (its worker process was
            killed: it is started again), the job, and its seconds.

    Returns:
        The store that holds the results.

    Raises:
        StudyError: The settings cannot be used.
        StoreError: The folder is no store, or another run is using it.
        ValueError: The study's device is not here.
        StudyFailed: Some jobs failed; all that do not depend on them are done.
        OSError: Nothing more can be written.
    """
    plan = make_plan(study, out=out, threads=threads, device=device, only=only)
    with plan.store.lock():
        # Another run may have finished some of it before the lock was free.
        plan = make_plan(study, out=out, threads=threads, device=device, only=only)
        run_plan(plan, executor=executor, workers=workers, address=address, listener=listener)
    return plan.store
