"""How a piece of work on a device is recorded, to be replayed without its launches.

A CUDA graph is the sequence of kernels that a piece of Python launched once, with the addresses
and numbers that they were given. Replaying it costs one launch in place of hundreds.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias, runtime_checkable

import torch

Work: TypeAlias = Callable[[], None]

# The number that torch's documentation of CUDA graphs advises: by then libraries have chosen their
# kernels and set up their workspaces.
REHEARSALS = 3


@runtime_checkable
class Recorder(Protocol):
    """Records work that lies on one device."""

    def rehearse(self, work: Work, times: int = REHEARSALS) -> None:
        """Do the work a few times, so that nothing in it happens for the first time any more.

        Raises:
            RuntimeError: The work waits for the device, so that it cannot be recorded.
        """

    def record(self, work: Work) -> Work:
        """What does on the device all that the work would do there, whenever it is called.

        The work is called once, but what it asks of the device is noted and not done. A failure
        may move the device's generator on.

        Raises:
            RuntimeError: The work cannot be recorded. The device is fit for use all the same.
        """


class CudaRecorder:
    """Records CUDA graphs; rehearses and records on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def rehearse(self, work: Work, times: int = REHEARSALS) -> None:
        """Do the work aside, refusing it if it waits for the device.

        Found here, because a wait within a recording breaks it off in the middle, from which torch
        does not recover by itself; see `_recover`.
        """
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream), _refusing_to_wait():
                for _ in range(times):
                    work()
        finally:
            # What the work used may be freed, and given to the current stream, from here on.
            self._stream.synchronize()

    def record(self, work: Work) -> Work:
        """Capture a CUDA graph and return its replay, which runs on the stream it is called on."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # The outer context, because `torch.cuda.graph` leaves its stream the current one when
            # it fails. Local to the thread, so that allocations by another do not break it off.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(
                    graph, pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                work()
        except Exception:
            _recover(self._device, graph, pool)
            raise

        def replay() -> None:
            with torch.cuda.device(self._device):  # its current stream is meant
                graph.replay()

        return replay


def recorder_for(device: torch.device) -> Recorder | None:
    """What records work on this device, where that is possible."""
    return CudaRecorder(device) if device.type == "cuda" else None


def _recover(device: torch.device, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Put torch in order after a recording that broke off.

    Its allocator would believe for ever that one is under way, so that `empty_cache` and with it
    every later recording fails; and so would the generator before torch 2.13.
    """
    torch.cuda.synchronize(device)
    # The allocator of pinned memory still asks this graph whether it is being recorded.
    _broken.append(graph)
    index = torch.cuda.current_device() if device.index is None else device.index
    # Refused where the recording was ended in order after all: then there is nothing to do.
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    try:
        torch.rand(1, device=device)
    except RuntimeError:
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())


_broken: list[torch.cuda.CUDAGraph] = []


@contextlib.contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Within, an operation that waits for the device raises a RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    _set_sync_debug_mode("error")
    try:
        yield
    finally:
        _set_sync_debug_mode(before)


def _set_sync_debug_mode(mode: int | str) -> None:
    """As torch's, which warns that it may miss a wait; recording finds those."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)
