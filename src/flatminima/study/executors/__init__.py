"""Where jobs are computed: in this process, in several, or on a cluster.

An executor takes jobs with the files they read and gives a future of their outcomes; it writes
nothing. Another way to compute is another such object and nothing else.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from flatminima.store import Artifact
from flatminima.study.job import Job
from flatminima.study.worker import Outcome, Work

NAMES = ("serial", "processes", "ray")


class ClusterGone(RuntimeError):
    """A cluster that does not answer any more, or cannot go on; finished work is kept."""


@dataclass(frozen=True)
class Wanted:
    """Files of one finished job that another one reads: those whose names begin with `under`."""

    kind: str
    digest: str
    under: tuple[str, ...]


Read: TypeAlias = Callable[[Wanted], Artifact]
Tell: TypeAlias = Callable[[Literal["lost", "started"], Job, float], None]
"""Told that a job lost its worker after so many seconds, and that it is begun again."""


@runtime_checkable
class Executor(Protocol):
    """Computes jobs, now or later, here or elsewhere.

    Attributes:
        capacity: How many tasks it is worth giving it at a time; may change as it works.
        grain: Seconds of work that a task is worth making up of several jobs; 0 is one job a task.
        in_process: Jobs run in this process, where an interrupt must reach them.
    """

    grain: float
    in_process: bool

    @property
    def capacity(self) -> int:
        """How many tasks it is worth giving it at a time."""
        ...

    def submit(
        self, work: Work, jobs: Sequence[Job], wanted: Sequence[Wanted], read: Read
    ) -> "Future[list[Outcome]]":
        """Begin to do `jobs`, which all read what `wanted` names and `read` gets."""
        ...

    def check(self) -> None:
        """Called at least four times a second while jobs run, where an interrupt would show first.

        Raises:
            RuntimeError: Nothing will come of them any more; the line says why.
        """
        ...


def gathered(wanted: Sequence[Wanted], files: Sequence[Artifact]) -> dict[str, Artifact]:
    """The files of each job that is read, by its digest."""
    inputs: dict[str, dict[str, bytes]] = {}
    for item, found in zip(wanted, files, strict=True):
        inputs.setdefault(item.digest, {}).update(found)
    return dict(inputs)


@dataclass(frozen=True)
class Takes:
    """What one job takes of a node of a cluster.

    Attributes:
        cpus: Cores.
        gpus: Accelerators, or a share of one.
        memory: Bytes.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 2 << 30

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus:g} CPUs{gpus} and {self.memory / 2**30:g} GiB of memory"


def open_executor(
    name: str,
    workers: int | None = None,
    *,
    address: str | None = None,
    takes: Mapping[str, Takes] | None = None,
    tell: Tell | None = None,
) -> contextlib.AbstractContextManager[Executor]:
    """The executor called `name`, to be entered and left.

    Args:
        name: "serial", "processes", or "ray".
        workers: Processes; for "ray" the processes of a cluster of its own on this machine.
        address: For "ray", a cluster that is there already, as `ray.init` takes it.
        takes: For "ray", what a job takes of a node, by its kind.
        tell: For "processes", told of jobs that are done again; Ray keeps that to itself.

    Raises:
        ValueError: For an unknown name, no workers, an address without "ray", where Ray is not
            installed, and for a cluster that does not answer, refuses, or has no node for a job.
    """
    if name not in NAMES:
        words = ", ".join(map(repr, NAMES))
        raise ValueError(f"expected an executor out of {words}, got {name!r}; name one")
    if workers is not None and workers < 1:
        raise ValueError(f"expected at least 1 worker, got {workers}; use --workers 1 or more")
    if address is not None and name != "ray":
        raise ValueError(
            f"expected no address with executor {name!r}, got {address!r}; leave it out"
        )
    if address is not None and workers is not None:
        raise ValueError(
            f"expected no number of workers for the cluster at {address}, got {workers}; leave it"
            " out: a cluster has the workers that its nodes have cores for"
        )
    return _open(name, workers, address, takes or {}, tell)


@contextlib.contextmanager
def _open(
    name: str,
    workers: int | None,
    address: str | None,
    takes: Mapping[str, Takes],
    tell: Tell | None,
) -> Iterator[Executor]:
    if name == "ray":
        from flatminima.study.executors.cluster import open_cluster

        with open_cluster(workers, address, takes) as cluster:
            yield cluster
        return
    from flatminima.study.executors.local import Serial, open_processes

    if name == "serial":
        yield Serial()
        return
    with open_processes(workers or 1, tell) as processes:
        yield processes
