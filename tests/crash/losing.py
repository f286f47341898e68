"""Jobs that lose their workers, by their labels; those who do them import this by name."""

import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from flatminima.store import Artifact
from flatminima.study.job import Job


def job(label: str, notes: Path, *needs: Job) -> Job:
    """A job; what it does is noted in a file."""
    return Job(
        "network",
        {
            "data": {"dataset": "digits", "limit": 10},
            "model": {"name": "mlp"},
            "name": label,
            "notes": str(notes),
        },
        dependencies=tuple(need.digest for need in needs),
        inputs=tuple((need.kind, ("",)) for need in needs),
        label=label,
    )


def note(notes: Path | str, words: str) -> None:
    """Take note of something."""
    with Path(notes).open("a") as file:
        print(words, file=file)


def noted(notes: Path | str, words: str) -> int:
    """How often something has been noted."""
    path = Path(notes)
    return path.read_text().splitlines().count(words) if path.exists() else 0


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something has come true, for a minute at most."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def misbehave(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    """Do as the job is called."""
    notes = job.settings["notes"]

    def die() -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it lives")

    note(notes, f"{job.label} begins")
    first = noted(notes, f"{job.label} begins") == 1
    match job.label:
        case "die":
            die()
        case "quit":
            os._exit(7)
        case "endless":
            time.sleep(1000)
        case "once" if first:
            die()
        case "half" if first:
            half_a_result()
            die()
        case "stay":
            if first:
                die()
            time.sleep(1000)
        case "crowded":
            wait_until(lambda: noted(notes, "beside begins") == 1)
            if not noted(notes, "beside ends"):
                die()
        case "beside":
            wait_until(lambda: noted(notes, "lost crowded") == 2)
            note(notes, "beside ends")
    return {"name": job.label.encode()}


def half_a_result() -> None:
    """Hand over the first four bytes of a result, which announce a thousand more."""
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    os.write(frame.f_locals["result_queue"]._writer.fileno(), struct.pack("!i", 1000))


def never_up() -> None:
    """End a worker process that is being set up."""
    os._exit(3)
