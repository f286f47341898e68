"""The state of the world around an evaluation: precision, gradients, randomness."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from flatminima._precision import full_precision


@contextmanager
def quiet(device: torch.device) -> Iterator[None]:
    """Full precision, no gradients, no autocast; the caller's settings and random state return."""
    cuda = device.type == "cuda"
    with (
        torch.cuda.device(device) if cuda else nullcontext(),
        full_precision(device),
        torch.no_grad(),
        torch.random.fork_rng(devices=[device] if cuda else []),
    ):
        yield


def room(device: torch.device, usual: int) -> int:
    """Bytes that something kept may fill: the usual, or a sixteenth of an accelerator's memory.

    Of all of it, used or not: the way of computing must not hang on what else is there.
    """
    if device.type != "cuda":
        return usual
    whole = torch.cuda.get_device_properties(device).total_memory
    return max(usual, int(whole) // 16)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a batch of inputs is handed to a network."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def as_dtype(inputs: Any, dtype: torch.dtype) -> Any:
    """Nested inputs with floating tensors in `dtype`; integers (token ids) as they are."""
    if isinstance(inputs, dict):
        return {name: as_dtype(value, dtype) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(as_dtype(value, dtype) for value in inputs)
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return inputs.to(dtype)
    return inputs


def channels_last(inputs: Any) -> Any:
    """Nested inputs with images laid out channel by channel within each pixel; values as they are.

    Convolutions on a CPU keep this layout through the network, where each would otherwise rearrange
    what it is given and what it returns.
    """
    if isinstance(inputs, dict):
        return {name: channels_last(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(channels_last(value) for value in inputs)
    if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point():
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs
