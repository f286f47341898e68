"""Affine layers in float32 on processors of AMD with AVX-512, at twice the speed.

There MKL, which torch uses for matrix products, keeps to its slower code: 107 GFLOP/s on one core
against 250 by oneDNN, which torch also brings along but uses for convolutions only (torch 2.13).
Both are float32 throughout. The choice hangs on the processor and on shapes alone, so that the same
machine always gives the same bits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from flatminima._packed import Packed
from flatminima._processor import mkl_is_slow, packs_halves

# Below this many products per sample, or samples, calling oneDNN costs more than it saves.
_LEAST_WEIGHTS = 16_384
_LEAST_SAMPLES = 16
# Where it is called without a detour, they are so few in all.
_LEAST_PRODUCTS = 2**18


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


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed) -> Tensor:
    """`torch.nn.functional.linear` by oneDNN, where it `applies`.

    Args:
        inputs: As it takes them.
        weight: Likewise.
        bias: Likewise.
        packed: Weights that many batches meet; where no gradients are asked for.
    """
    if torch.is_grad_enabled():
        outputs: Tensor = _Linear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return outputs
    return product(inputs, in_order(weight, len(inputs), packed), bias)


def in_order(weight: Tensor, samples: int, packed: Packed) -> Tensor:
    """A weight in the order in which oneDNN reads it, if many batches meet it.

    Args:
        weight: As `torch.nn.functional.linear` takes it.
        samples: About how many it is for.
        packed: Those that many batches meet.
    """
    if weight not in packed:
        return weight

    def ordered(own: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._reorder_linear_weight(own.detach(), samples)
        return found

    return packed.made(weight, "linear", ordered)


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
        return product(inputs, in_order(weight, len(inputs), packed), bias)
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
