"""The `Store` itself."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from flatminima.store.artifact import Artifact, StoreError, open_zarr, sha256
from flatminima.store.faults import Fault, inspect
from flatminima.store.files import (
    flush_all,
    flush_trees,
    make_folder,
    read_json,
    write_files,
    write_text,
)
from flatminima.store.finished import DISCARDED, SHORT, Finished

if TYPE_CHECKING:
    import xarray as xr

# Raised only when an older version would misread a store, not when it would overlook a part of it
# (logs, live.json). There has been no other format yet. Whoever raises it writes what brings a
# store from the one before to the new one: under the store's lock, and with store.json last, so
# that a kill in between leaves a store of the old format.
FORMAT = 1
_LONGEST_LOG = 200_000  # characters
_PARTIAL = re.compile(r"\..+\.\d+")  # what `write_text` makes of a name, with a process's number


def _foreign(path: Path) -> bool:
    """Whether something in a folder is other than what a run killed at its very start leaves."""
    return path.name != ".lock" and not path.name.startswith(".store.json.")


def _check_format(marker: Path) -> None:
    """Refuse a store that this version cannot read."""
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))["format"]
    except (ValueError, TypeError, KeyError):
        found = None
    if type(found) is not int:  # true is an int to Python, not a format
        raise StoreError(
            f'expected {{"format": {FORMAT}}} in {marker}, got a damaged file; write that line into'
            " it if the folder is a store, or name another with --out"
        )
    if found > FORMAT:
        raise StoreError(
            f"expected a store of format {FORMAT} or older at {marker.parent}, got format {found};"
            " install a newer flatminima or name another folder"
        )
    if found < FORMAT:
        raise StoreError(
            f"expected a store of format {FORMAT} at {marker.parent}, got format {found}, which no"
            " version of flatminima has written; name another folder"
        )


class Store:
    """The jobs, studies and reports below one folder.

    Args:
        root: The folder.
        create: Make it a store if it does not exist or is empty; otherwise it must be one.

    Raises:
        StoreError: If the folder is no store, or one that a newer version wrote.
        OSError: If it cannot be made.
    """

    def __init__(self, root: str | Path, *, create: bool = False) -> None:
        self.root = Path(root)
        marker = self.root / "store.json"
        if not marker.exists():
            if not create:
                raise StoreError(
                    f"expected a store at {self.root}, got a folder without store.json; run a"
                    " study there first, or name another folder"
                )
            if (self.root / "jobs").is_dir():
                raise StoreError(
                    f'expected {{"format": {FORMAT}}} in {marker}, got nothing there; write that'
                    " line into it if the folder is a store, or name another with --out"
                )
            if self.root.is_dir() and any(map(_foreign, self.root.iterdir())):
                raise StoreError(
                    f"expected an empty folder or a store at {self.root}, got other files; name"
                    " another folder with --out"
                )
            write_text(marker, json.dumps({"format": FORMAT}) + "\n")
        _check_format(marker)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store against a second run; what killed runs left behind is cleared.

        Raises:
            StoreError: If another run holds it.
        """
        lock = FileLock(self.root / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StoreError(
                f"expected the store {self.root} to be free, got one that another run is using;"
                " wait for that run, or name another folder with --out"
            ) from None
        try:
            shutil.rmtree(self.root / "tmp", ignore_errors=True)
            for folder in (".", "logs", "studies/*"):
                for path in self.root.glob(f"{folder}/.*.*"):
                    if _PARTIAL.fullmatch(path.name):
                        path.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    # ---------------------------------------------------------------- jobs

    def folder(self, kind: str, digest: str) -> Path:
        """Where a job's results are, whether or not they exist yet."""
        return self.root / "jobs" / f"{kind}-{digest[:SHORT]}"

    def done(self, kind: str, digest: str) -> bool:
        """Whether a job has finished: its completion record exists, and what it tells of.

        A record alone is what a copy of a store may hold, if the job was discarded meanwhile.
        """
        folder = self.folder(kind, digest)
        return (folder / "run.json").exists() and (folder / "payload").exists()

    def record(self, kind: str, digest: str) -> dict[str, Any]:
        """A finished job's `run.json`.

        Raises:
            StoreError: If the job has not finished, or its record is damaged.
        """
        path = self.folder(kind, digest) / "run.json"
        if not path.exists():
            raise StoreError(
                f"expected the finished job {path.parent.name} in {self.root}, got none; run its"
                " study"
            )
        return read_json(path)

    def records(self, *, discarded: bool = False) -> Iterator[dict[str, Any]]:
        """The records of all finished jobs, ordered by the names of their folders.

        Args:
            discarded: Also those whose results were discarded.
        """
        names = ("run.json", DISCARDED) if discarded else ("run.json",)
        for folder in sorted((self.root / "jobs").glob("*")):
            path = next((folder / name for name in names if (folder / name).exists()), None)
            if path is not None:
                yield read_json(path)

    def any_record(self, name: str) -> dict[str, Any] | None:
        """What is on record of a job, also a discarded one, by its folder's name; if legible."""
        for file in ("run.json", DISCARDED):
            with contextlib.suppress(OSError, StoreError):
                record = read_json(self.root / "jobs" / name / file)
                if isinstance(record.get("settings"), dict):
                    return record
        return None

    def discard(self, kind: str, digest: str) -> None:
        """Delete a finished job's results; its record stays, to say when and where it ran.

        The job then counts as not done.
        """
        folder = self.folder(kind, digest)
        if (folder / "run.json").exists():
            (folder / "run.json").replace(folder / DISCARDED)
            flush_all([folder])
        shutil.rmtree(folder / "payload", ignore_errors=True)

    def remove(self, path: Path) -> None:
        """Take a file or folder out of the store in one step, and delete it.

        The caller holds the lock. A kill in between leaves it in `tmp`, for the next run to clear.

        Args:
            path: Below the store's root.
        """
        aside = self.root / "tmp" / f"{path.name}.{os.getpid()}"
        aside.parent.mkdir(exist_ok=True)
        path.replace(aside)
        flush_all([path.parent, aside.parent])
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()

    def leave_out(self, kind: str, digest: str, ending: str) -> list[str]:
        """Delete those files of a finished job whose names end so; their digests stay on record.

        Returns:
            The names of the files.
        """
        record = self.record(kind, digest)
        names = [name for name in record["payload"] if name.endswith(ending)]
        if names:
            gone = {name: record["payload"].pop(name) for name in names}
            record["left_out"] = {**record.get("left_out", {}), **gone}
            folder = self.folder(kind, digest)
            write_text(folder / "run.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
            for name in names:
                (folder / "payload" / name).unlink(missing_ok=True)
        return names

    def read(self, kind: str, digest: str, *, under: Iterable[str] = ("",)) -> dict[str, bytes]:
        """A finished job's artifact, or those of its files that begin with one of `under`.

        Raises:
            StoreError: If a file is missing or is not what was written.
        """
        prefixes = tuple(under)
        expected = self.record(kind, digest)["payload"]
        payload = self.folder(kind, digest) / "payload"
        files: dict[str, bytes] = {}
        for name, checksum in expected.items():
            if not name.startswith(prefixes):
                continue
            path = payload / name
            data = path.read_bytes() if path.is_file() else b""
            if sha256(data) != checksum:
                raise StoreError(
                    f"expected {path} as it was written, got a missing or altered file; delete"
                    f" {payload.parent} and run the study again"
                )
            files[name] = data
        return files

    def write(
        self,
        kind: str,
        digest: str,
        artifact: Artifact,
        *,
        settings: Mapping[str, Any],
        dependencies: Iterable[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Store what one job made; see `write_all`."""
        self.write_all(
            [Finished(kind, digest, artifact, settings, tuple(dependencies), provenance or {})]
        )

    def write_all(self, jobs: Sequence[Finished]) -> None:
        """Store what some jobs made: each folder is made aside and renamed, its record in it.

        All of it is on the disk when this returns, and so are the jobs' logs if there are any. What
        that takes is the waiting, and several jobs wait hardly longer than one.

        Raises:
            OSError: If the disk is full or not writable. Each job is stored whole or not at all.
        """
        ready: dict[Path, Path] = {}
        logs = []
        try:
            for job in jobs:
                final = self.folder(job.kind, job.digest)
                aside = self.root / "tmp" / f"{final.name}.{os.getpid()}"
                try:
                    write_files(aside / "payload", job.artifact)
                    write_text(aside / "run.json", job.record(), flush=False)
                except BaseException:
                    shutil.rmtree(aside, ignore_errors=True)
                    raise
                ready[final] = aside
                logs.append(self.log_path(job.kind, job.digest))
        finally:  # those before one that had no room are whole
            self._put_into_place(ready, filter(Path.exists, logs))

    def _put_into_place(self, ready: Mapping[Path, Path], logs: Iterable[Path]) -> None:
        """Give folders that were made aside the names by which they count."""
        if not ready:
            return
        try:
            flush_trees(ready.values(), logs)
            make_folder(self.root / "jobs")
            for final, aside in ready.items():
                if final.exists():  # only a folder that lost its record can be here
                    shutil.rmtree(final)
                aside.replace(final)
        except BaseException:
            for aside in ready.values():
                shutil.rmtree(aside, ignore_errors=True)
            raise
        flush_all([self.root / "jobs"])

    def log_path(self, kind: str, digest: str) -> Path:
        """Where a job's log is, if it has run here."""
        return self.root / "logs" / f"{kind}-{digest[:SHORT]}.log"

    def write_log(self, kind: str, digest: str, text: str) -> None:
        """Replace a job's log, by the end of it if it is very long; `write` flushes it."""
        if len(text) > _LONGEST_LOG:
            text = f"[...]\n{text[-_LONGEST_LOG:]}"
        write_text(self.log_path(kind, digest), text, flush=False)

    def open_payload(self, kind: str, digest: str, name: str) -> "xr.Dataset":
        """One dataset of a finished job, loaded into memory, e.g. `("surface", d, "surface.zarr")`.

        Raises:
            StoreError: If there is none, or it is damaged.
        """
        self.record(kind, digest)
        path = self.folder(kind, digest) / "payload" / name
        if not path.is_dir():
            raise StoreError(f"expected a dataset at {path}, got nothing there")
        return open_zarr(path, str(path))

    def verify(self) -> tuple[int, list[str]]:
        """Compare every payload file with its recorded digest.

        Returns:
            The number of files that were compared, and one line for each fault, which is a file
            that is altered, missing or unknown, or a damaged record.
        """
        count, faults = self.inspect()
        return count, [str(fault) for fault in faults]

    def inspect(self) -> tuple[int, list[Fault]]:
        """What `verify` finds, for whoever mends it."""
        return inspect(self.root / "jobs")

    # ------------------------------------------------------------- studies

    def studies(self) -> list[str]:
        """The names of the studies that have a manifest here."""
        return sorted(path.parent.name for path in (self.root / "studies").glob("*/manifest.json"))

    def manifest(self, study: str) -> dict[str, Any]:
        """A study's manifest: `settings`, `jobs` and, once one was made, `report`.

        Raises:
            StoreError: If the study was never run here.
        """
        path = self.root / "studies" / study / "manifest.json"
        if not path.exists():
            known = ", ".join(self.studies()) or "none at all"
            raise StoreError(
                f"expected the study {study!r} in {self.root}, got {known}; run it first"
            )
        return read_json(path)

    def write_manifest(self, study: str, manifest: Mapping[str, Any]) -> None:
        """Replace a study's manifest in one step."""
        path = self.root / "studies" / study / "manifest.json"
        write_text(path, json.dumps(manifest, indent=1, sort_keys=True) + "\n")

    def report_folder(self, study: str) -> Path:
        """Where a study's report belongs."""
        return self.root / "reports" / study

    @contextlib.contextmanager
    def new_report(self, study: str) -> Iterator[Path]:
        """A folder to write a report into, which takes the place of the older one when it is whole.

        The caller holds the lock.
        """
        aside = self.root / "tmp" / f"report-{study}.{os.getpid()}"
        final = self.report_folder(study)
        aside.mkdir(parents=True)
        try:
            yield aside
            flush_trees([aside])
            if final.exists():
                self.remove(final)
            make_folder(final.parent)
            aside.replace(final)
            flush_all([final.parent])
        finally:
            shutil.rmtree(aside, ignore_errors=True)
