import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flatminima.cli import _snapshot, _status, main
from flatminima.cli._run import announcement, ways
from flatminima.store import Store
from flatminima.study.live import Live, live_path, read_live
from flatminima.study.run import make_plan, remember, run_study

STUDY = """
name = "small"
[data]
dataset = "digits"
limit = 40
[[groups]]
name = "natural"
[[groups]]
name = "random"
noise = 0.5
[model]
name = "mlp"
[model.settings]
sizes = [64, 6, 10]
[training]
epochs = 4
batch_size = 8
learning_rate = 0.2
segment_epochs = 2
match_loss = 1.9
networks = 2
[radius]
directions = 2
block = 2
parameters = ["top"]
protocols = ["crossing"]
checkpoints = ["end"]
"""
JOBS = 8 + 4 + 4 + 1
# A network whose first segments take no time, and whose last never ends.
ENDLESS = """
name = "endless"
[data]
dataset = "digits"
limit = 40
[[groups]]
name = "a"
epochs = 4
[[groups]]
name = "b"
[model]
name = "mlp"
[model.settings]
sizes = [64, 6, 10]
[training]
epochs = 1_000_000
segment_epochs = 1_000_000
networks = 2
"""


def _call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a study file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(STUDY)
    return tmp_path


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What `flatminima status --json` answers."""

    def ask(study: str = "small.toml") -> dict[str, Any]:
        capsys.readouterr()
        assert _call("status", study, "--json") == 0
        said, error = capsys.readouterr()
        assert error == ""
        answer: dict[str, Any] = json.loads(said)
        return answer

    return ask


def _fill(store: Store, text: str | Path, *kinds: str) -> list[Any]:
    """Put the jobs of some kinds into the store as a run would, with other bytes."""
    plan = make_plan(text, out=store.root)
    remember(plan)
    for job in plan.jobs:
        if job.kind in kinds:
            store.write(
                job.kind,
                job.digest,
                {"history.zarr/.zattrs": b'{"group": "g", "network": 0, "outcome": "fitted",'
                                         b' "matched_epoch": 3}'},
                settings=job.settings,
                provenance={"seconds": 1.0},
            )  # fmt: skip
    return plan.jobs


def _fail(store: Store, job: Any, words: str) -> Path:
    text = f'{job.label}\nTraceback:\n  File "x"\nRuntimeError: {words}\nfailed after 0.1 s\n'
    store.write_log(job.kind, job.digest, text)
    return store.log_path(job.kind, job.digest)


def test_each_part_is_told_with_what_waits_and_how_long(
    folder: Path, ask: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store("runs", create=True)
    _fill(store, "small.toml", "train", "network")
    said = ask()
    assert said["jobs"] | {"seconds_left": 0} == {
        "total": JOBS, "done": 12, "running": 0, "failed": 0, "waiting": 5, "seconds_left": 0
    }  # fmt: skip
    assert list(said["parts"]) == ["training", "radii"]
    assert said["parts"]["training"]["seconds_left"] == 0
    assert said["parts"]["radii"]["waiting"] == 5
    assert said["parts"]["radii"]["seconds_left"] > 0
    assert said["run"]["state"] == "none"
    assert (said["report"], said["report_is_fresh"], said["left_over"]) == (None, False, 0)
    assert _call("status", "small.toml") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"small: 5 of {JOBS} jobs are left in runs, about \d s with \d+ process(es)?", lines[0]
    )
    assert "  training  12 of 12 jobs done" in lines
    assert re.fullmatch(r"  radii     0 of 5 jobs done, 5 waiting; about \d s left", lines[2])
    assert "  g/0: fitted, matched at epoch 3" in lines


def test_times_are_corrected_by_what_the_store_has_seen(
    folder: Path, ask: Callable[..., dict[str, Any]]
) -> None:
    store = Store("runs", create=True)
    jobs = _fill(store, "small.toml", "train", "network")
    before = ask()["parts"]["radii"]["seconds_left"]
    radius = next(job for job in jobs if job.kind == "radius")
    store.write(
        radius.kind, radius.digest, {}, settings={}, provenance={"seconds": 10_000.0}
    )  # fmt: skip
    assert ask()["parts"]["radii"]["seconds_left"] > 1000 + before


def test_without_a_store_everything_waits(
    folder: Path, ask: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    said = ask()
    assert said["jobs"]["waiting"] == JOBS
    assert said["run"]["state"] == "none"
    assert _call("status", "small.toml", "--watch") == 0
    assert capsys.readouterr().out == "small: nothing is done in runs\n"
    assert not (folder / "runs").exists()


def test_what_failed_is_told_until_it_succeeds(
    folder: Path,
    ask: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flatminima.flatness

    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no\nluck")

    with monkeypatch.context() as context:
        context.setattr(flatminima.flatness, "flatness_radius", broken)
        assert _call("run", "small.toml", "--executor", "serial", "--only", "radii") == 1
    for _ in range(2):
        said = ask()
        assert said["parts"]["radii"]["failed"] == 4
        assert said["blocked"] == 1
        assert said["failed"][0]["label"] == "natural/0 train radius top crossing end 1-2"
        assert said["failed"][0]["reason"] == "RuntimeError: no luck"
        assert Path(said["failed"][0]["log"]).read_text().count("Traceback") == 1
        assert (said["run"]["state"], said["run"]["error"]) == ("ended", "4 jobs failed")
        # Also where what the run said of itself is gone.
        live_path(Store("runs"), "small").write_text('{"ended": "x", "error": "4 jobs failed"}')
    assert _call("status", "small") == 0
    text = capsys.readouterr().out
    assert "0 of 5 jobs done, 4 failed, 1 waiting; about" in text
    assert (
        "  failed    natural/0 train radius top crossing end 1-2: RuntimeError: no luck\n" in text
    )
    assert re.search(r"\n            runs/logs/radius-[0-9a-f]{20}\.log\n", text)
    assert "1 job waits for what failed" in text
    assert _call("log", "small", "natural/0", "train", "radius") == 0
    assert "RuntimeError: no\nluck\nfailed after" in capsys.readouterr().out
    assert _call("run", "small.toml", "--executor", "serial", "--only", "radii") == 0
    said = ask()
    assert (said["failed"], said["blocked"], said["jobs"]["done"]) == ([], 0, JOBS)
    assert said["run"]["error"] is None


def test_a_log_that_is_gone_leaves_the_runs_own_word(
    folder: Path, ask: Callable[..., dict[str, Any]]
) -> None:
    store = Store("runs", create=True)
    jobs = _fill(store, "small.toml")
    with Live(store, "small", executor="serial", workers=1) as live:
        log = _fail(store, jobs[0], "boom")
        live("failed", jobs[0], 0.1)
        log.unlink()
    assert [job["reason"] for job in ask()["failed"]] == ["RuntimeError: boom"]
    _fill(store, "small.toml", "train", "network")
    assert ask()["failed"] == []


def test_what_runs_is_told_by_whom_and_since_when(
    folder: Path, ask: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store("runs", create=True)
    jobs = _fill(store, "small.toml")
    with store.lock(), Live(store, "small", executor="processes", workers=3) as live:
        log = _fail(store, jobs[0], "boom")  # in an earlier run
        live("started", jobs[0], 0.0)
        live("started", jobs[2], 0.0)
        deadline = time.monotonic() + 30
        while len(read_live(store, "small")["running"]) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        said = ask()
        assert [job["label"] for job in said["running"]] == [jobs[0].label, jobs[2].label]
        assert (said["jobs"]["running"], said["jobs"]["failed"]) == (2, 0)
        assert said["running"][0]["seconds"] >= 0
        run = said["run"]
        assert (run["state"], run["pid"], run["workers"]) == ("running", os.getpid(), 3)
        assert _call("status", "small.toml") == 0
        text = capsys.readouterr().out
        assert re.search(r"at work since \d\d:\d\d:\d\d with 3 processes \(process \d+ on ", text)
        assert re.search(rf"  running   {jobs[0].label}, since \d\d:\d\d:\d\d \(\d+ s\)\n", text)
        assert log.exists()
        assert _call("log", "small", jobs[0].name) == 0  # of the earlier run
        capsys.readouterr()
        assert _call("log", "small", jobs[2].label) == 2
        assert "it runs now, and its log is written when it ends" in capsys.readouterr().err


def test_what_was_begun_beyond_the_workers_waits(
    folder: Path, ask: Callable[..., dict[str, Any]]
) -> None:
    store = Store("runs", create=True)
    jobs = _fill(store, "small.toml")
    with store.lock(), Live(store, "small", executor="ray", workers=1) as live:
        for job in (jobs[2], jobs[0]):
            live("started", job, 0.0)
        deadline = time.monotonic() + 30
        while len(read_live(store, "small")["running"]) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        said = ask()
        assert [job["label"] for job in said["running"]] == [jobs[2].label]
        assert said["jobs"]["running"] == 1


def test_a_run_by_other_options_is_shown_as_it_runs(
    folder: Path, ask: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store("runs", create=True)
    plan = make_plan("small.toml", out="runs", threads=3)
    remember(plan)
    with Live(store, "small", executor="serial", workers=1) as live:
        live("started", plan.jobs[0], 0.0)
        deadline = time.monotonic() + 30
        while not read_live(store, "small")["running"] and time.monotonic() < deadline:
            time.sleep(0.01)
        said = ask()
        assert (said["threads"], said["jobs"]["running"]) == (3, 1)
        assert _call("status", "small.toml") == 0
        assert "  note      as it runs, with --threads 3\n" in capsys.readouterr().out
    said = ask()
    assert said["threads"] == 1
    assert _call("status", "small.toml") == 0
    assert "  note      the last run had --threads 3; without that" in capsys.readouterr().out


def _drop_logs(store: Store) -> None:
    store.root.joinpath("logs").mkdir()
    store.root.joinpath("logs/unrelated").mkdir()


def _cut_record(store: Store) -> None:
    next(store.root.glob("jobs/*/run.json")).write_text("{")


def _cut_history(store: Store) -> None:
    next(store.root.glob("jobs/network-*/payload/history.zarr/.zattrs")).write_text("{")


def _cut_live(store: Store) -> None:
    live_path(store, "small").write_text('{"pid": "x", "running": [{}], "heartbeat": 3')


def _odd_live(store: Store) -> None:
    live_path(store, "small").write_text('{"pid": "x", "running": [{"job": "y"}], "failed": {}}')


def _no_jobs(store: Store) -> None:
    import shutil

    shutil.rmtree(store.root / "jobs")


def _other_manifest(store: Store) -> None:
    store.write_manifest("other", {})


@pytest.mark.parametrize(
    "harm",
    [_drop_logs, _cut_record, _cut_history, _cut_live, _odd_live, _no_jobs, _other_manifest],
)
@pytest.mark.parametrize("options", [(), ("--json",), ("--watch",)])
def test_half_missing_files_are_no_matter(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Store], None],
    options: tuple[str, ...],
) -> None:
    store = Store("runs", create=True)
    _fill(store, "small.toml", "train", "network")
    harm(store)
    assert _call("status", "small.toml", *options) == 0
    assert capsys.readouterr().err == ""


def test_left_over_jobs_are_told_and_cleaned(
    folder: Path, ask: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store("runs", create=True)
    _fill(store, "small.toml", "train", "network")
    (folder / "small.toml").write_text(STUDY.replace("learning_rate = 0.2", "learning_rate = 0.1"))
    _fill(store, "small.toml", "train", "network")
    assert ask()["left_over"] == 12
    assert _call("status", "small.toml") == 0
    assert (
        "12 stored jobs belong to no study any more; `flatminima clean`" in capsys.readouterr().out
    )
    before = sorted(store.root.rglob("*"))
    assert _call("clean", "small.toml") == 0
    said = capsys.readouterr().out
    assert "  jobs      4 network, 8 train, " in said
    assert "  kept      12 jobs\n" in said
    assert re.search(r"runs: \d+ kB would go; --delete removes them\n", said)
    assert sorted(store.root.rglob("*")) == before
    with store.lock():
        assert _call("clean", "small.toml", "--delete") == 2
    assert "another run is using" in capsys.readouterr().err
    assert _call("clean", "small.toml", "--delete") == 0
    assert re.search(r"runs: \d+ kB removed\n", capsys.readouterr().out)
    said_then = ask()
    assert (said_then["left_over"], said_then["jobs"]["done"]) == (0, 12)
    assert _call("clean", "small") == 0
    assert "runs: nothing to remove" in capsys.readouterr().out


def test_own_networks_are_named_when_they_stay(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store("runs", create=True)
    _fill(store, "small.toml", "train", "network")
    store.write("line", "a" * 64, {"a": b"1"}, settings={"own": 1})
    assert _call("clean", "small.toml", "--delete") == 0
    assert "1 more of own networks stay, --own lets them go" in capsys.readouterr().out
    assert store.done("line", "a" * 64)
    assert _call("clean", "small.toml", "--delete", "--own") == 0
    assert not store.done("line", "a" * 64)


def test_repair_tells_what_it_took_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store("runs", create=True)
    jobs = _fill(store, "small.toml", "train", "network", "radius", "summary")
    assert _call("verify", "runs", "--repair") == 0
    assert capsys.readouterr().out == f"runs: {JOBS} files are as they were recorded\n"
    network = next(job for job in jobs if job.kind == "network")
    (store.folder("network", network.digest) / "payload/history.zarr/.zattrs").write_text("x")
    assert _call("verify", "runs") == 1
    said, error = capsys.readouterr()
    assert "altered" in said
    assert "1 faults, listed above; --repair takes damaged jobs out" in error
    assert _call("verify", "runs", "--repair") == 0
    said = capsys.readouterr().out
    assert f"jobs/{network.name}: taken out (small: natural/0 network)\n" in said
    assert "studies/small: 1 of 5 results are missing" in said
    assert "To compute what is missing, run the studies again." in said
    (store.root / "studies/small/manifest.json").write_text("{")
    assert _call("verify", "runs", "--repair") == 1
    assert "still not whole: studies/small: no readable" in capsys.readouterr().err


def test_many_jobs_are_cut_short(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "small.toml").write_text(STUDY.replace("networks = 2", "networks = 20"))
    store = Store("runs", create=True)
    for job in _fill(store, "small.toml")[:50]:
        _fail(store, job, "boom")
    assert _call("status", "small.toml") == 0
    text = capsys.readouterr().out
    assert text.count(": RuntimeError: boom\n") == 20
    assert re.search(r"  failed    and \d+ more; --json lists all\n", text)


def test_few_records_are_read(
    folder: Path, ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = STUDY.replace("networks = 2", "networks = 30").replace("epochs = 4", "epochs = 8")
    (folder / "small.toml").write_text(text)
    store = Store("runs", create=True)
    jobs = _fill(store, "small.toml", "train", "network")
    assert len(jobs) > 300
    reads = []
    read = Store.any_record
    monkeypatch.setattr(Store, "any_record", lambda *a: reads.append(a) or read(*a))
    assert ask()["jobs"]["done"] == 300
    assert len([job for job in jobs if job.kind in ("train", "network")]) == 300
    # Of kinds that are done, enough to judge by; of others, a look whether there is any.
    assert len(reads) <= 2 * _snapshot._FEW + len(jobs) - 300


# ------------------------------------------------------------------ a run in another process


_PROGRAM = "import sys; from flatminima.cli import main; main(sys.argv[1:])"


@pytest.fixture
def run(folder: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Begins `flatminima run endless.toml`; it is killed afterwards."""
    (folder / "endless.toml").write_text(ENDLESS)
    begun = []

    def run() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", _PROGRAM, "run", "endless.toml", "--workers", "2"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def _until(
    ask: Callable[..., dict[str, Any]], found: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while not found(said := ask("endless.toml")):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return said


def test_a_run_is_watched_from_outside_killed_found_dead_and_goes_on(
    run: Callable[[], "subprocess.Popen[str]"],
    ask: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = run()
    said = _until(
        ask,
        lambda said: (
            said["run"]["state"] == "running"
            and [job["label"][0] for job in said["running"]] == ["b", "b"]
        ),
    )
    assert said["run"]["pid"] == process.pid
    assert (said["run"]["executor"], said["run"]["workers"]) == ("processes", 2)
    assert said["jobs"] | {"seconds_left": 0} == {
        "total": 8, "done": said["jobs"]["done"], "running": 2, "failed": 0,
        "waiting": 6 - said["jobs"]["done"], "seconds_left": 0,
    }  # fmt: skip
    assert process.poll() is None

    # Watched without a terminal: a line, and nothing more while nothing changes.
    looks = 0

    def glance(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(_status.time, "sleep", glance)
        assert _call("status", "endless.toml", "--watch") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"\[\d/8\] at work on b/\d epochs 1-1000000, b/\d epochs 1-1000000; about .* left", lines[0]
    )
    assert not lines[1].startswith("[")
    assert process.poll() is None

    process.send_signal(signal.SIGKILL)
    process.wait()
    said = _until(ask, lambda said: said["run"]["state"] != "running")
    assert said["run"]["state"] == "lost"
    assert said["run"]["ended"] is None
    assert (said["running"], said["jobs"]["running"]) == ([], 0)
    assert _call("status", "endless.toml", "--watch") == 0
    text = capsys.readouterr().out
    assert re.search(r"ended without saying goodbye, last heard of at \d\d:\d\d:\d\d \(", text)
    assert "; run it again to go on\n" in text

    done = said["jobs"]["done"]
    again = run()
    said = _until(ask, lambda said: said["jobs"]["running"] > 0)
    assert said["run"]["pid"] == again.pid
    assert said["jobs"]["done"] >= done
    again.send_signal(signal.SIGINT)
    assert again.wait(60) == 1
    said = ask("endless.toml")
    assert (said["run"]["state"], said["run"]["error"]) == ("ended", "stopped")
    assert Store("runs").verify()[1] == []


def test_a_terminal_is_drawn_anew_until_the_run_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store("runs", create=True)
    jobs = _fill(store, "small.toml")
    console = Console(force_terminal=True, width=60, file=io.StringIO())
    monkeypatch.setattr(_status, "_GLANCE", 0.01)
    with Live(store, "small", executor="serial", workers=1) as live:
        live("started", jobs[0], 0.0)
        subject = _status._find("small.toml", Path("runs"))
        seen = [subject.look(), subject.look()]
    seen.append(subject.look())
    assert [look.state for look in seen] == ["running", "running", "ended"]
    _status._watch_screen(subject, iter(seen).__next__, console)
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert drawn.count(f"{JOBS} of {JOBS} jobs are left") >= 2
    assert "…" in drawn  # no line is folded


def test_a_suspended_run_is_asked_about(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store("runs", create=True)
    _fill(store, "small.toml")
    with Live(store, "small", executor="ray", workers=2, address="10.0.0.1:6379"):
        monkeypatch.setattr(_snapshot, "seconds_since", lambda moment: 600.0)
        assert _call("status", "small.toml") == 0
    text = capsys.readouterr().out
    assert "on the Ray cluster at 10.0.0.1:6379 (process" in text
    assert "(no sign of life for 10 min: suspended?)" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("serial", 1, None), "with 1 process"),
        (("processes", 2, None), "with 2 processes"),
        (("ray", 2, None), "with a Ray cluster of its own, 2 processes"),
        (("ray", None, "10.0.0.1:6379"), "on the Ray cluster at 10.0.0.1:6379"),
    ],
)
def test_a_run_says_where_it_computes(
    folder: Path, given: tuple[str, int | None, str | None], words: str
) -> None:
    assert ways(*given) == words
    plan = make_plan("small.toml", out="runs")
    time_line = announcement(plan, {}, *given)[-1]
    assert time_line.endswith(f" {words}")
    assert ("for one process, shared out" in time_line) == (given[1] is None)


def test_run_study_keeps_live_json_in_any_program(folder: Path) -> None:
    heard: list[str] = []
    store = run_study(
        "small.toml", out="runs", only=["training"], listener=lambda e, job, s: heard.append(e)
    )
    assert heard.count("finished") == 12
    said = read_live(store, "small")
    assert (said["executor"], said["workers"], said["error"]) == ("serial", 1, None)
