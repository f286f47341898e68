"""Carrying a built-in data set to a machine that reaches no network, in small pieces.

A piece is one official file, compressed unless it is compressed already, under the name by which a
user's own folder is searched: what was packed can also be used as it lies, with `$FLATMINIMA_DATA`.
A set is complete when all its pieces have arrived, in whatever order. Only the digests in the
source table decide what is accepted: whoever carried the pieces could have written the sums too.

This module loads neither torch nor numpy.
"""

import contextlib
import gzip
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flatminima.data import _download, sources
from flatminima.data._table import SOURCES, Source, SourceFile, source_of
from flatminima.data._verify import decoded, fault_of, fault_of_bytes

PIECE = 48 * 2**20
"""What every piece stays below, in bytes: many gates let 50 MB pass."""

SUMS = "SHA256SUMS"
"""Name of the list of digests beside the pieces, for `sha256sum -c`."""

ORIGIN = "carried"
"""Where the cache says that such a file came from."""

# On MNIST's images 1 leaves a tenth more, and 9 takes fourteen times as long for 2 % less.
_LEVEL = 6


@dataclass(frozen=True)
class Arrival:
    """What is known of a carried data set after its pieces were unpacked.

    Attributes:
        dataset: Name of the data set.
        folder: The cache's folder of it.
        in_place: Files of the set that the cache holds whole, from whatever source.
        missing: The other files of the set.
        refused: One line for each piece that was not accepted.
    """

    dataset: str
    folder: Path
    in_place: tuple[str, ...]
    missing: tuple[str, ...]
    refused: tuple[str, ...]


def pack(name: str, folder: str | os.PathLike[str]) -> list[Path]:
    """Write a data set as pieces into `folder/name`, beside a list of their sums.

    Files that are not at hand are fetched first. The pieces have the same bytes each time (as far
    as the compression library does), whatever form the files have here.

    Returns:
        The pieces, in the order of the source table.

    Raises:
        ValueError: There is no such set, it has no files of its own, no source gave its files, a
            piece would be too large, or the folder cannot be written.
    """
    source = source_of(name)
    if source.bundled:
        raise ValueError(
            f"expected a data set with files, got {name!r}; it comes with scikit-learn, so that "
            "there is nothing to carry"
        )
    paths = sources.fetch(name)
    target = Path(folder).expanduser() / name
    lines, pieces = [], []
    with _writing(target, "name another"):
        target.mkdir(parents=True, exist_ok=True)
        # The sums come last, and must not speak of pieces of another time.
        (target / SUMS).unlink(missing_ok=True)
        for file in source.wanted(None):
            content = _piece_of(file, paths[file.name].read_bytes())
            pieces.append(_put(target / _piece_name(file), content))
            lines.append(f"{hashlib.sha256(content).hexdigest()}  {pieces[-1].name}\n")
        _put(target / SUMS, "".join(lines).encode())
    return pieces


def unpack(folder: str | os.PathLike[str]) -> list[Arrival]:
    """Put the pieces below a folder into the cache, each as soon as its digest is right.

    Nothing is asked of a network. Only names of the source table are read, in folders named after
    their data sets, and never more than `PIECE` bytes of one.

    Returns:
        What became of each data set that has a folder there.

    Raises:
        ValueError: No data set has a folder there, or the cache cannot be written.
    """
    place = Path(folder).expanduser()
    named = {name: source for name, source in SOURCES.items() if not source.bundled}
    arrived = [name for name in named if (place / name).is_dir()]
    if not arrived:
        raise ValueError(
            f"{place}: expected a folder {' or '.join(named)} in it, got none; name the folder "
            "that was given to pack"
        )
    return [_unpack_set(place / name, name, named[name]) for name in arrived]


def _unpack_set(place: Path, name: str, source: Source) -> Arrival:
    """Take in the pieces of one data set."""
    cache = sources.cache_folder() / name
    refused = []
    cure = f"set XDG_CACHE_HOME, or use the pieces as they lie: FLATMINIMA_DATA={place.parent}"
    with _writing(cache, cure), _download._locked(cache):
        for leftover in cache.glob(".*.part"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        for file in source.wanted(None):
            candidates = (place / _piece_name(file), place / file.name)
            piece = next((path for path in candidates if os.path.lexists(path)), None)
            fault = "" if piece is None else _take_in(piece, file, cache)
            if fault:
                refused.append(f"{piece}: {fault}; carry it again")
    absent = [file for file in source.wanted(None) if fault_of(cache / file.name, file)]
    return Arrival(
        dataset=name,
        folder=cache,
        in_place=tuple(file.name for file in source.wanted(None) if file not in absent),
        missing=tuple(file.name for file in absent),
        refused=tuple(refused),
    )


def _take_in(piece: Path, file: SourceFile, cache: Path) -> str:
    """Put one piece into the cache; else what is wrong with it. Called under the cache's lock."""
    try:
        content = _read(piece)
    except OSError as error:
        return f"expected a piece that can be read, got {error.strerror or error}"
    if content is None:
        return f"expected a plain file below {PIECE} bytes, got something else"
    fault = fault_of_bytes(content, file)
    if not fault and fault_of(cache / file.name, file):
        _download._keep_in(cache, file, content, ORIGIN)
    return fault


def _read(piece: Path) -> bytes | None:
    """The bytes of a piece; None for a link, a device or a file that no piece can be."""
    if not stat.S_ISREG(piece.lstat().st_mode):
        return None
    with piece.open("rb") as stream:
        content = stream.read(PIECE)
    return content if len(content) < PIECE else None


def _piece_name(file: SourceFile) -> str:
    """Name of the piece that holds a file; some are kept compressed anyhow."""
    return file.name if file.name == file.download else f"{file.name}.gz"


def _piece_of(file: SourceFile, content: bytes) -> bytes:
    """The bytes of a piece from those of a verified file, which may be compressed."""
    if file.name != file.download:
        content = _compressed(decoded(content))
    if len(content) >= PIECE:
        raise ValueError(
            f"{file.name}: expected a piece below {PIECE} bytes, got {len(content)}; carry this "
            "file in another way, into a folder that FLATMINIMA_DATA names"
        )
    return content


def _compressed(content: bytes) -> bytes:
    """A gzip file that says neither when nor from what it was made."""
    stream = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=_LEVEL, fileobj=stream, mtime=0) as packed:
        packed.write(content)
    return stream.getvalue()


def _put(path: Path, content: bytes) -> Path:
    """Put a whole file in place, readable by whoever may read the user's files."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_bytes(content)
    os.replace(scratch, path)
    return path


@contextlib.contextmanager
def _writing(folder: Path, cure: str) -> Iterator[None]:
    """Says in a line why a folder cannot be written."""
    try:
        yield
    except (OSError, _download._Failed) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"expected a folder {folder} that can be written, got {reason}; {cure}"
        ) from error
