"""Several jobs stored at once, and what is asked of the disk for them."""

import errno
import os
import sys
from pathlib import Path

import pytest

from flatminima.store import Finished, Store, sha256


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", create=True)


def _made(name: str, data: bytes = b"1") -> Finished:
    return Finished("tile", sha256(name.encode()), {"a": data, "folder/b": data}, settings={})


def test_jobs_that_had_room_are_stored_where_one_behind_them_had_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if data == b"large":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    first, second, third = _made("first"), _made("second", b"large"), _made("third")
    with pytest.raises(OSError, match="No space left"):
        store.write_all([first, second, third])
    assert [store.done("tile", job.digest) for job in (first, second, third)] == [
        True,
        False,
        False,
    ]
    assert not list((store.root / "tmp").iterdir())
    assert store.verify() == (2, [])


def test_a_disk_that_fails_to_keep_a_file_keeps_the_job_from_counting(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(place: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    job = _made("job")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        store.write_all([job])
    assert not store.done("tile", job.digest)
    assert not list((store.root / "tmp").iterdir())


def test_a_file_system_that_cannot_flush_folders_will_do(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(place: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    job = _made("job")
    monkeypatch.setattr(os, "fsync", unable)
    store.write_all([job])
    assert store.done("tile", job.digest)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_everything_is_flushed_before_it_gets_the_name_by_which_it_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def flushing(place: int) -> None:
        events.append(("flush", os.readlink(f"/proc/self/fd/{place}")))
        fsync(place)

    def naming(path: Path, target: Path) -> Path:
        events.append(("name", str(target)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(Path, "replace", naming)
    jobs = [_made("one"), _made("two")]
    for job in jobs:
        store.write_log(job.kind, job.digest, "done\n")
    events.clear()
    store.write_all(jobs)
    named = next(
        n
        for n, (what, path) in enumerate(events)
        if what == "name" and path.startswith(f"{store.root}/jobs")
    )
    flushed = {path for what, path in events[:named] if what == "flush"}
    for job in jobs:
        aside = f"{store.root}/tmp/{store.folder(job.kind, job.digest).name}.{os.getpid()}"
        inside = ["run.json", "payload", "payload/a", "payload/folder", "payload/folder/b"]
        assert {aside, *(f"{aside}/{name}" for name in inside)} <= flushed
        assert str(store.log_path(job.kind, job.digest)) in flushed
    assert events[-1] == ("flush", str(store.root / "jobs"))
