import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatminima.store import Store, StoreError
from flatminima.study import clean as clean_module
from flatminima.study.check import missing_results
from flatminima.study.clean import WHAT, Cleaning, clean, plan_cleaning, unreferenced
from flatminima.study.live import Live, live_path
from flatminima.study.run import Plan, make_plan, remember

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", create=True)


def _plan(store: Store, settings: dict[str, Any], **options: Any) -> Plan:
    return make_plan(settings, out=store.root, **options)


def _fill(store: Store, settings: dict[str, Any], **options: Any) -> Plan:
    """Put a study into the store as a run would, with other bytes; segments are discarded."""
    plan = _plan(store, settings, **options)
    remember(plan)
    for job in plan.jobs:
        if not store.done(job.kind, job.digest):
            store.write(job.kind, job.digest, {"a": b"12345"}, settings=job.settings)
            store.write_log(job.kind, job.digest, "log\nfinished after 1.0 s\n")
        if job.kind == "train":
            store.discard(job.kind, job.digest)
    name = plan.study.name
    store.report_folder(name).mkdir(parents=True, exist_ok=True)
    (store.report_folder(name) / "report.html").write_text("page")
    live_path(store, name).write_text(json.dumps({"ended": "2030-01-01"}))
    return plan


def _own(store: Store, name: str = "nets") -> list[str]:
    """A measurement of own networks: a result, its step, and an older result that is not listed."""
    digests = [f"{n}" * 64 for n in "abc"]
    for digest, kind in zip(digests, ("tile", "surface", "line"), strict=True):
        store.write(kind, digest, {"a": b"1"}, settings={"own": 1})
    listed = {"kind": "surface", "digest": digests[1], "label": "s", "dependencies": digests[:1]}
    settings = {"kind": "networks", "title": ""}
    store.write_manifest(name, {"settings": settings, "jobs": [listed]})
    store.report_folder(name).mkdir(parents=True)
    return [
        f"{kind}-{d[:20]}" for kind, d in zip(("tile", "surface", "line"), digests, strict=True)
    ]


def _names(cleaning: Cleaning, what: str) -> set[str]:
    return {item.path.name for item in cleaning.items if item.what == what}


def _jobs(store: Store) -> set[str]:
    return {path.name for path in (store.root / "jobs").iterdir()}


def _do(store: Store, cleaning: Cleaning) -> None:
    with store.lock():
        clean(store, cleaning)


def test_what_the_named_studies_need_stays_and_the_rest_goes(store: Store, smallest: Make) -> None:
    kept = _fill(store, smallest())
    # Shares all networks, and has radii of its own.
    other = _fill(store, smallest(name="other", radius={"directions": 1}))
    names = {job.name for job in kept.jobs}
    beside = {job.name for job in other.jobs} - names
    assert names & {job.name for job in other.jobs}
    assert beside

    found = plan_cleaning(store, [kept])
    assert _names(found, "jobs") == beside
    assert _names(found, "logs") == {f"{name}.log" for name in beside}
    assert _names(found, "studies") == _names(found, "reports") == {"other"}
    assert _names(found, "leftovers") == set()
    assert found.kept == len(names)
    assert found.size == sum(
        path.stat().st_size
        for item in found.items
        for path in [item.path, *item.path.rglob("*")]
        if path.is_file()
    )
    assert [item.what for item in found.items] == sorted(
        [item.what for item in found.items], key=WHAT.index
    )
    assert _jobs(store) == names | beside  # nothing has gone yet

    _do(store, found)
    assert _jobs(store) == names
    assert store.studies() == ["smallest"]
    assert [path.name for path in (store.root / "reports").iterdir()] == ["smallest"]
    assert store.verify()[1] == missing_results(store) == []
    assert plan_cleaning(store, [_plan(store, smallest())]).items == []
    assert _plan(store, smallest()).todo == []
    # Records of segments tell what they took; they are part of the study.
    assert any((store.root / "jobs").glob("train-*/discarded.json"))


def test_several_studies_are_kept_together(store: Store, smallest: Make) -> None:
    plans = [_fill(store, smallest()), _fill(store, smallest(name="other", surface=None))]
    _do(store, plan_cleaning(store, plans))
    assert plan_cleaning(store, plans).items == []
    assert store.studies() == ["other", "smallest"]


def test_what_the_last_run_had_by_other_options_stays(store: Store, smallest: Make) -> None:
    plan = _fill(store, smallest(), threads=3)
    by_file = _plan(store, smallest())
    assert not {job.digest for job in plan.jobs} & {job.digest for job in by_file.jobs}
    found = plan_cleaning(store, [by_file])
    assert _names(found, "jobs") == set()
    # Once the study has run by its file, nothing lists them any more.
    again = _fill(store, smallest())
    assert _names(plan_cleaning(store, [again]), "jobs") == {job.name for job in plan.jobs}


def test_jobs_of_an_earlier_version_of_their_kind_are_left_over(
    store: Store, smallest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flatminima.study import job as job_module

    monkeypatch.setitem(job_module.VERSIONS, "radius", 1)
    _fill(store, smallest())
    monkeypatch.undo()
    plan = _plan(store, smallest())
    assert unreferenced(store, plan.jobs) == []  # the manifest still lists them
    _fill(store, smallest())
    over = unreferenced(store, plan.jobs)
    assert {name.split("-")[0] for name in over} == {"radius", "summary"}
    assert _names(plan_cleaning(store, [plan]), "jobs") == set(over)


def test_own_networks_stay_unless_it_is_said(store: Store, smallest: Make) -> None:
    plan, own = _fill(store, smallest()), _own(store)
    found = plan_cleaning(store, [plan])
    assert not _names(found, "jobs") | _names(found, "studies") | _names(found, "reports")
    assert found.own == len(own)
    assert unreferenced(store, plan.jobs) == []
    found = plan_cleaning(store, [plan], own=True)
    assert _names(found, "jobs") == set(own)
    assert _names(found, "studies") == _names(found, "reports") == {"nets"}
    assert found.own == 0


def test_what_this_program_does_not_make_is_not_touched(store: Store, smallest: Make) -> None:
    plan = _fill(store, smallest())
    folders = ("", "jobs", "logs", "reports", "studies")
    strangers = [store.root / folder / "notes-on-this" for folder in folders]
    for path in strangers:
        path.mkdir(parents=True)
    _do(store, plan_cleaning(store, [plan], own=True))
    assert all(path.is_dir() for path in strangers)


def test_a_page_on_several_studies_goes_with_any_of_them(store: Store, smallest: Make) -> None:
    plan, _ = _fill(store, smallest()), _fill(store, smallest(name="other"))
    for name in ("smallest+other", "other+smallest"):
        store.report_folder(name).mkdir()
    assert _names(plan_cleaning(store, [plan]), "reports") == {
        "other",
        "smallest+other",
        "other+smallest",
    }
    both = [plan, _plan(store, smallest(name="other"))]
    assert _names(plan_cleaning(store, both), "reports") == set()


def test_what_killed_runs_leave_goes(store: Store, smallest: Make) -> None:
    plan = _fill(store, smallest())
    half = [
        store.root / "tmp" / "network-0123.17" / "payload" / "a",
        store.root / "jobs" / ".network-0123" / "a",
        store.root / "logs" / ".train-0123.log.17",
        store.root / "studies" / "smallest" / ".manifest.json.17",
    ]
    for path in half:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    found = plan_cleaning(store, [plan])
    assert _names(found, "leftovers") == {
        "network-0123.17", ".network-0123", ".train-0123.log.17", ".manifest.json.17"
    }  # fmt: skip
    _do(store, found)
    assert not any(path.exists() for path in half)


def test_a_run_at_work_is_not_disturbed(store: Store, smallest: Make) -> None:
    plan = _fill(store, smallest())
    with Live(store, "smallest", executor="serial", workers=1), store.lock():
        assert _names(plan_cleaning(store, [plan]), "leftovers") == set()


@pytest.mark.parametrize("after", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("half_deleted", [False, True])
def test_a_kill_in_between_leaves_a_valid_store(
    store: Store,
    smallest: Make,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    half_deleted: bool,
) -> None:
    plan = _fill(store, smallest())
    _fill(store, smallest(name="other", training={"epochs": 2}))
    _own(store)
    found = plan_cleaning(store, [plan], own=True)
    assert len(found.items) > 20
    count, rename = 0, Path.replace

    def killed(path: Path, to: Path) -> Path:
        nonlocal count
        count += 1
        if count <= after:
            return rename(path, to)
        if half_deleted:  # right after it was taken out
            rename(path, to)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        _do(store, found)
    monkeypatch.undo()
    assert store.verify()[1] == missing_results(store) == []
    assert plan_cleaning(store, [plan], own=True).items
    _do(store, plan_cleaning(store, [plan], own=True))
    assert plan_cleaning(store, [plan], own=True).items == []
    assert _jobs(store) == {job.name for job in plan.jobs}


def test_studies_that_were_never_run_here_are_refused(store: Store, smallest: Make) -> None:
    _fill(store, smallest())
    _own(store)
    wrong = _plan(store, smallest(name="wrong"))
    with pytest.raises(StoreError, match=r"got wrong; there are: nets, smallest; name one"):
        plan_cleaning(store, [wrong])
    # Beside one that was, it does no harm.
    assert plan_cleaning(store, [wrong, _plan(store, smallest())])


def test_nothing_is_decided_by_a_damaged_manifest(store: Store, smallest: Make) -> None:
    plan = _fill(store, smallest())
    store.write_manifest("other", {})
    (store.root / "studies/other/manifest.json").write_text("{")
    with pytest.raises(StoreError, match="damaged file"):
        plan_cleaning(store, [plan])


def test_damaged_jobs_count_by_their_names(store: Store, smallest: Make) -> None:
    plan = _fill(store, smallest())
    _fill(store, smallest(name="other", training={"epochs": 2}))
    for folder in (store.root / "jobs").iterdir():
        for record in ("run.json", "discarded.json"):
            if (folder / record).exists():
                (folder / record).write_text("{")
    _do(store, plan_cleaning(store, [plan]))
    assert _jobs(store) == {job.name for job in plan.jobs}


def test_sizes_of_files_that_go_meanwhile(tmp_path: Path) -> None:
    assert clean_module._size(tmp_path / "gone") == 0
    os.symlink(tmp_path, tmp_path / "link")
    (tmp_path / "file").write_text("12345")
    assert clean_module._size(tmp_path) >= 5
