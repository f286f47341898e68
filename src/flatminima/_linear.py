"""Affine layers in float32 on processors of AMD with AVX-512, at twice the speed.

There MKL, which torch uses for matrix products, keeps to its slower code: 107 GFLOP/s on one core
against 250 by oneDNN, which torch also brings along but uses for convolutions only (torch 2.13).
Both are float32 throughout. The choice hangs on the processor and on shapes alone, so that the same
machine always gives the same bits.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from flatminima._processor import mkl_is_slow, packs_halves

# Below this many products per sample, or samples, calling oneDNN costs more than it saves.
_LEAST_WEIGHTS = 16_384
_LEAST_SAMPLES = 16
# Where it is called without a detour, they are so few in all.
_LEAST_PRODUCTS = 2**18


class Packed:
    """Weights in the order in which oneDNN reads them, brought into it once instead of every time.

    Args:
        weights: Those worth it; they must stay as they are, and are kept alive.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = {id(weight): weight for weight in weights}
        self._packed: dict[int, Tensor] = {}
        self._turn = threading.Lock()  # threads that meet a weight at once would each pack it

    def __call__(self, weight: Tensor, samples: int) -> Tensor:
        """A weight as oneDNN is to be given it, for about so many samples."""
        if id(weight) not in self._weights:
            return weight
        with self._turn:
            found = self._packed.get(id(weight))
            if found is None:
                found = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), samples)
                self._packed[id(weight)] = found
        return found


def copies(device: torch.device) -> int:
    """How often a weight is in memory once it is packed, where it is."""
    return 2 if device.type == "cpu" and mkl_is_slow() else 1


def quick_linear(packed: Packed | None = None) -> contextlib.AbstractContextManager[Any]:
    """Within, `torch.nn.functional.linear` takes the quicker way where there is one.

    Every function of torch is looked at on the way, so little else should happen within.

    Args:
        packed: Weights that many batches meet; without gradients.
    """
    return _QuickLinear(packed) if mkl_is_slow() else contextlib.nullcontext()


class _QuickLinear(TorchFunctionMode):
    """Hands calls of `linear` over to oneDNN."""

    def __init__(self, packed: Packed | None) -> None:
        super().__init__()
        self._packed = packed or Packed(())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace `linear`; leave everything else alone."""
        if func is functional.linear and not kwargs and len(args) == 3 and applies(*args):
            if torch.is_grad_enabled():
                return _Linear.apply(*args)  # type: ignore[no-untyped-call]
            inputs, weight, bias = args
            return product(inputs, self._packed(weight, len(inputs)), bias)
        return func(*args, **(kwargs or {}))


def applies(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the quicker way is open and worth it."""
    return (
        inputs.ndim == 2
        and len(inputs) >= _LEAST_SAMPLES
        and weight.numel() >= _LEAST_WEIGHTS
        and _plain(torch.float32, inputs, weight, bias)
        and not torch.is_autocast_enabled("cpu")
    )


def _plain(dtype: torch.dtype, *values: Tensor | None) -> bool:
    """Whether these are ordinary tensors of one type, as oneDNN is handed them."""
    return all(
        type(value) in (Tensor, torch.nn.Parameter)
        and value.dtype == dtype
        and value.device.type == "cpu"
        and value.is_contiguous()
        for value in values
        if value is not None
    )


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`inputs @ weight.T + bias` by oneDNN."""
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return outputs


def affine(inputs: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed) -> Tensor:
    """`inputs @ weight.T + bias` in the quicker way, without gradients; in half precision, too.

    Args:
        inputs: Samples; their type is that of the result.
        weight: As `torch.nn.functional.linear` takes it; of another type it is converted.
        bias: Likewise.
        packed: Weights that many batches meet.
    """
    dtype = inputs.dtype
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    quick = (
        ((dtype == torch.float32 and mkl_is_slow()) or (dtype == torch.bfloat16 and packs_halves()))
        and inputs.ndim == 2
        and len(inputs) * weight.numel() >= _LEAST_PRODUCTS
        and _plain(dtype, inputs, weight, bias)
    )
    if quick:
        return product(inputs, packed(weight, len(inputs)), bias)
    return functional.linear(inputs, weight, bias)


class _Linear(torch.autograd.Function):
    """The affine map and its gradient, all three products by oneDNN."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.T) if of_inputs else None,
            product(gradient.T, inputs.T) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )
