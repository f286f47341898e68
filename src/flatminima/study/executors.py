"""Running jobs: the driver decides what is next and writes the store, workers only compute.

An executor is anything with `submit(function, *arguments) -> Future`. `serial` computes in this
process, `processes` in several; another way (a cluster) is another such object and nothing else.
"""

import contextlib
import errno
import heapq
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from multiprocessing.connection import wait as wait_for_sentinel
from typing import Any, Literal, Protocol, runtime_checkable

from flatminima.store import Artifact, Store, StoreError
from flatminima.study.estimate import job_seconds
from flatminima.study.job import Job

Event = Literal["started", "finished", "failed"]
Listener = Callable[[Event, Job, float], None]
Outcome = tuple[dict[str, bytes], float]

# What the operating system says when nothing more can be written anywhere: going on is pointless.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


# Seconds until Ctrl-C is noticed while workers compute.
_ALERT = 0.25


@runtime_checkable
class Executor(Protocol):
    """Computes functions of values, now or later, here or elsewhere."""

    def submit(self, function: Callable[..., Outcome], /, *arguments: Any) -> "Future[Outcome]":
        """Begin to compute `function(*arguments)`."""
        ...


class StudyFailed(RuntimeError):
    """Some jobs failed; everything that does not depend on them was done and is kept.

    Attributes:
        errors: What went wrong, by the label of the job.
    """

    def __init__(self, errors: Mapping[str, BaseException], skipped: int) -> None:
        self.errors = dict(errors)
        label, error = next(iter(self.errors.items()))
        more = f", and {len(errors) - 1} more failed" if len(errors) > 1 else ""
        after = f"; {skipped} that need them were not run" if skipped else ""
        what = f"{type(error).__name__}: " if not isinstance(error, ValueError) else ""
        message = " ".join(str(error).split())
        super().__init__(f"{label}: {what}{message}{more}{after}; all finished work is kept")

    @property
    def bad_input(self) -> bool:
        """Whether every failure was due to what the caller gave."""
        return all(isinstance(error, ValueError) for error in self.errors.values())


class Serial:
    """Computes in this process, one job after the other."""

    def submit(self, function: Callable[..., Outcome], /, *arguments: Any) -> "Future[Outcome]":
        """Compute at once; a keyboard interrupt passes through."""
        future: Future[Outcome] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def open_executor(name: str, workers: int) -> Iterator[Executor]:
    """The executor called `name`: "serial", or "processes" with `workers` processes.

    Processes are spawned, so a script that asks for them needs the usual
    `if __name__ == "__main__":`. They ignore Ctrl-C, which is the driver's to handle, and die with
    the driver however it ends.

    Raises:
        ValueError: For an unknown name or no workers.
    """
    if name not in ("serial", "processes"):
        raise ValueError(f"expected executor 'serial' or 'processes', got {name!r}; name one")
    if workers < 1:
        raise ValueError(f"expected at least 1 worker, got {workers}; use --workers 1 or more")
    if name == "serial":
        yield Serial()
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    results = pool._result_queue
    try:
        with _children_ignore_interrupts():
            # The first call starts all processes.
            pool.submit(os.getpid)
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        # A process ended in the middle of handing over a result leaves half of it, and the thread
        # that reads it waits for the rest as long as anybody could still write, us included.
        results._writer.close()  # type: ignore[attr-defined]
        raise
    pool.shutdown()


@contextlib.contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C wait for a safe point: yields the function that raises it there.

    Raised wherever the driver happens to be, it can leave a lock of the pool taken for ever, or be
    swallowed by a callback. A second one is raised at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _go_on
        return
    came = threading.Event()

    def note(number: int, frame: Any) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    def safe_point() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield safe_point
    finally:
        signal.signal(signal.SIGINT, before)


def _go_on() -> None:
    """Where Ctrl-C is not held, nothing is to be done at a safe point."""


def _start_worker() -> None:
    """Set up a worker process: no interrupts, and no life without the driver."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Wait for the driver's end, then end at once: nobody is left to take a result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_sentinel([parent.sentinel])
        os._exit(1)


def compute(job: Job, inputs: Mapping[str, Artifact]) -> Outcome:
    """Run in a worker: a job's artifact, and the seconds it took."""
    from flatminima.study.work import run_job

    start = time.perf_counter()
    artifact = run_job(job, inputs)
    return artifact, time.perf_counter() - start


def execute(
    jobs: Sequence[Job],
    store: Store,
    executor: Executor,
    *,
    workers: int = 1,
    provenance: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    work: Callable[[Job, Mapping[str, Artifact]], Outcome] = compute,
) -> None:
    """Do all `jobs`, each after those it depends on, and write what they yield to the store.

    With several workers, jobs on the longest remaining chain go first; one worker finishes network
    after network in the order of the plan, so that a run that is cut short has whole ones. A job
    that fails stops only those that need it.

    Args:
        jobs: Unfinished jobs; what they depend on is among them or in the store.
        store: Held by this process; see `Store.lock`.
        executor: Where `work` is computed.
        workers: How many jobs are given to it at a time.
        provenance: Recorded with every result, beside its own times.
        listener: Told of every job's start and end.
        work: Does one job.

    Raises:
        StudyFailed: Some jobs failed; all others are done.
        OSError: Nothing more can be written.
        RuntimeError: A worker process was killed.
    """
    tell = listener or (lambda event, job, seconds: None)
    pending = {job.digest: job for job in jobs}
    order = TopologicalSorter(
        {job.digest: [d for d in job.dependencies if d in pending] for job in jobs}
    )
    order.prepare()
    queue = _most_urgent_first(jobs) if workers > 1 else list(pending)
    rank = {digest: number for number, digest in enumerate(queue)}
    ready: list[tuple[int, str]] = []
    running: dict[Future[Outcome], tuple[Job, str]] = {}
    errors: dict[str, BaseException] = {}
    finished = 0
    # In this process a job takes as long as it takes: there Ctrl-C must reach the job itself.
    held = contextlib.nullcontext(_go_on) if isinstance(executor, Serial) else _interrupts_held()
    with held as safe_point:
        while order.is_active():
            for digest in order.get_ready():
                heapq.heappush(ready, (rank[digest], digest))
            while ready and len(running) < workers:
                job = pending[heapq.heappop(ready)[1]]
                tell("started", job, 0.0)
                started = datetime.now(UTC).isoformat(timespec="seconds")
                running[executor.submit(work, job, _inputs(job, store))] = (job, started)
            if not running:
                break  # what is left needs a job that failed
            for future in _next_done(running, safe_point):
                job, started = running.pop(future)
                try:
                    artifact, seconds = future.result()
                except BrokenProcessPool as error:
                    raise RuntimeError(
                        "a worker process was killed (out of memory?); finished work is kept, try"
                        " fewer --workers"
                    ) from error
                except Exception as error:
                    if isinstance(error, OSError) and error.errno in _FATAL:
                        raise
                    errors[job.label] = error
                    tell("failed", job, 0.0)
                    continue
                store.write(
                    job.kind,
                    job.digest,
                    artifact,
                    settings=job.settings,
                    dependencies=job.dependencies,
                    provenance={
                        **(provenance or {}),
                        "started": started,
                        "seconds": round(seconds, 3),
                        "threads": job.settings.get("run", {}).get("threads"),
                    },
                )
                finished += 1
                tell("finished", job, seconds)
                order.done(job.digest)
    if errors:
        raise StudyFailed(errors, len(pending) - finished - len(errors))


def _next_done(
    running: Mapping[Future[Outcome], object], safe_point: Callable[[], None]
) -> set[Future[Outcome]]:
    """Wait until some of them are done, looking out for Ctrl-C."""
    while True:
        safe_point()
        done = wait(running, timeout=_ALERT, return_when=FIRST_COMPLETED).done
        if done:
            return done


def _most_urgent_first(jobs: Sequence[Job]) -> list[str]:
    """Digests by the seconds on the longest chain that begins with each job, then as planned."""
    urgency = {job.digest: job_seconds(job) for job in jobs}
    after = dict.fromkeys(urgency, 0.0)
    for job in reversed(jobs):
        urgency[job.digest] += after[job.digest]
        for digest in job.dependencies:
            if digest in after:
                after[digest] = max(after[digest], urgency[job.digest])
    return sorted(urgency, key=lambda digest: -urgency[digest])


def _inputs(job: Job, store: Store) -> dict[str, dict[str, bytes]]:
    """The files that a job reads, from the store."""
    inputs: dict[str, dict[str, bytes]] = {}
    for digest, (kind, under) in zip(job.dependencies, job.inputs, strict=True):
        if not store.done(kind, digest):
            raise StoreError(f"expected {kind}-{digest[:20]} in {store.root}, got nothing there")
        inputs.setdefault(digest, {}).update(store.read(kind, digest, under=under))
    return inputs
