import errno
import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flatminima.store import Store
from flatminima.study import live as live_module
from flatminima.study.execute import StudyFailed
from flatminima.study.job import Job
from flatminima.study.live import Live, failure, live_path, read_live, state

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TRACEBACK = """a (train-0123)
2030-01-01T00:00:00+00:00 on here, process 1
epoch 1
Traceback (most recent call last):
  File "x.py", line 1, in f
    raise ValueError("x")
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", create=True)


def _job(label: str) -> Job:
    return Job("train", {"label": label}, label=label)


def _live(store: Store, **options: Any) -> Live:
    return Live(store, "s", executor="processes", workers=2, **options)


def _wait_for(store: Store, found: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while not found(now := read_live(store, "s")):
        assert time.monotonic() < deadline, now
        time.sleep(0.01)
    return now


def test_a_run_says_what_runs_and_what_failed_and_why(store: Store) -> None:
    a, b, heard = _job("a"), _job("b"), []
    with _live(store, listener=lambda *event: heard.append(event[:2])) as live:
        said = read_live(store, "s")
        assert (said["pid"], said["executor"], said["workers"]) == (os.getpid(), "processes", 2)
        assert state(said) == "running"
        live("started", a, 0.0)
        live("started", b, 0.0)
        said = _wait_for(store, lambda now: len(now["running"]) == 2)
        assert said["running"][0]["job"] == a.name
        assert said["running"][0]["label"] == "a"
        datetime.fromisoformat(said["running"][0]["since"])
        store.write_log("train", b.digest, f"{TRACEBACK}ValueError: no\nfailed after 1.0 s\n")
        live("failed", b, 1.0)
        said = _wait_for(store, lambda now: now["failed"])
        assert said["failed"] == [{"job": b.name, "label": "b", "reason": "no"}]
        assert [job["label"] for job in said["running"]] == ["a"]
    said = read_live(store, "s")
    assert (state(said), said["running"], said["error"]) == ("ended", [], None)
    assert heard == [("started", a), ("started", b), ("failed", b)]
    assert "live" not in [thread.name for thread in threading.enumerate()]
    assert [path.name for path in live_path(store, "s").parent.iterdir()] == ["live.json"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "stopped"),
        (RuntimeError("a worker\nwas killed"), "a worker was killed"),
        (StudyFailed({"a": ValueError("x"), "b": ValueError("y")}, 1), "2 jobs failed"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_run_that_ends_with_an_error_says_so(
    store: Store, error: BaseException, words: str
) -> None:
    def run() -> None:
        with _live(store) as live:
            live("started", _job("a"), 0.0)
            raise error

    with pytest.raises(type(error)):
        run()
    said = read_live(store, "s")
    assert (state(said), said["error"], said["running"]) == ("ended", words, [])


def test_signs_of_life_go_on_and_a_storm_of_events_is_few_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "_PAUSE", 0.2)
    monkeypatch.setattr(live_module, "_BEAT", 0.4)
    writes: list[float] = []
    write = Live._write

    def counted(self: Live, *args: Any, **options: Any) -> None:
        writes.append(time.monotonic())
        write(self, *args, **options)

    monkeypatch.setattr(Live, "_write", counted)
    with _live(store) as live:
        deadline = time.monotonic() + 30
        while len(writes) < 3 and time.monotonic() < deadline:  # although nothing happens
            time.sleep(0.01)
        assert len(writes) >= 3
        before, began = len(writes), time.monotonic()
        for _ in range(2000):
            live("started", _job("a"), 0.0)
            live("finished", _job("a"), 0.0)
        most = 2 + (time.monotonic() - began) / 0.2
        assert len(writes) - before <= most


def test_a_run_goes_on_where_nothing_can_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: Any, **options: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with _live(store) as live:
        live("started", _job("a"), 0.0)
    assert read_live(store, "s") == {}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, "none"),
        ({"ended": "2030-01-01T00:00:00+00:00"}, "ended"),
        ({"machine": "elsewhere", "pid": 1, "heartbeat": NOW - timedelta(seconds=20)}, "running"),
        ({"machine": "elsewhere", "pid": 1, "heartbeat": NOW - timedelta(minutes=5)}, "lost"),
        # Another machine's clock is ahead.
        ({"machine": "elsewhere", "pid": 1, "heartbeat": NOW + timedelta(minutes=5)}, "running"),
        ({"machine": "elsewhere", "pid": 1, "heartbeat": "yesterday"}, "lost"),
        ({"machine": "elsewhere"}, "lost"),
        ({"pid": None, "heartbeat": NOW}, "running"),
    ],
)
def test_elsewhere_signs_of_life_decide(said: dict[str, Any], expected: str) -> None:
    said = {name: str(value) if name == "heartbeat" else value for name, value in said.items()}
    assert state(said, now=NOW) == expected


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc who is alive")
def test_here_the_process_itself_decides(store: Store) -> None:
    with _live(store):
        said = read_live(store, "s")
    said["ended"] = None
    late = datetime.now(UTC) + timedelta(days=1)
    assert state(said, now=late) == "running"  # suspended, say
    # Another process has got its number since.
    assert state(said | {"birth": "1"}) == "lost"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        # Ended, though nobody has taken note of it yet.
        deadline = time.monotonic() + 30
        while live_module._birth(gone.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state(said | {"pid": gone.pid}) == "lost"
    assert state(said | {"pid": gone.pid}) == "lost"


def test_without_proc_a_missing_process_is_gone_and_a_silent_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_module, "_machine", lambda: "here")
    said = {"machine": "here", "birth": None, "heartbeat": NOW.isoformat(), "pid": os.getpid()}
    assert state(said, now=NOW) == "running"
    assert state(said, now=NOW + timedelta(hours=1)) == "lost"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert state(said | {"pid": gone.pid}, now=NOW) == "lost"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"running": 3, "failed": [1, {"label": "x"}]}', '{"running": [null]}'],
)
def test_what_is_illegible_is_left_out(store: Store, text: str) -> None:
    assert read_live(store, "s") == {}
    live_path(store, "s").parent.mkdir(parents=True)
    live_path(store, "s").write_text(text)
    said = read_live(store, "s")
    assert said.get("running", []) == said.get("failed", []) == []
    assert state(said) in ("none", "lost")


def test_a_job_without_a_label_is_called_by_its_name(store: Store) -> None:
    live_path(store, "s").parent.mkdir(parents=True)
    live_path(store, "s").write_text(json.dumps({"running": [{"job": "train-0"}]}))
    assert read_live(store, "s")["running"] == [{"job": "train-0", "label": "train-0"}]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", None),
        ("a\nfinished after 1.0 s\n", None),
        (TRACEBACK + "ValueError: expected x,\n got y; z\nfailed after 1.0 s\n",
         "expected x, got y; z"),
        (TRACEBACK + "flatminima.store.StoreError: gone\nfailed after 1.0 s\n", "gone"),
        (TRACEBACK + "torch.OutOfMemoryError: no room\nfailed after 1.0 s\n",
         "torch.OutOfMemoryError: no room"),
        # A worker that was lost leaves no more than this.
        ("WorkerCrashedError: the worker died\n", "WorkerCrashedError: the worker died"),
        ("failed after 1.0 s\n", "no reason known"),
    ],
)  # fmt: skip
def test_a_log_tells_why_a_job_failed(log: str, reason: str | None) -> None:
    assert failure(log) == reason


def test_a_reason_is_never_long() -> None:
    said = failure(f"{TRACEBACK}ValueError: {'x' * 5000}\nfailed after 1.0 s\n")
    assert said is not None
    assert len(said) == 300
