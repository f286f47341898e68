"""What the commands do."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatminima.cli._text import duration, size
from flatminima.data.sources import download_size
from flatminima.store import Store, StoreError, canonical, sha256
from flatminima.study.config import load_study
from flatminima.study.estimate import corrections, job_bytes, run_seconds
from flatminima.study.job import Job
from flatminima.study.plan import PARTS, RESULTS
from flatminima.study.run import Plan, default_workers, make_plan, remember, run_plan

_START = 5.0  # seconds until workers have loaded their libraries


def run(
    study: str,
    *,
    out: Path,
    executor: str,
    workers: int | None,
    threads: int | None,
    device: str | None,
    only: Sequence[str],
) -> None:
    """`flatminima run`."""

    def look() -> Plan:
        return make_plan(study, out=out, threads=threads, device=device, only=only)

    plan = look()
    name = plan.study.name
    if not plan.todo and (only or _report_is_fresh(plan)):
        page = "" if only else f"; report: {_page(plan)}"
        print(f"{name}: nothing to do, all of it is in {out}{page}")
        return
    with plan.store.lock():
        plan = look()
        count = 1 if executor == "serial" else workers or default_workers(plan.study.run.device)
        try:
            _compute(plan, executor, count)
        except KeyboardInterrupt:
            left = len(look().todo)
            raise RuntimeError(
                f"stopped; finished work is kept in {out}, {left} jobs of {name} are left: run the"
                " same command again to go on"
            ) from None
        if not only and not _report_is_fresh(plan):
            print(f"report: {write_own_report(plan.store, name)}")
    print(f"{name}: done, results are in {out}")


def _compute(plan: Plan, executor: str, workers: int) -> None:
    """Do what is left, after saying what that is."""
    if not plan.todo:
        remember(plan)
        return
    from flatminima.cli._progress import make_display

    scale = corrections(plan.jobs, plan.store.records(discarded=True))
    for line in announcement(plan, workers, scale):
        print(line, flush=True)
    with make_display(plan.todo, scale) as display:
        run_plan(plan, executor=executor, workers=workers, listener=display)


def announcement(plan: Plan, workers: int, scale: dict[str, float]) -> list[str]:
    """What a run will download, compute and store, and about how long it will take."""
    from flatminima.cli._progress import UNITS, units

    study, todo = plan.study, plan.todo
    work = ", ".join(f"{part} ({count} {UNITS[part]})" for part, count in units(todo).items())
    download = download_size([study.data.dataset])
    seconds = run_seconds(todo, workers, scale)
    ways = "1 process" if workers == 1 else f"{workers} processes"
    return [
        f"{study.name}: {study.title or study.data.dataset}",
        f"  download  {size(download) if download else 'nothing'} ({study.data.dataset})",
        f"  compute   {work or 'summary'}; {len(todo)} of {len(plan.jobs)} jobs are left",
        f"  store     about {size(sum(map(job_bytes, todo)))} in {plan.store.root}",
        f"  time      about {duration(seconds + _START)} with {ways}",
    ]


def status(study: str, *, out: Path) -> None:
    """`flatminima status`."""
    if not (out / "store.json").exists():
        print(f"{load_study(study).name}: nothing is done in {out}")
        return
    plan = make_plan(study, out=out, create=False)
    left = {job.digest for job in plan.todo}
    print(f"{plan.study.name}: {len(plan.todo)} of {len(plan.jobs)} jobs are left in {out}")
    for part, kinds in PARTS.items():
        jobs = [job for job in plan.jobs if job.kind in kinds]
        count = Counter(job.digest in left for job in jobs)
        if jobs:
            print(f"  {part:9} {count[False]} of {len(jobs)} jobs done")
    for job in plan.jobs:
        if job.kind == "network" and job.digest not in left:
            print(f"  {_describe(plan.store, job)}")
    record = _report_record(plan)
    if record is None:
        print("  report    none yet")
    else:
        print(f"  report    {_page(plan)}{'' if _report_is_fresh(plan) else ' (out of date)'}")


def _describe(store: Store, network: Job) -> str:
    """A trained network in a line: outcome and matched epoch."""
    files = store.read("network", network.digest, under=["history.zarr/.zattrs"])
    about = json.loads(files["history.zarr/.zattrs"])
    epoch = about["matched_epoch"]
    matched = f"matched at epoch {epoch}" if epoch >= 0 else "matched loss not reached"
    return f"{about['group']}/{about['network']}: {about['outcome']}, {matched}"


def write_own_report(store: Store, name: str) -> Path:
    """Write the report of one study into its store, and remember what it was made of."""
    from flatminima.report import write_report

    page = write_report(store, [name], store.report_folder(name))
    manifest = store.manifest(name)
    manifest["report"] = {
        "page": page.relative_to(store.root).as_posix(),
        "made_of": _made_of(store, manifest),
    }
    store.write_manifest(name, manifest)
    return page


def _made_of(store: Store, manifest: dict[str, Any]) -> str:
    """A digest of everything that a report shows: results, title and drawing settings."""
    results = [
        job["digest"]
        for job in manifest["jobs"]
        if job["kind"] in RESULTS and store.done(job["kind"], job["digest"])
    ]
    settings = manifest["settings"]
    return sha256(canonical([results, settings["title"], settings["report"]]))


def _report_record(plan: Plan) -> dict[str, str] | None:
    """What the manifest says of the report."""
    name = plan.study.name
    if name not in plan.store.studies():
        return None
    record: dict[str, str] | None = plan.store.manifest(name).get("report")
    return record


def _report_is_fresh(plan: Plan) -> bool:
    """Whether a report is there and shows exactly what is stored and asked for."""
    record = _report_record(plan)
    if record is None or not (plan.store.root / record["page"]).exists():
        return False
    return record["made_of"] == _made_of(plan.store, plan.manifest())


def _page(plan: Plan) -> Path:
    """Where the report is."""
    record = _report_record(plan)
    return plan.store.root / record["page"] if record else plan.store.report_folder("")


def verify(folder: Path, *, recompute: bool, whole: bool, seed: int) -> None:
    """`flatminima verify`."""
    from flatminima.study.check import check_results, missing_results

    store = Store(folder)
    count, faults = store.verify()
    faults += missing_results(store)
    for fault in faults:
        print(fault)
    if faults:
        raise RuntimeError(f"{folder} is not whole: {len(faults)} faults, listed above")
    print(f"{folder}: all {count} files are as they were recorded")
    if recompute or whole:
        disagreements = 0
        for line, agrees in check_results(store, seed=seed, whole=whole):
            print(line if agrees else f"DISAGREES: {line}", flush=True)
            disagreements += not agrees
        if disagreements:
            raise RuntimeError(f"{disagreements} of the recomputed results disagree with {folder}")
        print(f"{folder}: everything that was recomputed agrees")


def publish(study: str, folder: Path, *, out: Path, weights: bool) -> None:
    """`flatminima publish`."""
    from flatminima.study.check import copy_results

    plan = make_plan(study, out=out, create=False)
    if plan.todo:
        raise StoreError(
            f"expected {plan.study.name} to be finished in {out}, got {len(plan.todo)} jobs left;"
            " run it first"
        )
    count = copy_results(plan.store, plan.study.name, folder, weights=weights)
    print(f"{plan.study.name}: {count} results are in {folder}")
