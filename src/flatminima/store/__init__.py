"""A store: one folder per job, named by the job's digest, written whole or not at all.

An *artifact* is a mapping from relative paths to bytes, and nothing else is ever stored of a
result: equal artifacts are equal bytes. Layout of a store at `ROOT`::

    store.json                           {"format": 1}
    jobs/<kind>-<digest[:20]>/payload/   the artifact
                             /run.json   written last: settings, payload digests, provenance
    jobs/<kind>-.../discarded.json       in place of both, for a step that nothing needs any more
    logs/<kind>-<digest[:20]>.log        what a job printed, and why it failed; no result needs it
    studies/<name>/manifest.json         resolved settings and the list of jobs
                  /live.json             what its last run says of itself; see `study.live`
    reports/<name>/                      figures and pages

Nothing here imports torch, and xarray only inside the functions that make or read datasets.
"""

from flatminima.store.artifact import (
    Artifact,
    StoreError,
    canonical,
    dataset_to_files,
    files_to_dataset,
    sha256,
)
from flatminima.store.faults import Fault
from flatminima.store.files import write_text
from flatminima.store.finished import Finished
from flatminima.store.store import FORMAT, Store

__all__ = [
    "FORMAT",
    "Artifact",
    "Fault",
    "Finished",
    "Store",
    "StoreError",
    "canonical",
    "dataset_to_files",
    "files_to_dataset",
    "sha256",
    "write_text",
]
