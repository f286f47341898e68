"""Jobs for tests of a cluster; its workers import this module by name."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from flatminima.store import Artifact
from flatminima.study.job import Job


def spell(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    """An artifact that spells out what it was made of."""
    parts = [inputs[digest]["name"] for digest in job.dependencies]
    return {"name": job.label.encode() + b"(" + b",".join(parts) + b")"}


def misbehave(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    """Do as the job is called; every attempt leaves a line in the file that its settings name."""
    with Path(job.settings["notes"]).open("a") as notes:
        print(job.label, file=notes)
    match job.label:
        case "fail":
            print("about to fail")
            raise RuntimeError("boom")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            time.sleep(1000)
    return spell(job, inputs)


def place(job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    """Where a job runs, from when to when, and which GPUs it may use."""
    import ray

    began = time.time()
    time.sleep(1)
    found = {
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "from": began,
        "to": time.time(),
    }
    return {"place": json.dumps(found).encode()}
