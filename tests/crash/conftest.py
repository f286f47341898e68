import sys
from pathlib import Path

import pytest

from crash.driver import command, started
from crash.kills import undisturbed
from crash.stores import Reference, Trained, content
from crash.study import STUDY

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # processes are looked for below /proc


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a study with twice as many segments of training."""
    path = tmp_path_factory.mktemp("study") / "crash.toml"
    path.write_text(STUDY.replace("epochs = 12\n", "epochs = 24\n"), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Its networks, trained in a serial run that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "runs"
    with started([*command(study, out, "serial"), "--only", "training"]) as driver:
        assert (driver.finish(), driver.errors()) == (0, [])
    return Trained(study, out, content(out))


@pytest.fixture(scope="session")
def peaceful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    """What comes of the study where nothing disturbs it, and the folder that it is in."""
    folder = tmp_path_factory.mktemp("kills")
    return undisturbed(folder), folder
