import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from crash.driver import START, command
from crash.stores import Trained, content, differences
from flatminima.store import Store


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def out(trained: Trained, tmp_path: Path) -> Path:
    """A store of its own with all networks, where surfaces would be next."""
    return Path(shutil.copytree(trained.out, tmp_path / "runs"))


def _told(*words: str | Path) -> tuple[int, list[str], list[str]]:
    """Exit code of a command, and the lines on its standard output and standard error."""
    done = subprocess.run(
        [*START, *map(str, words)], capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def _run(trained: Trained, out: Path, part: str) -> tuple[int, list[str], list[str]]:
    words = command(trained.study, out, "serial")[len(START) :]
    return _told(*words, "--only", part)


def _network(out: Path) -> Path:
    """The folder of one of the networks."""
    return min(out.glob("jobs/network-*"))


@pytest.mark.parametrize("damage", [_cut, _empty, _flip, Path.unlink])
def test_a_damaged_file_is_found_and_refused_where_it_is_needed(
    trained: Trained, out: Path, damage: Callable[[Path], None]
) -> None:
    path = _network(out) / "payload" / "last.safetensors"
    damage(path)
    code, said, errors = _told("verify", out)
    what = "altered" if path.exists() else "missing"
    assert code == 1
    assert said[0] == f"{path.relative_to(out)}: {what}"
    assert len(errors) == 1
    code, _, errors = _run(trained, out, "surfaces")
    assert code == 2
    (line,) = errors
    assert f"expected {path} as it was written, got a missing or altered file" in line
    assert f"; delete {path.parents[1]} and run the study again" in line
    assert "all finished work is kept" in line


@pytest.mark.slow
def test_what_is_said_of_a_damaged_file_mends_it(trained: Trained, out: Path) -> None:
    _flip(_network(out) / "payload" / "last.safetensors")
    _, _, (line,) = _run(trained, out, "surfaces")
    folder = Path(line.partition("; delete ")[2].partition(" and run")[0])
    shutil.rmtree(folder)
    code, _, errors = _run(trained, out, "training")
    assert (code, errors) == (0, [])
    aside = {name for name in content(out) if name.startswith("logs/tile-")}
    found = {name: value for name, value in content(out).items() if name not in aside}
    wanted = {
        **trained.content,
        "studies/crash/manifest.json": found["studies/crash/manifest.json"],
    }
    assert differences(found, wanted) == []
    assert Store(out).verify()[1] == []


@pytest.mark.parametrize("damage", [_cut, _empty])
def test_a_damaged_record_is_found_and_refused_where_it_is_needed(
    trained: Trained, out: Path, damage: Callable[[Path], None]
) -> None:
    path = _network(out) / "run.json"
    damage(path)
    code, said, _ = _told("verify", out)
    assert code == 1
    assert said[0] == f"{path.parent.relative_to(out)}: no readable run.json"
    code, _, errors = _run(trained, out, "surfaces")
    assert code == 2
    assert errors == [
        f"flatminima: expected a JSON record in {path}, got a damaged file; delete {path.parent}"
        " and run the study again"
    ]


@pytest.mark.parametrize("damage", [_cut, _empty])
def test_a_damaged_manifest_is_found_and_can_be_deleted(
    trained: Trained, out: Path, damage: Callable[[Path], None]
) -> None:
    path = out / "studies" / "crash" / "manifest.json"
    damage(path)
    code, said, _ = _told("verify", out)
    assert code == 1
    assert said[0].startswith("studies/crash: no readable manifest.json")
    code, _, errors = _run(trained, out, "training")
    assert code == 2
    (line,) = errors
    assert line.endswith(f"got a damaged file; delete {path.parent} and run the study again")
    shutil.rmtree(path.parent)
    code, said, errors = _run(trained, out, "training")
    assert (code, said, errors) == (0, [f"crash: nothing to do, all of it is in {out}"], [])


@pytest.mark.parametrize("damage", [_cut, _empty])
def test_a_damaged_marker_does_not_make_anybody_delete_a_store(
    trained: Trained, out: Path, damage: Callable[[Path], None]
) -> None:
    path = out / "store.json"
    damage(path)
    for code, said, errors in (_told("verify", out), _run(trained, out, "training")):
        assert (code, said) == (2, [])
        (line,) = errors
        assert f'expected {{"format": 1}} in {path}, got a damaged file; write that line' in line
        assert "delete" not in line
    path.write_text('{"format": 1}\n')
    assert content(out) == trained.content
