"""Ray nodes of our own on this machine, which end with this process however it ends."""

import contextlib
import json
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flatminima.study.executors import ClusterGone
from flatminima.study.executors._connection import environment, import_ray, reread_settings

# The folder of a node's sockets may have a name of so many characters: their paths have a limit.
_LONGEST = 25


@contextlib.contextmanager
def own_head(cpus: int, retries: int) -> Iterator[str]:
    """A head node on this machine that lives as long as this process wants; yields its address.

    Args:
        cpus: How many cores it offers.
        retries: Of a task that was ended because memory ran out.
    """
    with environment(
        # On any system: nodes are at the loopback address instead of the host's.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_task_oom_retries=str(retries),
        RAY_DEDUP_LOGS="0",
    ):
        reread_settings(import_ray())
        port = free_port()
        with keep_node("127.0.0.1", "--head", "--port", str(port), "--num-cpus", str(cpus)):
            yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def keep_node(host: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A Ray node on this machine, with all that belongs to it.

    Args:
        host: The address that it has for other nodes.
        arguments: Of `ray start`, besides those that keep it quiet and to itself.

    Raises:
        ClusterGone: It did not start.
    """
    usual = tempfile.gettempdir()
    place = usual if len(usual) <= _LONGEST or not Path("/tmp").is_dir() else "/tmp"
    folder = tempfile.mkdtemp(prefix="flatminima-ray-", dir=place)
    common = ["--node-ip-address", host, "--disable-usage-stats", "--temp-dir", folder]
    if "--head" in arguments:
        common += ["--include-dashboard", "false"]
    script = str(Path(__file__).with_name("_keeper.py"))
    keeper = subprocess.Popen(
        [sys.executable, script, folder, *arguments, *common],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is the driver's to handle
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        line = keeper.stdout.readline()
        fault = json.loads(line)["fault"] if line else "it ended at once"
        if fault:
            raise ClusterGone(
                f"expected Ray to start on this machine, got: {' '.join(fault.split())[-300:]}"
            )
        yield keeper
    finally:
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
