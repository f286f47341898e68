"""Kill studies at random moments, run the same command again, and see what was lost or changed.

`killed_study` runs a study through the command line, in a process of its own, and ends it with
SIGKILL again and again. Some kills are of the driver alone, of its whole process group, or of one
worker, at a moment drawn uniformly over the time that what is left of the study takes undisturbed,
counted from the last line that was printed before, so that a busy machine shifts it little. A run
that loses a worker goes on: half of them finish, in the others the driver is killed later. Some
kills are of the driver right before one of its changes to the store, because most of a run's time
goes by without any: the part of the store is drawn, then one of the changes there. After every kill
the store is read, without the code that wrote it, and at the end it must be, file by file, that of
a serial run which was never disturbed. Instead of a kill the power of the disk can be cut; see
`crash.power`.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crash.course import Course, moment
from crash.driver import (
    LONGEST,
    PATIENCE,
    START,
    Driver,
    command,
    marked,
    started,
    wait_until,
    watched,
)
from crash.power import Disk
from crash.stores import Look, Reference, content, differences, look, said_finished
from crash.study import LOST, NAME, STUDY

POWER = "power"
CHANGE = "driver before a change"
# What is killed, each as often as any other.
_WAYS = ("driver", "group", "worker", CHANGE)
_WAYS_ALONE = ("driver", "group", CHANGE)  # there are no workers
_WAYS_POWER = (POWER, CHANGE)  # the power goes with the driver, or after it
# Seconds between the driver's end and the power's: the names of what it did last may get through.
_LINGER = 1.5
_INTACT = "files are as they were recorded"


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
    disk: Disk | None = None,
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
        disk: Where the store is made instead, attached; its power is cut, and all processes end.
        first: What the first kill is called.
        say: Told a line for each kill and for the study.

    Returns:
        JSON values: `executor`, `kills` with an entry for each, `files` that are the same at the
        end, and `faults`, of which there must be none.
    """
    draw = random.Random(f"{seed}-{number}")
    out, note = (
        (disk.path if disk else folder) / f"study-{number}",
        folder / f"change-{number}.json",
    )
    words = command(folder / f"{NAME}.toml", out, executor, workers)
    # A disk is not seen by everybody: the name of the store for us, and how commands are run.
    here, ours = (disk.seen(out), disk.inside) if disk else (out, list)
    ways = _WAYS_POWER if disk else _WAYS_ALONE if executor == "serial" else _WAYS
    shutil.rmtree(here, ignore_errors=True)
    mark = f"{os.getpid()}-{draw.getrandbits(64):x}"
    entries: list[dict[str, Any]] = []
    faults: list[str] = []
    seen: Look | None = None
    told: set[str] = set()
    with contextlib.ExitStack() as stack:
        while True:
            # Whatever comes of it, the next kill is drawn from the same place in the stream.
            share = draw.random()
            way = draw.choice(ways)
            at_once, which = draw.random() < 0.5, random.Random(draw.getrandbits(64))
            if len(entries) == kills:
                driver = stack.enter_context(started(ours(words), f"{mark}-{len(entries)}"))
                break
            left = len(reference.labels) - (len(seen.records) if seen else 0)
            course = reference.course.get(executor, reference.course["serial"])
            gaps = course.left(left)
            change = reference.change(left, which) if way == CHANGE else None
            asked = watched(words, out, note, change) if change else words
            lines, seconds = moment(gaps, share)
            if number_of_signal != signal.SIGKILL and not lines:
                lines, seconds = 1, 0.0  # before that Python has not set up anything yet
            driver = stack.enter_context(started(ours(asked), f"{mark}-{len(entries)}"))
            if change is None:
                if not driver.wait_for(lines, seconds, usual=sum(gaps[:lines])):
                    break
                if disk:
                    disk.cut()
                    driver.end("group", signal.SIGKILL, which)
                else:
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
                if disk and code:
                    time.sleep(which.random() * _LINGER)
                    disk.cut()
            if code == 0 and way not in ("worker", POWER):
                break  # it was over before the signal came, or the change
            gone = None if at_once and not disk else driver.wait_gone()
            if disk:
                disk.restart()
            found = look(here, reference, seen)
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
            if gone is None and (disk or not at_once):
                wrong.append(f"processes {marked(driver.mark)} go on without their driver")
            entry["faults"] = wrong
            faults += wrong
            entries.append(entry)
            say(f"kill {first + len(entries) - 1}: {_line(entry)}")
            seen = found
            if code == 0:
                break
        if entries and entries[-1]["code"] == 0:
            driver = stack.enter_context(started(ours(words), f"{mark}-{len(entries)}"))
        code = driver.finish()
        if code or driver.errors():
            faults.append(f"the last run ended with {code}: {driver.errors()}")
        faults += look(here, reference, seen).faults
        faults += differences(content(here), reference.content)
        faults += [f"tmp/{path.name}: left over" for path in (here / "tmp").glob("*")]
        faults += _answers(ours([*words[: len(START)], "verify", str(out)]), _INTACT)
        faults += _answers(ours(words), "nothing to do")
        if not wait_until(lambda: not marked(mark), PATIENCE):
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
        shutil.rmtree(here)
    return result


def killed_so_often(
    reference: Reference, folder: Path, *, kills: int, number: int, **options: Any
) -> list[str]:
    """What is wrong with as many studies as so many kills take; see `killed_study`."""
    faults: list[str] = []
    while kills > 0:  # a run may be over before its moment comes
        study = killed_study(reference, folder, number=number, kills=kills, **options)
        faults += study["faults"]
        kills -= len(study["kills"])
        number += 10
    return faults


def _answers(words: Sequence[str], answer: str) -> list[str]:
    """What is wrong with what a command says of a store that is whole."""
    told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LONGEST)
    if told.returncode or answer not in told.stdout or told.stderr:
        return [f"expected {answer!r}, got {told.stdout!r} and {told.stderr!r}"]
    return []


def _answer(driver: Driver, code: int, way: str, number: signal.Signals) -> list[str]:
    """What is wrong with the end of a driver."""
    if way == POWER:
        return []  # killed with it, or so soon after it that it may have had a last word
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
