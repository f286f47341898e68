"""What becomes of work when workers end: it is done again, or fails alone, and nothing is lost."""

import io
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from multiprocessing.connection import wait as wait_for_sentinel
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from rich.console import Console

from crash import losing
from crash.driver import started
from crash.study import LOST
from flatminima.cli._progress import Bars, Lines
from flatminima.store import Artifact, Store
from flatminima.study.execute import StudyFailed, execute
from flatminima.study.executors import ClusterGone, Executor, Read, Wanted, _process, open_executor
from flatminima.study.executors.local import Serial
from flatminima.study.job import Job
from flatminima.study.live import Live, failure, read_live, read_log
from flatminima.study.worker import Outcome, Work

LOSS = r"\d{4}-\d\d-\d\dT\S+ its worker process \d+ was .+ after \d+\.\d s"


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
    future.set_exception(ClusterGone("is gone"))


def _refuses(future: "Future[list[Outcome]]") -> None:
    raise ClusterGone("is gone")


def _interrupts(future: "Future[list[Outcome]]") -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", create=True)


@pytest.mark.parametrize("kill", [_breaks, _refuses])
@pytest.mark.parametrize("first", ["good", "bad"])
def test_what_was_done_before_a_cluster_is_gone_is_kept(
    store: Store, kill: Callable[["Future[list[Outcome]]"], None], first: str
) -> None:
    jobs = [_job("good"), _job("bad")]
    if first == "bad" and kill is _breaks:
        jobs.reverse()
    with pytest.raises(ClusterGone):
        execute(jobs, store, _Scripted({"bad": kill}), work=_work)
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


def test_what_is_being_stopped_is_not_begun_again(store: Store) -> None:
    class Watched(_Scripted):
        def check(self) -> None:
            raise AssertionError("a replacement may have been started")

    with pytest.raises(KeyboardInterrupt):
        execute([_job("endless")], store, Watched({"endless": _interrupts}), work=_work)


class _Run:
    """A run of misbehaving jobs by two processes, and what was told of it."""

    def __init__(self, store: Store, notes: Path) -> None:
        self.store, self.notes = store, notes
        self.events: list[str] = []
        self.before = set(multiprocessing.active_children())

    def tell(self, event: str, job: Job, seconds: float) -> None:
        self.events.append(f"{event} {job.label}")
        losing.note(self.notes, self.events[-1])

    def job(self, label: str, *needs: Job) -> Job:
        return losing.job(label, self.notes, *needs)

    def execute(self, jobs: Sequence[Job], executor: Executor | None = None) -> None:
        if executor is None:
            with open_executor("processes", 2, tell=self.tell) as executor:
                self.execute(jobs, executor)
            assert self.workers() == []
            return
        execute(jobs, self.store, executor, listener=self.tell, work=losing.misbehave)

    def workers(self) -> list[BaseProcess]:
        return sorted(
            set(multiprocessing.active_children()) - self.before, key=lambda worker: worker.name
        )

    def losses(self, job: Job) -> list[str]:
        """The lines on lost workers in a job's log, which are its second and so on."""
        lines = read_log(self.store, job.kind, job.digest).splitlines()
        assert lines[0] == f"{job.label} ({job.name})"
        found = [line for line in lines if re.fullmatch(LOSS, line)]
        assert found == lines[1 : 1 + len(found)]
        return found


@pytest.fixture
def run(store: Store, tmp_path: Path) -> _Run:
    return _Run(store, tmp_path / "notes")


@pytest.mark.parametrize("label", ["once", "half"])
def test_a_job_whose_worker_is_killed_is_done_again_at_once(run: _Run, label: str) -> None:
    jobs = [run.job(label), *(run.job(f"good{n}") for n in range(3))]
    run.execute(jobs)
    assert [run.store.read("network", job.digest)["name"] for job in jobs] == [
        job.label.encode() for job in jobs
    ]
    assert [len(run.losses(job)) for job in jobs] == [1, 0, 0, 0]
    own = [event for event in run.events if event.endswith(label)]
    assert own == [f"started {label}", f"lost {label}", f"started {label}", f"finished {label}"]
    assert "finished after" in read_log(run.store, "network", jobs[0].digest)


def test_a_job_that_is_lost_twice_is_done_alone(run: _Run) -> None:
    crowded, beside, later = run.job("crowded"), run.job("beside"), run.job("later")
    run.execute([crowded, beside, later])
    assert run.events == [
        "started crowded",
        "started beside",
        "lost crowded",
        "started crowded",
        "lost crowded",
        "finished beside",
        "started crowded",
        "finished crowded",
        "started later",
        "finished later",
    ]
    assert len(run.losses(crowded)) == 2


@pytest.mark.parametrize(
    ("label", "got"),
    [
        (
            "die",
            "killed with nothing running beside it (out of memory?); give the machine more memory,"
            " or the study a smaller batch_size under [run]",
        ),
        (
            "quit",
            "ended with code 7 with nothing running beside it; see what it printed",
        ),
    ],
)
def test_a_job_that_always_loses_its_worker_fails_and_the_others_are_done(
    run: _Run, label: str, got: str
) -> None:
    bad, good = run.job(label), [run.job(f"good{n}") for n in range(4)]
    after = run.job("after", bad)
    with pytest.raises(StudyFailed) as caught:
        run.execute([bad, *good, after])
    words = f"expected its worker process to live, got 3 that did not, the last one {got}"
    log = run.store.log_path("network", bad.digest)
    assert str(caught.value) == (
        f"{label}: RuntimeError: {words} (its log: {log}); 1 that need them were not run; all"
        " finished work is kept"
    )
    assert not caught.value.bad_input
    assert failure(log.read_text()) == f"RuntimeError: {words}"
    assert len(run.losses(bad)) == 3
    assert losing.noted(run.notes, f"{label} begins") == 3
    assert losing.noted(run.notes, "after begins") == 0
    assert all(run.store.done("network", job.digest) for job in good)
    own = [event for event in run.events if event.endswith(label)]
    assert own == [
        *[f"started {label}", f"lost {label}"] * 2,
        f"started {label}",
        f"failed {label}",
    ]


def test_workers_that_are_killed_while_idle_are_replaced(run: _Run) -> None:
    with open_executor("processes", 2, tell=run.tell) as executor:
        run.execute([run.job("first"), run.job("second")], executor)
        old = run.workers()
        assert len(old) == 2
        for worker in old:
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join(60)
        jobs = [run.job(f"good{n}") for n in range(3)]
        run.execute(jobs, executor)
        assert len(run.workers()) == 2
        assert not set(run.workers()) & set(old)
    assert [len(run.losses(job)) for job in jobs] == [0, 0, 0]
    assert not [event for event in run.events if event.startswith("lost")]


def test_a_worker_is_dead_before_the_pool_has_written_it_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = _process.Worker()
    try:
        process = worker._process
        assert worker.alive
        # So it is between a thread's being told of the end and its writing that down.
        monkeypatch.setattr(process._popen, "poll", lambda *_: None)  # type: ignore[attr-defined]
        os.kill(process.pid or 0, signal.SIGKILL)
        wait_for_sentinel([process.sentinel], 60)
        assert process.is_alive()
        assert not worker.alive
    finally:
        monkeypatch.undo()
        worker.dismiss(at_once=True)
        worker.wait(60.0)


def test_a_worker_that_is_killed_while_it_takes_its_task_is_replaced(run: _Run) -> None:
    read = Wanted("network", "0" * 64, ("",))
    job = run.job("good")
    with open_executor("processes", 1, tell=run.tell) as executor:
        (worker,) = run.workers()
        os.kill(worker.pid or 0, signal.SIGSTOP)
        # More than the pipe to it holds.
        found = executor.submit(losing.misbehave, [job], [read], lambda _: {"x": bytes(1 << 24)})
        os.kill(worker.pid or 0, signal.SIGKILL)
        while not wait([found], timeout=0.1).done:
            executor.check()
        assert found.result()[0].artifact == {"name": b"good"}
    assert run.events == ["lost good", "started good"]


def test_a_run_whose_workers_do_not_start_ends(run: _Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "_start_worker", losing.never_up)
    words = (
        "expected a worker process to start, got one ended with code 3 before it had, with nothing"
    )
    with pytest.raises(RuntimeError, match=words):
        run.execute([run.job("good"), run.job("other"), run.job("third")])


def test_a_stop_while_workers_are_let_go_ends_them(
    run: _Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = _process.Worker.wait

    def stopped(self: _process.Worker, seconds: float | None = None) -> None:
        if seconds is None:
            raise KeyboardInterrupt
        wait(self, seconds)

    monkeypatch.setattr(_process.Worker, "wait", stopped)
    with pytest.raises(KeyboardInterrupt), open_executor("processes", 2) as executor:
        executor.submit(losing.misbehave, [run.job("endless")], [], lambda _: {})
    assert run.workers() == []


# Prints what it is told. The job's second attempt never ends.
_STAYING = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from crash import losing
from flatminima.store import Store
from flatminima.study.execute import execute
from flatminima.study.executors import open_executor

def tell(event, job, seconds):
    print(event, job.label, flush=True)

if __name__ == "__main__":
    folder = Path(sys.argv[2])
    jobs = [losing.job("stay", folder / "notes"), losing.job("good", folder / "notes")]
    with open_executor("processes", 2, tell=tell) as executor:
        store = Store(folder / "runs", create=True)
        execute(jobs, store, executor, listener=tell, work=losing.misbehave)
"""


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("whom", "number"),
    [("driver", signal.SIGKILL), ("group", signal.SIGINT), ("group", signal.SIGTERM)],
)
def test_a_run_that_is_ended_while_a_job_is_done_again_leaves_nothing(
    tmp_path: Path, whom: str, number: signal.Signals, begun: bool
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_STAYING)
    tests = str(Path(__file__).parents[1])
    with started([sys.executable, str(script), tests, str(tmp_path)]) as driver:
        said: list[str] = []
        while said.count("started stay") < 2:
            assert driver.wait_for(len(said) + 1)
            said = [line for _, line in driver.said]
        if begun:
            losing.wait_until(lambda: losing.noted(tmp_path / "notes", "stay begins") == 2)
        driver.end(whom, number, random.Random(0))
        code = driver.finish()
        assert driver.wait_gone() is not None
        said = [line for _, line in driver.said]
        assert said.count("started stay") == 2
        assert said.count("lost stay") == 1
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
            return
        # Of one traceback, the driver's.
        assert driver.errors()[-1] == "KeyboardInterrupt"
        assert driver.errors().count("Traceback (most recent call last):") == 1


def test_a_job_that_waits_to_be_done_again_is_not_said_to_be_running(run: _Run) -> None:
    live = Live(run.store, "study", executor="processes", workers=2, listener=run.tell)
    job = run.job("once")

    def running() -> list[str]:
        live._write()
        return [entry["label"] for entry in read_live(run.store, "study")["running"]]

    live("started", job, 0.0)
    assert running() == ["once"]
    live("lost", job, 3.0)
    assert running() == []
    live("started", job, 0.0)
    assert running() == ["once"]
    assert run.events == ["started once", "lost once", "started once"]


def test_a_lost_worker_is_a_line_on_standard_error(
    run: _Run, capsys: pytest.CaptureFixture[str]
) -> None:
    job = run.job("once")
    with Lines([job], {}) as lines:
        lines("started", job, 0.0)
        lines("lost", job, 3.21)
        lines("started", job, 0.0)
        lines("finished", job, 1.0)
    told = capsys.readouterr()
    assert told.out == "[1/1] once: 1.0 s\n"
    assert told.err == (
        "flatminima: once: its worker process was lost after 3.2 s (out of memory?); it is done"
        " again\n"
    )
    assert LOST.fullmatch(told.err.rstrip("\n"))


def test_a_lost_worker_is_a_line_above_the_bars(
    run: _Run, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job("train", run.job("once").settings, label="once", units=3)
    screen = io.StringIO()
    with Bars([job], Console(file=screen, force_terminal=True, width=200)) as bars:
        bars("started", job, 0.0)
        bars("lost", job, 3.21)
    assert screen.getvalue().count("flatminima: once: its worker process was lost") == 1
    assert capsys.readouterr().err == ""


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


def _hears(pid: int, number: signal.Signals) -> bool:
    """Whether a process takes notice of a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn:", "SigBlk:"))]
    assert len(masks) == 2
    return not any(mask >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_take_no_notice_of_a_stop_from_their_first_instruction_on(
    number: signal.Signals,
) -> None:
    before = set(multiprocessing.active_children())
    with open_executor("processes", 3):
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 3
        assert not any(_hears(worker.pid or 0, number) for worker in workers)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


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
