"""A `Job`: one piece of a study as a value, whose digest names its results.

The digest is over the job's kind, the kind's version, its settings, the digests of the jobs it
depends on, and the digests of its data. Three rules keep names stable:

* Whatever a job does not read is not in its settings: a title, a colour or the number of
  directions never renames a network.
* A setting that is added later joins `_ADDED` with the value under which it changes nothing, and
  is left out of the digest while it has that value.
* `auto` never enters a digest; `flatminima.study.auto.resolve` has replaced it before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flatminima.store import canonical, sha256

VERSIONS = {"train": 1, "network": 1, "tile": 2, "surface": 1, "radius": 3, "summary": 1, "line": 2}
"""Raised when the same settings begin to mean other bytes: old results of that kind are redone."""

# Where less than all parameters move, which may be computed in a way of its own.
_OF_PARTS = {"radius": 4}
# Where `fast` was asked for.
_FAST = {"tile": 3, "line": 3, "radius": 5}

# Added for networks with convolutions, which are computed in parts since.
_IN_PARTS = {"tile": 10, "line": 10, "radius": 10}

# Settings that joined a kind later: {kind: {"table.key": the value that changes nothing}}.
_ADDED_TO_RECIPE = {"recipe.augment": "none", "recipe.precision": "float32"}
_ADDED: dict[str, dict[str, Any]] = {"train": _ADDED_TO_RECIPE, "network": _ADDED_TO_RECIPE}


@dataclass(frozen=True)
class Job:
    """One piece of work: a pure function of what is written here and of the artifacts it takes.

    Attributes:
        kind: One of `VERSIONS`.
        settings: Plain JSON values, everything that the work reads.
        dependencies: Digests of the jobs whose artifacts it takes, in the order of `inputs`.
        inputs: For each dependency its kind and the beginnings of the file names that are read.
        data: Digests of the data sets that it reads, by split.
        label: What to call it when talking to a person; not part of the digest.
        units: How many epochs, points or rays it is, for progress.
    """

    kind: str
    settings: Mapping[str, Any]
    dependencies: tuple[str, ...] = ()
    inputs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    units: int = 1

    @cached_property
    def digest(self) -> str:
        """The hex sha256 that names the job."""
        value = {
            "kind": self.kind,
            "version": self._version,
            "settings": _without_defaults(self.kind, self.settings),
            "dependencies": list(self.dependencies),
            "data": dict(self.data),
        }
        return sha256(canonical(value))

    @property
    def _version(self) -> int:
        found = VERSIONS[self.kind]
        if self.settings.get("parameters", "all") != "all":
            found = _OF_PARTS.get(self.kind, found)
        if self.run.get("precision") == "fast":
            found = _FAST.get(self.kind, found)
        if self.settings.get("model", {}).get("name", "mlp") != "mlp":
            found += _IN_PARTS.get(self.kind, 0)
        return found

    @property
    def run(self) -> Mapping[str, Any]:
        """How its numbers are computed, as far as the settings say: on which device and so on."""
        own = self.settings.get("own") is not None
        if own:  # of own networks the device is part of what they are
            return {**self.settings["networks"]["run"], "threads": self.settings["threads"]}
        found: Mapping[str, Any] = self.settings.get("run", {})
        return found

    @property
    def name(self) -> str:
        """Kind and short digest."""
        return f"{self.kind}-{self.digest[:20]}"


def _without_defaults(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without later additions that have no effect."""
    kept = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()
    }
    for path, neutral in _ADDED.get(kind, {}).items():
        *tables, key = path.split(".")
        table: Any = kept
        for name in tables:
            table = table.get(name, {})
        if key in table and table[key] == neutral:
            del table[key]
    return kept
