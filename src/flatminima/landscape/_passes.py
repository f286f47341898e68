"""Points one after the other, each by passes of its own over the data."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from torch import Tensor, nn

from flatminima._packed import Packed
from flatminima._recording import recorder_for
from flatminima.landscape import _batchnorm
from flatminima.landscape._arithmetic import Arithmetic
from flatminima.landscape._batches import Batch
from flatminima.landscape._meter import Meter
from flatminima.landscape._problem import Problem
from flatminima.landscape._recorded import WORTH, Recording
from flatminima.landscape._reference import evaluate
from flatminima.landscape._threads import in_threads
from flatminima.types import Buffers, Coordinates, Parameters


@dataclass
class Reference:
    """One forward pass over the data per point."""

    problem: Problem
    name: str = "reference"
    _recordings: dict[Arithmetic, tuple[Recording, Meter] | None] = field(default_factory=dict)

    def evaluate(
        self,
        coordinates: Coordinates,
        meter: Meter,
        arithmetic: Arithmetic,
        batches: Sequence[Batch],
    ) -> None:
        """As `Path` says."""
        given = self.problem
        mixed = given.policy == "interpolate"
        combined = _batchnorm.interpolation(given.subspace) if mixed else None
        # What nobody asks for on the way: a clip and metrics do.
        whole = batches is given.batches and meter.clip is None and meter.measures.alone
        if whole and len(coordinates) >= WORTH and arithmetic not in self._recordings:
            self._recordings[arithmetic] = self._record(meter, arithmetic)

        def one(network: nn.Module, point: int) -> Meter:
            coordinate = coordinates[point]
            state = given.formed.at(coordinate)
            buffers = combined(coordinate, given.buffers) if combined else given.buffers
            part = meter.part(1)
            known = self._recordings.get(arithmetic) if whole else None
            if known is not None:
                recording, like = known
                part.add_sums(0, recording(state, buffers), like=like)
                return part
            evaluate_point(
                network,
                (state, buffers),
                given.policy,
                part,
                0,
                arithmetic,
                clean=given.batches.clean(),
                batches=batches,
            )
            return part

        points = range(len(coordinates))
        for point, part in enumerate(in_threads(given.network, points, one, allowed=given.threads)):
            meter.join(part, point)

    def _record(self, meter: Meter, arithmetic: Arithmetic) -> tuple[Recording, Meter] | None:
        """A point in one arithmetic, with the meter that was read; none if it cannot be."""
        given = self.problem
        recorder = recorder_for(given.exact.device)
        if recorder is None:
            return None
        clean, batches = tuple(given.batches.clean()), given.batches
        parts: list[Meter] = []

        def work(parameters: Parameters, buffers: Buffers) -> Tensor:
            part = meter.part(1)
            parts.append(part)
            evaluate_point(
                given.network,
                (parameters, buffers),
                given.policy,
                part,
                0,
                arithmetic,
                clean=clean,
                batches=batches,
            )
            return part.waiting

        try:
            recording = Recording(work, given.subspace.origin.parameters, given.buffers, recorder)
        except Exception:  # it asks for a number on the way, say; else the usual way meets it too
            return None
        return recording, parts[-1]


def evaluate_point(
    network: nn.Module,
    state: tuple[Parameters, Buffers],
    policy: str,
    meter: Meter,
    point: int,
    arithmetic: Arithmetic,
    *,
    clean: Iterable[Batch],
    batches: Iterable[Batch],
) -> None:
    """Add the losses of one state over `batches`, under a policy, to `meter`."""
    parameters, buffers = arithmetic.ready(state[0]), state[1]
    packed = Packed(parameters.values())
    if policy == "recompute":
        buffers = _batchnorm.recomputed(network, parameters, buffers, clean, arithmetic, packed)
    own = _batchnorm.batch_statistics(network) if policy == "batch" else nullcontext()
    with own:
        evaluate(network, parameters, buffers, batches, meter, point, arithmetic, packed)
