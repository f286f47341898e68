"""What a run says of itself while it lasts: `studies/<name>/live.json`.

The driver writes it and never reads it; others read it and never write it, so that looking at a run
cannot disturb it. It holds nothing that results depend on, and a run goes on where it cannot be
written. It is a JSON object:

* `study`, `executor`, `workers` (null on a cluster that is there already), `address`;
* `host`, `pid`, `machine` and `birth`, by which the process is known again on its own machine;
* `started`, `heartbeat` (renewed every few seconds) and, once it is over, `ended`, in UTC;
* `running`: the `job`, `label` and `since` of what is being computed;
* `failed`: the `job`, `label` and `reason` of what failed in this run;
* `error`: why the run ended, if not because all was done.
"""

import contextlib
import json
import os
import platform
import re
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from flatminima.store import Store, write_text
from flatminima.study.execute import Event, Listener, StudyFailed
from flatminima.study.job import Job

_BEAT = 3.0  # seconds between two signs of life
_PAUSE = 0.5  # seconds at least between two writes
# Seconds without a sign after which a run elsewhere is given up: a shared folder may show a file as
# it was a minute ago.
_SILENCE = 90.0
_LONGEST_REASON = 300  # characters

State = Literal["none", "running", "ended", "lost"]
"""Of a study's run: there was none, it is at work, it said goodbye, it went without a word."""


class Live:
    """A listener that keeps `live.json` while it is entered, and passes on what it hears.

    Args:
        store: Held by this process.
        study: The study's name.
        executor: Where its jobs are computed.
        workers: On how many processes.
        address: Of a cluster that is there already.
        listener: Told of everything, too.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        *,
        executor: str,
        workers: int | None,
        address: str | None = None,
        listener: Listener | None = None,
    ) -> None:
        self._store, self._path, self._listener = store, live_path(store, study), listener
        self._about: dict[str, Any] = {
            "study": study,
            "executor": executor,
            "workers": workers,
            "address": address,
            "host": platform.node(),
            "pid": os.getpid(),
            "machine": _machine(),
            "birth": _birth(os.getpid()),
            "started": _now(),
        }
        self._running: dict[str, dict[str, str]] = {}
        self._failed: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        self._news, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="live", daemon=True)

    def __enter__(self) -> "Live":
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._news.set()
        self._thread.join()
        with self._lock:
            self._running.clear()
        self._write(ended=_now(), error=_words(error))

    def __call__(self, event: Event, job: Job, seconds: float) -> None:
        """Take note of a job's start or end; one that lost its worker waits for another start."""
        about = {"job": job.name, "label": job.label}
        with self._lock:
            if event == "started":
                self._running[job.digest] = {**about, "since": _now()}
                self._failed.pop(job.digest, None)
            else:
                self._running.pop(job.digest, None)
            if event == "failed":
                # Its log is written before anybody is told.
                reason = failure(read_log(self._store, job.kind, job.digest)) or "no reason known"
                self._failed[job.digest] = {**about, "reason": reason}
        self._news.set()
        if self._listener is not None:
            self._listener(event, job, seconds)

    def _keep(self) -> None:
        """Write what is new, but not too often, and a sign of life where nothing is."""
        while not self._stop.wait(_PAUSE):
            self._news.wait(_BEAT - _PAUSE)
            if not self._stop.is_set():
                self._news.clear()
                self._write()

    def _write(self, ended: str | None = None, error: str | None = None) -> None:
        with self._lock:
            text = json.dumps(
                {
                    **self._about,
                    "heartbeat": _now(),
                    "ended": ended,
                    "error": error,
                    "running": list(self._running.values()),
                    "failed": list(self._failed.values()),
                },
                indent=1,
            )
        # A full disk is the business of whoever writes results.
        with contextlib.suppress(OSError):
            write_text(self._path, text + "\n", flush=False)


def live_path(store: Store, study: str) -> Path:
    """Where a study's run says what it does."""
    return store.root / "studies" / study / "live.json"


def read_live(store: Store, study: str) -> dict[str, Any]:
    """What the last run of a study says of itself; empty where it says nothing legible."""
    try:
        value = json.loads(live_path(store, study).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(value, dict):
        return {}
    for name in ("running", "failed"):
        listed = value.get(name)
        value[name] = [
            {"label": entry["job"], **entry}
            for entry in (listed if isinstance(listed, list) else [])
            if isinstance(entry, dict) and isinstance(entry.get("job"), str)
        ]
    return value


def state(live: Mapping[str, Any], *, now: datetime | None = None) -> State:
    """Whether a run is at work, from what it said last.

    On its own machine the process itself is looked for, so that neither a suspended run nor one
    whose number another process has got by now is mistaken. Elsewhere its signs of life decide.

    Args:
        live: See `read_live`.
        now: The time, if not that of this machine's clock.
    """
    if not live:
        return "none"
    if live.get("ended"):
        return "ended"
    pid = live.get("pid")
    if live.get("machine") == _machine() and isinstance(pid, int):
        there = _exists(pid, live.get("birth"))
        if there is not None:
            return "running" if there else "lost"
    silent = seconds_since(live.get("heartbeat"), now=now)
    return "running" if silent is not None and silent < _SILENCE else "lost"


def seconds_since(moment: object, *, now: datetime | None = None) -> float | None:
    """Seconds since a moment in `live.json`, none below 0; nothing if it is no moment."""
    try:
        then = datetime.fromisoformat(str(moment))
        return max(0.0, ((now or datetime.now(UTC)) - then).total_seconds())
    except (TypeError, ValueError):
        return None


def read_log(store: Store, kind: str, digest: str) -> str:
    """A job's log, as far as it can be read."""
    try:
        return store.log_path(kind, digest).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def failure(log: str) -> str | None:
    """Why a job failed, in one line, from its log; nothing if it did not fail or there is none."""
    lines = log.strip().splitlines()
    if not lines or lines[-1].startswith("finished after "):
        return None
    if lines[-1].startswith("failed after "):
        lines.pop()
    # An error's words come after the traceback, whose lines are indented.
    last = max((n for n, line in enumerate(lines) if line.startswith("  ")), default=-1)
    words = " ".join(" ".join(lines[last + 1 :] if last >= 0 else lines[-1:]).split())
    # Errors about what was given explain themselves; see `StudyFailed`.
    words = re.sub(r"^(ValueError|flatminima\.[\w.]+Error): ", "", words)
    return words[:_LONGEST_REASON] or "no reason known"


def _words(error: BaseException | None) -> str | None:
    """The end of a run in a line."""
    if error is None:
        return None
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, StudyFailed):
        count = len(error.errors)
        return f"{count} {'job' if count == 1 else 'jobs'} failed"
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _machine() -> str:
    """What tells apart the places in which a process number means one process."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        parts += [boot.strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _birth(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; nothing if it is over or unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int, birth: object) -> bool | None:
    """Whether the process that was born so is there; nothing if this system does not say."""
    if isinstance(birth, str):
        return _birth(pid) == birth
    if os.name != "posix":  # asking elsewhere would end it
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return None  # somebody has this number; whether it is the run, its signs of life tell
