"""What runs in a worker, wherever that is: some jobs and their inputs become outcomes.

A job that fails is an outcome too, with its log and its traceback: it never ends the worker, and
what it was computed beside is not lost.
"""

import contextlib
import io
import logging
import os
import pickle
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

from flatminima.store import Artifact
from flatminima.study.job import Job
from flatminima.study.provenance import provenance

Work: TypeAlias = Callable[[Job, Mapping[str, Artifact]], dict[str, bytes]]
"""Does one job: takes it and, by the digests of those it depends on, the files that it reads."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its artifact, or the error that it ended with.

    Attributes:
        artifact: The files it made; nothing if it failed.
        seconds: How long it took.
        log: What it printed and warned of, when and where it ran, and the traceback of its error.
        about: Versions, machine and start, for the record of its results.
        error: Why there is no artifact.
    """

    artifact: dict[str, bytes] | None
    seconds: float
    log: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    error: BaseException | None = None


def compute(
    work: Work, jobs: Sequence[Job], inputs: Mapping[str, Artifact], *, capture: bool = True
) -> list[Outcome]:
    """Do some jobs, one after the other.

    Args:
        work: Does one of them.
        jobs: What to do; jobs given together read the same inputs.
        inputs: The files they read, by the digest of the job that made them.
        capture: Keep what they print for their logs. A process that prints for itself does not.
    """
    return [_compute(work, job, inputs, capture) for job in jobs]


def _compute(work: Work, job: Job, inputs: Mapping[str, Artifact], capture: bool) -> Outcome:
    """Do one job; only an interrupt passes through."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    log = io.StringIO()
    run = job.run
    print(f"{job.label} ({job.name})", file=log)
    print(f"{started} on {platform.node()}, process {os.getpid()}", file=log)
    start = time.perf_counter()
    artifact, error = None, None
    try:
        with _printing_to(log) if capture else contextlib.nullcontext():
            artifact = work(job, inputs)
    except Exception as failure:
        traceback.print_exception(failure, file=log)
        error = _sendable(failure)
    seconds = time.perf_counter() - start
    print(f"{'failed' if error else 'finished'} after {seconds:.1f} s", file=log)
    about = {
        **provenance(run.get("device", "cpu")),
        "started": started,
        "threads": run.get("threads"),
    }
    return Outcome(artifact, seconds, log.getvalue(), about, error)


@contextlib.contextmanager
def _printing_to(log: io.StringIO) -> Iterator[None]:
    """What is printed, warned of or logged inside goes to `log`."""
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        logging.getLogger().removeHandler(handler)


def _sendable(error: Exception) -> Exception:
    """The error, or one of the same words if it cannot travel between processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    # Its frames hold on to all that the job had in memory; where it happened is in the log.
    return error.with_traceback(None)
