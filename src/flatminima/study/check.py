"""Trust in stored results: are they all there, do they come out again, and a copy to publish."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flatminima._seeds import derive_seed
from flatminima.store import Store, StoreError, files_to_dataset
from flatminima.study.plan import RESULTS

# Other processors and versions sum float32 in another order: a few units of the seventh digit.
_ABSOLUTE = 1e-6
_RELATIVE = 1e-5
_SHARE = 20  # one point of a surface in so many is recomputed


def missing_results(store: Store) -> list[str]:
    """A line for each study of which the store does not hold all results, or not its manifest."""
    lines = []
    for study in store.studies():
        try:
            jobs = store.manifest(study)["jobs"]
            results = [job for job in jobs if job["kind"] in RESULTS]
            gone = [job for job in results if not store.done(job["kind"], job["digest"])]
        except (StoreError, KeyError, TypeError):
            lines.append(f"studies/{study}: no readable manifest.json; delete it and run the study")
            continue
        if gone:
            lines.append(
                f"studies/{study}: {len(gone)} of {len(results)} results are missing, the first is"
                f" {gone[0]['kind']}-{gone[0]['digest'][:20]} ({gone[0]['label']})"
            )
    return lines


def repair(store: Store) -> list[str]:
    """Take out of a store what is damaged, so that the next run computes it again.

    Of a damaged job only the record stays, as of a discarded one, if that can be read; a file that
    is none of a job's goes by itself. What was computed from a damaged job stays: jobs compare what
    they read with its digest, so that it was made of what the job had yielded.

    Returns:
        A line for everything that was taken out.

    Raises:
        StoreError: The store is a published copy, cannot be written, or a run is using it.
    """
    _refuse_copies(store)
    labels = _labels(store)
    lines: dict[str, str] = {}
    with store.lock():
        for fault in store.inspect()[1]:
            if fault.job in lines:
                continue
            if fault.kind == "stranger":
                path = f"{fault.job}/{fault.file}"
                store.remove(store.root / "jobs" / path)
                lines[path] = f"jobs/{path}: removed"
                continue
            record = store.any_record(fault.job) or {}
            kind, digest = str(record.get("kind")), str(record.get("digest"))
            if store.folder(kind, digest).name == fault.job:
                store.discard(kind, digest)
            else:
                store.remove(store.root / "jobs" / fault.job)
            label = labels.get(fault.job)
            lines[fault.job] = f"jobs/{fault.job}: taken out{f' ({label})' if label else ''}"
    return list(lines.values())


def _refuse_copies(store: Store) -> None:
    """Only where studies run can anything be computed again."""
    for study in store.studies():
        try:
            manifest = store.manifest(study)
        except StoreError:
            continue
        if "work" in manifest:
            raise StoreError(
                f"expected a store that studies run in, got {store.root}, a published copy of"
                f" {study}; publish it again, or take it from where it came"
            )
    if not os.access(store.root, os.W_OK):
        raise StoreError(
            f"expected a store that can be written, got {store.root}, which is read-only; copy it"
            " to another folder and repair the copy"
        )


def _labels(store: Store) -> dict[str, str]:
    """What to call the jobs of all legible manifests, by the names of their folders."""
    labels = {}
    for study in store.studies():
        with contextlib.suppress(StoreError, KeyError, TypeError):
            for job in store.manifest(study)["jobs"]:
                labels[store.folder(job["kind"], job["digest"]).name] = f"{study}: {job['label']}"
    return labels


def copy_results(store: Store, study: str, folder: Path, *, weights: bool = True) -> int:
    """Copy a study's results, manifest and report into a store of their own; returns how many.

    Segments, tiles and blocks of radii, which are steps on the way, stay behind; what they took and
    where they ran is summed up in the manifest.

    Args:
        store: Where the results are.
        study: Its name.
        folder: Where the copy goes.
        weights: Copy the networks' weights too; without them their digests stay on record.

    Raises:
        StoreError: The folder holds something else.
        OSError: It cannot be written.
    """
    copy = Store(folder, create=True)
    manifest = store.manifest(study)
    results = [job for job in manifest["jobs"] if job["kind"] in RESULTS]
    for job in results:
        store.read(job["kind"], job["digest"])  # refuses a damaged one
        target = copy.folder(job["kind"], job["digest"])
        if not copy.done(job["kind"], job["digest"]):
            _copy_folder(store.folder(job["kind"], job["digest"]), target)
        if not weights:
            copy.leave_out(job["kind"], job["digest"], ".safetensors")
    report = store.report_folder(study)
    if report.is_dir():
        shutil.rmtree(copy.report_folder(study), ignore_errors=True)
        _copy_folder(report, copy.report_folder(study))
    copy.write_manifest(study, {**manifest, "work": _work(store, manifest["jobs"])})
    return len(results)


def _work(store: Store, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """By kind: the number of jobs, their seconds, and the commits and processors they ran on."""
    work: dict[str, Any] = {}
    records = {record["digest"]: record for record in store.records(discarded=True)}
    for job in jobs:
        if job["digest"] not in records:
            continue
        about = records[job["digest"]]["provenance"]
        entry = work.setdefault(
            job["kind"], {"jobs": 0, "seconds": 0.0, "commits": [], "processors": []}
        )
        entry["jobs"] += 1
        entry["seconds"] = round(entry["seconds"] + about["seconds"], 3)
        for name, value in (("commits", about["commit"]), ("processors", about["cpu"])):
            if value not in entry[name]:
                entry[name].append(value)
    return work


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a folder whole or not at all."""
    aside = target.with_name(f".{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(source, aside)
        aside.replace(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def check_results(
    store: Store, *, seed: int = 0, whole: bool = False
) -> Iterator[tuple[str, bool]]:
    """Recompute losses from the stored weights: at every minimum, and on a part of one surface.

    Args:
        store: Where they are.
        seed: Draws that part.
        whole: Recompute every point of every surface instead.

    Yields:
        A sentence on each network and surface, and whether it agrees with what is stored,
        within 1e-6 + 1e-5 of the loss.
    """
    surfaces: list[dict[str, Any]] = []
    for record in store.records():
        if "own" in record["settings"]:
            continue  # of a network that is made by code outside the store
        if record["kind"] == "network":
            yield _check_network(store, record)
        elif record["kind"] == "surface":
            surfaces.append(record)
    for surface in surfaces if whole else surfaces[:1]:
        yield _check_surface(store, surface, seed, 1 if whole else _SHARE)


def _check_network(store: Store, record: Mapping[str, Any]) -> tuple[str, bool]:
    """Loss of a network at its stored checkpoints against its history."""
    from flatminima.minimum import Minimum
    from flatminima.study.work import make_landscape

    settings = record["settings"]
    files = store.read("network", record["digest"])
    history = files_to_dataset("history.zarr", files)
    who = f"{settings['group']}/{settings['network']}"
    if history.attrs["outcome"] == "diverged":
        return f"{who}: diverged, nothing to recompute", True
    if "last.safetensors" in record.get("left_out", {}):
        return f"{who}: published without its weights, nothing to recompute", True
    landscape = make_landscape(_for_landscape(settings), "train")
    worst, words = 0.0, []
    for name, epoch in (("last", -1), ("matched", int(history.attrs["matched_epoch"]))):
        if f"{name}.safetensors" not in files:
            continue
        losses = history["train_loss"]
        stored = float(losses[-1] if name == "last" else losses.sel(epoch=epoch))
        found = float(landscape.loss_at(Minimum.from_bytes(files[f"{name}.safetensors"])).loss[0])
        worst = max(worst, abs(found - stored) / (_ABSOLUTE + _RELATIVE * abs(stored)))
        words.append(f"{name} loss {found:.8f}, stored {stored:.8f}")
    return f"{who}: {'; '.join(words)}", worst <= 1


def _for_landscape(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A network's settings completed by what its landscape needs."""
    run = {**settings["run"], "precision": "exact", "batch_size": None}
    return {**settings, "batchnorm": "keep", "run": run}


def _check_surface(
    store: Store, record: Mapping[str, Any], seed: int, share: int
) -> tuple[str, bool]:
    """One in so many of a surface's points, at random, against the stored ones."""
    import numpy as np

    from flatminima.landscape.surface import grid_coordinates
    from flatminima.study.work import make_landscape, make_plane

    settings = record["settings"]
    networks = [
        store.read("network", digest)
        for digest in record["dependencies"]
        if store.done("network", digest)
    ]
    who = f"{settings['group']} {settings['split']} surface at {settings['checkpoint']}"
    if not all(any(name.endswith(".safetensors") for name in files) for files in networks):
        return f"{who}: published without the weights, nothing to recompute", True
    try:
        made = make_plane(settings, networks)
    except ValueError as error:
        return f"{who}: {error}", False
    if isinstance(made, dict):
        return f"{who}: not made, {made['reason']}", True
    plane, grid = made
    surface = store.open_payload("surface", record["digest"], "surface.zarr")
    stored = surface["loss"].values.ravel()
    draw = np.random.default_rng(derive_seed(seed, "verify"))
    chosen = np.sort(draw.choice(stored.size, -(-stored.size // share), replace=False))
    found = make_landscape(settings, settings["split"]).losses(
        plane, grid_coordinates(grid)[chosen], clip=settings.get("clip")
    )
    both = np.isfinite(found.loss) & np.isfinite(stored[chosen])
    same_holes = bool((np.isfinite(found.loss) == np.isfinite(stored[chosen])).all())
    expected = stored[chosen][both]
    gap = np.abs(found.loss[both] - expected)
    # Another processor rounds products in half precision otherwise, by as much as they are off.
    off = float(surface.attrs.get("largest_difference", 0.0))
    bound = off + _ABSOLUTE + _RELATIVE * np.abs(expected)
    agrees = same_holes and bool((gap <= bound).all())
    largest = float(gap.max()) if gap.size else 0.0
    return f"{who}: {chosen.size} of {stored.size} points, largest difference {largest:.1e}", agrees
