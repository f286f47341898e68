import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from flatminima.data import load_dataset
from flatminima.landscape import Landscape
from flatminima.report.captions import _precision
from flatminima.report.contents import Surface
from flatminima.store import Store, StoreError
from flatminima.study import StudyError, run_study, stored_minimum
from flatminima.study.check import check_results, copy_results, missing_results
from flatminima.study.execute import StudyFailed
from flatminima.study.run import make_plan

Make = Callable[..., dict[str, Any]]

FEW_RADII = {"directions": 2, "block": 1, "parameters": ["top"], "protocols": ["crossing"]}


def _artifacts(store: Store, *, kinds: tuple[str, ...] = ()) -> dict[str, dict[str, bytes]]:
    """Every artifact of a store by the digest of its job."""
    return {
        record["digest"]: store.read(record["kind"], record["digest"])
        for record in store.records()
        if not kinds or record["kind"] in kinds
    }


def _results(store: Store, kind: str, name: str) -> list[Any]:
    """The datasets of all jobs of a kind, in the order of the study."""
    jobs = store.manifest("smallest")["jobs"]
    return [store.open_payload(kind, j["digest"], name) for j in jobs if j["kind"] == kind]


@pytest.fixture(scope="module")
def finished(smallest: Make, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The smallest study, run whole in this process."""
    return run_study(smallest(), out=tmp_path_factory.mktemp("whole") / "runs")


def test_a_study_runs_whole_and_then_has_nothing_to_do(finished: Store, smallest: Make) -> None:
    plan = make_plan(smallest(), out=finished.root)
    assert plan.todo == []
    assert finished.verify()[1] == []
    assert missing_results(finished) == []
    events: list[str] = []
    run_study(smallest(), out=finished.root, listener=lambda event, job, s: events.append(event))
    assert events == []


def test_a_surface_holds_each_networks_own_loss(finished: Store, smallest: Make) -> None:
    for surface, group in zip(
        _results(finished, "surface", "surface.zarr"), ("natural", "random"), strict=True
    ):
        assert surface.sizes["x"] == surface.sizes["y"] == 3
        assert surface.attrs["group"] == group
        losses = [
            stored_minimum(finished, "smallest", group=group, network=seed).history
            for seed in range(3)
        ]
        own = [float(history["train_loss"][-1]) for history in losses if history is not None]
        assert_allclose(surface["anchor_loss"].values, own, rtol=1e-6, atol=1e-6)
        assert np.isfinite(surface["loss"]).all()


def test_radii_are_merged_and_summarised(finished: Store) -> None:
    (summary,) = _results(finished, "summary", "summary.zarr")
    (radii,) = _results(finished, "summary", "radii.zarr")
    assert list(summary["group"].values) == ["natural", "random"]
    assert list(summary["network"].values) == [0, 1, 2]
    # 6 networks, 3 directions; crossing on both sides at the end for all and top.
    at_end = (radii["protocol"] == "crossing") & (radii["checkpoint"] == "end")
    assert int(at_end.sum()) == 6 * 3 * 2 * 2
    assert json.loads(summary.attrs["sentences"])


def test_a_stored_network_is_a_module_again(finished: Store) -> None:
    minimum = stored_minimum(finished, "smallest", group="natural", network=1)
    assert minimum.history is not None
    assert minimum.seed == 1
    landscape = Landscape(minimum.module(), load_dataset("digits", limit=40))
    loss = landscape.loss_at(minimum).loss[0]
    assert_allclose(loss, float(minimum.history["train_loss"][-1]), rtol=1e-6, atol=1e-6)
    matched = stored_minimum(finished, "smallest", group="natural", checkpoint="matched")
    assert matched.epoch == matched.history.attrs["matched_epoch"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "natural", "network": 9}, "got natural/9; there are: natural/0"),
        ({"group": "x"}, "got x/0"),
        ({"group": "natural", "checkpoint": "start"}, "'end' or 'matched'"),
    ],
)
def test_a_network_that_is_not_there_is_named(
    finished: Store, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        stored_minimum(finished, "smallest", **options)


def test_processes_give_the_same_bytes(finished: Store, smallest: Make, tmp_path: Path) -> None:
    other = run_study(smallest(), out=tmp_path / "runs", executor="processes", workers=2)
    assert _artifacts(other) == _artifacts(finished)


_CUT = """
import json, os, signal, sys
from flatminima.study import run_study

left = int(sys.argv[3])

def tell(event, job, seconds):
    global left
    left -= event == "finished"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

run_study(json.loads(sys.argv[1]), out=sys.argv[2], listener=tell)
"""


@pytest.mark.parametrize("after", [1, 9, 19])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    finished: Store, smallest: Make, tmp_path: Path, after: int
) -> None:
    out = tmp_path / "runs"
    command = [sys.executable, "-c", _CUT, json.dumps(smallest()), str(out), str(after)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    cut = Store(out)
    kept = {record["digest"] for record in cut.records(discarded=True)}
    assert len(kept) == after
    began: list[str] = []
    run_study(
        smallest(),
        out=out,
        listener=lambda event, job, s: began.append(job.digest) if event == "started" else None,
    )
    assert not kept & set(began)
    assert _artifacts(cut) == _artifacts(finished)


def test_results_do_not_need_the_steps_that_led_to_them(
    finished: Store, smallest: Make, tmp_path: Path
) -> None:
    copied = copy_results(finished, "smallest", tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    assert copied == 6 + 2 + 1
    assert {record["kind"] for record in copy.records()} == {"network", "surface", "summary"}
    assert copy.verify()[1] == []
    assert missing_results(copy) == []
    assert copy.manifest("smallest")["work"]["train"]["jobs"] == 12
    assert make_plan(smallest(), out=copy.root).todo == []
    checks = list(check_results(copy))
    assert len(checks) == 6 + 1
    assert all(agrees for _, agrees in checks)
    assert copy_results(finished, "smallest", copy.root) == copied


def test_segments_go_once_their_network_is_stored(
    finished: Store, smallest: Make, tmp_path: Path
) -> None:
    records = {True: list(finished.records(discarded=True)), False: list(finished.records())}
    train = {
        known: [record for record in found if record["kind"] == "train"]
        for known, found in records.items()
    }
    assert (len(train[True]), train[False]) == (12, [])
    for record in train[True]:
        assert record["provenance"]["seconds"] > 0
        assert not (finished.folder("train", record["digest"]) / "payload").exists()
    assert finished.verify()[1] == []
    # A network that is lost is trained anew, and comes out the same.
    shutil.copytree(finished.root, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    lost = next(record for record in copy.records() if record["kind"] == "network")
    before = copy.read("network", lost["digest"])
    shutil.rmtree(copy.folder("network", lost["digest"]))
    run_study(smallest(), out=copy.root)
    assert copy.read("network", lost["digest"]) == before
    assert _artifacts(copy) == _artifacts(finished)


def test_a_copy_without_weights_keeps_their_digests(
    finished: Store, smallest: Make, tmp_path: Path
) -> None:
    copied = copy_results(finished, "smallest", tmp_path / "copy", weights=False)
    copy = Store(tmp_path / "copy")
    assert copied == 6 + 2 + 1
    assert not list(copy.root.rglob("*.safetensors"))
    assert copy.verify()[1] == []
    assert missing_results(copy) == []
    for record in copy.records():
        if record["kind"] == "network":
            whole = finished.record("network", record["digest"])["payload"]
            assert record["payload"] | record["left_out"] == whole
            assert "last.safetensors" in record["left_out"]
    checks = list(check_results(copy))
    assert len(checks) == 6 + 1
    assert all(agrees and "published without" in line for line, agrees in checks)
    assert copy_results(finished, "smallest", copy.root, weights=False) == copied


def test_recomputing_finds_weights_that_are_not_those_of_the_history(
    finished: Store, tmp_path: Path
) -> None:
    copy_results(finished, "smallest", tmp_path)
    copy = Store(tmp_path)
    jobs = [job for job in copy.manifest("smallest")["jobs"] if job["kind"] == "network"]
    first, second = (copy.read("network", job["digest"]) for job in jobs[:2])
    record = copy.record("network", jobs[0]["digest"])
    (copy.folder("network", jobs[0]["digest"]) / "run.json").unlink()
    copy.write(
        "network",
        jobs[0]["digest"],
        first | {"last.safetensors": second["last.safetensors"]},
        settings=record["settings"],
    )
    assert copy.verify()[1] == []
    disagree = [line for line, agrees in check_results(copy) if not agrees]
    assert any(line.startswith("natural/0") for line in disagree)


def test_only_some_parts(smallest: Make, tmp_path: Path) -> None:
    store = run_study(smallest(), out=tmp_path / "runs", only=["training"])
    assert {record["kind"] for record in store.records()} == {"network"}
    assert missing_results(store)
    with pytest.raises(StudyError, match="expected parts among training, surfaces, radii"):
        make_plan(smallest(), out=tmp_path / "runs", only=["trianing"])


def test_both_splits_have_surfaces(smallest: Make, tmp_path: Path) -> None:
    settings = smallest(data={"split": ["train", "test"]}, radius=None)
    store = run_study(settings, out=tmp_path / "runs")
    surfaces = _results(store, "surface", "surface.zarr")
    assert [s.attrs["split"] for s in surfaces] == ["train", "test"] * 2
    network = stored_minimum(store, "smallest", group="random", network=0)
    assert network.history is not None
    own = float(network.history["test_loss"][-1])
    assert_allclose(float(surfaces[3]["anchor_loss"][0]), own, rtol=1e-6, atol=1e-6)


def test_diverged_networks_are_reported_and_nothing_else_stops(
    smallest: Make, tmp_path: Path
) -> None:
    settings = smallest(training={"learning_rate": 1e30}, radius=FEW_RADII)
    store = run_study(settings, out=tmp_path / "runs")
    minimum = stored_minimum(store, "smallest", group="natural", network=0)
    assert minimum.history is not None
    assert minimum.history.attrs["outcome"] == "diverged"
    for surface in _results(store, "surface", "surface.zarr"):
        assert surface.attrs["status"] == "excluded"
        assert "diverged in training" in surface.attrs["reason"]
    for block in _results(store, "radius", "radius.zarr"):
        assert block.attrs["status"] == "excluded"
    (summary,) = _results(store, "summary", "summary.zarr")
    meanings = summary["status"].attrs["flag_meanings"].split()
    crossing = summary.sel(column=["measured_end", "measured_matched"])["status"]
    assert (crossing == meanings.index("excluded")).all()
    assert all(agrees for _, agrees in check_results(store))


def test_a_loss_that_is_never_reached_is_an_outcome(smallest: Make, tmp_path: Path) -> None:
    settings = smallest(
        training={"match_loss": 1e-9},
        radius=FEW_RADII,
        surface={"checkpoints": ["matched"]},
        summary={"exclude": ["diverged"]},
    )
    store = run_study(settings, out=tmp_path / "runs")
    for surface in _results(store, "surface", "surface.zarr"):
        assert surface.attrs["status"] == "not_reached"
        assert "never reached a train loss of 1e-09" in surface.attrs["reason"]
    blocks = _results(store, "radius", "radius.zarr")
    statuses = {(block.attrs["checkpoint"], block.attrs["status"]) for block in blocks}
    assert statuses == {("end", "measured"), ("matched", "not_reached")}
    with pytest.raises(StoreError, match="never reached the study's match_loss"):
        stored_minimum(store, "smallest", group="natural", checkpoint="matched")


def test_bad_settings_of_a_job_fail_it_and_keep_the_rest(
    smallest: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flatminima.study import work

    def refuse(*args: Any, **options: Any) -> None:
        raise ValueError("expected an affine top layer, got none")

    monkeypatch.setattr("flatminima.flatness.flatness_radius", refuse)
    work._make_landscape.cache_clear()
    with pytest.raises(StudyFailed, match="expected an affine top layer") as caught:
        run_study(smallest(radius=FEW_RADII), out=tmp_path / "runs")
    assert caught.value.bad_input
    kinds = {record["kind"] for record in Store(tmp_path / "runs").records()}
    assert kinds == {"network", "tile", "surface"}


def test_the_global_state_is_as_before(smallest: Make, tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run_study(smallest(radius=None, run={"threads": 2}), out=tmp_path / "runs")
    assert torch.get_num_threads() == threads
    torch.testing.assert_close(torch.get_rng_state(), state)


def test_arguments_replace_the_settings_of_the_file(smallest: Make, tmp_path: Path) -> None:
    plan = make_plan(smallest(), out=tmp_path / "runs", threads=3)
    assert plan.study.run.threads == 3
    with pytest.raises(StudyError, match="got 'tpu'"):
        make_plan(smallest(), out=tmp_path / "runs", device="tpu")


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize("compared", [None, 20])
def test_a_fast_study_says_how_far_its_surfaces_are_off(
    smallest: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: int | None
) -> None:
    if compared:
        monkeypatch.setattr("flatminima.landscape._landscape.COMPARED", compared)
    store = run_study(smallest(run={"precision": "fast"}), out=tmp_path / "runs", only=["surfaces"])
    surfaces = _results(store, "surface", "surface.zarr")
    assert len(surfaces) == 2
    for surface in surfaces:
        assert surface.attrs["precision"] == "fast"
        assert surface.attrs["repeated"] == 1 + 1  # one of each tile
        assert surface.attrs["compared_samples"] == (compared or surface.attrs["samples"])
        told = _precision([Surface("a", "end", "train", surface)])
        over = f" (over {compared} examples)" if compared else ""
        assert f"at 2 points computed in float32 too{over} the loss" in told
        assert 0 < surface.attrs["largest_difference"] < 0.05
    assert all(agrees for _, agrees in check_results(store))


def test_a_clipped_study_stops_points_and_says_so(smallest: Make, tmp_path: Path) -> None:
    parts = {"surface": {"clip": 0.5}, "report": {"clip": 0.5}}
    store = run_study(smallest(**parts), out=tmp_path / "runs", only=["surfaces"])
    for surface in _results(store, "surface", "surface.zarr"):
        assert surface.attrs["clip"] == 0.5
        stopped = surface["outcome"].values == 2
        assert stopped.any()
        np.testing.assert_array_equal(surface["loss"].values[stopped], 0.5)
        assert (surface["loss"].values[~stopped] <= 0.5).all()
    assert all(agrees for _, agrees in check_results(store))


def test_points_may_not_be_stopped_below_what_is_drawn(smallest: Make, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"clip of at least the 3\.5"):
        make_plan(smallest(surface={"clip": 2.0}), out=tmp_path / "runs")
