"""New content takes the place of old only once it is whole."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write the file or folder that then becomes `path` in one step.

    It lies in a hidden folder beside `path`, on the same disk. That folder is removed whatever
    happens; only a killed process leaves it behind. A folder that is replaced waits there until
    the new one stands, and comes back if it does not.

    Raises:
        ValueError: If the folder to write into does not exist.
    """
    if not path.parent.is_dir():
        raise ValueError(
            f"expected an existing folder to write {path.name} into, got {path.parent}; make it"
            " first"
        )
    aside = Path(tempfile.mkdtemp(prefix=".flatminima-", dir=path.parent))
    try:
        new = aside / f"new{path.suffix.lower()}"
        yield new
        if new.is_dir() and path.is_dir():
            _exchange_folders(new, path, aside / "old")
        else:
            new.replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange_folders(new: Path, path: Path, old: Path) -> None:
    """Put one folder into the place of another, or leave the other there."""
    path.replace(old)
    try:
        new.replace(path)
    except BaseException:
        old.replace(path)
        raise
