"""Power cuts: what was said to be finished is there, and nothing is there by name alone."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.driver import command, started
from crash.kills import killed_so_often
from crash.power import Disk
from crash.stores import Reference, look, said_finished
from crash.study import HEAD, NAME

CUTS = 3
SEED = 11
# As if nobody asked the disk for anything.
_CARELESS = "import os; os.fsync = lambda place: None; from flatminima.cli import main; main()"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """One that is attached."""
    disk = Disk(tmp_path / "disk")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(disk.attached())
        except RuntimeError as error:
            pytest.skip(f"this system has no disk for us: {error}")
        yield disk


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "number"), [("serial", 0), ("processes", 1)])
def test_studies_whose_disk_loses_its_power_end_with_the_same_bytes(
    peaceful: tuple[Reference, Path], disk: Disk, executor: str, number: int
) -> None:
    reference, folder = peaceful
    faults = killed_so_often(
        reference, folder, kills=CUTS, number=number, seed=SEED, executor=executor, disk=disk
    )
    assert faults == []


@pytest.mark.slow
@pytest.mark.parametrize("careful", [True, False])
def test_only_what_is_flushed_is_there_when_the_power_is_back(
    peaceful: tuple[Reference, Path], disk: Disk, careful: bool
) -> None:
    reference, folder = peaceful
    out = disk.path / "runs"
    words = command(folder / f"{NAME}.toml", out, "serial")
    if not careful:
        words = [sys.executable, "-c", _CARELESS, *words[words.index("run") :]]
    with started(disk.inside(words)) as driver:
        assert driver.wait_for(HEAD + 5)
        disk.cut()
    said = said_finished(driver.said)
    disk.restart()
    found = look(disk.seen(out), reference, None)
    lost = said - {reference.labels[name] for name in found.records}
    if careful:
        assert len(said) >= 4
        assert (found.faults, lost) == ([], set())
    else:
        assert found.faults or lost
