"""Products by quicker ways than torch takes: of affine layers, and of convolutions."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from flatminima import _convolution, _linear
from flatminima._packed import Packed
from flatminima._processor import mkl_is_slow


def quick_products(
    packed: Packed | None = None, *, affine: bool = True, convolutions: bool = False
) -> contextlib.AbstractContextManager[Any]:
    """Within, torch's products take the quicker way where there is one.

    Every function of torch is looked at on the way, so little else should happen within.

    Args:
        packed: Weights that many batches meet; without gradients.
        affine: Whether those of `torch.nn.functional.linear` do.
        convolutions: Whether those of `torch.nn.functional.conv2d` do.
    """
    affine = affine and mkl_is_slow()
    if not (affine or convolutions):
        return contextlib.nullcontext()
    return _Quick(packed or Packed(), affine=affine, convolutions=convolutions)


def footprint(tensors: Iterable[Tensor], *, convolutions: bool = False) -> int:
    """Bytes of weights with what is made of them, where they are."""
    found = 0
    for value in tensors:
        found += value.nbytes
        if convolutions and tuple(value.shape[2:]) == (3, 3):
            found += _convolution.transformed_bytes(value)
        elif value.device.type == "cpu" and mkl_is_slow():
            found += value.nbytes
    return found


class _Quick(TorchFunctionMode):
    """Hands calls over to the quicker ways."""

    def __init__(self, packed: Packed, *, affine: bool, convolutions: bool) -> None:
        super().__init__()
        self._packed, self._affine, self._convolutions = packed, affine, convolutions

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace products; leave everything else alone."""
        if not kwargs:
            if func is functional.linear and self._affine and len(args) == 3:
                if _linear.applies(*args):
                    return _linear.linear(*args, self._packed)
            elif func is functional.conv2d and self._convolutions and len(args) == 7:
                inputs, weight, bias, stride, padding, dilation, groups = args
                side = _convolution.side_for(inputs, weight, stride, padding, dilation, groups)
                if side is not None:
                    found = _convolution.convolve(inputs, weight, bias, padding, side, self._packed)
                    if found is not None:
                        return found
        return func(*args, **(kwargs or {}))
