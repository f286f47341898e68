import errno
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import flatminima
from flatminima.store import Artifact, Finished, Store
from flatminima.study import estimate
from flatminima.study.estimate import job_seconds
from flatminima.study.execute import StudyFailed, execute
from flatminima.study.executors import Read, Wanted, local, open_executor
from flatminima.study.executors._process import Inputs, Worker
from flatminima.study.executors.local import Processes, Serial
from flatminima.study.job import Job
from flatminima.study.worker import Outcome, Work, compute

SETTINGS = {"data": {"dataset": "digits", "limit": 10}, "model": {"name": "mlp", "settings": {}}}


def _job(name: str, *needs: Job, kind: str = "network", units: int = 1) -> Job:
    return Job(
        kind,
        {**SETTINGS, "name": name},
        dependencies=tuple(job.digest for job in needs),
        inputs=tuple((job.kind, ("",)) for job in needs),
        label=name,
        units=units,
    )


def _name(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    """An artifact that spells out what it was made of."""
    parts = [inputs[digest]["name"] for digest in job.dependencies]
    return {"name": job.label.encode() + b"(" + b",".join(parts) + b")"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", create=True)


def test_jobs_get_what_they_depend_on_and_are_recorded(store: Store) -> None:
    a, b = _job("a"), _job("b")
    c = _job("c", a, b)
    d = _job("d", c, a)
    seen = []
    execute(
        [a, b, c, d],
        store,
        Serial(),
        work=_name,
        listener=lambda event, job, seconds: seen.append((event, job.label)),
    )
    assert store.read("network", d.digest) == {"name": b"d(c(a(),b()),a())"}
    record = store.record("network", d.digest)
    assert record["dependencies"] == [c.digest, a.digest]
    assert record["provenance"]["versions"]["flatminima"] == flatminima.__version__
    assert 0 <= record["provenance"]["seconds"] < 60
    log = store.log_path("network", d.digest).read_text()
    assert log.startswith(f"d ({d.name})\n")
    assert "finished after" in log
    assert [label for event, label in seen if event == "finished"][-2:] == ["c", "d"]
    execute([_job("e", d)], store, Serial(), work=_name)
    assert store.done("network", _job("e", d).digest)


class _Wide(Serial):
    """Computes at once, and may be given several tasks at a time."""

    def __init__(self, capacity: int, grain: float = 0.0) -> None:
        self.capacity, self.grain = capacity, grain


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        # All that may run at once is submitted before anything is done; then the chain goes on.
        (2, ["first", "short0", "second", "short1", "short2"]),
        (1, ["short0", "short1", "short2", "first", "second"]),
    ],
)
def test_several_workers_begin_with_the_longest_chain_and_one_keeps_to_the_plan(
    store: Store, workers: int, expected: list[str]
) -> None:
    short = [_job(f"short{n}") for n in range(3)]
    first = _job("first", kind="train", units=1000)
    second = _job("second", first, kind="train", units=1000)
    events: list[tuple[str, str]] = []
    execute(
        [*short, first, second],
        store,
        _Wide(workers),
        work=_name,
        listener=lambda event, job, seconds: events.append((event, job.label)),
    )
    order = [label for event, label in events if event == "started"]
    assert order == expected


def test_a_failure_stops_only_what_needs_it(store: Store) -> None:
    bad, good = _job("bad"), _job("good")
    after, alike = _job("after", bad), _job("alike", good)

    def work(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
        if job.label == "bad":
            raise ValueError("expected\nx, got y")
        return _name(job, inputs)

    events = []
    with pytest.raises(StudyFailed, match=r"^bad: expected x, got y; 1 that need") as caught:
        execute(
            [bad, good, after, alike],
            store,
            Serial(),
            work=work,
            listener=lambda event, job, seconds: events.append((event, job.label)),
        )
    assert caught.value.bad_input
    assert store.done("network", alike.digest)
    assert not store.done("network", after.digest)
    assert ("failed", "bad") in events
    assert ("started", "after") not in events


def test_a_crash_is_no_bad_input(store: Store) -> None:
    def work(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
        raise RuntimeError("boom")

    job = _job("a")
    log = store.log_path("network", job.digest)
    words = rf"^a: RuntimeError: boom \(its log: {re.escape(str(log))}\), and 1 more failed; all"
    with pytest.raises(StudyFailed, match=words) as caught:
        execute([job, _job("b")], store, Serial(), work=work)
    assert not caught.value.bad_input
    assert 'raise RuntimeError("boom")' in log.read_text()
    assert "failed after" in log.read_text()


def test_what_a_job_prints_and_reports_is_in_its_log(store: Store) -> None:
    def work(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
        print("said aloud")
        print("careful", file=sys.stderr)
        logging.getLogger("some.library").error("in trouble")
        return _name(job, inputs)

    (outcome,) = compute(work, [_job("a")], {})
    for words in ("said aloud", "careful", "in trouble"):
        assert words in outcome.log


def test_an_error_that_cannot_travel_keeps_its_words() -> None:
    class Untold(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def work(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
        raise Untold(1, 2)

    (outcome,) = compute(work, [_job("a")], {})
    assert str(outcome.error) == "Untold: 1 and 2"
    assert outcome.artifact is None
    assert pickle.loads(pickle.dumps(outcome)).log == outcome.log


def test_a_task_holds_jobs_alike_that_last_seconds_and_leaves_some_for_everybody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "has_narrow_vectors", lambda: False)

    def tile(n: int, *needs: Job) -> Job:
        # About a second each, by the estimate.
        job = _job(f"tile{n}", *needs, kind="train", units=200)
        assert 1.0 < job_seconds(job) < 1.3
        return job

    network, other = _job("network"), _job("other")
    tiles = [tile(n, network) for n in range(7)]
    alone = tile(8, other)
    tasks: list[list[str]] = []

    class Noting(_Wide):
        def submit(
            self, work: Work, jobs: Sequence[Job], wanted: Sequence[Wanted], read: Read
        ) -> "Future[list[Outcome]]":
            tasks.append([job.label for job in jobs])
            return super().submit(work, jobs, wanted, read)

    events: list[tuple[str, str]] = []
    execute(
        [network, other, *tiles, alone],
        store,
        Noting(2, grain=4.0),
        work=_name,
        listener=lambda event, job, seconds: events.append((event, job.label)),
    )
    sizes = [len(task) for task in tasks if task[0] in {job.label for job in tiles}]
    assert sizes == [3, 2, 1, 1], tasks  # 4 s hold three, half of four are two, then one each
    assert ["tile8"] in tasks
    # Only the first of a task is known to have begun when the task does.
    first, second, third = next(task for task in tasks if len(task) == 3)
    assert events.index(("finished", first)) < events.index(("started", second))
    assert events.index(("finished", second)) < events.index(("started", third))
    assert all(store.done("train", job.digest) for job in tiles)


@pytest.mark.parametrize("where", ["worker", "driver"])
def test_a_full_disk_ends_the_run_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    calls = []

    def work(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
        calls.append(job.label)
        if where == "worker" and job.label == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        return _name(job, inputs)

    write = Store.write_all

    def full(self: Store, jobs: Sequence[Finished]) -> None:
        if where == "driver" and any(job.artifact["name"] == b"b()" for job in jobs):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, jobs)

    monkeypatch.setattr(Store, "write_all", full)
    jobs = [_job("a"), _job("b"), _job("c")]
    with pytest.raises(OSError, match="No space left"):
        execute(jobs, store, Serial(), work=work)
    assert calls == ["a", "b"]
    assert store.done("network", jobs[0].digest)
    assert not store.done("network", jobs[1].digest)


class _Doomed(Worker):
    """Without a process; tests say what becomes of it."""

    alive = was_up = True

    def __init__(self) -> None:
        self.doing: Future[list[Outcome]] = Future()
        self.jobs: list[str] = []

    def do(self, work: Work, jobs: list[Job], inputs: Inputs) -> "Future[list[Outcome]]":
        assert self.alive
        self.doing, self.jobs = Future(), [job.label for job in jobs]
        return self.doing

    def die(self) -> None:
        self.alive, self.jobs = False, []
        self.doing.set_exception(BrokenProcessPool("terminated abruptly"))

    def finish(self) -> None:
        self.jobs = []
        self.doing.set_result([Outcome({}, 1.0, "head\ntail\n")])

    def end(self) -> tuple[int, int]:
        assert not self.alive
        return 7, -9


def test_what_is_lost_is_done_beside_others_then_alone_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers: list[Any] = [_Doomed(), _Doomed()]
    monkeypatch.setattr(local, "Worker", _Doomed)
    told: list[str] = []
    processes = Processes(workers, lambda event, job, seconds: told.append(f"{event} {job.label}"))

    def doing() -> str:
        processes.check()
        return "".join(sorted(job for worker in workers for job in worker.jobs))

    def one(job: str) -> _Doomed:
        return next(worker for worker in workers if worker.jobs == [job])

    a, b, c = (processes.submit(_name, [_job(name)], [], lambda _: {}) for name in "abc")
    assert doing() == "ab"
    one("a").die()
    assert doing() == "ab"
    assert processes.capacity == 2
    one("a").die()
    one("b").die()
    # What was lost once goes first, and nothing new beside what waits to be alone.
    assert doing() == "bc"
    assert processes.capacity == 0
    one("b").die()
    assert doing() == "c"
    one("c").finish()
    assert doing() == "a"
    assert processes.capacity == 0
    one("a").finish()
    assert doing() == "b"
    one("b").die()
    assert doing() == ""
    assert processes.capacity == 2
    (done,), (failed,), (undisturbed,) = a.result(), b.result(), c.result()
    assert "with nothing running beside it" in str(failed.error)
    assert [outcome.log.count("process 7 was killed") for outcome in (done, failed)] == [2, 3]
    assert undisturbed.log == "head\ntail\n"
    assert done.log.splitlines()[::3] == ["head", "tail"]
    assert [event for event in told if event.endswith("a")] == ["lost a", "started a"] * 2
    assert [event for event in told if event.endswith("b")] == ["lost b", "started b"] * 2


@pytest.mark.parametrize(("name", "workers"), [("threads", 1), ("processes", 0)])
def test_unknown_executors_are_refused(name: str, workers: int) -> None:
    with pytest.raises(ValueError, match="expected"), open_executor(name, workers):
        pass


_DRIVER = """
import multiprocessing, sys
from flatminima.study import run_study

def tell(event, job, seconds):
    pids = [process.pid for process in multiprocessing.active_children()]
    print(event, *pids, flush=True)

if __name__ == "__main__":
    run_study(
        {
            "name": "endless",
            "data": {"dataset": "digits", "limit": 40},
            "groups": [{"name": "a"}],
            "model": {"name": "mlp", "settings": {"sizes": [64, 6, 10]}},
            "training": {"epochs": 10**6, "segment_epochs": 10**6, "networks": 2},
        },
        out=sys.argv[1],
        executor="processes",
        workers=2,
        listener=tell,
    )
"""


def _alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc who is alive")
def test_workers_die_with_a_killed_driver(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DRIVER, str(tmp_path / "runs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        lines = [driver.stdout.readline().split() for _ in range(2)]
        workers = [int(pid) for pid in lines[1][1:]]
        assert [line[0] for line in lines] == ["started", "started"]
        assert len(workers) == 2
        assert all(_alive(pid) for pid in workers)
        driver.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))


# The worker hands over the first four bytes of a result, which announce a thousand more.
_STOPPED_HALFWAY = """
import os, struct, sys, time
from pathlib import Path
from flatminima.study.executors import open_executor
from flatminima.study.job import Job

def half_a_result(job, inputs):
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        frame = frame.f_back
    os.write(frame.f_locals["result_queue"]._writer.fileno(), struct.pack("!i", 1000))
    Path(job.label).touch()
    time.sleep(1000)

if __name__ == "__main__":
    with open_executor("processes", 2) as pool:
        pool.submit(half_a_result, [Job("network", {}, label=sys.argv[1])], [], None)
        while not Path(sys.argv[1]).exists():
            time.sleep(0.01)
        time.sleep(0.2)
        raise KeyboardInterrupt
"""


def test_a_stop_while_a_result_is_handed_over_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_STOPPED_HALFWAY)
    command = [sys.executable, str(script), str(tmp_path / "flag")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")


class _Later(Serial):
    """Computes at once, but its jobs are not in the process that Ctrl-C is for."""

    in_process = False


def test_an_interrupt_waits_for_a_safe_point(store: Store) -> None:
    heard: list[tuple[str, str]] = []
    before = signal.getsignal(signal.SIGINT)

    def listener(event: str, job: Job, seconds: float) -> None:
        if (event, job.label) == ("started", "b"):
            os.kill(os.getpid(), signal.SIGINT)
        heard.append((event, job.label))

    jobs = [_job("a"), _job("b"), _job("c")]
    with pytest.raises(KeyboardInterrupt):
        execute(jobs, store, _Later(), work=_name, listener=listener)
    # What is finished when the interrupt is noticed is kept; nothing else begins.
    assert heard == [("started", "a"), ("finished", "a"), ("started", "b"), ("finished", "b")]
    assert not store.done("network", jobs[2].digest)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_does_not_wait(store: Store) -> None:
    def listener(event: str, job: Job, seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        execute([_job("a")], store, _Later(), work=_name, listener=listener)


def test_an_interrupt_reaches_a_job_in_this_process_at_once(store: Store) -> None:
    def work(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the job went on")

    with pytest.raises(KeyboardInterrupt):
        execute([_job("a")], store, Serial(), work=work)
