"""The script for Slurm in docs/clusters.md, with stand-ins for the commands of Slurm."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flatminima.store import Store
from flatminima.study import run_study

pytest.importorskip("ray", reason="Ray is an extra: make extras installs it")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="ends what it starts by way of /proc"),
]

_ROOT = Path(__file__).parents[2]

# Steps run here, one beside the other; the head's name is an address of the loopback network.
_COMMANDS = {
    "scontrol": "echo 127.0.0.2",
    "hostname": "echo 127.0.0.2",
    "srun": """
while [[ "$1" == -* ]]; do [[ "$1" == -w ]] && shift; shift; done
exec "$@"
""",
}

# An allocation that is over takes all its processes with it, whoever their parents are.
_ALLOCATION = """
import ctypes, runpy, signal, subprocess, sys
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
try:
    sys.exit(subprocess.run(["bash", "-e", sys.argv[1]], check=False).returncode)
finally:
    runpy.run_path(sys.argv[2])["_end_all"](Path("/" + "no/folder"))  # named by nobody else
"""


@pytest.fixture
def folder() -> Iterator[str]:
    """Where nodes keep their sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as made:
        yield made


def test_the_script_for_slurm_starts_a_cluster_and_runs_the_study(
    tmp_path: Path, folder: str
) -> None:
    guide = (_ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", guide, re.DOTALL)
    assert script.count("studies/mnist-paper.toml") == 1
    study = _ROOT / "studies/digits-tiny.toml"
    (tmp_path / "job.sh").write_text(script.replace("studies/mnist-paper.toml", str(study)))
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in _COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)

    keeper = _ROOT / "src/flatminima/study/executors/_keeper.py"
    done = subprocess.run(
        [
            "timeout",
            "300",
            sys.executable,
            "-c",
            _ALLOCATION,
            str(tmp_path / "job.sh"),
            str(keeper),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.defpath]),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_NNODES": "2",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "RAY_TMPDIR": folder,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    assert "on the Ray cluster at 127.0.0.2:6379" in done.stdout
    assert "digits-tiny: done" in done.stdout
    found = Store(tmp_path / "runs")
    alone = run_study(study, out=tmp_path / "alone")
    for record in alone.records():
        assert found.record(record["kind"], record["digest"])["payload"] == record["payload"]
