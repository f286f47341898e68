"""A point recorded once and replayed, for GPUs that would wait for their next operation.

torch hands a GPU one operation after the other, from Python. Where the operations are short, as
when BatchNorm's statistics are pooled in batches of 100, handing over takes longer than computing.
A recording hands over a whole point at once; the point's parameters and buffers are copied to where
it reads them. The operations are the same, and so are the bits.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from flatminima._recording import Recorder
from flatminima.types import Buffers, Parameters

# Recording a point costs about as much as two: fewer than this are not worth it.
WORTH = 8


class Recording:
    """`work(parameters, buffers)` as it was done once, to be done again with other values.

    Args:
        work: From tensors of one point to sums, all on the GPU. It must neither wait for the GPU
            nor hand it tensors from elsewhere.
        parameters: Of some point.
        buffers: Likewise.
        recorder: Of the GPU.

    Raises:
        RuntimeError: If the work cannot be recorded.
    """

    def __init__(
        self,
        work: Callable[[Parameters, Buffers], Tensor],
        parameters: Parameters,
        buffers: Buffers,
        recorder: Recorder,
    ) -> None:
        self._parameters = {name: value.clone() for name, value in parameters.items()}
        self._buffers = {name: value.clone() for name, value in buffers.items()}
        # Kept, for the recording reads tensors that only it may hold.
        self._work = work
        self._results: list[Tensor] = []

        def again() -> None:
            self._results[:] = [work(self._parameters, self._buffers)]

        # Once: libraries choose their ways and make room on first use.
        recorder.rehearse(again, 1)
        self._replay = recorder.record(again)

    def __call__(self, parameters: Parameters, buffers: Buffers) -> Tensor:
        """The sums at another point."""
        _fill(self._parameters, parameters)
        _fill(self._buffers, buffers)
        self._replay()
        return self._results[0].clone()


def _fill(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for name, value in own.items():
        value.copy_(given[name])
