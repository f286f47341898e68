import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from crash.driver import command, started
from crash.stores import Trained, content, differences, finished, said_finished
from flatminima.store import Store

_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
# Runs a command on a file system of 700 KiB, and again once there is room; "$0" is where, and "$1"
# where the store is copied to, before and after.
_FULL = """
set -u
where="$0"; to="$1"; shift
mount -t tmpfs -o size=700k tmpfs "$where" || exit 100
"$@"; first=$?
cp -r "$where/runs" "$to/cut" || exit 101
echo "== $first"; echo "== $first" >&2
mount -o remount,size=50m "$where" || exit 102
"$@"; second=$?
cp -r "$where/runs" "$to/whole" || exit 103
exit $second
"""


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How to run a command that can mount what nobody else sees; it is gone with the command."""
    folder = str(tmp_path_factory.mktemp("probe"))
    why = "unshare is not installed"
    for words in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        if shutil.which("unshare"):
            probe = ["sh", "-c", 'mount -t tmpfs tmpfs "$0" && mount --bind "$0" "$0"', folder]
            done = subprocess.run([*words, *probe], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return words
            why = done.stderr.strip()
    pytest.skip(f"this system does not let us mount: {why}")


def _read_only(apart: Sequence[str], out: Path, words: Sequence[str]) -> list[str]:
    """A command for which a folder cannot be written, not even by root."""
    return [*apart, "sh", "-c", _READ_ONLY, str(out), *words]


def test_a_finished_study_on_a_read_only_disk_has_nothing_to_do(
    trained: Trained, apart: list[str]
) -> None:
    words = [*command(trained.study, trained.out, "serial"), "--only", "training"]
    with started(_read_only(apart, trained.out, words)) as driver:
        assert (driver.finish(), driver.errors()) == (0, [])
        assert [line for _, line in driver.said] == [
            f"crash: nothing to do, all of it is in {trained.out}"
        ]


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_work_that_is_left_on_a_read_only_disk_is_refused_in_a_line(
    trained: Trained, tmp_path: Path, apart: list[str], executor: str
) -> None:
    out = tmp_path / "runs"
    shutil.copytree(trained.out, out)
    shutil.rmtree(next(out.glob("jobs/network-*")))
    before = content(out)
    words = [*command(trained.study, out, executor), "--only", "training"]
    with started(_read_only(apart, out, words)) as driver:
        assert driver.finish() == 2
        (line,) = driver.errors()
    assert line.startswith("flatminima: expected files and folders that can be read and written")
    assert f"got Read-only file system ({out}/.lock); name another" in line
    assert content(out) == before


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "processes", "ray"])
def test_a_full_disk_ends_the_run_in_a_line_and_it_goes_on_once_there_is_room(
    trained: Trained, tmp_path: Path, apart: list[str], executor: str
) -> None:
    where = tmp_path / "small"
    where.mkdir()
    words = [*command(trained.study, where / "runs", executor), "--only", "training"]
    with started([*apart, "sh", "-c", _FULL, str(where), str(tmp_path), *words]) as driver:
        assert driver.finish() == 0, driver.errors()
        line, code = driver.errors()  # and none after that: the second run has nothing to say
        assert code == "== 2"
        middle = [text for _, text in driver.said].index("== 2")
        kept = said_finished(driver.said[:middle])
        assert not kept & said_finished(driver.said[middle:])
    assert line.startswith("flatminima: the disk is full")
    assert line.endswith("finished work is kept: free some space and run the same command again")
    cut = tmp_path / "cut"
    assert 0 < len(kept) < 75
    assert kept <= finished(cut)
    assert Store(cut).verify()[1] == []
    assert list(cut.glob("tmp/*")) == []
    assert [path for path in cut.rglob(".*") if path.suffix[1:].isdigit()] == []
    assert differences(content(tmp_path / "whole"), trained.content) == []
