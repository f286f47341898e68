"""`flatminima run`, and the report of one study in its store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatminima._devices import check_device
from flatminima._processor import multiplies_halves
from flatminima.cli._text import duration, size
from flatminima.data.sources import download_size
from flatminima.store import Store, canonical, sha256
from flatminima.study.estimate import corrections, half_precision, job_bytes, run_seconds
from flatminima.study.executors import open_executor
from flatminima.study.plan import RESULTS
from flatminima.study.run import (
    Plan,
    default_workers,
    discard_steps,
    half_discarded,
    make_plan,
    remember,
    run_plan,
)

_START = 5.0  # seconds until workers have loaded their libraries


def run(
    study: str,
    *,
    out: Path,
    executor: str,
    workers: int | None,
    address: str | None,
    threads: int | None,
    device: str | None,
    only: Sequence[str],
) -> None:
    """`flatminima run`."""
    open_executor(executor, workers, address=address)  # refuses what it would not open

    def look() -> Plan:
        return make_plan(study, out=out, threads=threads, device=device, only=only)

    plan = look()
    name = plan.study.name
    if not plan.todo and (only or report_is_fresh(plan)) and not half_discarded(plan):
        page = "" if only else f"; report: {find_page(plan)}"
        print(f"{name}: nothing to do, all of it is in {out}{page}")
        return
    with plan.store.lock():
        plan = look()
        try:
            _compute(plan, executor, workers, address)
        except KeyboardInterrupt:
            left = len(look().todo)
            raise RuntimeError(
                f"stopped; finished work is kept in {out}, {left} jobs of {name} are left: run the"
                " same command again to go on"
            ) from None
        if not only and not report_is_fresh(plan):
            print(f"report: {write_own_report(plan.store, name)}")
    print(f"{name}: done, results are in {out}")


def _compute(plan: Plan, executor: str, workers: int | None, address: str | None) -> None:
    """Do what is left, after saying what that is."""
    if not plan.todo:
        remember(plan)
        discard_steps(plan)
        return
    from flatminima.cli._progress import make_display

    if address is None:
        check_device(plan.study.run.device)
    if executor == "serial":
        workers = 1
    elif address is None:
        workers = workers or default_workers(plan.study, executor)
    scale = corrections(plan.jobs, plan.store.records(discarded=True))
    for line in announcement(plan, scale, executor, workers, address):
        print(line, flush=True)
    with make_display(plan.todo, scale) as display:
        run_plan(plan, executor=executor, workers=workers, address=address, listener=display)


def announcement(
    plan: Plan,
    scale: dict[str, float],
    executor: str,
    workers: int | None,
    address: str | None = None,
) -> list[str]:
    """What a run will download, compute and store, and about how long it will take.

    Args:
        plan: What is to be done.
        scale: See `corrections`.
        executor: Where jobs are computed.
        workers: On how many processes; nobody knows on a cluster that is there already.
        address: Of such a cluster.
    """
    from flatminima.cli._progress import UNITS, units

    study, todo = plan.study, plan.todo
    work = ", ".join(f"{part} ({count} {UNITS[part]})" for part, count in units(todo).items())
    download = download_size([study.data.dataset])
    alone = " for one process, shared out" if workers is None else ""
    seconds = run_seconds(todo, workers or 1, scale) + _START
    return [
        f"{study.name}: {study.title or study.data.dataset}",
        f"  download  {size(download) if download else 'nothing'} ({study.data.dataset})",
        f"  compute   {work or 'summary'}; {len(todo)} of {len(plan.jobs)} jobs are left",
        f"  store     about {size(sum(map(job_bytes, todo)))} in {plan.store.root}",
        *remarks(plan, address),
        f"  time      about {duration(seconds)}{alone} {ways(executor, workers, address)}",
    ]


def remarks(plan: Plan, address: str | None = None) -> list[str]:
    """What to know of half precision where this machine has no units for it."""
    run = plan.study.run
    trained = any(half_precision(job) for job in plan.todo)
    fast = run.precision == "fast" and any(job.kind == "tile" for job in plan.todo)
    if not (trained or fast) or address is not None or multiplies_halves(run.device):
        return []
    where = "this processor" if run.device == "cpu" else "this GPU"
    found = []
    if trained:
        found.append(
            f"  training  in bfloat16: {where} has no units for it, so that it takes many times as"
            ' long as precision = "float32"'
        )
    if fast:
        found.append(
            f"  points    in float32: {where} has no units for bfloat16, so that it is quicker than"
            ' "fast"'
        )
    return found


def ways(executor: str, workers: int | None, address: str | None) -> str:
    """Where a run computes: `with 2 processes`, `on the Ray cluster at 10.0.0.1:6379`."""
    if address is not None:
        return f"on the Ray cluster at {address}"
    count = "1 process" if workers in (None, 1) else f"{workers} processes"
    return f"with a Ray cluster of its own, {count}" if executor == "ray" else f"with {count}"


def write_own_report(store: Store, name: str) -> Path:
    """Write the report of one study into its store, and remember what it was made of."""
    from flatminima.report import write_report

    with store.new_report(name) as folder:
        file = write_report(store, [name], folder).name
    page = store.report_folder(name) / file
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


def report_is_fresh(plan: Plan) -> bool:
    """Whether a report is there and shows exactly what is stored and asked for."""
    record = _report_record(plan)
    if record is None or not (plan.store.root / record["page"]).exists():
        return False
    return record["made_of"] == _made_of(plan.store, plan.manifest())


def find_page(plan: Plan) -> Path | None:
    """Where the report is, if one was made."""
    record = _report_record(plan)
    return plan.store.root / record["page"] if record is not None else None
