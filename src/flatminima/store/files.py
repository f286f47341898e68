"""Files that are written whole or not at all, also when the power goes.

A file that was written is in the memory of the operating system, which takes its time to bring it
to the disk, and may bring the name long before the content. So what must be there after a power cut
is flushed before it gets the name by which it counts, and the name after that.
"""

import errno
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flatminima.store.artifact import Artifact, StoreError

# A disk brings what is asked for at the same time together: many at once cost little more than one.
_AT_ONCE = 16
# What a file system says that does not know such a thing, of folders above all.
_NOT_KNOWN = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


def write_files(folder: Path, files: Artifact) -> None:
    """Write every file of an artifact below `folder`; not flushed, see `flush_trees`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_text(path: Path, text: str, *, flush: bool = True) -> None:
    """Replace a small file in one step.

    Args:
        path: The file; folders that it needs are made.
        text: What it is to hold.
        flush: Bring it to the disk; nothing but the time it takes speaks against it.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        if flush:
            flush_all([partial])
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if flush:
        flush_all([path.parent])


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and bring the names of new ones to the disk."""
    new = []
    while not path.exists():
        new.append(path)
        path = path.parent
    for folder in reversed(new):
        folder.mkdir(exist_ok=True)
    flush_all([folder.parent for folder in new])


def flush_trees(roots: Iterable[Path], others: Iterable[Path] = ()) -> None:
    """Bring folders with all that they hold to the disk, and some files elsewhere with them."""
    files, folders = [*others], [*roots]
    for path in [inside for root in folders for inside in root.rglob("*")]:
        (folders if path.is_dir() else files).append(path)
    flush_all(files)
    flush_all({*folders, *(path.parent for path in files)})


def flush_all(paths: Iterable[Path]) -> None:
    """Bring files, or the names in folders, to the disk.

    Raises:
        OSError: If the disk is full, or fails.
    """
    paths = list(paths)
    if len(paths) == 1:
        _flush(paths[0])
    elif paths:
        with ThreadPoolExecutor(min(len(paths), _AT_ONCE)) as threads:
            for _ in threads.map(_flush, paths):
                pass


def _flush(path: Path) -> None:
    """Bring one file, or the names in one folder, to the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # it cannot be opened there
    place = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(place)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise
    finally:
        os.close(place)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that this module wrote."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        value = None
    if not isinstance(value, dict):
        raise StoreError(
            f"expected a JSON record in {path}, got a damaged file; delete {path.parent} and run"
            " the study again"
        )
    return value
