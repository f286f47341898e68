"""What is kept of a finished job, and under which names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flatminima.store.artifact import Artifact, sha256

DISCARDED = "discarded.json"
"""The record of a job whose results were discarded."""

SHORT = 20
"""Hex digits of a digest in a folder's name: 80 bits, no clash in any store."""


@dataclass(frozen=True)
class Finished:
    """A job that is done: what it made, and what is put on record of it.

    Attributes:
        kind: What kind of job it is.
        digest: Of everything that decides its result.
        artifact: What it made.
        settings: What it was told.
        dependencies: Digests of the jobs whose results it read.
        provenance: When and where it ran.
    """

    kind: str
    digest: str
    artifact: Artifact
    settings: Mapping[str, Any]
    dependencies: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> str:
        """Its `run.json`."""
        record = {
            "kind": self.kind,
            "digest": self.digest,
            "settings": dict(self.settings),
            "dependencies": list(self.dependencies),
            "payload": {name: sha256(self.artifact[name]) for name in sorted(self.artifact)},
            "provenance": dict(self.provenance),
        }
        return json.dumps(record, indent=1, sort_keys=True) + "\n"
