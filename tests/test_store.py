import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima import store as store_module
from flatminima.store import (
    Fault,
    Store,
    StoreError,
    dataset_to_files,
    files_to_dataset,
)

DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", create=True)


def test_an_artifact_comes_back_and_is_done_only_once_written(store: Store) -> None:
    artifact = {"a.bin": b"\x00\x01", "deep/er/b.txt": b"text", "empty": b""}
    assert not store.done("tile", DIGEST)
    store.write("tile", DIGEST, artifact, settings={"x": 1}, provenance={"seconds": 2.0})
    assert store.done("tile", DIGEST)
    assert store.read("tile", DIGEST) == artifact
    assert store.read("tile", DIGEST, under=["deep/"]) == {"deep/er/b.txt": b"text"}
    record = store.record("tile", DIGEST)
    assert record["settings"] == {"x": 1}
    assert record["provenance"] == {"seconds": 2.0}
    assert [found["digest"] for found in store.records()] == [DIGEST]
    assert store.folder("tile", DIGEST).name == f"tile-{DIGEST[:20]}"


def test_a_folder_without_its_record_is_not_done_and_is_replaced(store: Store) -> None:
    store.write("tile", DIGEST, {"a": b"1"}, settings={})
    (store.folder("tile", DIGEST) / "run.json").unlink()
    assert not store.done("tile", DIGEST)
    store.write("tile", DIGEST, {"a": b"2"}, settings={})
    assert store.read("tile", DIGEST) == {"a": b"2"}


@pytest.mark.parametrize("name", ["payload/a", "run.json"])
def test_a_full_disk_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store.write("tile", "f" * 64, {"a": b"kept"}, settings={})
    write_bytes, write_text = Path.write_bytes, Path.write_text

    def full(path: Path) -> None:
        if path.name.strip(".").startswith(Path(name).name):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def bytes_if_room(path: Path, data: bytes) -> int:
        full(path)
        return write_bytes(path, data)

    def text_if_room(path: Path, *args: str, **options: str) -> int:
        full(path)
        return write_text(path, *args, **options)

    monkeypatch.setattr(Path, "write_bytes", bytes_if_room)
    monkeypatch.setattr(Path, "write_text", text_if_room)
    with pytest.raises(OSError, match="No space left"):
        store.write("tile", DIGEST, {"a": b"1"}, settings={})
    assert not store.done("tile", DIGEST)
    assert not list((store.root / "tmp").iterdir())
    assert store.read("tile", "f" * 64) == {"a": b"kept"}


@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_payload_is_refused_and_found(store: Store, damage: str) -> None:
    store.write("tile", DIGEST, {"a/b": b"12345"}, settings={})
    path = store.folder("tile", DIGEST) / "payload/a/b"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"123" if damage == "cut" else b"12346")
    with pytest.raises(StoreError, match=r"payload/a/b as it was written.*delete"):
        store.read("tile", DIGEST)
    count, faults = store.verify()
    assert count == 1
    assert len(faults) == 1
    assert "payload/a/b" in faults[0]


def test_verify_counts_files_and_names_strangers_and_broken_records(store: Store) -> None:
    store.write("tile", DIGEST, {"a": b"1", "b": b"2"}, settings={})
    assert store.verify() == (2, [])
    folder = store.folder("tile", DIGEST)
    (folder / "payload/c").write_bytes(b"3")
    assert store.verify()[1] == [f"jobs/{folder.name}/payload/c: not in run.json"]
    (folder / "run.json").write_text("{")
    assert store.verify()[1] == [f"jobs/{folder.name}: no readable run.json"]
    with pytest.raises(StoreError, match=r"damaged file; delete"):
        store.record("tile", DIGEST)


def test_discarded_results_leave_their_record(store: Store) -> None:
    store.write("train", DIGEST, {"a": b"1"}, settings={"x": 1}, provenance={"seconds": 2.0})
    store.discard("train", DIGEST)
    assert not store.done("train", DIGEST)
    assert list(store.records()) == []
    assert [record["provenance"] for record in store.records(discarded=True)] == [{"seconds": 2.0}]
    assert store.verify() == (0, [])
    store.discard("train", DIGEST)
    store.write("train", DIGEST, {"a": b"1"}, settings={"x": 1})
    assert store.read("train", DIGEST) == {"a": b"1"}


def test_a_kill_between_record_and_payload_is_mended_by_discarding_again(store: Store) -> None:
    store.write("train", DIGEST, {"a": b"1"}, settings={})
    folder = store.folder("train", DIGEST)
    (folder / "run.json").rename(folder / "discarded.json")
    assert not store.done("train", DIGEST)
    store.discard("train", DIGEST)
    assert not (folder / "payload").exists()
    assert store.verify() == (0, [])


def test_files_that_are_left_out_stay_on_record(store: Store) -> None:
    artifact = {"a.safetensors": b"1", "b/c.safetensors": b"2", "d": b"3"}
    store.write("network", DIGEST, artifact, settings={})
    digests = store.record("network", DIGEST)["payload"]
    assert store.leave_out("network", DIGEST, ".safetensors") == [
        "a.safetensors",
        "b/c.safetensors",
    ]
    assert store.leave_out("network", DIGEST, ".safetensors") == []
    record = store.record("network", DIGEST)
    assert record["payload"] == {"d": digests["d"]}
    assert record["left_out"] == {name: digests[name] for name in digests if name != "d"}
    assert store.read("network", DIGEST) == {"d": b"3"}
    assert store.verify() == (1, [])


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"format": store_module.FORMAT + 1}))
    with pytest.raises(StoreError, match="install a newer flatminima"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 0}', "got format 0, which no version of flatminima has written; name another"),
        ('{"format": -1}', "got format -1, which no version"),
        ("", "damaged file; write that line"),
        ("{", "damaged file; write that line"),
        ("[1]", "damaged file"),
        ('"format"', "damaged file"),
        ("{}", "damaged file"),
        ('{"format": "1"}', "damaged file"),
        ('{"format": 1.0}', "damaged file"),
        ('{"format": true}', "damaged file"),
        ('{"format": null}', "damaged file"),
    ],
)
def test_a_store_whose_format_is_none_is_refused_in_a_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "store.json").write_text(text)
    for create in (False, True):
        with pytest.raises(StoreError, match=message) as caught:
            Store(tmp_path, create=create)
        assert "\n" not in str(caught.value)
        assert "delete" not in str(caught.value)  # all that is in it is still there
    assert (tmp_path / "store.json").read_text() == text


def test_a_run_killed_at_its_very_start_leaves_a_folder_that_can_be_a_store(tmp_path: Path) -> None:
    (tmp_path / ".store.json.17").write_text('{"form')
    Store(tmp_path, create=True).write_manifest("a", {})
    assert Store(tmp_path).studies() == ["a"]


def test_records_that_cannot_be_believed_are_faults(store: Store) -> None:
    store.write("tile", DIGEST, {"a": b"1"}, settings={"x": 1})
    folder = store.folder("tile", DIGEST)
    assert store.any_record(folder.name) == store.record("tile", DIGEST)
    for text in ("[]", "{}", '{"kind": "tile", "digest": 3}', "\x00"):
        (folder / "run.json").write_text(text)
        assert store.inspect() == (0, [Fault(folder.name, "record", "no readable run.json")])
        assert store.any_record(folder.name) is None
    assert store.any_record("none") is None


def test_what_is_removed_goes_in_one_step(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("tile", DIGEST, {"a/b": b"1"}, settings={})
    store.write_log("tile", DIGEST, "log")
    store.remove(store.log_path("tile", DIGEST))
    assert not store.log_path("tile", DIGEST).exists()

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.remove(store.folder("tile", DIGEST))
    assert not store.folder("tile", DIGEST).exists()
    assert store.verify() == (0, [])
    with store.lock():
        assert not (store.root / "tmp").exists()


def test_of_a_link_the_link_is_removed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("x")
    (store.root / "reports").mkdir()
    (store.root / "reports" / "a").symlink_to(tmp_path / "elsewhere")
    store.remove(store.root / "reports" / "a")
    assert not (store.root / "reports" / "a").is_symlink()
    assert (tmp_path / "elsewhere" / "precious").exists()


def test_other_folders_are_not_taken_for_stores(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"without store\.json"):
        Store(tmp_path)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match="other files"):
        Store(tmp_path, create=True)
    with pytest.raises(OSError, match="Not a directory"):
        Store(tmp_path / "thesis.tex" / "runs", create=True)


_HOLD = """
import sys, time
from flatminima.store import Store
with Store(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_ends_even_by_a_kill(store: Store) -> None:
    command = [sys.executable, "-c", _HOLD, str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(StoreError, match="another run is using"), store.lock():
                pass
        finally:
            process.kill()
    (store.root / "tmp" / "left").mkdir(parents=True)
    with store.lock():
        assert not (store.root / "tmp").exists()


def test_manifests(store: Store) -> None:
    with pytest.raises(StoreError, match="got none at all; run it first"):
        store.manifest("a")
    store.write_manifest("a", {"jobs": []})
    assert store.studies() == ["a"]
    assert store.manifest("a") == {"jobs": []}
    with pytest.raises(StoreError, match=r"expected the study 'b' in .* got a;"):
        store.manifest("b")


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    words=st.lists(st.text(min_size=1, max_size=5).filter(lambda t: "\0" not in t), min_size=1),
    seed=st.integers(0, 2**31),
)
def test_datasets_come_back_identical_and_equal_ones_are_equal_bytes(
    shape: tuple[int, int], words: list[str], seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=shape)
    values[0, 0] = np.nan
    flags = {"flag_values": [0, 1], "flag_meanings": "finite non_finite"}
    dataset = xr.Dataset(
        {
            "loss": (("y", "x"), values),
            "outcome": (("y", "x"), np.isnan(values).astype(np.int8), flags),
        },
        coords={"x": np.arange(shape[1]) / 3, "word": words},
        attrs={"share": 0.5, "names": ["ü"], "nothing": None},
    )
    files = dataset_to_files("s.zarr", dataset)
    assert files == dataset_to_files("s.zarr", dataset.copy(deep=True))
    xr.testing.assert_identical(files_to_dataset("s.zarr", files), dataset)


def test_an_empty_dataset_keeps_its_reason() -> None:
    files = dataset_to_files("s.zarr", xr.Dataset(attrs={"status": "not_reached"}))
    assert files_to_dataset("s.zarr", files).attrs == {"status": "not_reached"}


def test_a_damaged_or_missing_dataset_is_one_line(store: Store) -> None:
    dataset = xr.Dataset({"loss": ("x", np.arange(5.0))})
    store.write("tile", DIGEST, dataset_to_files("t.zarr", dataset), settings={})
    xr.testing.assert_identical(store.open_payload("tile", DIGEST, "t.zarr"), dataset)
    with pytest.raises(StoreError, match="expected a dataset at"):
        store.open_payload("tile", DIGEST, "other.zarr")
    chunk = store.folder("tile", DIGEST) / "payload/t.zarr/loss/0"
    chunk.write_bytes(chunk.read_bytes()[:7])
    with pytest.raises(StoreError, match="damaged one"):
        store.open_payload("tile", DIGEST, "t.zarr")
    with pytest.raises(StoreError, match="expected a dataset other"):
        files_to_dataset("other.zarr", {})
    with pytest.raises(StoreError, match="expected the finished job"):
        store.open_payload("tile", "e" * 64, "t.zarr")
