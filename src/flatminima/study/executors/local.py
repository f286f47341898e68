"""Computing on this machine: in this process, or in several."""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from flatminima.study.executors import Read, Tell, Wanted, gathered
from flatminima.study.executors._process import Inputs, Worker, start_tracker
from flatminima.study.job import Job
from flatminima.study.worker import Outcome, Work, compute

_TRIES = 3  # of a task whose worker is killed, the last one alone
_KILLED = -9  # the exit code that SIGKILL leaves


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


@dataclass(eq=False)
class _Task:
    """Some jobs, until what became of them is known.

    Attributes:
        work: Does one of them.
        jobs: What to do.
        inputs: What they read.
        found: What the driver waits for.
        losses: A line on each worker that was lost while it did this.
        worker: Who does it; nobody while it waits.
        doing: What comes of that.
        since: When that began.
    """

    work: Work
    jobs: list[Job]
    inputs: Inputs
    found: "Future[list[Outcome]]" = field(default_factory=Future)
    losses: list[str] = field(default_factory=list)
    worker: Worker | None = None
    doing: "Future[list[Outcome]] | None" = None
    since: float = 0.0

    @property
    def alone(self) -> bool:
        """Whether nothing may run beside it: too much memory may have been asked for at once."""
        return len(self.losses) >= _TRIES - 1

    @property
    def lost(self) -> bool:
        """Whether its worker is gone."""
        if self.doing is None or not self.doing.done():
            return False
        return isinstance(self.doing.exception(), BrokenProcessPool)

    def begin(self, worker: Worker) -> None:
        """Have it done."""
        self.worker, self.since = worker, time.monotonic()
        self.doing = worker.do(self.work, self.jobs, self.inputs)
        self.doing.add_done_callback(self._settle)

    def _settle(self, done: "Future[list[Outcome]]") -> None:
        """Pass on what came of it; a loss is the driver's to see, in `Processes.check`."""
        if done.cancelled() or isinstance(done.exception(), BrokenProcessPool):
            return
        error = done.exception()
        if error is not None:
            self.found.set_exception(error)
            return
        self.found.set_result([self._with_losses(outcome) for outcome in done.result()])

    def _with_losses(self, outcome: Outcome) -> Outcome:
        """The same with a line for every lost worker in its log, below what it is of."""
        if not self.losses:
            return outcome
        head, _, rest = outcome.log.partition("\n")
        return replace(outcome, log="\n".join([head, *self.losses, rest]))

    def fail(self, error: RuntimeError) -> None:
        """Give up."""
        logs = [f"{job.label} ({job.name})\nRuntimeError: {error}\n" for job in self.jobs]
        outcomes = [Outcome(None, 0.0, log, error=error) for log in logs]
        self.found.set_result([self._with_losses(outcome) for outcome in outcomes])


class Processes:
    """Computes in several processes; what one was doing when it was killed is done again.

    The first time at once; then, if it is lost again, with nothing beside it; then it has failed.
    """

    grain = 0.0
    in_process = False

    def __init__(self, workers: list[Worker], tell: Tell) -> None:
        self._workers, self._tell = workers, tell
        self._tasks: list[_Task] = []

    @property
    def capacity(self) -> int:
        """A task for every process; none more while one is to be done alone."""
        return 0 if any(task.alone for task in self._unfinished()) else len(self._workers)

    def submit(
        self, work: Work, jobs: Sequence[Job], wanted: Sequence[Wanted], read: Read
    ) -> "Future[list[Outcome]]":
        """Hand the jobs and copies of what they read to a free process."""
        inputs = gathered(wanted, [read(item) for item in wanted])
        task = _Task(work, list(jobs), inputs)
        self._tasks.append(task)
        self._give_out()
        return task.found

    def check(self) -> None:
        """Give out again what was lost.

        Raises:
            RuntimeError: No process comes as far as doing a job.
        """
        for task in self._unfinished():
            if task.lost:
                self._lose(task)
        self._give_out()

    def _unfinished(self) -> list[_Task]:
        self._tasks = [task for task in self._tasks if not task.found.done()]
        return self._tasks

    def _lose(self, task: _Task) -> None:
        """Take note of a loss, and decide whether the task is tried again."""
        worker, seconds = task.worker, time.monotonic() - task.since
        assert worker is not None
        pid, code = worker.end()
        how, when = _ending(code), datetime.now(UTC).isoformat(timespec="seconds")
        task.losses.append(f"{when} its worker process {pid} was {how} after {seconds:.1f} s")
        task.worker = task.doing = None
        if len(task.losses) < _TRIES:
            self._tell("lost", task.jobs[0], seconds)
        elif worker.was_up:
            task.fail(_given_up(task.jobs[0], code))
        else:
            raise RuntimeError(
                f"expected a worker process to start, got one {how} before it had, with nothing"
                " running beside it; finished work is kept (a script needs the usual"
                ' `if __name__ == "__main__":`)'
            )

    def _give_out(self) -> None:
        """Begin what waits for a process, those last that wait to be alone."""
        tasks = self._unfinished()
        waiting = [task for task in tasks if task.worker is None]
        for task in sorted(waiting, key=lambda task: task.alone):
            others = [other for other in tasks if other.worker is not None]
            if others and any(one.alone for one in (task, *others)):
                return
            worker = self._free({other.worker for other in others})
            if worker is None:
                return
            task.begin(worker)
            if task.losses:
                self._tell("started", task.jobs[0], 0.0)

    def _free(self, busy: Set[Worker | None]) -> Worker | None:
        """A process that has nothing to do; a fresh one, which takes seconds, if none is left."""
        free = [worker for worker in self._workers if worker not in busy]
        for worker in free:
            if worker.alive:
                return worker
        if not free:
            return None
        fresh = Worker()
        self._workers[self._workers.index(free[0])] = fresh
        return fresh


def _ending(code: int | None) -> str:
    """How a process was ended, by its exit code as far as that is known."""
    if code is None or code == _KILLED:
        return "killed"
    names = {-number: number.name for number in signal.Signals}
    return f"ended {f'by {names[code]}' if code in names else f'with code {code}'}"


def _given_up(job: Job, code: int | None) -> RuntimeError:
    """Why a job has failed whose workers were lost again and again."""
    table = "training" if job.kind == "train" else "run"
    why, cure = "", "see what it printed"
    if _ending(code) == "killed":
        why = " (out of memory?)"
        cure = f"give the machine more memory, or the study a smaller batch_size under [{table}]"
    return RuntimeError(
        f"expected its worker process to live, got {_TRIES} that did not, the last one"
        f" {_ending(code)} with nothing running beside it{why}; {cure}"
    )


@contextlib.contextmanager
def open_processes(workers: int, tell: Tell | None = None) -> Iterator[Processes]:
    """So many processes, all started at once.

    They are spawned, so a script that asks for them needs the usual `if __name__ == "__main__":`.
    They ignore Ctrl-C and SIGTERM, which are the driver's to handle, and die with the driver
    however it ends.
    """
    before = set(multiprocessing.active_children())
    start_tracker()
    hired: list[Worker] = []
    try:
        for _ in range(workers):
            hired.append(Worker())
        yield Processes(hired, tell or (lambda event, job, seconds: None))
        for worker in hired:
            worker.dismiss()
        for worker in hired:
            worker.wait()
    except BaseException:
        for worker in hired:
            worker.dismiss(at_once=True)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        for worker in hired:  # at the end of the program it would be woken up while that ends
            worker.wait(5.0)
        raise
