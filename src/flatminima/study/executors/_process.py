"""One process that computes on this machine, and what it takes to start and to end it."""

import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_sentinel
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

from flatminima.store import Artifact
from flatminima.study.job import Job
from flatminima.study.worker import Outcome, Work, compute

Inputs: TypeAlias = Mapping[str, Artifact]


class Worker:
    """One process, in a pool of its own: killed, it takes no other with it."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
        )
        pool: Any = self._pool
        calls, results = pool._call_queue, pool._result_queue
        with _interrupts_blocked():
            self._started = self._pool.submit(os.getpid)
        self._process: BaseProcess = next(iter(pool._processes.values()))
        # Kept as long as its pool, it would complain when the program ends.
        self._manager = weakref.ref(pool._executor_manager_thread)
        # Nobody but the process holds these ends from now on. If it is killed in the middle of a
        # message, whoever waits here for the rest, or for room for it, learns that at once.
        calls._reader.close()
        results._writer.close()

    @property
    def alive(self) -> bool:
        """Whether there is such a process still.

        `is_alive` says yes while another thread, here the pool's, has been told of the end and has
        not written it down yet.
        """
        return not wait_for_sentinel([self._process.sentinel], 0.0)

    @property
    def was_up(self) -> bool:
        """Whether it has ever begun to work."""
        return self._started.done() and self._started.exception() is None

    def do(self, work: Work, jobs: list[Job], inputs: Inputs) -> "Future[list[Outcome]]":
        """Hand over jobs; a process that is gone by now says so with the future."""
        try:
            return self._pool.submit(compute, work, jobs, inputs)
        except BrokenProcessPool as error:
            future: Future[list[Outcome]] = Future()
            future.set_exception(error)
            return future

    def end(self) -> tuple[int, int | None]:
        """Its number and the code that it ended with, after making sure of that."""
        self._process.kill()
        self._process.join()
        return self._process.pid or 0, self._process.exitcode

    def dismiss(self, *, at_once: bool = False) -> None:
        """Give it nothing any more, so that it ends."""
        self._pool.shutdown(wait=False, cancel_futures=at_once)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until nothing of it goes on in this process either."""
        manager = self._manager()
        if manager is not None:
            manager.join(seconds)


def start_tracker() -> None:
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
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait; processes started inside never hear them, from the first on."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
