"""Kill studies at random moments, run the same command again, and see what was lost or changed.

`killed_study` runs a study through the command line, in a process of its own, and ends it with
SIGKILL again and again. Some kills are of the driver alone, of its whole process group, or of one
worker, at a moment drawn uniformly over the time that what is left of the study takes undisturbed,
counted from the last line that was printed before, so that a busy machine shifts it little. A run
that loses a worker goes on: half of them finish, in the others the driver is killed later. Some
kills are of the driver right before one of its changes to the store, because most of a run's time
goes by without any: the part of the store is drawn, then one of the changes there. After every kill
the store is read, without the code that wrote it, and at the end it must be, file by file, that of
a serial run which was never disturbed.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

NAME = "crash"
# Many short steps of every kind: segments of training, tiles of a surface, blocks of radii.
STUDY = f"""\
name = "{NAME}"
title = "A study to be killed"

[data]
dataset = "digits"
limit = 60

[[groups]]
name = "natural"

[model]
name = "mlp"

[model.settings]
sizes = [64, 8, 10]

[training]
epochs = 12
batch_size = 8
learning_rate = 0.2
networks = 3
match_loss = 1.5
segment_epochs = 1

[surface]
resolution = 8
tile = 4

[radius]
directions = 3
block = 1
protocols = ["crossing"]

[report]
quick = true
"""
HEAD = 5
"""Lines that a run says before it begins."""
LOST = re.compile(
    r"flatminima: .+: its worker process was lost after [\d.]+ s \(out of memory\?\); it is done"
    r" again"
)
"""What a run says of a worker that was killed at work; of one with nothing to do it is silent."""

CHANGE = "driver before a change"
# What is killed, each as often as any other.
_WAYS = ("driver", "group", "worker", CHANGE)
_WAYS_ALONE = ("driver", "group", CHANGE)  # there are no workers

_MAIN = "from flatminima.cli import main; main()"
_SCRIPT = Path(sys.executable).with_name("flatminima")
START = (str(_SCRIPT),) if _SCRIPT.exists() else (sys.executable, "-c", _MAIN)
_MARK = "FLATMINIMA_KILLS"  # every process that we start carries it in its environment
_PATIENCE = 60.0  # seconds that processes without a driver may take to end, on a busy machine
_LONGEST = 600.0  # seconds after which a run counts as hanging
# Files of which the bytes say when and where they were made; their names are compared all the same.
_TOLD = ("report.html", "live.json", ".log", ".lock")


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
        end = self._began + _LONGEST
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
            return self.process.wait(_LONGEST)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def finish(self) -> int:
        """Its exit code once it has ended by itself and everything that it said was read."""
        code = self.wait()
        self._reader.join(_PATIENCE)
        return code

    def errors(self) -> list[str]:
        """The lines on its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").splitlines()

    def wait_gone(self) -> float | None:
        """Seconds until nothing of it runs any more, or nothing if something goes on."""
        began = time.monotonic()
        gone = wait_until(lambda: not marked(self.mark), _PATIENCE)
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


@dataclass(frozen=True)
class Course:
    """How long an undisturbed run is silent before each of its lines, and before its end.

    Attributes:
        head: Seconds before each line of what it announces.
        jobs: Before each job's line; the first holds the loading of libraries.
        tail: Before each line on the report and the end, and before the process is over.
    """

    head: tuple[float, ...]
    jobs: tuple[float, ...]
    tail: tuple[float, ...]

    @classmethod
    def of(cls, said: Sequence[tuple[float, str]], ended: float) -> "Course":
        """From the lines of a whole run and the seconds after which it ended."""
        times = [0.0, *(seconds for seconds, _ in said), ended]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        places = [number for number, (_, line) in enumerate(said) if line.startswith("[")]
        first, last = places[0], places[-1] + 1
        return cls(tuple(gaps[:first]), tuple(gaps[first:last]), tuple(gaps[last:]))

    def left(self, jobs: int) -> tuple[float, ...]:
        """The silences of a run that has so many jobs left."""
        if jobs <= 0:  # nothing is announced; the first line is on the report
            return (self.head[0] + self.tail[0], *self.tail[1:])
        others = self.jobs[len(self.jobs) - jobs + 1 :]
        return (*self.head, self.jobs[0], *others, *self.tail)


def moment(gaps: Sequence[float], share: float) -> tuple[int, float]:
    """The lines before a moment at a share of the whole time, and the seconds since the last."""
    seconds = share * sum(gaps)
    for lines, gap in enumerate(gaps):
        if seconds < gap:
            return lines, seconds
        seconds -= gap
    return len(gaps) - 1, gaps[-1]


def content(out: Path) -> dict[str, str]:
    """What must be the same in two stores of one study: digests by the names of the files.

    Records count without their provenance. Of logs, locks, the page of the report and what a run
    says of itself, which tell when and where things were done, only the names count.
    """
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if name.endswith(_TOLD):
            found[name] = ""
        elif path.name in ("run.json", "discarded.json") and name.startswith("jobs/"):
            record = json.loads(path.read_bytes())
            del record["provenance"]
            found[name] = _digest(json.dumps(record, sort_keys=True).encode())
        else:
            found[name] = _digest(path.read_bytes())
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """A line for each file that one of two stores lacks or that differs."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: not in the undisturbed store" for name in sorted(found.keys() - expected)]
    both = sorted(found.keys() & expected.keys())
    return lines + [f"{name}: differs" for name in both if found[name] != expected[name]]


@dataclass(frozen=True)
class Trained:
    """A study of which nothing but the training was asked for, and done.

    Attributes:
        study: Its file.
        out: The store.
        content: What `content` says of it.
    """

    study: Path
    out: Path
    content: dict[str, str]


def said_finished(said: Sequence[tuple[float, str]]) -> set[str]:
    """The labels of the jobs that a run has said to be finished; see `Driver.said`."""
    lines = (line for _, line in said if line.startswith("["))
    return {line.partition("] ")[2].rpartition(": ")[0] for line in lines if ": " in line}


def finished(out: Path) -> set[str]:
    """The labels of the jobs that a store has a record of."""
    manifest = json.loads((out / "studies" / NAME / "manifest.json").read_bytes())
    names = {path.parent.name for path in (out / "jobs").glob("*/*.json")}
    return {
        job["label"] for job in manifest["jobs"] if f"{job['kind']}-{job['digest'][:20]}" in names
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Look:
    """What is in a store whose run was killed.

    Attributes:
        records: Digests of the records of finished jobs, by the names of their folders.
        waste: What is in the folder for things that are being made.
        doing: What was going on.
        faults: Whatever must not be.
    """

    records: dict[str, str]
    waste: frozenset[str]
    doing: str
    faults: list[str]


def look(out: Path, reference: "Reference", before: Look | None) -> Look:
    """See what a killed run left, and compare it with what the last one did."""
    records, faults, half = {}, [], []
    jobs = out / "jobs"
    for folder in sorted(jobs.iterdir()) if jobs.exists() else ():
        path = folder / "run.json"
        gone = not path.exists()
        if gone:
            path = folder / "discarded.json"
            if not path.exists():
                continue  # being replaced
            if (folder / "payload").exists():
                half.append(folder.name)
        data = path.read_bytes()
        records[folder.name] = _digest(data)
        payload = json.loads(data)["payload"]
        if payload != reference.payloads.get(folder.name):
            faults.append(f"{folder.name}: records another payload than the undisturbed run")
        for name, digest in {} if gone else payload.items():
            file = folder / "payload" / name
            if not file.is_file() or _digest(file.read_bytes()) != digest:
                faults.append(f"{folder.name}/payload/{name}: missing or altered")
    if before is not None:
        for name, digest in before.records.items():
            if records.get(name) != digest:
                faults.append(f"{name}: was finished, and is lost or was done again")
    aside = out / "tmp"
    waste = frozenset(path.name for path in aside.iterdir()) if aside.exists() else frozenset()
    new = sorted(waste - (before.waste if before is not None else frozenset()))
    return Look(records, waste, _doing(out, reference, records, new, half), faults)


def _doing(
    out: Path,
    reference: "Reference",
    records: dict[str, str],
    new: Sequence[str],
    half: Sequence[str],
) -> str:
    """What a run was at, as far as its store tells."""
    path = out / "studies" / NAME / "manifest.json"
    if not path.exists():
        return "starting"
    if new:
        return f"storing {', '.join(name.rpartition('.')[0] for name in new)}"
    if half:
        return f"discarding {', '.join(half)}"
    left = [label for name, label in reference.labels.items() if name not in records]
    if left:
        return f"computing {left[0]}"
    if "report" in json.loads(path.read_bytes()):
        return "ending"
    page = out / "reports" / NAME
    drawn = len(list(page.iterdir())) if page.exists() else 0
    return f"writing the report, {drawn} files so far"


@dataclass(frozen=True)
class Reference:
    """A serial run that nothing disturbed.

    Attributes:
        content: What `content` says of its store.
        payloads: The recorded digests of each job's files, by the names of the folders.
        labels: What jobs are called, by the names of their folders, in the order of the plan.
        course: How long a run takes, by executor; "serial" stands for others.
        changes: How many changes the serial run made, by the part of the store; "." is its root.
    """

    content: dict[str, str]
    payloads: dict[str, dict[str, str]]
    labels: dict[str, str]
    course: dict[str, Course]
    changes: dict[str, int]

    def change(self, jobs: int, draw: random.Random) -> tuple[str, int]:
        """One of the changes that a run with so many jobs left makes: the part, and which there."""
        parts = sorted(self.changes) if jobs else ["reports", "studies"]
        part = draw.choice(parts)
        count = self.changes[part]
        if part not in ("reports", "."):
            count = count * jobs // len(self.labels)
        return part, draw.randint(1, max(1, count))

    @property
    def digest(self) -> str:
        """One digest of everything that is compared."""
        return _digest(json.dumps(self.content, sort_keys=True).encode())


def undisturbed(folder: Path, executors: Sequence[str] = (), workers: int = 2) -> Reference:
    """Run the study in peace: serially, and with each of `executors` to see how long it takes.

    Raises:
        RuntimeError: A run fails, or does not yield what the serial one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study = folder / f"{NAME}.toml"
    study.write_text(STUDY, encoding="utf-8")
    course, contents = {}, {}
    for executor in dict.fromkeys(["serial", *executors]):
        out = folder / f"undisturbed-{executor}"
        shutil.rmtree(out, ignore_errors=True)
        words = command(study, out, executor, workers)
        if executor == "serial":
            words = watched(words, out, folder / "changes.json")
        began = time.monotonic()
        with started(words) as driver:
            code = driver.finish()
            course[executor] = Course.of(driver.said, time.monotonic() - began)
            if code or driver.errors() or marked(driver.mark):
                raise RuntimeError(f"an undisturbed run ended with {code}: {driver.errors()}")
        contents[executor] = content(out)
        unequal = differences(contents[executor], contents["serial"])
        if unequal:
            raise RuntimeError(f"executor {executor} yields other files: {unequal[:5]}")
    out = folder / "undisturbed-serial"
    payloads = {
        path.parent.name: json.loads(path.read_bytes())["payload"]
        for name in ("run.json", "discarded.json")
        for path in (out / "jobs").glob(f"*/{name}")
    }
    manifest = json.loads((out / "studies" / NAME / "manifest.json").read_bytes())
    labels = {f"{job['kind']}-{job['digest'][:20]}": job["label"] for job in manifest["jobs"]}
    changes = Counter(part for part, _ in json.loads((folder / "changes.json").read_bytes()))
    return Reference(contents["serial"], payloads, labels, course, dict(changes))


@contextlib.contextmanager
def started(words: Sequence[str], mark: str = "") -> Iterator[Driver]:
    """A command that runs while this is entered; nothing of it does afterwards."""
    driver = Driver(words, mark or f"{os.getpid()}-{random.SystemRandom().getrandbits(64):x}")
    try:
        yield driver
    finally:
        driver.close()


def killed_study(
    reference: Reference,
    folder: Path,
    *,
    number: int,
    seed: int,
    executor: str,
    workers: int = 2,
    kills: int = 4,
    number_of_signal: signal.Signals = signal.SIGKILL,
    first: int = 1,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the study and kill it up to so often; then let it finish, and compare.

    Args:
        reference: What comes out where nothing disturbs it.
        folder: Where `undisturbed` has put the study; the store is made here, and stays if there
            are faults.
        number: Of this study; decides the moments together with `seed`.
        seed: Draws moments, and who is killed.
        executor: What the command is told.
        workers: Its processes.
        kills: At most so many. A run that ends before its moment has come is the last one.
        number_of_signal: Another one than SIGKILL must be obeyed in one line and exit code 1.
        first: What the first kill is called.
        say: Told a line for each kill and for the study.

    Returns:
        JSON values: `executor`, `kills` with an entry for each, `files` that are the same at the
        end, and `faults`, of which there must be none.
    """
    draw = random.Random(f"{seed}-{number}")
    out, note = folder / f"study-{number}", folder / f"change-{number}.json"
    shutil.rmtree(out, ignore_errors=True)
    words = command(folder / f"{NAME}.toml", out, executor, workers)
    mark = f"{os.getpid()}-{draw.getrandbits(64):x}"
    entries: list[dict[str, Any]] = []
    faults: list[str] = []
    seen: Look | None = None
    told: set[str] = set()
    with contextlib.ExitStack() as stack:
        while True:
            # Whatever comes of it, the next kill is drawn from the same place in the stream.
            share = draw.random()
            way = draw.choice(_WAYS_ALONE if executor == "serial" else _WAYS)
            at_once, which = draw.random() < 0.5, random.Random(draw.getrandbits(64))
            if len(entries) == kills:
                driver = stack.enter_context(started(words, f"{mark}-{len(entries)}"))
                break
            left = len(reference.labels) - (len(seen.records) if seen else 0)
            course = reference.course.get(executor, reference.course["serial"])
            gaps = course.left(left)
            change = reference.change(left, which) if way == CHANGE else None
            asked = watched(words, out, note, change) if change else words
            lines, seconds = moment(gaps, share)
            if number_of_signal != signal.SIGKILL and not lines:
                lines, seconds = 1, 0.0  # before that Python has not set up anything yet
            driver = stack.enter_context(started(asked, f"{mark}-{len(entries)}"))
            if change is None:
                if not driver.wait_for(lines, seconds, usual=sum(gaps[:lines])):
                    break
                way = driver.end(way, number_of_signal, which)
                elapsed = driver.elapsed()
                if way == "worker" and which.random() < 0.5:
                    later, rest = moment(gaps, share + (1 - share) * which.random())
                    if driver.wait_for(later, rest, usual=sum(gaps[:later])):
                        driver.end("driver", number_of_signal, which)
                code = driver.wait()
            else:
                code = driver.wait()
                elapsed = driver.elapsed()
            if code == 0 and way != "worker":
                break  # it was over before the signal came, or the change
            gone = None if at_once else driver.wait_gone()
            found = look(out, reference, seen)
            entry = {
                "seed": f"{seed}-{number}",
                "executor": executor,
                "killed": way,
                "seconds": elapsed,
                "lines": len(driver.said),
                "change": change,
                "doing": f"about to {json.loads(note.read_bytes())}" if change else found.doing,
                "finished": len(found.records),
                "jobs": len(reference.labels),
                "aside": len(found.waste),
                "code": code,
                "gone_after": gone,
            }
            told |= said_finished(driver.said)
            wrong = [*found.faults, *_answer(driver, code, way, number_of_signal)]
            stored = {label for name, label in reference.labels.items() if name in found.records}
            wrong += [f"{label}: was said to be finished" for label in sorted(told - stored)]
            if gone is None and not at_once:
                wrong.append(f"processes {marked(driver.mark)} go on without their driver")
            entry["faults"] = wrong
            faults += wrong
            entries.append(entry)
            say(f"kill {first + len(entries) - 1}: {_line(entry)}")
            seen = found
            if code == 0:
                break
        if entries and entries[-1]["code"] == 0:
            driver = stack.enter_context(started(words, f"{mark}-{len(entries)}"))
        code = driver.finish()
        if code or driver.errors():
            faults.append(f"the last run ended with {code}: {driver.errors()}")
        faults += _whole(words, out, reference, seen)
        if not wait_until(lambda: not marked(mark), _PATIENCE):
            faults.append(f"processes {marked(mark)} go on")
    result = {
        "number": number,
        "executor": executor,
        "kills": entries,
        "files": len(reference.content),
        "faults": faults,
    }
    say(
        f"study {number}, {executor}: finished after {len(entries)} kills; "
        + (_some(faults) or f"{len(reference.content)} files are the same")
    )
    if not faults:
        shutil.rmtree(out)
    return result


def _whole(words: Sequence[str], out: Path, reference: Reference, seen: Look | None) -> list[str]:
    """What is wrong with the store of a study that has finished."""
    faults = look(out, reference, seen).faults
    faults += differences(content(out), reference.content)
    aside = out / "tmp"
    faults += [f"tmp/{path.name}: left over" for path in aside.glob("*")]
    start = words[: len(START)]
    for asked, answer in (
        ([*start, "verify", str(out)], "files are as they were recorded"),
        (words, "nothing to do"),
    ):
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=_LONGEST)
        if told.returncode or answer not in told.stdout or told.stderr:
            faults.append(f"expected {answer!r}, got {told.stdout!r} and {told.stderr!r}")
    return faults


def _answer(driver: Driver, code: int, way: str, number: signal.Signals) -> list[str]:
    """What is wrong with the end of a driver."""
    said = driver.errors()
    if number == signal.SIGKILL and way == "worker":
        good = code in (0, -signal.SIGKILL) and len(said) <= 1 and all(map(LOST.fullmatch, said))
        return [] if good else [f"expected a run that goes on, got code {code} and {said}"]
    if number == signal.SIGKILL:
        return [] if code == -signal.SIGKILL else [f"expected a killed driver, got code {code}"]
    if driver.said and driver.said[-1][1].startswith(f"{NAME}: done"):
        return []  # Python is shutting down, and nothing was left to be kept
    good = (code == 0 and not said) or (
        code == 1 and len(said) == 1 and said[0].startswith("flatminima: ")
    )
    return [] if good else [f"expected code 1 and one line, got {code} and {said}"]


def _some(faults: Sequence[str]) -> str:
    """The first few of them."""
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more


def _line(entry: dict[str, Any]) -> str:
    """A kill in a line."""
    gone = entry["gone_after"]
    ended = "resumed at once" if gone is None else f"all processes gone after {gone:.1f} s"
    wrong = _some(entry["faults"]) or "all of it intact"
    return (
        f"seed {entry['seed']}, {entry['executor']}, {entry['killed']}, after"
        f" {entry['seconds']:.2f} s, {entry['doing']}: {entry['finished']} of {entry['jobs']} jobs"
        f" are finished, {wrong}, {entry['aside']} unfinished aside; {ended}"
    )
