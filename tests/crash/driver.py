"""A command in a process of its own, what it says, and how it is ended."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_MAIN = "from flatminima.cli import main; main()"
_SCRIPT = Path(sys.executable).with_name("flatminima")
START = (str(_SCRIPT),) if _SCRIPT.exists() else (sys.executable, "-c", _MAIN)
_MARK = "FLATMINIMA_KILLS"  # every process that we start carries it in its environment
PATIENCE = 60.0  # seconds that processes without a driver may take to end, on a busy machine
LONGEST = 600.0  # seconds after which a run counts as hanging

# Run before `_MAIN`: the process ends itself before its change number `at` of what is in `part` of
# the store, and says in the file `note` what that was to be; if it never comes, all changes that it
# has made are listed there.
_WATCHED = """
import atexit, json, os, signal, sys

root, note, part, at = os.path.realpath(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
del sys.argv[1:5]
made, there = [], 0

def write(text):
    with open(note, "w") as file:
        file.write(json.dumps(text))

def watch(event, about):
    global there
    if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        return
    if event == "open" and not about[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if not isinstance(about[0], (str, bytes, os.PathLike)):
        return
    path = os.fsdecode(about[0])
    if event in ("os.remove", "os.rmdir") and about[1] >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{about[1]}"), path)
    path = os.path.abspath(path)
    if not (path + "/").startswith(root + "/"):
        return
    name = os.path.relpath(path, root)
    where = "." if name.startswith(".") else name.partition("/")[0]
    made.append((where, f"{event.removeprefix('os.')} {name}"))
    there += where == part
    if where == part and there == at:
        write(made[-1][1])
        os.kill(os.getpid(), signal.SIGKILL)

atexit.register(lambda: write(made))
sys.addaudithook(watch)
"""


def command(study: Path, out: Path, executor: str, workers: int = 2) -> list[str]:
    """The command line of a run."""
    words = [*START, "run", str(study), "--out", str(out), "--executor", executor]
    return words if executor == "serial" else [*words, "--workers", str(workers)]


def watched(
    words: Sequence[str], out: Path, note: Path, change: tuple[str, int] = ("", -1)
) -> list[str]:
    """A command that ends before the so-manieth change of a part of the store; see `_WATCHED`."""
    start = [sys.executable, "-c", _WATCHED + _MAIN, str(out), str(note), *map(str, change)]
    return [*start, *words[len(START) :]]


def marked(mark: str) -> list[int]:
    """The running processes whose environment carries a mark that begins so."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            if any(word.startswith(wanted) for word in words):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append(int(folder.name))
        except OSError:  # it is gone, or not ours
            continue
    return sorted(found)


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Driver:
    """A command that was started in a session of its own, and what it says.

    Attributes:
        mark: What the environment of it and of all that it starts carries.
        said: Lines on its standard output, each after the seconds since its start.
    """

    def __init__(self, words: Sequence[str], mark: str) -> None:
        self.mark = mark
        self.said: list[tuple[float, str]] = []
        self._news = threading.Condition()
        # In a file: nobody has to read it while the process runs.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        # A `git status` that is killed must not leave its lock in the repository.
        quiet = {"OMP_NUM_THREADS": "1", "GIT_OPTIONAL_LOCKS": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, **quiet, _MARK: mark},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.said.append((time.monotonic() - self._began, line.rstrip("\n")))
                self._news.notify_all()

    def wait_for(self, lines: int, seconds: float = 0.0, *, usual: float = 0.0) -> bool:
        """Wait for so many lines and some seconds after the last; False if it ends before that.

        Args:
            lines: How many.
            seconds: That pass in an undisturbed run; more pass where this one is slower.
            usual: Seconds until the last of the lines in an undisturbed run; 0 if unknown.
        """
        end = self._began + LONGEST
        with self._news:
            while len(self.said) < lines:
                if self.process.poll() is not None or time.monotonic() > end:
                    return False
                self._news.wait(0.05)
            took = self.said[lines - 1][0] if lines else 0.0
        if lines and usual:
            seconds *= min(max(took / usual, 0.2), 5.0)
        since = self._began + took
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, since + seconds - time.monotonic()))
        return self.process.poll() is None

    def workers(self) -> list[int]:
        """The processes that compute for it."""
        found = []
        for pid in marked(self.mark):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"spawn_main" in words or words.startswith(b"ray::"):
                    found.append(pid)
        return found

    def end(self, way: str, number: signal.Signals, draw: random.Random) -> str:
        """Send a signal to the driver, its group or one worker; says which it was."""
        workers = self.workers() if way == "worker" else []
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), number)
            return way
        if way == "group":
            os.killpg(self.process.pid, number)
            return way
        self.process.send_signal(number)
        return "driver"

    def elapsed(self) -> float:
        """Seconds since its start."""
        return round(time.monotonic() - self._began, 2)

    def wait(self) -> int:
        """Its exit code; it is killed if it hangs."""
        try:
            return self.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def finish(self) -> int:
        """Its exit code once it has ended by itself and everything that it said was read."""
        code = self.wait()
        self._reader.join(PATIENCE)
        return code

    def errors(self) -> list[str]:
        """The lines on its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").splitlines()

    def wait_gone(self) -> float | None:
        """Seconds until nothing of it runs any more, or nothing if something goes on."""
        began = time.monotonic()
        gone = wait_until(lambda: not marked(self.mark), PATIENCE)
        return round(time.monotonic() - began, 2) if gone else None

    def close(self) -> None:
        """End whatever is left of it."""
        while left := marked(self.mark):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


@contextlib.contextmanager
def started(words: Sequence[str], mark: str = "") -> Iterator[Driver]:
    """A command that runs while this is entered; nothing of it does afterwards."""
    driver = Driver(words, mark or f"{os.getpid()}-{random.SystemRandom().getrandbits(64):x}")
    try:
        yield driver
    finally:
        driver.close()
