"""The process that keeps a Ray node, and ends with all of it when asked or left.

Run as a script, with nothing of flatminima: it starts a node as `ray start` does with the arguments
given, says so in one line of JSON, and waits for the end of its input, which comes when the driver
closes it and when the driver is killed. Then everything that was started here ends at once: Ray's
own helpers outlive a killed driver by minutes.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_SET_CHILD_SUBREAPER = 36  # of prctl(2): orphans below this process become its children
_PATIENCE = 10.0  # seconds until everything must have ended


def main(folder: Path, arguments: list[str]) -> None:
    """Start a node that keeps its files in `folder`, wait, and end it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        started = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        fault = "" if started.returncode == 0 else started.stdout[-2000:]
        print(json.dumps({"fault": fault}), flush=True)
        sys.stdin.buffer.read()
    finally:
        _end_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _end_all(folder: Path) -> None:
    """Kill whatever descends from this process until nothing does."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        alive = _ours(folder)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not alive and _nothing_to_reap():
            return
        time.sleep(0.02)


def _nothing_to_reap() -> bool:
    """Take note of the children that have ended; whether there are none left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _ours(folder: Path) -> list[int]:
    """Processes below this one, or where orphans are not ours, those that name our folder."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=False
    )
    rows = [line.split(None, 3) for line in table.stdout.splitlines()]
    rows = [row for row in rows if len(row) == 4 and not row[2].startswith("Z")]
    known = {os.getpid()}
    found: list[int] = []
    asking = "ps -A -o pid=,ppid="
    while True:
        more = [
            int(pid)
            for pid, parent, _, command in rows
            if int(pid) not in known
            and (int(parent) in known or str(folder) in command)
            and not command.startswith(asking)
        ]
        if not more:
            return found
        known.update(more)
        found += more


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
