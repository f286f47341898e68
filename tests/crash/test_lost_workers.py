"""What becomes of work when workers end: finished work is kept, and the end is a line."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from flatminima.store import Artifact, Store
from flatminima.study.execute import StudyFailed, execute
from flatminima.study.executors import Read, Wanted, open_executor
from flatminima.study.executors.local import Serial
from flatminima.study.job import Job
from flatminima.study.worker import Outcome, Work

KILLED = "^a worker process was killed"


def _job(name: str, *needs: Job) -> Job:
    return Job(
        "network",
        {"data": {"dataset": "digits", "limit": 10}, "model": {"name": "mlp"}, "name": name},
        dependencies=tuple(job.digest for job in needs),
        inputs=tuple((job.kind, ("",)) for job in needs),
        label=name,
    )


def _work(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    return {"name": job.label.encode()}


class _Scripted(Serial):
    """Two at a time; what becomes of a job is called by its name, else it is done at once."""

    capacity = 2
    in_process = False

    def __init__(self, script: Mapping[str, Callable[[Future[list[Outcome]]], None]]) -> None:
        self._script = script

    def submit(
        self, work: Work, jobs: Sequence[Job], wanted: Sequence[Wanted], read: Read
    ) -> "Future[list[Outcome]]":
        future = super().submit(work, jobs, wanted, read)
        if jobs[0].label in self._script:
            future = Future()
            self._script[jobs[0].label](future)
        return future


def _breaks(future: "Future[list[Outcome]]") -> None:
    future.set_exception(BrokenProcessPool("terminated abruptly"))


def _refuses(future: "Future[list[Outcome]]") -> None:
    raise BrokenProcessPool("not usable anymore")


def _interrupts(future: "Future[list[Outcome]]") -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", create=True)


@pytest.mark.parametrize("kill", [_breaks, _refuses])
@pytest.mark.parametrize("first", ["good", "bad"])
def test_what_was_done_beside_a_killed_worker_is_kept(
    store: Store, kill: Callable[["Future[list[Outcome]]"], None], first: str
) -> None:
    jobs = [_job("good"), _job("bad")]
    if first == "bad" and kill is _breaks:
        jobs.reverse()
    with pytest.raises(RuntimeError, match=KILLED) as caught:
        execute(jobs, store, _Scripted({"bad": kill}), work=_work)
    assert type(caught.value) is RuntimeError  # of a line of its own, not the pool's
    assert store.done("network", _job("good").digest)


def test_what_was_done_when_the_interrupt_came_is_kept(store: Store) -> None:
    began: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        execute(
            [_job("good"), _job("endless"), _job("later")],
            store,
            _Scripted({"endless": _interrupts}),
            work=_work,
            listener=lambda event, job, seconds: began.append(job.label),
        )
    assert store.done("network", _job("good").digest)
    assert "later" not in began


def test_a_damaged_input_fails_only_the_jobs_that_read_it(store: Store) -> None:
    damaged, whole = _job("damaged"), _job("whole")
    execute([damaged, whole], store, Serial(), work=_work)
    path = store.folder("network", damaged.digest) / "payload" / "name"
    path.write_bytes(b"x")
    after = _job("after", damaged)
    last, other = _job("last", after), _job("other", whole)
    events: list[tuple[str, str]] = []
    with pytest.raises(StudyFailed) as caught:
        execute(
            [after, last, other],
            store,
            Serial(),
            work=_work,
            listener=lambda event, job, seconds: events.append((event, job.label)),
        )
    assert caught.value.bad_input
    assert str(caught.value) == (
        f"after: expected {path} as it was written, got a missing or altered file; delete"
        f" {path.parents[1]} and run the study again; 1 that need them were not run; all finished"
        " work is kept"
    )
    assert ("failed", "after") in events
    assert store.done("network", other.digest)
    assert "as it was written" in store.log_path("network", after.digest).read_text()


def _ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process takes no notice of a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in lines if line.startswith("SigIgn:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_workers_take_no_notice_of_ctrl_c_from_their_first_instruction_on() -> None:
    before = set(multiprocessing.active_children())
    with open_executor("processes", 3):
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 3
        assert all(_ignores(worker.pid or 0, signal.SIGINT) for worker in workers)


# Libraries take locks in a worker, as that which compresses arrays does when it is imported.
_WITH_A_LOCK = """
import multiprocessing, sys, time
from pathlib import Path
from flatminima.study.executors import open_executor
from flatminima.study.job import Job

def lock(job, inputs):
    global held
    held = multiprocessing.Lock()
    Path(job.label).touch()
    time.sleep(1000)

if __name__ == "__main__":
    with open_executor("processes", 2) as pool:
        pool.submit(lock, [Job("network", {}, label=sys.argv[1])], [], None)
        while not Path(sys.argv[1]).exists():
            time.sleep(0.01)
        sys.exit(3)
"""


def test_a_stop_is_silent_on_locks_that_workers_had(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_WITH_A_LOCK)
    command = [sys.executable, str(script), str(tmp_path / "flag")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (3, "")
