"""What the commands on a user's own networks do."""

import math
import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.cli._progress import say_lost
from flatminima.cli._text import duration
from flatminima.store import Store
from flatminima.study.execute import Event, Listener
from flatminima.study.executors import Executor, Takes, open_executor
from flatminima.study.job import Job
from flatminima.study.run import usual_workers
from flatminima.study.worker import Work

if TYPE_CHECKING:
    from flatminima.minimum import Minimum
    from flatminima.own import Measurement, OwnNetworks

KIND = "networks"
"""What the manifest of such measurements says of itself, beside those of studies."""
# Of each network: as it was read, in float64 for a plane, and the parameters of some points.
_COPIES = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a folder, as studies' names are


@dataclass(frozen=True)
class Where:
    """Where steps are computed.

    Attributes:
        executor: "serial", "processes" or "ray".
        workers: Processes; by default as many as this machine has room for.
        address: Of a Ray cluster that is there.
        work: Does a step in another process.
    """

    executor: str = "serial"
    workers: int | None = None
    address: str | None = None
    work: Work | None = None


def measure(
    own: "OwnNetworks",
    made: "Measurement",
    *,
    out: Path,
    name: str,
    title: str,
    where: Where | None = None,
) -> None:
    """Measure what is missing, write the report, and say where it is."""
    store = Store(out, create=True)
    where = where or Where()
    with store.lock():
        _manifest(store, name, title)  # refuses a name before anything is computed
        result = _run(own, made, store, where)
        remember(store, name, title, made=made)
        page = write_page(store, name)
    for line in _say(made.kind, result):
        print(line)
    print(f"report: {page}")


def _run(own: "OwnNetworks", made: "Measurement", store: Store, where: Where) -> Any:
    """The result, with a bar or lines while it is computed."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from flatminima.own.measure import left_to_do, run_measurement

    todo = left_to_do(made, store)
    if not todo:
        print(f"{made.kind}: nothing to do, it is in {store.root}")
        return run_measurement(made, store)

    def run(listener: Listener) -> Any:
        with _opened(where, own, todo, listener) as executor:
            work = None if where.executor == "serial" else where.work
            return run_measurement(made, store, executor=executor, work=work, listener=listener)

    console = Console()
    total = sum(job.units for job in todo)
    if not (console.is_terminal and not console.is_dumb_terminal):
        return run(_Lines(len(todo), total))
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        console=console,
    ) as progress:  # fmt: skip
        task = progress.add_task(made.kind, total=total)

        def advance(event: Event, job: Job, seconds: float) -> None:
            if event == "finished":
                progress.advance(task, job.units)
            elif event == "lost":
                say_lost(job, seconds)

        return run(advance)


def _opened(
    where: Where, own: "OwnNetworks", todo: Sequence[Job], listener: Listener
) -> AbstractContextManager[Executor]:
    """Who computes, with room for the networks and their data."""
    import torch

    device = own.landscape.device.type
    if where.executor == "ray" and own.landscape.device.index:
        raise ValueError(
            f"expected --device {device} with --executor ray, got {own.landscape.device}; Ray gives"
            " every step a GPU, of those that CUDA_VISIBLE_DEVICES names"
        )
    workers = where.workers
    if workers is None and where.address is None:
        workers = usual_workers(device, where.executor)
    takes = Takes(
        cpus=float(torch.get_num_threads()),
        gpus=float(device == "cuda"),
        memory=(2 << 30) + _COPIES * sum(map(_size, own.states)),
    )
    return open_executor(
        where.executor,
        None if workers is None else min(workers, len(todo)),
        address=where.address,
        takes={job.kind: takes for job in todo},
        tell=listener,
    )


def _size(state: "Minimum") -> int:
    return sum(value.nbytes for value in state.state_dict().values())


class _Lines:
    """A line per finished step, with the time left."""

    def __init__(self, steps: int, units: int) -> None:
        self._steps, self._units = steps, units
        self._finished = self._done = 0
        self._began = time.monotonic()

    def __call__(self, event: Event, job: Job, seconds: float) -> None:
        if event == "lost":
            say_lost(job, seconds)
        if event != "finished":
            return
        self._finished += 1
        self._done += job.units
        passed = time.monotonic() - self._began
        left = passed * (self._units - self._done) / self._done
        ahead = f"; about {duration(left)} left" if self._finished < self._steps else ""
        print(f"[{self._finished}/{self._steps}] {job.label}: {seconds:.1f} s{ahead}", flush=True)


def remember(
    store: Store,
    name: str,
    title: str,
    *,
    made: "Measurement | None" = None,
    findings: Sequence[Any] | None = None,
) -> None:
    """Note under `name` what was measured last of each kind, or what was found by checks.

    Raises:
        ValueError: If a study of that name is in the store, or no folder can be called so.
    """
    manifest = _manifest(store, name, title)
    if made is not None:
        job = made.result
        about = {"kind": job.kind, "digest": job.digest, "label": job.label}
        others = [other for other in manifest["jobs"] if other["kind"] != made.kind]
        manifest["jobs"] = [*others, {**about, "dependencies": list(job.dependencies)}]
    if findings is not None:
        manifest["findings"] = [vars(finding) for finding in findings]
    store.write_manifest(name, manifest)


def _manifest(store: Store, name: str, title: str) -> dict[str, Any]:
    """What is noted under a name so far."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"expected --name of letters, digits, '.', '_' and '-', got {name!r}; choose another"
        )
    if name not in store.studies():
        return {"settings": {"kind": KIND, "title": title}, "jobs": []}
    manifest = store.manifest(name)
    if manifest["settings"].get("kind") != KIND:
        raise ValueError(
            f"expected a name that no study in {store.root} has, got {name!r}; choose another"
            " with --name"
        )
    manifest["settings"]["title"] = title or manifest["settings"]["title"]
    return manifest


def write_page(store: Store, name: str) -> Path:
    """The report of everything measured under a name."""
    from flatminima.report import write_networks_report

    return write_networks_report(store, name, store.report_folder(name))


def _say(kind: str, result: Any) -> list[str]:
    """The result in a few lines."""
    if kind == "line":
        barrier, at = result.attrs["barrier"], result.attrs["barrier_position"]
        ends = result["loss"].values[[0, -1]]
        return [
            f"losses {ends[0]:.4g} and {ends[1]:.4g}; barrier {barrier:.4g} at {at:.3g}",
            *_beside(result),
            *_exact(result),
        ]
    if kind == "radius":
        return [
            f"{name}: mean radius {float(one.radius.mean()):.4g}, r/||w||"
            f" {float(one.radius.mean()) / float(one.norm):.3g}, least"
            f" {float(one.radius.min()):.4g} of {one.radius.size} rays, loss {float(one.loss):.4g}"
            for name, one in ((str(n), result.sel(network=n)) for n in result.network.values)
        ] + _exact(result)
    return [
        f"losses at the networks {_listed(result['anchor_loss'])}; on the grid"
        f" {float(result.loss.min()):.4g} to {float(result.loss.max()):.4g}, not finite at"
        f" {int((result.outcome == 1).sum())} points",
        *_beside(result),
        *_exact(result),
    ]


def _exact(result: Any) -> list[str]:
    """A line where `fast` was asked for in vain."""
    if result.attrs.get("repeated", result.attrs.get("sampled", 1)):
        return []
    return ["computed exactly: nothing was to be gained by --precision fast here"]


def _beside(result: Any) -> list[str]:
    """A line for each group of samples and each metric."""
    names, sizes = (result.attrs.get(key, []) for key in ("subsets", "subset_samples"))
    lines = {
        f"{name} ({size:,} samples)": f"loss_{name}"
        for name, size in zip(names, sizes, strict=True)
    }
    lines |= {name: name for name in result.attrs.get("metrics", [])}
    kind = "on the line" if "position" in result else "on the grid"
    return [
        f"{label}: {_listed(result['anchor_' + key])} at the networks, {kind}"
        f" {float(result[key].min()):.4g} to {float(result[key].max()):.4g}"
        for label, key in lines.items()
    ]


def _listed(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values.values)


def check(
    own: "OwnNetworks",
    *,
    threshold: float,
    resolution: int,
    out: Path | None,
    name: str,
    title: str,
) -> bool:
    """Print every finding as it is made; whether nothing failed."""
    from flatminima.own import check_networks

    findings = []
    asked = ""
    for finding in check_networks(own, threshold=threshold, resolution=resolution):
        findings.append(finding)
        if finding.question != asked:
            print(finding.question)
            asked = finding.question
        print(f"  {finding.verdict:5} {finding.answer}", flush=True)
    bad = sum(finding.verdict == "fail" for finding in findings)
    print(
        f"{len(findings)} answers, {bad} of them wrong"
        if bad
        else f"{len(findings)} answers, none wrong"
    )
    if out is not None:
        store = Store(out, create=True)
        with store.lock():
            remember(store, name, title, findings=findings)
            print(f"report: {write_page(store, name)}")
    return not bad


def is_networks(store: Store, name: str) -> bool:
    """Whether a name in the store is of such measurements, not of a study."""
    return name in store.studies() and store.manifest(name)["settings"].get("kind") == KIND


def export(source: Path, to: Path, *, name: str | None, clip: float | None) -> None:
    """Write a surface of a store, or a file, in another format."""
    from flatminima.exchange import load_surface, save_surface

    stored = (source / "store.json").exists()
    if name is not None and not stored:
        raise ValueError(
            f"expected --name only for a store, which may have several surfaces, got {source};"
            " leave it out"
        )
    surface = load_surface(_surface_of(Store(source), name) if stored else source)
    save_surface(surface, to, clip=clip)
    rows, columns = surface["loss"].shape
    print(f"{to}: {columns} by {rows} points")


def _surface_of(store: Store, name: str | None) -> Path:
    """The surface measured last under a name; without one, the only one there is."""
    found = [
        store.folder("surface", job["digest"]) / "payload" / "surface.zarr"
        for study in store.studies()
        if name in (None, study)
        for job in store.manifest(study)["jobs"]
        if job["kind"] == "surface"
    ]
    if len(found) != 1:
        known = ", ".join(str(path) for path in found[:3]) or f"none for {name or 'any name'}"
        raise ValueError(
            f"expected one surface in the store {store.root}, got {len(found)} ({known}); choose"
            f" by --name among {', '.join(store.studies()) or 'nothing'}, or name its folder"
        )
    return found[0]


def several(
    arguments: list[str], options: tuple[str, ...] = ("--weights", "--subset", "--metric")
) -> list[str]:
    """Arguments in which an option may be followed by several values, with the option repeated."""
    given: list[str] = []
    current = ""
    for argument in arguments:
        if argument.startswith("-"):
            current = argument if argument in options else ""
            first = True
            given.append(argument)
        elif current:
            given += [argument] if first else [current, argument]
            first = False
        else:
            given.append(argument)
    return given


def parse_extent(text: str | None) -> tuple[float, float] | None:
    """Two numbers, such as `-0.4,1.3`."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
        if not math.isfinite(high - low):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"expected --extent as two numbers with a comma, such as -0.4,1.3, got {text!r}"
        ) from None
    return low, high
