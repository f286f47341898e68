"""Computing on this machine: in this process, or in several."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait as wait_for_sentinel
from typing import Any

from flatminima.study.executors import Read, Wanted, gathered
from flatminima.study.job import Job
from flatminima.study.worker import Outcome, Work, compute


class Serial:
    """Computes in this process, one job after the other."""

    capacity = 1
    grain = 0.0
    in_process = True

    def submit(
        self, work: Work, jobs: Sequence[Job], wanted: Sequence[Wanted], read: Read
    ) -> "Future[list[Outcome]]":
        """Compute at once; a keyboard interrupt passes through."""
        future: Future[list[Outcome]] = Future()
        inputs = gathered(wanted, [read(item) for item in wanted])
        future.set_result(compute(work, jobs, inputs, capture=False))
        return future

    def check(self) -> None:
        """Jobs are done when `submit` returns."""


class Processes:
    """Computes in a pool of processes."""

    grain = 0.0
    in_process = False

    def __init__(self, pool: ProcessPoolExecutor, workers: int) -> None:
        self._pool = pool
        self.capacity = workers

    def submit(
        self, work: Work, jobs: Sequence[Job], wanted: Sequence[Wanted], read: Read
    ) -> "Future[list[Outcome]]":
        """Hand the jobs and copies of what they read to the next free process."""
        inputs = gathered(wanted, [read(item) for item in wanted])
        return self._pool.submit(compute, work, list(jobs), inputs)

    def check(self) -> None:
        """A pool whose process was killed says so with the future."""


@contextlib.contextmanager
def open_processes(workers: int) -> Iterator[Processes]:
    """A pool of `workers` processes.

    Processes are spawned, so a script that asks for them needs the usual
    `if __name__ == "__main__":`. They ignore Ctrl-C and SIGTERM, which are the driver's to handle,
    and die with the driver however it ends.
    """
    before = set(multiprocessing.active_children())
    _start_tracker()
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    results = pool._result_queue
    try:
        with _children_ignore_interrupts():
            # A call starts a process unless one is idle already.
            while len(pool._processes) < workers:
                pool.submit(os.getpid)
        yield Processes(pool, workers)
        pool.shutdown()
    except BaseException:
        manager: Any = pool._executor_manager_thread
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        # A process ended in the middle of handing over a result leaves half of it, and the thread
        # that reads it waits for the rest as long as anybody could still write, us included.
        results._writer.close()  # type: ignore[attr-defined]
        if manager is not None:
            manager.join(5.0)  # at the end of the program it would be woken up while it ends
        raise


def _start_tracker() -> None:
    """Start the process that removes what killed workers leave; it is not to warn of that."""
    from multiprocessing import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore:resource_tracker"
    os.environ["PYTHONWARNINGS"] = f"{before},{quiet}" if before else quiet
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


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


def _start_worker() -> None:
    """Set up a worker process: no interrupts, and no life without the driver."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Wait for the driver's end, then end at once: nobody is left to take a result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_sentinel([parent.sentinel])
        os._exit(1)
