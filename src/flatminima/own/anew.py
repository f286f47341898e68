"""The same measurement in another process, from the words that it was asked for by."""

import contextlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.store import Artifact
from flatminima.study.job import Job

if TYPE_CHECKING:
    from flatminima.own.measure import Measurement


@dataclass(frozen=True)
class Anew:
    """Does steps of a measurement in a worker, which opens the networks for itself.

    A worker needs the same files at the same places. What it finds there has a digest; where that
    is another one, it refuses.

    Attributes:
        asked: What to measure, as text.
    """

    asked: str

    @classmethod
    def of(
        cls,
        kind: str,
        networks: Mapping[str, Any],
        beside: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        threads: int,
    ) -> "Anew":
        """What a command was asked for.

        Args:
            kind: "surface" or "radius".
            networks: Of `open_networks`.
            beside: Of `measured_beside`.
            options: Of `plan_surface` or `plan_radii`.
            threads: That a step uses.
        """
        folder = str(Path.cwd())
        return cls(json.dumps([folder, kind, dict(networks), dict(beside), dict(options), threads]))

    def __call__(self, job: Job, inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
        """Do one step.

        Raises:
            ValueError: If what is found here is not what was asked for.
        """
        with contextlib.chdir(_folder(self.asked)):
            return _made(self.asked).do(job, inputs)


def _folder(asked: str) -> str:
    """Where the files have their names."""
    folder = str(json.loads(asked)[0])
    if not Path(folder).is_dir():
        raise ValueError(
            f"expected the folder {folder} on {platform.node()} as on the machine that asks, got"
            " none; give every machine the same files"
        )
    return folder


@lru_cache(maxsize=1)
def _made(asked: str) -> "Measurement":
    """The measurement, kept for the process's next steps."""
    import torch

    from flatminima.own.beside import measured_beside
    from flatminima.own.measure import plan_radii, plan_surface
    from flatminima.own.networks import open_networks

    _, kind, networks, beside, options, threads = json.loads(asked)
    if options.get("extent") is not None:
        options["extent"] = tuple(options["extent"])
    torch.set_num_threads(threads)
    own = measured_beside(open_networks(**networks), **beside)
    return plan_surface(own, **options) if kind == "surface" else plan_radii(own, **options)
