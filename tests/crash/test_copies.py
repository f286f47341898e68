import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from crash.driver import command, started
from crash.stores import Trained, content, differences
from crash.study import HEAD
from flatminima.store import Store

DIGEST = "0123456789abcdef" * 4


def _copytree(source: Path, target: Path) -> None:
    """A copy by Python, which tells at the end what has gone meanwhile."""
    gone: list[str] = []
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:
        gone = [why for *_, why in error.args[0]]
    assert all("No such file or directory" in why for why in gone)


def _cp(source: Path, target: Path) -> None:
    """A copy by `cp -r`, which tells likewise."""
    done = subprocess.run(
        ["cp", "-r", str(source), str(target)], capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    assert all("No such file or directory" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("copy", "after"), [(_copytree, 16), (_cp, 48)])
def test_a_copy_of_a_store_that_is_being_written_can_be_finished(
    trained: Trained, tmp_path: Path, copy: Callable[[Path, Path], None], after: int
) -> None:
    out, copied = tmp_path / "runs", tmp_path / "copied"
    with started([*command(trained.study, out, "processes"), "--only", "training"]) as driver:
        assert driver.wait_for(HEAD + after)
        copy(out, copied)
        assert driver.finish() == 0
    assert differences(content(out), trained.content) == []
    with started([*command(trained.study, copied, "serial"), "--only", "training"]) as driver:
        assert (driver.finish(), driver.errors()) == (0, [])
    # A job's folder may have come after the folder of logs was read.
    unequal = differences(content(copied), trained.content)
    assert [line for line in unequal if not line.startswith("logs/")] == []


def test_a_record_whose_payload_went_while_it_was_copied_is_not_done(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs", create=True)
    store.write("train", DIGEST, {"a": b"1"}, settings={})
    assert store.done("train", DIGEST)
    shutil.rmtree(store.folder("train", DIGEST) / "payload")
    assert not store.done("train", DIGEST)
    store.write("train", DIGEST, {"a": b"1"}, settings={})
    assert store.read("train", DIGEST) == {"a": b"1"}


def test_what_a_kill_leaves_of_files_that_were_being_replaced_is_cleared(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs", create=True)
    store.write_manifest("x", {"jobs": []})
    store.write_log("train", DIGEST, "text")
    (store.root / "tmp" / "train-0.77").mkdir(parents=True)
    left = [".store.json.77", "studies/x/.manifest.json.77", "logs/.train-0.log.77"]
    for name in left:
        (store.root / name).write_text("{")
    other = [".hidden", "studies/x/.swp", "logs/.nfs00.x"]  # somebody else's
    for name in other:
        (store.root / name).write_text("")
    with store.lock():
        found = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*")}
    assert not found & {*left, "tmp/train-0.77"}
    assert found >= {*other, "store.json", "studies/x/manifest.json"}


def test_a_kill_while_the_store_itself_is_made_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".store.json.77").write_text("{")
    store = Store(tmp_path / "runs", create=True)
    with store.lock():
        pass
    with contextlib.suppress(FileNotFoundError):
        (store.root / ".lock").unlink()
    assert [path.name for path in store.root.iterdir()] == ["store.json"]
