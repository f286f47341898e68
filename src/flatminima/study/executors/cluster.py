"""Computing on a Ray cluster: one that is there, or one of our own on this machine.

The driver writes the store and nobody else: workers need no shared files. What jobs read is put
into Ray's object store once and handed over by reference, a data set only to a node that has none
of it. Nothing of ours listens on other than loopback unless an address is given.
"""

import contextlib
import math
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from flatminima.data import sources
from flatminima.store import Artifact
from flatminima.study.executors import ClusterGone, Read, Takes, Wanted, gathered
from flatminima.study.executors._connection import answers, connected
from flatminima.study.executors._nodes import own_head
from flatminima.study.job import Job
from flatminima.study.provenance import provenance
from flatminima.study.worker import Outcome, Work, compute

_RETRIES = 3  # of a task whose worker or node was lost; a job's own error is never retried
_GRAIN = 5.0  # seconds of work per task; handing one over takes milliseconds
_SHARED = 4 << 30  # bytes of finished work that are kept in Ray's object store
_GLANCE = 2.0  # seconds between two looks at the cluster
_GONE = 10.0  # seconds without an answer after which it is taken for gone
_PATIENCE = 60.0  # seconds for a lost node to come back when no other can do its jobs
_SAME = ("flatminima", "python", "torch", "numpy")  # versions that must agree


class Cluster:
    """Computes on a Ray cluster that this process is connected to."""

    grain = _GRAIN
    in_process = False

    def __init__(self, address: str, takes: Mapping[str, Takes]) -> None:
        import ray

        self._ray = ray
        self._address = address
        self._takes = takes
        self._task = ray.remote(max_retries=_RETRIES, retry_exceptions=False, max_calls=0)(_run)
        self._shared: OrderedDict[Wanted, tuple[Any, int]] = OrderedDict()
        self._data: dict[str, list[Any]] = {}
        self._versions = _versions()
        self._here = ray.get_runtime_context().get_node_id()
        self._looked = self._answered = self._fitted = time.monotonic()
        self._slots = 0
        self._look()
        unfit = self._unfit()
        if unfit:
            raise ValueError(unfit)

    @property
    def capacity(self) -> int:
        """A task for every slot of the cluster as it is now, and some that wait for the next."""
        return self._slots + max(1, self._slots // 4)

    def submit(
        self, work: Work, jobs: Sequence[Job], wanted: Sequence[Wanted], read: Read
    ) -> "Future[list[Outcome]]":
        """Make a Ray task of the jobs, with references to what they read."""
        files = [self._share(item, read) for item in wanted]
        takes = self._takes.get(jobs[0].kind, Takes())
        try:
            result = self._task.options(
                num_cpus=takes.cpus, num_gpus=takes.gpus, memory=takes.memory
            ).remote(work, list(jobs), list(wanted), self._versions, self._data_of(jobs), *files)
        except self._ray.exceptions.RayError as error:
            raise self._gone(error) from error
        found: Future[list[Outcome]] = Future()
        result.future().add_done_callback(lambda done: self._settle(found, done, jobs))
        return found

    def check(self) -> None:
        """See now and then whether the cluster answers; Ray itself ends us when it gives up."""
        now = time.monotonic()
        if now - self._looked < _GLANCE:
            return
        self._looked = now
        if not answers(self._address):
            if now - self._answered > _GONE:
                raise self._gone("its head does not answer")
            return
        self._answered = now
        self._look()
        unfit = self._unfit()
        if not unfit:
            self._fitted = now
        elif now - self._fitted > _PATIENCE:
            raise ClusterGone(unfit)

    def _gone(self, error: BaseException | str) -> ClusterGone:
        words = " ".join(str(error).split())[:200]
        return ClusterGone(
            f"the Ray cluster at {self._address} is gone ({words}); finished work is kept: run the"
            " same command again once it is back"
        )

    def _look(self) -> None:
        """Take note of the nodes there are, and of the tasks they can do at once."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        if self._here not in {node["NodeID"] for node in nodes}:
            raise self._gone("the node on this machine has ended")
        self._nodes = [node["Resources"] for node in nodes]
        everything = list(self._takes.values()) or [Takes()]
        self._slots = sum(max(_fits(node, takes) for takes in everything) for node in self._nodes)

    def _unfit(self) -> str:
        """What no node can do, in a line; empty if there is a node for every job."""
        for kind, takes in self._takes.items():
            if not any(_fits(node, takes) for node in self._nodes):
                return (
                    f"expected a node with {takes} for each {kind} job, got none among"
                    f" {len(self._nodes)} nodes of the Ray cluster at {self._address}; finished"
                    " work is kept: add such a node, or ask for less under [resources]"
                )
        return ""

    def _share(self, wanted: Wanted, read: Read) -> Any:
        """A reference to the files, put into the object store the first time."""
        if wanted in self._shared:
            self._shared.move_to_end(wanted)
            return self._shared[wanted][0]
        files = dict(read(wanted))
        reference = self._ray.put(files)
        self._shared[wanted] = (reference, sum(map(len, files.values())))
        while len(self._shared) > 1 and sum(size for _, size in self._shared.values()) > _SHARED:
            self._shared.popitem(last=False)  # a task that still needs it holds on to it
        return reference

    def _data_of(self, jobs: Sequence[Job]) -> dict[str, list[Any]]:
        """References to the files of the jobs' data sets, in lists: to be fetched where needed."""
        names = {job.settings["data"]["dataset"] for job in jobs if job.data}
        for name in sorted(names - set(self._data)):
            files = {file: path.read_bytes() for file, path in sources.fetch(name).items()}
            self._data[name] = [self._ray.put(files)] if files else []
        return {name: self._data[name] for name in names}

    def _settle(
        self, found: "Future[list[Outcome]]", done: "Future[Any]", jobs: Sequence[Job]
    ) -> None:
        """Pass on what a task yielded; jobs whose workers were lost again and again have failed."""
        errors = self._ray.exceptions
        try:
            found.set_result(done.result())
        except (errors.LocalRayletDiedError, errors.RaySystemError) as error:
            found.set_exception(self._gone(error))
        except errors.RayTaskError as error:
            # Jobs' own errors are outcomes: this one comes from around them.
            words = str(error.cause if error.cause is not None else error).strip().splitlines()
            found.set_exception(
                ClusterGone(
                    f"expected the Ray cluster at {self._address} to run flatminima as it is here,"
                    f" got: {words[-1] if words else type(error).__name__}; install the same"
                    " versions on every node"
                )
            )
        except errors.RayError as error:
            words = str(error).strip().splitlines()
            lost = RuntimeError(
                f"its worker was lost {1 + _RETRIES} times (killed, or out of memory?):"
                f" {words[0][:200] if words else type(error).__name__}"
            )
            log = f"{type(error).__name__}: {error}\n"
            found.set_result([Outcome(None, 0.0, log, error=lost) for _ in jobs])
        except BaseException as error:
            found.set_exception(error)


def _fits(node: Mapping[str, float], takes: Takes) -> int:
    """How many such jobs a node can do at once."""
    wanted = {"CPU": takes.cpus, "GPU": takes.gpus, "memory": takes.memory}
    return int(min(node.get(name, 0.0) / amount for name, amount in wanted.items() if amount > 0))


def _versions() -> dict[str, str]:
    """Versions that decide results; a build for another device is the same version."""
    return {
        name: version.partition("+")[0]
        for name, version in provenance()["versions"].items()
        if name in _SAME
    }


def _run(
    work: Work,
    jobs: Sequence[Job],
    wanted: Sequence[Wanted],
    versions: Mapping[str, str],
    data: Mapping[str, Sequence[Any]],
    *files: Artifact,
) -> list[Outcome]:
    """A Ray task: some jobs, on a node that is as the driver is."""
    found = _versions()
    for name, version in versions.items():
        if found.get(name) != version:
            host = socket.gethostname()
            raise RuntimeError(f"{name} {version} is wanted, {host} has {found.get(name)}")
    for name, references in data.items():
        _provide(name, references)
    return compute(work, jobs, gathered(wanted, files))


def _provide(name: str, references: Sequence[Any]) -> None:
    """Fill this node's cache with a data set, unless it is there."""
    if references and sources.download_size([name]) > 0:
        import ray

        for reference in references:
            sources.take(name, ray.get(reference))


@contextlib.contextmanager
def open_cluster(
    workers: int | None, address: str | None, takes: Mapping[str, Takes]
) -> Iterator[Cluster]:
    """A connection to a Ray cluster, closed afterwards; without an address one of our own.

    Args:
        workers: How many jobs our own cluster does at once; by default one for every core.
        address: As `ray.init` takes it: "auto", or host and port of a head node. The machine must
            be a node of that cluster.
        takes: What a job takes of a node, by its kind.

    Raises:
        ValueError: Ray is not installed, there is no cluster there, it refuses, or it has no node
            for a job.
    """
    if address is None:
        cores = max((item.cpus for item in takes.values()), default=1.0)
        cpus = math.ceil(workers * cores) if workers else os.cpu_count() or 1
        with own_head(cpus, _RETRIES) as own, connected(own) as at:
            yield Cluster(at, takes)
        return
    if address.startswith("ray://"):
        raise ValueError(
            f"expected the address of a head node such as 10.0.0.1:6379, got {address!r}, a Ray"
            " client's; run flatminima on a node of the cluster"
        )
    with connected(address) as at:
        yield Cluster(at, takes)
