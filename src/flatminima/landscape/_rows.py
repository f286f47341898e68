"""Convolutions with what follows them, a few images at a time, where they are taken tile by tile.

A batch that is large enough for the deep layers of an image network is too large for the first
ones: their outputs are fetched from memory and written back by each layer in turn, and memory of
such sizes is asked of the system anew every time. Where layers that treat every image by itself
follow each other in a `Sequential`, images go through them in parts that stay in a core's cache.

BatchNorm in evaluation multiplies each channel by a number and adds one: behind a convolution, that
and the rectifier behind it are done where the convolution wrote its outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.landscape._threads import sharing_tensors

# What is done in place behind a convolution, in this order, and where images get smaller.
_IN_PLACE, _POOLS = (nn.BatchNorm2d, nn.ReLU), (nn.MaxPool2d, nn.AvgPool2d)
# The largest output of a part has so many bytes: with less the products get slower.
_PART = 2**22


class Row(nn.Sequential):
    """A `Sequential` that does so."""

    def forward(self, value: Any) -> Any:
        """The last module's output."""
        left = list(self)
        while left:
            images = isinstance(value, Tensor) and value.ndim == 4
            segment = _segment(left) if images and not torch.is_autocast_enabled("cpu") else []
            if segment:
                parts = value.split(_images(segment, value))
                found = [_through(segment, part) for part in parts]
                value = found[0] if len(found) == 1 else torch.cat(found)
                del left[: len(segment)]
            else:
                value = left.pop(0)(value)
        return value


def in_rows(network: nn.Module) -> nn.Module | None:
    """The same modules around the same tensors, with rows in the places of plain `Sequential`s.

    `None` if none of them would be gone through in parts.
    """
    made = sharing_tensors(network)
    found = False
    for module in made.modules():
        if type(module) is nn.Sequential and "forward" not in vars(module):
            children = list(module)
            if any(_segment(children[first:]) for first in range(len(children))):
                module.__class__ = Row
                found = True
    return made if found else None


def _segment(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Those from a convolution on that treat every image by itself, up to where images shrink."""
    if not modules or type(modules[0]) is not nn.Conv2d:
        return []
    found: list[nn.Module] = []
    for module in modules:
        if type(module) not in (nn.Conv2d, *_IN_PLACE, *_POOLS) or not _plain(module):
            break
        found.append(module)
        if type(module) in _POOLS:
            break
    return found if len(found) > 1 else []


def _plain(module: nn.Module) -> bool:
    """Whether a module is what its class says, and nobody watches it."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return False
    if isinstance(module, nn.BatchNorm2d):
        return module.running_mean is not None and not module.training
    return not getattr(module, "return_indices", False)


def _images(segment: Sequence[nn.Module], inputs: Tensor) -> int:
    """How many of them go through a segment together."""
    widest = max(module.out_channels for module in segment if isinstance(module, nn.Conv2d))
    each = inputs[:1].nbytes // inputs.shape[1] * max(widest, inputs.shape[1])
    return max(1, _PART // max(each, 1))


def _through(segment: Sequence[nn.Module], value: Tensor) -> Tensor:
    """What a segment gives."""
    left = list(segment)
    while left:
        module = left.pop(0)
        value = module(value)
        if isinstance(module, nn.Conv2d):  # its outputs are memory of their own
            if left and isinstance(left[0], nn.BatchNorm2d):
                value = _normalised(left.pop(0), value)
            if left and isinstance(left[0], nn.ReLU):
                value = value.relu_()
                del left[0]
    return value


def _normalised(norm: nn.Module, value: Tensor) -> Tensor:
    """BatchNorm in evaluation, in place."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    last = value.permute(0, 2, 3, 1)
    torch.addcmul(shift, last, scale, out=last)
    return value
