import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatminima.store import Store, StoreError
from flatminima.study import run_study
from flatminima.study.check import copy_results, missing_results, repair

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def settings(smallest: Make) -> dict[str, Any]:
    return smallest(radius=None, groups=[{"name": "natural"}], training={"epochs": 2})


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Store:
    return run_study(settings, out=tmp_path_factory.mktemp("whole") / "runs")


@pytest.fixture
def store(finished: Store, tmp_path: Path) -> Store:
    shutil.copytree(finished.root, tmp_path / "runs")
    return Store(tmp_path / "runs")


def _folder(store: Store, kind: str) -> Path:
    """The folder of the first job of a kind that is done."""
    job = next(
        job for job in store.manifest("smallest")["jobs"]
        if job["kind"] == kind and store.done(kind, job["digest"])
    )  # fmt: skip
    return store.folder(kind, job["digest"])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _bytes(store: Store) -> dict[str, dict[str, bytes]]:
    return {record["digest"]: store.read(record["kind"], record["digest"])
            for record in store.records()}  # fmt: skip


@pytest.mark.parametrize("harm", [_flip, _cut, Path.unlink])
def test_a_damaged_network_is_trained_anew_and_nothing_else(
    store: Store, finished: Store, settings: dict[str, Any], harm: Callable[[Path], object]
) -> None:
    folder = _folder(store, "network")
    harm(folder / "payload" / "last.safetensors")
    assert len(store.verify()[1]) == 1
    assert repair(store) == [f"jobs/{folder.name}: taken out (smallest: natural/0 network)"]
    assert store.verify()[1] == []
    assert "1 of 4 results are missing" in missing_results(store)[0]
    assert (folder / "discarded.json").exists()  # when and where it ran
    assert repair(store) == []
    began: list[str] = []
    run_study(
        settings,
        out=store.root,
        listener=lambda event, job, s: began.append(job.label) if event == "started" else None,
    )
    # What was made of it stands: it read what had been stored before the damage.
    assert began == ["natural/0 epochs 1-2", "natural/0 network"]
    assert _bytes(store) == _bytes(finished)


def test_a_damaged_step_is_taken_out_and_not_missed(store: Store, settings: dict[str, Any]) -> None:
    folder = _folder(store, "tile")
    _flip(next(path for path in (folder / "payload").rglob("loss/0*") if path.is_file()))
    assert len(repair(store)) == 1
    assert missing_results(store) == []
    began: list[str] = []
    run_study(settings, out=store.root, listener=lambda event, job, s: began.append(job.label))
    assert began == []


def _swap(folder: Path) -> None:
    other = next(folder.parent.glob("network-*"))
    (folder / "run.json").write_text((other / "run.json").read_text())


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "run.json").write_text("{"),
        lambda folder: (folder / "run.json").write_text('{"digest": 3}'),
        lambda folder: (folder / "run.json").write_text(
            json.dumps({**json.loads((folder / "run.json").read_text()), "payload": None})
        ),
        lambda folder: (folder / "run.json").unlink(),
        _swap,
    ],
    ids=["cut", "bare", "no payload", "gone", "swapped"],
)
def test_a_job_with_a_bad_record_is_taken_out(
    store: Store,
    finished: Store,
    settings: dict[str, Any],
    harm: Callable[[Path], object],
) -> None:
    folder = _folder(store, "surface")
    harm(folder)
    assert store.verify()[1]
    assert len(repair(store)) == 1
    assert store.verify()[1] == []
    run_study(settings, out=store.root)
    assert _bytes(store) == _bytes(finished)


def test_damaged_records_of_discarded_steps_stop_no_run(
    store: Store, settings: dict[str, Any]
) -> None:
    record = next(store.root.glob("jobs/train-*/discarded.json"))
    record.write_text("{")
    assert store.verify()[1] == [f"jobs/{record.parent.name}: no readable discarded.json"]
    with pytest.raises(StoreError):
        list(store.records(discarded=True))
    assert len(repair(store)) == 1
    list(store.records(discarded=True))


def test_a_file_that_is_none_of_a_jobs_goes_by_itself(store: Store) -> None:
    folder = _folder(store, "network")
    (folder / "payload" / ".DS_Store").write_text("x")
    assert repair(store) == [f"jobs/{folder.name}/payload/.DS_Store: removed"]
    assert store.verify()[1] == missing_results(store) == []


def test_a_job_with_several_faults_goes_once(store: Store) -> None:
    folder = _folder(store, "network")
    for path in (folder / "payload").glob("*.safetensors"):
        _flip(path)
    (folder / "payload" / "stranger").write_text("x")
    assert len(store.verify()[1]) == 3
    assert len(repair(store)) == 1
    assert store.verify()[1] == []


def test_a_kill_in_the_middle_is_mended_by_repairing_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder(store, "network")
    _flip(folder / "payload" / "last.safetensors")

    remove = shutil.rmtree

    def killed(path: Path, **options: Any) -> None:
        if path == folder / "payload":
            raise KeyboardInterrupt
        remove(path, **options)

    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            repair(store)
    assert (folder / "payload" / "last.safetensors").exists()
    assert repair(store) == [f"jobs/{folder.name}: taken out (smallest: natural/0 network)"]
    assert (folder / "discarded.json").exists()
    assert store.verify()[1] == []


def test_copies_and_stores_in_use_or_read_only_are_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_results(store, "smallest", tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    weights = _folder(copy, "network") / "payload" / "last.safetensors"
    _flip(weights)
    before = sorted(copy.root.rglob("*"))
    with pytest.raises(StoreError, match="a published copy of smallest; publish it again"):
        repair(copy)
    assert sorted(copy.root.rglob("*")) == before
    with store.lock(), pytest.raises(StoreError, match="another run is using"):
        repair(store)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match="read-only; copy it"):
        repair(store)


def test_a_damaged_manifest_is_a_fault_and_stays(store: Store) -> None:
    manifest = store.root / "studies/smallest/manifest.json"
    manifest.write_text("{")
    assert missing_results(store) == [
        "studies/smallest: no readable manifest.json; delete it and run the study"
    ]
    assert repair(store) == []
    assert manifest.read_text() == "{"
