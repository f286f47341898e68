"""A whole study on the device."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydantic", reason="studies are read with it")
pytest.importorskip("zarr", reason="results are stored with it")

from accelerator.problems import DEVICE, ON_CUDA, seen_by
from flatminima.landscape import Landscape
from flatminima.store import Store
from flatminima.study import run_study, stored_minimum
from flatminima.study.check import check_results, missing_results
from flatminima.study.run import job_takes, make_plan

TESTS = Path(__file__).parents[1]
STUDY = TESTS.parent / "studies" / "digits-tiny.toml"
NAME = "digits-tiny"

pytestmark = [
    # Ray leaves sockets and files of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def payloads(store: Store) -> dict[str, bytes]:
    """Every file of every result, by its place in the store."""
    return {
        str(path.relative_to(store.root)): path.read_bytes()
        for path in sorted((store.root / "jobs").glob("*/payload/**/*"))
        if path.is_file()
    }


def command(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """`flatminima` in a process of its own."""
    search = os.pathsep.join([str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", "from flatminima.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env=os.environ | {"PYTHONPATH": search, **variables},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The study, run whole in this process."""
    folder = tmp_path_factory.mktemp("whole") / "runs"
    return run_study(STUDY, out=folder, device=DEVICE, executor="serial")


@pytest.fixture(scope="module")
def undisturbed(finished: Store) -> dict[str, bytes]:
    found = payloads(finished)
    assert len(found) > 50
    return found


def test_a_study_runs_whole_and_then_has_nothing_to_do(
    finished: Store, undisturbed: dict[str, bytes]
) -> None:
    assert missing_results(finished) == []
    assert finished.verify()[1] == []
    assert finished.manifest(NAME)["settings"]["run"]["device"] == DEVICE
    assert make_plan(STUDY, out=finished.root, device=DEVICE).todo == []
    events: list[str] = []
    run_study(
        STUDY,
        out=finished.root,
        device=DEVICE,
        listener=lambda event, job, seconds: events.append(event),
    )
    assert events == []
    assert payloads(finished) == undisturbed


def test_what_was_computed_comes_out_again(finished: Store) -> None:
    lines = list(check_results(finished, seed=0, whole=True))
    assert lines
    assert all(agrees for _, agrees in lines), lines


def test_networks_are_stored_where_everybody_can_read_them(finished: Store) -> None:
    state = stored_minimum(finished, NAME, group="natural", network=0)
    assert {value.device.type for value in state.state_dict().values()} == {"cpu"}
    assert state.history is not None
    assert state.history.attrs["outcome"] == "fitted"


def test_the_minima_of_a_surface_have_their_losses_on_the_processor(finished: Store) -> None:
    from flatminima.data import load_dataset

    jobs = [job for job in finished.manifest(NAME)["jobs"] if job["kind"] == "surface"]
    surface = finished.open_payload("surface", jobs[0]["digest"], "surface.zarr")
    assert surface.attrs["group"] == "natural"
    data = load_dataset("digits", "train", limit=300, seed=0)
    own = []
    for seed in range(3):
        state = stored_minimum(finished, NAME, group="natural", network=seed)
        own.append(Landscape(state.module(), data).loss_at(state).loss[0])
    np.testing.assert_allclose(surface["anchor_loss"].values, own, rtol=1e-6, atol=1e-6)


def test_another_device_has_other_names(finished: Store, tmp_path: Path) -> None:
    other = "cpu" if ON_CUDA else "cuda"
    ours, theirs = (
        {job.digest for job in make_plan(STUDY, out=tmp_path / device, device=device).jobs}
        for device in (DEVICE, other)
    )
    assert len(ours) == len(theirs)
    assert not ours & theirs
    assert ours == {job["digest"] for job in finished.manifest(NAME)["jobs"]}


def test_the_report_is_written(finished: Store, tmp_path: Path) -> None:
    from flatminima.report import write_report

    page = write_report(finished, [NAME], tmp_path / "report")
    assert page.stat().st_size > 10_000
    assert NAME in page.read_text() or "Digits" in page.read_text()


def test_the_command_gives_the_same_bytes_in_processes_of_its_own(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    asked = ("run", STUDY, "--device", DEVICE, "--out", out, "--only", "surfaces")
    done = command(*asked)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = payloads(Store(out))
    assert len(found) > 30
    assert {name: undisturbed.get(name) == value for name, value in found.items()} == dict.fromkeys(
        found, True
    )
    again = command(*asked)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout


def test_jobs_take_a_gpu_of_a_cluster_except_for_the_summary(tmp_path: Path) -> None:
    takes = job_takes(make_plan(STUDY, out=tmp_path / "runs", device=DEVICE).study)
    wanted = {kind: float(ON_CUDA) for kind in takes} | {"summary": 0.0}
    assert {kind: share.gpus for kind, share in takes.items()} == wanted


def _is_a_line(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("flatminima: expected"), lines
    assert "cuda" in lines[0].lower() or "gpu" in lines[0].lower(), lines


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_gpu_that_is_not_there_is_told_in_a_line(tmp_path: Path, executor: str) -> None:
    asked = ("run", STUDY, "--device", "cuda", "--out", tmp_path / "runs", "--executor", executor)
    _is_a_line(command(*asked, CUDA_VISIBLE_DEVICES=""))


@pytest.fixture
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is an extra")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]))


@pytest.mark.usefixtures("_workers_find_the_tests")
def test_ray_gives_the_same_bytes(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    found = run_study(STUDY, out=tmp_path / "runs", device=DEVICE, executor="ray", workers=2)
    assert payloads(found) == undisturbed


@pytest.mark.usefixtures("_workers_find_the_tests")
def test_ray_lends_a_job_the_gpu_that_it_takes() -> None:
    from flatminima.study.executors import Takes, open_executor
    from flatminima.study.job import Job

    takes = {
        "train": Takes(gpus=float(ON_CUDA), memory=100 << 20),
        "summary": Takes(memory=100 << 20),
    }
    seen = {}
    with open_executor("ray", 1, takes=takes) as cluster:
        for kind in ("summary", "train", "summary"):
            task = cluster.submit(seen_by, [Job(kind, {}, label=kind)], [], lambda item: {})
            (outcome,) = task.result(100)
            assert outcome.error is None, outcome.log
            seen[kind] = outcome.artifact["count"], outcome.artifact["visible"]
    if ON_CUDA:
        assert seen["train"] == (b"1", b"0")
    else:
        assert seen["train"][0] == b"0"


def test_ray_without_a_gpu_is_told_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra")
    asked = ("run", STUDY, "--device", "cuda", "--out", tmp_path / "runs", "--executor", "ray")
    _is_a_line(command(*asked, CUDA_VISIBLE_DEVICES=""))
