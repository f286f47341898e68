"""What a run shows while it works: bars on a terminal, plain lines anywhere else."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from flatminima.cli._text import duration, rate
from flatminima.study.estimate import job_seconds
from flatminima.study.execute import Event
from flatminima.study.job import Job
from flatminima.study.plan import PARTS

UNITS = {"training": "epochs", "surfaces": "points", "radii": "rays"}
"""What the progress of each part is counted in."""

# The kind of each part whose units are counted; the others collect results and take no time.
_COUNTED = {"training": "train", "surfaces": "tile", "radii": "radius"}
_SILENCE = 30.0  # seconds after which a line says that work goes on
_SETTLING = 15.0  # seconds before which the time that passed says little about the time left
_GLANCE = 1.0  # seconds between two looks at the clock


@runtime_checkable
class Display(Protocol):
    """A listener of a run, shown while it is entered."""

    def __enter__(self) -> "Display": ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def __call__(self, event: Event, job: Job, seconds: float) -> None:
        """Take note of a job's start or end."""
        ...


def make_display(
    jobs: Sequence[Job], scale: Mapping[str, float], console: Console | None = None
) -> Display:
    """Bars if the output is a terminal, else lines."""
    console = console or Console()
    if console.is_terminal and not console.is_dumb_terminal:
        return Bars(jobs, console)
    return Lines(jobs, scale)


def units(jobs: Sequence[Job]) -> dict[str, int]:
    """Epochs, points and rays to do, by part; parts without work are left out."""
    totals = {part: sum(job.units for job in jobs if job.kind == _COUNTED[part]) for part in PARTS}
    return {part: total for part, total in totals.items() if total}


class _RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(rate(speed, task.fields["unit"]) if speed else "")


class Bars:
    """One bar per part, with its rate and the time left."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            # Whole jobs arrive at once: the rate is taken over many of them.
            speed_estimate_period=600.0,
        )
        self._tasks: dict[str, TaskID] = {
            part: self._progress.add_task(part, total=total, unit=UNITS[part], start=False)
            for part, total in units(jobs).items()
        }

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event, job: Job, seconds: float) -> None:
        """Move the bar of the job's part."""
        part = next(part for part, kinds in PARTS.items() if job.kind in kinds)
        if event == "failed":
            self._progress.console.print(f"failed: {job.label}", highlight=False)
        if event == "lost":
            say_lost(job, seconds)
        if job.kind != _COUNTED[part]:
            return
        if event == "started":
            self._progress.start_task(self._tasks[part])
        elif event == "finished":
            self._progress.advance(self._tasks[part], job.units)


class Lines:
    """One line per finished job, and one whenever nothing was said for half a minute."""

    def __init__(self, jobs: Sequence[Job], scale: Mapping[str, float]) -> None:
        self._expected = {job.digest: job_seconds(job) * scale.get(job.kind, 1.0) for job in jobs}
        self._count, self._finished, self._done = len(jobs), 0, 0.0
        self._running: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._speak_up, daemon=True)
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> "Lines":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def __call__(self, event: Event, job: Job, seconds: float) -> None:
        """Say that a job is over."""
        with self._lock:
            if event == "started":
                self._running[job.digest] = job
                return
            self._running.pop(job.digest, None)
            if event == "lost":
                say_lost(job, seconds)
                return
            if event == "failed":
                self._say(f"failed: {job.label}")
                return
            self._finished += 1
            self._done += self._expected[job.digest]
            self._say(f"{job.label}: {seconds:.1f} s{self._left()}")

    def _left(self) -> str:
        """The time left, once there is something to judge by."""
        share = self._done / (sum(self._expected.values()) or 1.0)
        passed = time.monotonic() - self._began
        if passed < _SETTLING or not 0.01 < share < 1:
            return ""
        left = passed * (1 - share) / share
        return f"; about {duration(left)} left"

    def _say(self, text: str) -> None:
        print(f"[{self._finished}/{self._count}] {text}", flush=True)
        self._spoke = time.monotonic()

    def _speak_up(self) -> None:
        """Break every long silence."""
        while not self._stop.wait(_GLANCE):
            with self._lock:
                if time.monotonic() - self._spoke >= _SILENCE:
                    names = [job.label for job in self._running.values()]
                    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                    self._say(f"at work on {', '.join(names[:3]) or 'it'}{more}{self._left()}")


def say_lost(job: Job, seconds: float) -> None:
    """A note on a job whose worker process was killed; above the bars where there are some."""
    print(
        f"flatminima: {job.label}: its worker process was lost after {seconds:.1f} s (out of"
        " memory?); it is done again",
        file=sys.stderr,
        flush=True,
    )
