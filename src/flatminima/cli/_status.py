"""`flatminima status`: what a study has done and does now."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flatminima.cli._run import find_page, report_is_fresh, ways
from flatminima.cli._snapshot import Count, Snapshot, take
from flatminima.cli._studies import study_source
from flatminima.cli._text import duration
from flatminima.store import Store, StoreError
from flatminima.study.auto import resolve
from flatminima.study.config import Study, load_study
from flatminima.study.job import Job
from flatminima.study.live import read_live, state
from flatminima.study.plan import plan_study
from flatminima.study.run import Plan, make_plan

_GLANCE = 2.0  # seconds between two looks at a run that is watched
_SILENCE = 30.0  # seconds after which a line says that nothing has changed
_QUIET = 30.0  # seconds without a sign of life that are worth a word
_MANY, _FEW = 20, 8  # jobs that are listed in an answer, and on a screen that is drawn anew


def status(study: str, *, out: Path, watch: bool, as_json: bool) -> None:
    """`flatminima status`."""
    if watch and as_json:
        raise ValueError(
            "expected --watch or --json, got both; ask with --json as often as you like"
        )
    subject = _find(study, out)
    if watch:
        _watch(subject)
    seen = subject.look()
    if as_json:
        print(json.dumps(_as_dict(subject, seen), indent=1))
    elif subject.plan is None:
        print(f"{subject.study.name}: nothing is done in {out}")
    else:
        for line in [*_lines(subject, seen, _MANY), *_results(subject, subject.plan)]:
            print(line)


@dataclass(frozen=True)
class Subject:
    """A study that is looked at.

    Attributes:
        study: Its settings.
        jobs: Its plan.
        out: The folder of its store.
        plan: The same with its store, if there is one.
        note: What to know of the settings.
    """

    study: Study
    jobs: Sequence[Job]
    out: Path
    plan: Plan | None
    note: str = ""

    def look(self) -> Snapshot:
        """How it is now."""
        store = self.plan.store if self.plan is not None else None
        return take(self.study, self.jobs, store)


def _find(study: str, out: Path) -> Subject:
    """The study that is meant, with the threads and device of a run that is at work on it."""
    source = study_source(study, out)
    if not (out / "store.json").exists():
        assert isinstance(source, str)
        settings = resolve(load_study(source))
        return Subject(settings, plan_study(settings), out, None)
    plan = make_plan(source, out=out, create=False)
    changed = _changed(plan)
    if not changed:
        return Subject(plan.study, plan.jobs, out, plan)
    options = " ".join(f"--{name} {value}" for name, value in changed.items())
    if state(read_live(plan.store, plan.study.name)) == "running":
        plan = make_plan(source, out=out, create=False, **changed)
        return Subject(plan.study, plan.jobs, out, plan, f"as it runs, with {options}")
    note = f"the last run had {options}; without that it would do other jobs, shown here"
    return Subject(plan.study, plan.jobs, out, plan, note)


def _changed(plan: Plan) -> dict[str, Any]:
    """Threads and device of the study's last run where they are not those of its settings."""
    if plan.study.name not in plan.store.studies():
        return {}
    earlier = plan.store.manifest(plan.study.name)["settings"]["run"]
    now = plan.study.run.model_dump(mode="json")
    return {name: earlier[name] for name in ("threads", "device") if earlier.get(name) != now[name]}


def _lines(subject: Subject, seen: Snapshot, most: int) -> list[str]:
    """The job graph for people, with at most so many jobs of a kind."""
    left = seen.jobs.total - seen.jobs.done
    lines = [f"{seen.study}: {left} of {seen.jobs.total} jobs are left in {subject.out}"]
    if left:
        by = "1 process" if seen.workers == 1 else f"{seen.workers} processes"
        lines[0] += f", about {duration(seen.jobs.seconds)} with {by}"
    if subject.note:
        lines.append(f"  note      {subject.note}")
    run = _run_line(seen)
    if run:
        lines.append(f"  run       {run}")
    lines += [f"  {part:9} {_count(count)}" for part, count in seen.parts.items()]
    running = [
        f"  running   {job['label']}, since {_clock(job.get('since'))}"
        + (f" ({duration(job['seconds'])})" if job["seconds"] is not None else "")
        for job in seen.running
    ]
    failed = [
        line
        for job in seen.failed
        for line in (f"  failed    {job['label']}: {job['reason']}", f"            {job['log']}")
    ]
    lines += _cut(running, most, "  running   ")
    lines += _cut(failed, 2 * most, "  failed    ", each=2)
    if seen.blocked:
        need = "1 job waits" if seen.blocked == 1 else f"{seen.blocked} jobs wait"
        lines.append(f"            {need} for what failed")
    return lines


def _cut(lines: list[str], most: int, begin: str, each: int = 1) -> list[str]:
    """The first lines, and how many jobs there are besides."""
    if len(lines) <= most:
        return lines
    return [*lines[:most], f"{begin}and {(len(lines) - most) // each} more; --json lists all"]


def _count(count: Count) -> str:
    """A part in a line: `12 of 18 jobs done, 2 running, 4 waiting; about 40 s left`."""
    parts = [f"{count.done} of {count.total} jobs done"]
    for name in ("running", "failed", "waiting"):
        number = getattr(count, name)
        parts += [f"{number} {name}"] if number else []
    left = f"; about {duration(count.seconds)} left" if count.done < count.total else ""
    return ", ".join(parts) + left


def _run_line(seen: Snapshot) -> str:
    """What becomes of the run."""
    live = seen.live
    where = f"process {live.get('pid')} on {live.get('host')}"
    if seen.state == "running":
        executor, workers, address = (live.get(k) for k in ("executor", "workers", "address"))
        quiet = seen.silence or 0.0
        silent = f" (no sign of life for {duration(quiet)}: suspended?)" if quiet > _QUIET else ""
        way = ways(str(executor), workers if isinstance(workers, int) else None, address)
        return f"at work since {_clock(live.get('started'))} {way} ({where}){silent}"
    if seen.state == "ended":
        return f"ended at {_clock(live.get('ended'))}, {live.get('error') or 'done'}"
    if seen.state == "lost":
        return (
            f"ended without saying goodbye, last heard of at {_clock(live.get('heartbeat'))}"
            f" ({where}); run it again to go on"
        )
    return ""


def _clock(moment: object) -> str:
    """A moment as a clock on the wall shows it, with the day if that is another."""
    try:
        then = datetime.fromisoformat(str(moment)).astimezone()
    except ValueError:
        return "an unknown time"
    today = datetime.now().astimezone().date() == then.date()
    return f"{then:%H:%M:%S}" if today else f"{then:%Y-%m-%d %H:%M:%S}"


def _results(subject: Subject, plan: Plan) -> list[str]:
    """What there is to look at, and what is left over."""
    lines = [
        f"  {_describe(plan.store, job)}"
        for job in plan.jobs
        if job.kind == "network" and plan.store.done(job.kind, job.digest)
    ]
    page = find_page(plan)
    if page is None:
        lines.append("  report    none yet")
    else:
        lines.append(f"  report    {page}{'' if report_is_fresh(plan) else ' (out of date)'}")
    over = _left_over(plan)
    if over:
        jobs = "1 stored job belongs" if over == 1 else f"{over} stored jobs belong"
        lines.append(
            f"  clean     {jobs} to no study any more; `flatminima clean` tells and removes"
        )
    return lines


def _describe(store: Store, network: Job) -> str:
    """A trained network in a line: outcome and matched epoch."""
    try:
        files = store.read("network", network.digest, under=["history.zarr/.zattrs"])
        about = json.loads(files["history.zarr/.zattrs"])
    except (StoreError, KeyError):
        return f"{network.label}: damaged; `flatminima verify {store.root} --repair` mends it"
    epoch = about["matched_epoch"]
    matched = f"matched at epoch {epoch}" if epoch >= 0 else "matched loss not reached"
    return f"{about['group']}/{about['network']}: {about['outcome']}, {matched}"


def _left_over(plan: Plan) -> int:
    """How many stored jobs no study refers to, as far as manifests can be read."""
    from flatminima.study.clean import unreferenced

    try:
        return len(unreferenced(plan.store, plan.jobs))
    except (StoreError, KeyError):
        return 0


def _as_dict(subject: Subject, seen: Snapshot) -> dict[str, Any]:
    """All of it for machines; docs/tutorial.md says what the fields mean."""
    plan, run = subject.plan, seen.live
    names = ("executor", "workers", "address", "host", "pid", "started", "heartbeat", "ended")
    silence = seen.silence
    page = find_page(plan) if plan is not None else None
    return {
        "study": seen.study,
        "store": str(subject.out),
        "run": {
            "state": seen.state,
            **{name: run.get(name) for name in names},
            "seconds_since_heartbeat": round(silence, 1) if silence is not None else None,
            "error": run.get("error"),
        },
        "threads": subject.study.run.threads,
        "device": subject.study.run.device,
        "jobs": seen.jobs.as_dict(),
        "parts": {part: count.as_dict() for part, count in seen.parts.items()},
        "running": list(seen.running),
        "failed": list(seen.failed),
        "blocked": seen.blocked,
        "report": None if page is None else str(page),
        "report_is_fresh": plan is not None and report_is_fresh(plan),
        "left_over": _left_over(plan) if plan is not None else 0,
    }


def _watch(subject: Subject) -> None:
    """Show a run until it ends or nobody wants to see more of it."""
    from rich.console import Console

    console = Console()
    look = subject.look
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            _watch_screen(subject, look, console)
        else:
            _watch_lines(look)
    except KeyboardInterrupt:
        return  # the run is not disturbed by that


def _watch_screen(subject: Subject, look: Callable[[], Snapshot], console: Any) -> None:
    """Draw the answer anew every few seconds."""
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False, transient=True) as screen:
        while (seen := look()).state == "running":
            text = "\n".join(_lines(subject, seen, _FEW))
            screen.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            time.sleep(_GLANCE)


def _watch_lines(look: Callable[[], Snapshot]) -> None:
    """A line whenever something has changed, and one after a long silence."""
    shown: tuple[Any, ...] = ()
    known: set[str] = set()
    spoke = 0.0
    while (seen := look()).state == "running":
        jobs = seen.jobs
        now = (jobs.done, jobs.failed, [job["job"] for job in seen.running])
        for job in seen.failed:
            if job["job"] not in known:
                print(f"failed: {job['label']}: {job['reason']} ({job['log']})", flush=True)
                known.add(job["job"])
        if now != shown or time.monotonic() - spoke >= _SILENCE:
            at = ", ".join(job["label"] for job in seen.running[:3]) or "nothing yet"
            more = f" and {len(seen.running) - 3} more" if len(seen.running) > 3 else ""
            left = f"; about {duration(jobs.seconds)} left"
            print(f"[{jobs.done}/{jobs.total}] at work on {at}{more}{left}", flush=True)
            shown, spoke = now, time.monotonic()
        time.sleep(_GLANCE)
