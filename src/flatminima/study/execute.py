"""Running jobs: the driver decides what is next and writes the store, workers only compute."""

import contextlib
import errno
import heapq
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from graphlib import TopologicalSorter
from typing import Any, Literal

from flatminima.store import Artifact, Finished, Store, StoreError
from flatminima.study.estimate import job_seconds
from flatminima.study.executors import Executor, Wanted
from flatminima.study.job import Job
from flatminima.study.worker import Outcome, Work

Event = Literal["started", "finished", "failed", "lost"]
Listener = Callable[[Event, Job, float], None]

# What the operating system says when nothing more can be written anywhere: going on is pointless.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# Seconds until Ctrl-C is noticed while workers compute.
_ALERT = 0.25


class StudyFailed(RuntimeError):
    """Some jobs failed; everything that does not depend on them was done and is kept.

    Attributes:
        errors: What went wrong, by the label of the job.
    """

    def __init__(self, errors: Mapping[str, BaseException], skipped: int, log: str = "") -> None:
        self.errors = dict(errors)
        label, error = next(iter(self.errors.items()))
        more = f", and {len(errors) - 1} more failed" if len(errors) > 1 else ""
        after = f"; {skipped} that need them were not run" if skipped else ""
        what = f"{type(error).__name__}: " if not isinstance(error, ValueError) else ""
        message = " ".join(str(error).split())
        where = f" (its log: {log})" if log and not self.bad_input else ""
        super().__init__(f"{label}: {what}{message}{where}{more}{after}; all finished work is kept")

    @property
    def bad_input(self) -> bool:
        """Whether every failure was due to what the caller gave."""
        return all(isinstance(error, ValueError) for error in self.errors.values())


def run_work(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    """Do a job of a study; what it needs is loaded with the first one."""
    from flatminima.study.work import run_job

    return run_job(job, inputs)


def execute(
    jobs: Sequence[Job],
    store: Store,
    executor: Executor,
    *,
    listener: Listener | None = None,
    work: Work = run_work,
    seconds: Callable[[Job], float] = job_seconds,
) -> None:
    """Do all `jobs`, each after those it depends on, and write what they yield to the store.

    With several workers, jobs on the longest remaining chain go first; one worker finishes network
    after network in the order of the plan, so that a run that is cut short has whole ones. A job
    that fails stops only those that need it; every job leaves a log in the store.

    Args:
        jobs: Unfinished jobs; what they depend on is among them or in the store.
        store: Held by this process; see `Store.lock`.
        executor: Where `work` is computed.
        listener: Told of every job's start and end; the executor tells of lost workers itself.
        work: Does one job.
        seconds: About how long a job takes, in any unit.

    Raises:
        StudyFailed: Some jobs failed; all others are done.
        OSError: Nothing more can be written.
        RuntimeError: Worker processes do not start, or the cluster is gone.
    """
    tell = listener or (lambda event, job, seconds: None)
    queue = _Queue(jobs, seconds, in_plan_order=executor.capacity == 1)
    running: dict[Future[list[Outcome]], list[Job]] = {}
    errors: dict[str, BaseException] = {}
    log = ""

    def keep(tasks: Iterable[tuple[Sequence[Job], Sequence[Outcome]]]) -> None:
        """Put into the store what became of some tasks, whose jobs were done one after the other.

        Nobody knows when those behind the first one of a task began; until they are done, they
        count as waiting.
        """
        nonlocal log
        ended = [
            (job, outcome, job is task[0])
            for task, outcomes in tasks
            for job, outcome in zip(task, outcomes, strict=True)
        ]
        for job, outcome, _ in ended:
            store.write_log(job.kind, job.digest, outcome.log)
        store.write_all([_finished(job, one) for job, one, _ in ended if one.error is None])
        for job, outcome, first in ended:
            error = outcome.error
            if isinstance(error, OSError) and error.errno in _FATAL:
                raise error
            if not first:
                tell("started", job, 0.0)
            if error is None:
                queue.finish(job, outcome.seconds)
                tell("finished", job, outcome.seconds)
            else:
                log = log or str(store.log_path(job.kind, job.digest))
                errors[job.label] = error
                tell("failed", job, outcome.seconds)

    with _interrupts(held=not executor.in_process) as safe_point:
        try:
            while queue.unfinished:
                while len(running) < executor.capacity:
                    task = queue.take(executor.grain, executor.capacity)
                    if not task:
                        break
                    tell("started", task[0], 0.0)
                    wanted = _wanted(task[0])
                    try:
                        future = executor.submit(
                            work, task, wanted, lambda item: _read(store, item)
                        )
                    except StoreError as error:  # what it reads is damaged: no matter of others
                        lost = [Outcome(None, 0.0, f"{error}\n", error=error) for _ in task]
                        keep([(task, lost)])
                        continue
                    running[future] = task
                if not running:
                    break  # what is left needs a job that failed
                done = _next_done(running, executor, safe_point)
                whole = [future for future in done if future.exception() is None]
                keep([(running.pop(future), future.result()) for future in whole])
                for future in done.difference(whole):
                    future.result()  # the cluster is gone
        except (RuntimeError, KeyboardInterrupt):
            keep(  # what was done meanwhile, beside the others
                (task, future.result())
                for future, task in running.items()
                if future.done() and future.exception() is None
            )
            raise
    if errors:
        raise StudyFailed(errors, queue.unfinished - len(errors), log)


class _Queue:
    """Which jobs can begin, the most urgent first, and how many of them make a task."""

    def __init__(
        self, jobs: Sequence[Job], seconds: Callable[[Job], float], *, in_plan_order: bool
    ) -> None:
        self._expected = seconds
        self._pending = {job.digest: job for job in jobs}
        self._order = TopologicalSorter(
            {job.digest: [d for d in job.dependencies if d in self._pending] for job in jobs}
        )
        self._order.prepare()
        order = list(self._pending) if in_plan_order else _most_urgent_first(jobs, seconds)
        self._rank = {digest: number for number, digest in enumerate(order)}
        self._ready: list[tuple[int, str]] = []
        # By kind: seconds that finished jobs took, and were expected to take.
        self._took: dict[str, tuple[float, float]] = {}
        self.unfinished = len(self._pending)

    def finish(self, job: Job, seconds: float) -> None:
        """Take note that a job is done: others may begin."""
        self._order.done(job.digest)
        self.unfinished -= 1
        took, expected = self._took.get(job.kind, (0.0, 0.0))
        self._took[job.kind] = (took + seconds, expected + self._expected(job))

    def take(self, grain: float, capacity: int) -> list[Job]:
        """The next task: the most urgent job, and more that read the same until `grain` seconds.

        What a job is does not depend on the jobs beside it, so results do not depend on this.
        """
        for digest in self._order.get_ready():
            heapq.heappush(self._ready, (self._rank[digest], digest))
        if not self._ready:
            return []
        task = [self._pending[heapq.heappop(self._ready)[1]]]
        if grain > 0:
            alike = [
                entry
                for entry in sorted(self._ready)
                if self._alike(self._pending[entry[1]], task[0])
            ]
            # Everybody gets some, however little there is.
            most = -(-(len(alike) + 1) // capacity)
            seconds = self._seconds(task[0])
            for entry in alike:
                job = self._pending[entry[1]]
                seconds += self._seconds(job)
                if len(task) >= most or seconds > grain:
                    break
                task.append(job)
                self._ready.remove(entry)
            heapq.heapify(self._ready)
        return task

    @staticmethod
    def _alike(one: Job, other: Job) -> bool:
        """Whether two jobs do the same kind of work on the same inputs."""
        return (one.kind, one.dependencies, one.inputs) == (
            other.kind,
            other.dependencies,
            other.inputs,
        )

    def _seconds(self, job: Job) -> float:
        """About how long a job takes, judged by those of its kind that are done."""
        took, expected = self._took.get(job.kind, (1.0, 1.0))
        return self._expected(job) * took / expected


def _finished(job: Job, outcome: Outcome) -> Finished:
    """What the store is to keep of a job."""
    assert outcome.artifact is not None
    return Finished(
        job.kind,
        job.digest,
        outcome.artifact,
        settings=job.settings,
        dependencies=job.dependencies,
        provenance={**outcome.about, "seconds": round(outcome.seconds, 3)},
    )


def _next_done(
    running: Mapping["Future[list[Outcome]]", object],
    executor: Executor,
    safe_point: Callable[[], None],
) -> "set[Future[list[Outcome]]]":
    """Wait until some of them are done, looking out for Ctrl-C, lost workers and a lost cluster."""
    while True:
        safe_point()  # first: what is being stopped is not begun again
        executor.check()
        done = wait(running, timeout=_ALERT, return_when=FIRST_COMPLETED).done
        if done:
            return done


def _most_urgent_first(jobs: Sequence[Job], seconds: Callable[[Job], float]) -> list[str]:
    """Digests by the seconds on the longest chain that begins with each job, then as planned."""
    urgency = {job.digest: seconds(job) for job in jobs}
    after = dict.fromkeys(urgency, 0.0)
    for job in reversed(jobs):
        urgency[job.digest] += after[job.digest]
        for digest in job.dependencies:
            if digest in after:
                after[digest] = max(after[digest], urgency[job.digest])
    return sorted(urgency, key=lambda digest: -urgency[digest])


def _wanted(job: Job) -> list[Wanted]:
    """The files that a job reads."""
    return [
        Wanted(kind, digest, under)
        for digest, (kind, under) in zip(job.dependencies, job.inputs, strict=True)
    ]


def _read(store: Store, wanted: Wanted) -> dict[str, bytes]:
    """The files of a finished job, from the store."""
    if not store.done(wanted.kind, wanted.digest):
        name = f"{wanted.kind}-{wanted.digest[:20]}"
        raise StoreError(f"expected {name} in {store.root}, got nothing there")
    return store.read(wanted.kind, wanted.digest, under=wanted.under)


@contextlib.contextmanager
def _interrupts(*, held: bool) -> Iterator[Callable[[], None]]:
    """Make SIGTERM what Ctrl-C is; let both wait for a safe point if they are to be held.

    Yields the function that raises them there. Raised wherever the driver happens to be, they can
    leave a lock of the pool taken for ever, or be swallowed by a callback. A second one is raised
    at once. Where jobs run in this process, all are: a job takes as long as it takes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came = threading.Event()

    def note(number: int, frame: Any) -> None:
        if came.is_set() or not held:
            raise KeyboardInterrupt
        came.set()

    def safe_point() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield safe_point
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
