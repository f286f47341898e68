import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flatminima.cli import _progress, main
from flatminima.cli._progress import Bars, Lines, make_display, units
from flatminima.cli._text import duration, rate, size
from flatminima.store import Store
from flatminima.study.auto import resolve
from flatminima.study.config import parse_study
from flatminima.study.job import Job
from flatminima.study.plan import plan_study

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
[surface]
resolution = 3
[radius]
directions = 2
block = 2
parameters = ["top"]
protocols = ["crossing"]
"""
JOBS = 12 + 6 + 2 + 2 + 12 + 1

# Says afterwards which of the heavy libraries were loaded on the way.
_COMMAND = """
import sys
from flatminima.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "xarray", "zarr", "scipy", "matplotlib", "plotly", "sklearn", "pandas"}
    print("loaded:", *sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def _command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, **options
    )


def _call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study that was run whole from the command line, and its output."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.toml").write_text(STUDY)
    done = _command("run", folder / "small.toml", "--out", folder / "runs", "--workers", 2)
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_a_run_says_what_it_will_do_then_one_plain_line_per_job(finished: Path) -> None:
    lines = (finished / "output.txt").read_text().splitlines()
    announced = "\n".join(lines[:5])
    assert "download  nothing (digits)" in announced
    assert f"{JOBS} of {JOBS} jobs are left" in announced
    assert "training (24 epochs), surfaces (18 points), radii (48 rays)" in announced
    assert re.search(r"store     about \d+ kB in", announced)
    assert re.search(r"time      about \d+ s with 2 processes", announced)
    jobs = [line for line in lines if line.startswith("[")]
    assert [line.split("]")[0] for line in jobs] == [f"[{n + 1}/{JOBS}" for n in range(JOBS)]
    assert "\x1b" not in announced + "".join(jobs)
    assert lines[-2] == f"report: {finished / 'runs/reports/small/report.html'}"
    assert lines[-1] == f"small: done, results are in {finished / 'runs'}"
    assert (finished / "runs/reports/small/report.html").exists()


def test_a_finished_study_answers_without_loading_anything_heavy(finished: Path) -> None:
    before = sorted((finished / "runs").rglob("*"))
    again = _command("run", finished / "small.toml", "--out", finished / "runs")
    assert again.returncode == 0
    assert "small: nothing to do" in again.stdout
    assert "report.html" in again.stdout
    assert again.stderr == "loaded:\n"
    assert sorted((finished / "runs").rglob("*")) == before
    status = _command("status", finished / "small.toml", "--out", finished / "runs")
    assert f"0 of {JOBS} jobs are left" in status.stdout
    assert re.search(r"natural/0: fitted, matched at epoch \d", status.stdout)
    assert status.stderr == "loaded:\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("status", "small", "--json"), f'"total": {JOBS}'),
        (("status", "small", "--watch"), f"0 of {JOBS} jobs are left"),
        (("log", "small", "natural/0", "network"), "natural/0 network (network-"),
        (("clean", "small"), f"kept      {JOBS} jobs"),
    ],
)
def test_looking_at_a_store_loads_nothing_heavy(
    finished: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = sorted((finished / "runs").rglob("*"))
    done = _command(*arguments, "--out", finished / "runs")
    assert said in done.stdout
    assert (done.returncode, done.stderr) == (0, "loaded:\n")
    assert sorted((finished / "runs").rglob("*")) == before


def test_other_answers_that_load_nothing_heavy(study: Path, tmp_path: Path) -> None:
    status = _command("status", study, "--out", tmp_path / "none")
    assert (status.returncode, status.stderr) == (0, "loaded:\n")
    assert "small: nothing is done in" in status.stdout
    datasets = _command("datasets")
    assert (datasets.returncode, datasets.stderr) == (0, "loaded:\n")
    assert re.search(r"^digits +bundled", datasets.stdout)
    assert "mnist" in datasets.stdout
    version = _command("--version")
    assert version.stdout.startswith("flatminima 0")


def test_a_changed_title_makes_the_report_anew_and_nothing_else(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.toml"
    path.write_text('title = "Another title"\n' + STUDY)
    records = list(Store(finished / "runs").records())
    assert _call("run", path, "--out", finished / "runs") == 0
    said = capsys.readouterr().out
    assert "report:" in said
    assert "[1/" not in said
    assert "Another title" in (finished / "runs/reports/small/report.html").read_text()
    assert list(Store(finished / "runs").records()) == records
    assert _call("run", finished / "small.toml", "--out", finished / "runs") == 0


def test_report_by_file_or_by_name(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (finished / "small.toml", "small"):
        assert _call("report", name, "--out", finished / "runs") == 0
        assert capsys.readouterr().out.strip().endswith("reports/small/report.html")
    assert _call("report", "other", "--out", finished / "runs") == 2
    assert "expected the study 'other'" in capsys.readouterr().err


def test_a_report_that_is_cut_short_leaves_the_older_one(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished / "runs/reports/small"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def cut_short(store: Store, names: list[str], out: Path) -> Path:
        (out / "report.html").write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flatminima.report.write_report", cut_short)
    assert _call("report", "small", "--out", finished / "runs") == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list((finished / "runs/tmp").glob("*")) == []


def test_a_step_that_was_half_discarded_goes_with_the_next_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    shutil.copytree(finished / "runs", out)
    step = next(out.glob("jobs/train-*"))
    (step / "payload").mkdir()
    (step / "payload" / "state.safetensors").write_text("rest")
    assert _call("verify", out) == 1
    assert _call("run", finished / "small.toml", "--out", out) == 0
    assert not (step / "payload").exists()
    assert _call("verify", out) == 0
    assert _call("run", finished / "small.toml", "--out", out) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_publish_verify_and_recompute(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, out, copy = finished / "small.toml", finished / "runs", tmp_path / "published"
    assert _call("publish", study, copy, "--out", out) == 0
    assert "small: 9 results are in" in capsys.readouterr().out
    assert (copy / "reports/small/report.html").exists()
    assert _call("verify", copy, "--recompute") == 0
    said = capsys.readouterr().out
    assert "are as they were recorded" in said
    assert "natural/0: last loss" in said
    assert re.search(r"(natural|random) train surface at end: 1 of 9 points", said)
    assert "everything that was recomputed agrees" in said
    assert _call("verify", copy, "--recompute-all") == 0
    said = capsys.readouterr().out
    for group in ("natural", "random"):
        assert f"{group} train surface at end: 9 of 9 points, largest difference" in said
    assert _call("run", study, "--out", copy) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert _call("report", "small", "--out", copy) == 0
    weights = next(copy.glob("jobs/network-*/payload/last.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert _call("verify", copy) == 1
    said, error = capsys.readouterr()
    assert "last.safetensors: altered" in said
    assert "is not whole: 1 faults" in error


def test_publish_refuses_an_unfinished_study(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    assert _call("run", study, "--out", out, "--only", "training", "--executor", "serial") == 0
    assert not (out / "reports").exists()
    assert _call("publish", study, tmp_path / "copy", "--out", out) == 2
    assert f"got {JOBS - 18} jobs left" in capsys.readouterr().err
    assert _call("verify", out) == 1
    assert "8 of 9 results are missing" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.toml"], "none.toml: expected a study file, got nothing there"),
        (["run"], "Missing argument"),
        (["rnu", "x"], "No such command 'rnu'"),
        (["run", "x.toml", "--worker", "2"], "No such option"),
        (["run", "STUDY", "--workers", "0"], "greater than or equal to 1"),
        (["run", "STUDY", "--executor", "threads"], "'processes', 'ray', got 'threads'"),
        (["run", "STUDY", "--address", "h:1"], "no address with executor 'processes', got 'h:1'"),
        (
            ["run", "STUDY", "--executor", "ray", "--address", "h:1", "--workers", "2"],
            "no number of workers for the cluster at h:1, got 2",
        ),
        (["run", "STUDY", "--device", "tpu"], "got 'tpu'"),
        (["run", "STUDY", "--only", "trianing"], "expected parts among training"),
        (["run", "STUDY", "--out", "FILE/runs"], "Not a directory"),
        (["run", "STUDY", "--out", "OTHER"], "other files"),
        (["run", "STUDY", "--out", "NEWER"], "install a newer flatminima"),
        (["status", "STUDY", "--out", "NEWER"], "install a newer flatminima"),
        (["report", "small", "--out", "nowhere"], "expected a store at nowhere"),
        (["verify", "nowhere"], "expected a store at nowhere"),
        (["verify", "nowhere", "--repair"], "expected a store at nowhere"),
        (["verify", "STORE", "--repair", "--recompute"], "--repair without --recompute, got both"),
        (["verify", "STORE", "--repair", "--recompute-all"], "--repair without --recompute"),
        (["status", "smal", "--out", "STORE"], "name of a study in STORE, got 'smal'; there are: "),
        (["status", "none.toml", "--out", "STORE"], "none.toml: expected a study file"),
        (["status", "BROKEN.toml", "--out", "STORE"], "BROKEN.toml: expected TOML"),
        (["status", "small"], "small: expected a study file, got nothing there"),
        (["status", "nets", "--out", "STORE"], "under which own networks were measured"),
        (["status", "STUDY", "--watch", "--json"], "expected --watch or --json, got both"),
        (["log", "STUDY", "natural/0", "--out", "nowhere"], "expected a store at nowhere"),
        (["log", "STUDY", "--out", "STORE"], "Missing argument"),
        (["log", "STUDY", "natural", "--out", "STORE"], "got 'natural', with which 17 begin: "),
        (["log", "STUDY", "natrual/0 network", "--out", "STORE"], "did you mean 'natural/0 netw"),
        (["log", "STUDY", "xyzzy", "--out", "STORE"], "got 'xyzzy'; `flatminima status --json`"),
        (["log", "STUDY", "natural/0 network", "--out", "STORE"], "it has not run here yet"),
        (["clean"], "Missing argument"),
        (["clean", "STUDY", "--out", "nowhere"], "expected a store at nowhere"),
        (["clean", "STUDY", "BROKEN.toml", "--out", "STORE"], "BROKEN.toml: expected TOML"),
        (["clean", "STUDY", "none.toml", "--out", "STORE"], "none.toml: expected a study file"),
        (["clean", "STUDY", "--out", "STORE"], "got small; there are: nets; name one"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_two(
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER/thesis.tex").write_text("")
    store = Store(tmp_path / "STORE", create=True)
    store.write_manifest("nets", {"settings": {"kind": "networks", "title": ""}, "jobs": []})
    (tmp_path / "BROKEN.toml").write_text("name =")
    before = sorted(store.root.rglob("*"))
    (tmp_path / "NEWER").mkdir()
    (tmp_path / "NEWER/store.json").write_text(json.dumps({"format": 99}))
    assert _call(*(str(study) if word == "STUDY" else word for word in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("flatminima: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(store.root.rglob("*")) == before


def test_no_network_and_no_cache_is_one_line_and_two(study: Path, tmp_path: Path) -> None:
    text = study.read_text().replace('"digits"', '"mnist"').replace("[64, 6", "[784, 6")
    study.write_text(text)
    nowhere = {"FLATMINIMA_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    environment = {key: value for key, value in os.environ.items() if key != "FLATMINIMA_DATA"}
    done = _command("run", study, "--out", tmp_path / "runs", env=environment | nowhere)
    assert done.returncode == 2
    assert "download  12 MB (mnist)" in done.stdout
    error = done.stderr.splitlines()
    assert error[0].startswith("flatminima: mnist: expected train-images-idx3-ubyte")
    assert len(error) == 2


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("run", "none.toml", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_what_is_finished_is_kept(
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "runs"
    write = Path.write_bytes
    written = 0

    def write_bytes(path: Path, data: bytes) -> int:
        nonlocal written
        written += path.name == "state.safetensors"
        if written > 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert _call("run", study, "--out", out, "--executor", "serial") == 2
    error = capsys.readouterr().err
    assert error.startswith("flatminima: the disk is full")
    assert "run the same command again" in error
    assert error.count("\n") == 1
    assert not list((out / "tmp").iterdir())
    # Three segments were written; with the first two a network was finished.
    kept = [record["kind"] for record in Store(out).records(discarded=True)]
    assert sorted(kept) == ["network", "train", "train", "train"]
    monkeypatch.undo()
    assert _call("run", study, "--out", out, "--only", "training", "--executor", "serial") == 0
    assert "31 of 35 jobs" not in capsys.readouterr().out


def test_a_second_run_is_refused_in_a_line(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    with Store(out, create=True).lock():
        assert _command("run", study, "--out", out).returncode == 2
        error = _command("run", study, "--out", out).stderr.splitlines()[0]
    assert "another run is using" in error


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path, executor: str) -> None:
    study = tmp_path / "long.toml"
    text = STUDY.replace("epochs = 4\n", "epochs = 20_000\n")
    study.write_text(text.replace("segment_epochs = 2", "segment_epochs = 50"))
    command = [sys.executable, "-c", _COMMAND, "run", study, "--out", tmp_path / "runs"]
    with subprocess.Popen(
        [*map(str, command), "--executor", executor, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            while not process.stdout.readline().startswith("[1/"):
                assert process.poll() is None
            os.killpg(process.pid, signal.SIGINT)
            _, error = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 1
    lines = [line for line in error.splitlines() if not line.startswith("loaded")]
    assert len(lines) == 1, error
    assert "stopped; finished work is kept in" in lines[0]
    assert "run the same command again to go on" in lines[0]
    store = Store(tmp_path / "runs")
    assert list(store.records())
    assert store.verify()[1] == []
    with store.lock():
        pass


def test_a_crash_is_one_line_and_one(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object, **options: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("flatminima.cli._run.make_plan", crash)
    assert _call("run", study) == 1
    assert capsys.readouterr().err == "flatminima: KeyError: 'x' (--debug shows where)\n"


def _jobs() -> list[Job]:
    import tomllib

    return plan_study(resolve(parse_study(tomllib.loads(STUDY))))


def test_bars_show_each_part_with_rate_and_time_left() -> None:
    jobs = _jobs()
    assert units(jobs) == {"training": 24, "surfaces": 18, "radii": 48}
    console = Console(force_terminal=True, width=100, record=True, file=io.StringIO())
    with make_display(jobs, {}, console) as display:
        assert isinstance(display, Bars)
        for job in jobs:
            display("started", job, 0.0)
            display("finished", job, 0.1)
    text = console.export_text()
    assert re.search(r"training .* 24/24 epochs .* epochs/s", text)
    assert re.search(r"surfaces .* 18/18 points", text)
    assert re.search(r"radii .* 48/48 rays", text)


def test_lines_break_a_long_silence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "_SILENCE", 0.05)
    monkeypatch.setattr(_progress, "_GLANCE", 0.01)
    jobs = _jobs()
    with make_display(jobs, {}, Console(force_terminal=False)) as display:
        assert isinstance(display, Lines)
        for job in jobs[:5]:
            display("started", job, 0.0)
        said = ""
        deadline = time.monotonic() + 30
        while "at work on" not in said and time.monotonic() < deadline:
            threading.Event().wait(0.02)
            said += capsys.readouterr().out
        display("failed", jobs[0], 0.0)
        display("finished", jobs[1], 1.25)
    said += capsys.readouterr().out
    assert "[0/35] at work on natural/0 epochs 1-2, natural/0 epochs 3-4" in said
    assert "and 2 more" in said
    assert "failed: natural/0 epochs 1-2" in said
    assert "[1/35] natural/0 epochs 3-4: 1.2 s" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (size(0), "0 B"),
        (size(999), "999 B"),
        (size(1234), "1.2 kB"),
        (size(43_000_000), "43 MB"),
        (size(2.5e12), "2500 GB"),
        (duration(8.4), "8 s"),
        (duration(600), "10 min"),
        (duration(7800), "2 h 10 min"),
        (rate(3.14, "epochs"), "3.1 epochs/s"),
        (rate(0.25, "epochs"), "4.0 s/epoch"),
    ],
)
def test_numbers_are_for_people(text: str, expected: str) -> None:
    assert text == expected
