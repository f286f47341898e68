"""The tool that kills studies finds what is wrong, or its silence would mean nothing."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crash.course import Course, moment
from crash.driver import marked, started, wait_until
from crash.stores import Reference, content, differences, look
from flatminima.store import Store

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "runs", create=True)
    made.write("tile", ONE, {"a": b"1", "b/c": b"2"}, settings={}, provenance={"seconds": 1})
    made.write("train", TWO, {"d": b"3"}, settings={}, provenance={"seconds": 1})
    return made


@pytest.fixture
def reference(store: Store) -> Reference:
    payloads = {
        f"{record['kind']}-{record['digest'][:20]}": record["payload"] for record in store.records()
    }
    labels = {name: name for name in payloads}
    return Reference(content(store.root), payloads, labels, {}, {})


def _again(store: Store, **options: int) -> None:
    store.write("tile", ONE, {"a": b"1", "b/c": b"2"}, settings={}, provenance=options)


def _other(store: Store) -> None:
    store.write("tile", ONE, {"a": b"1", "b/c": b"4"}, settings={}, provenance={"seconds": 1})


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda store: (store.folder("tile", ONE) / "payload/a").write_bytes(b"2"), "altered"),
        (lambda store: (store.folder("tile", ONE) / "payload/b/c").unlink(), "missing"),
        (lambda store: shutil.rmtree(store.folder("tile", ONE)), "is lost"),
        (lambda store: _again(store, seconds=2), "was done again"),
        (_other, "another payload"),
    ],
)
def test_lost_altered_and_repeated_work_is_found(
    store: Store, reference: Reference, spoil: Callable[[Store], object], expected: str
) -> None:
    before = look(store.root, reference, None)
    assert before.faults == []
    assert len(before.records) == 2
    spoil(store)
    faults = look(store.root, reference, before).faults
    assert faults
    assert expected in faults[0]


def test_a_discarded_segment_is_neither_lost_nor_repeated(
    store: Store, reference: Reference
) -> None:
    before = look(store.root, reference, None)
    store.discard("train", TWO)
    assert look(store.root, reference, before).faults == []


def test_stores_are_compared_file_by_file_but_for_their_provenance(
    store: Store, tmp_path: Path
) -> None:
    expected = content(store.root)
    _again(store, seconds=9)
    (store.root / "logs").mkdir()
    (store.root / "logs" / "x.log").write_text("text")
    (store.root / "tmp" / "left").write_text("")
    (store.folder("train", TWO) / "payload" / "d").unlink()
    path = store.folder("tile", ONE) / "payload" / "a"
    path.write_bytes(b"9")
    assert differences(content(store.root), expected) == [
        f"jobs/train-{TWO[:20]}/payload/d: missing",
        "logs/x.log: not in the undisturbed store",
        "tmp/left: not in the undisturbed store",
        f"jobs/tile-{ONE[:20]}/payload/a: differs",
    ]
    record = json.loads((path.parents[1] / "run.json").read_bytes())
    (path.parents[1] / "run.json").write_text(json.dumps({**record, "settings": {"x": 1}}))
    assert f"jobs/tile-{ONE[:20]}/run.json: differs" in differences(content(store.root), expected)


def test_moments_lie_in_the_course_of_what_is_left() -> None:
    said = [(1.0, "a study"), (5.0, "[1/3] x"), (6.0, "[2/3] y"), (8.0, "[3/3] z"), (12.0, "done")]
    course = Course.of(said, 13.0)
    assert course.left(3) == (1.0, 4.0, 1.0, 2.0, 4.0, 1.0)
    assert course.left(2) == (1.0, 4.0, 2.0, 4.0, 1.0)
    assert course.left(1) == (1.0, 4.0, 4.0, 1.0)
    assert course.left(0) == (5.0, 1.0)
    gaps = course.left(3)
    assert moment(gaps, 0.0) == (0, 0.0)
    assert moment(gaps, 5.5 / 13) == (2, pytest.approx(0.5))
    assert moment(gaps, 12.5 / 13) == (5, pytest.approx(0.5))


def test_a_process_that_outlives_its_parent_is_found_and_ended() -> None:
    inner = "import time; time.sleep(1000)"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}])"
    with started([sys.executable, "-c", outer], "outlives-1") as driver:
        assert driver.wait() == 0
        assert wait_until(lambda: len(marked("outlives-1")) == 1, 60)
        time.sleep(0.1)
        assert len(marked("outlives-1")) == 1
    assert marked("outlives-1") == []
