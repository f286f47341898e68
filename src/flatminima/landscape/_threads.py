"""Work side by side: whole batches, or whole points, each on one thread.

torch shares every single operation between its threads and waits for all of them each time. Threads
that work through a batch each wait once, at the end; the results have the same bits.
"""

import copy
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")
Result = TypeVar("Result")

# More of them would wait for Python's lock; what is left is shared within operations.
_MOST = 8


def in_threads(
    network: nn.Module,
    items: Sequence[Item],
    work: Callable[[nn.Module, Item], Result],
    *,
    allowed: bool,
) -> Iterator[Result]:
    """`work(network, item)` for every item, in their order.

    Args:
        network: Each thread works with a copy of its own, which holds the same tensors.
        items: What there is to do; small things, such as indices.
        work: Must not change anything that others see.
        allowed: Whether it may be spread over threads at all.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(items), _MOST) if allowed else 1
    if count < 2:
        for item in items:
            yield work(network, item)
        return
    copies: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()
    for _ in range(count):
        copies.put(sharing_tensors(network))

    def one(item: Item) -> Result:
        own = copies.get()
        try:
            # These are the thread's own settings.
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                return work(own, item)
        finally:
            copies.put(own)

    # New threads start with what is set here.
    torch.set_num_threads(max(1, threads // count))
    pool = ThreadPoolExecutor(count)
    try:
        yield from pool.map(one, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def sharing_tensors(network: nn.Module) -> nn.Module:
    """A copy of the modules around the same parameters and buffers."""
    tensors: list[Tensor] = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(value): value for value in tensors})
