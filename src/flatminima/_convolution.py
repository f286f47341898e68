"""Convolutions with 3 x 3 kernels in float32 on processors, from a quarter of the products.

Winograd's minimal filtering (Lavin and Gray 2016, arXiv 1509.09308): a tile of 4 x 4 outputs is
found from 6 x 6 products per pair of channels where the definition takes 144, a tile of 2 x 2 from
16 in place of 36. Inputs, kernels and products are transformed by small fixed matrices. Those of
the tiles of 4 are made for the points 0, 1, -1, 1/2, -2 and infinity, which cost less than three
bits against the direct way (Barabasz and others 2020, arXiv 1803.10986), tiles of 2 less than one.

All of it are matrix products in float32. Where a number is not finite, the direct way is asked: it
says which outputs are concerned, where a whole tile would be here.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from flatminima._packed import Packed

_POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2)),
}
"""Sides of tiles, and the points that their transforms are made for, beside infinity."""

# With fewer channels the transforms take as long as the products that they save.
_LEAST_CHANNELS = 64
# So many times fewer products, at least, and so many tiles, or it is not worth it.
_LEAST_GAIN, _LEAST_TILES = 1.5, 32
# Transformed inputs and outputs of so many bytes, and so many tiles at least, are in work at once.
_CHUNK, _CHUNK_TILES = 2**22, 96


@dataclass(frozen=True)
class Tiling:
    """How outputs are cut into tiles of one size.

    Attributes:
        side: Outputs along a side of a tile.
    """

    side: int

    @property
    def reach(self) -> int:
        """Inputs along a side of a tile, and products."""
        return self.side + 2

    def tiles(self, length: int) -> int:
        """How many cover so many outputs."""
        return -(-length // self.side)

    def products(self, height: int, width: int) -> int:
        """Products for each pair of channels, where the definition takes nine for each output."""
        return self.tiles(height) * self.tiles(width) * self.reach**2


def gains_by_tiles(network: nn.Module) -> bool:
    """Whether a network has convolutions that are quicker so, by their structure alone."""
    return any(
        isinstance(module, nn.Conv2d)
        and tuple(module.kernel_size) == (3, 3)
        and set(module.stride) == set(module.dilation) == {1}
        and module.groups == 1
        and min(module.weight.shape[:2]) >= _LEAST_CHANNELS
        for module in network.modules()
    )


def side_for(
    inputs: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> int | None:
    """The side of the tiles in which a convolution is quicker; `None` where the direct way is."""
    plain = (
        isinstance(padding, tuple | list)
        and groups == 1
        and set(stride) == set(dilation) == {1}
        and inputs.ndim == 4
        and tuple(weight.shape[2:]) == (3, 3)
        and min(weight.shape[:2]) >= _LEAST_CHANNELS
        and inputs.shape[1] == weight.shape[1]
        and all(type(value) in (Tensor, torch.nn.Parameter) for value in (inputs, weight))
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == weight.device.type == "cpu"
        and inputs.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
    return _side(inputs.shape, padding) if plain else None


def _side(shape: torch.Size, padding: Sequence[int | str]) -> int | None:
    height, width = _outputs(shape, padding)
    if min(height, width) < 1:
        return None
    side = min(_POINTS, key=lambda side: Tiling(side).products(height, width))
    tiling = Tiling(side)
    enough = shape[0] * tiling.tiles(height) * tiling.tiles(width) >= _LEAST_TILES
    gain = 9 * height * width / tiling.products(height, width)
    return side if enough and gain >= _LEAST_GAIN else None


def _outputs(shape: torch.Size, padding: Sequence[int | str]) -> tuple[int, int]:
    """Height and width of what comes out."""
    along = [side + 2 * int(pad) - 2 for side, pad in zip(shape[2:], padding, strict=True)]
    return along[0], along[1]


def convolve(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int | str],
    side: int,
    packed: Packed,
) -> Tensor | None:
    """`torch.nn.functional.conv2d` of stride 1, without gradients.

    Args:
        inputs: `[N, channels, height, width]`, laid out with the channels last.
        weight: `[outputs, channels, 3, 3]`.
        bias: `[outputs]`.
        padding: Zeros above and below, left and right.
        side: Of the tiles.
        packed: Weights that many batches meet.

    Returns:
        `[N, outputs, height', width']`, laid out likewise; `None` if a number is not finite.
    """
    kernels = packed.made(weight, side, functools.partial(transformed, side=side))
    return _tile_by_tile(inputs, kernels, bias, padding, Tiling(side))


def transformed(weight: Tensor, side: int) -> Tensor:
    """Kernels as the products take them, `[reach^2, channels, outputs]`."""
    outputs, channels = weight.shape[:2]
    rows = weight.permute(2, 3, 1, 0).reshape(9, channels * outputs)
    of_kernels = _transforms(side, weight.dtype)[1]
    return (of_kernels @ rows).view(-1, channels, outputs)


def transformed_bytes(weight: Tensor) -> int:
    """What transformed kernels take, at most."""
    return weight.nbytes // 9 * max(Tiling(side).reach ** 2 for side in _POINTS)


def _tile_by_tile(
    inputs: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    padding: Sequence[int | str],
    tiling: Tiling,
) -> Tensor | None:
    """The outputs, a few images at a time: what lies between stays in a core's cache."""
    images, channels, height, width = inputs.shape
    outputs, reach, side = kernels.shape[2], tiling.reach, tiling.side
    high, wide = _outputs(inputs.shape, padding)
    down, across = tiling.tiles(high), tiling.tiles(wide)
    each = down * across
    transform, _, gather = _transforms(side, inputs.dtype)
    size = each * reach**2 * (channels + outputs) * inputs.element_size()
    step = min(images, max(1, round(_CHUNK / size), -(-_CHUNK_TILES // each)))
    above, left = map(int, padding)
    padded = inputs.new_zeros(step, down * side + 2, across * side + 2, channels)
    by_image, by_row, by_column, _ = padded.stride()
    # The tiles overlap: a view of what was padded.
    strides = (by_row, by_column, by_image, side * by_row, side * by_column, 1)
    pieces, moved = (inputs.new_empty(reach**2, step * each * channels) for _ in range(2))
    products = inputs.new_empty(reach**2, step * each, outputs)
    found = inputs.new_empty(side**2, step * each * outputs)
    result = inputs.new_empty(images, down * side, across * side, outputs)
    tiled = result.view(images, down, side, across, side, outputs)
    shift = inputs.new_zeros(()) if bias is None else bias
    rows = inputs.permute(0, 2, 3, 1)
    for first in range(0, images, step):
        count = min(step, images - first)
        if count < step:  # the last ones: every buffer is cut to what is filled
            pieces, moved, products, found = (
                _cut(value, count, step) for value in (pieces, moved, products, found)
            )
        padded[:count, above : above + height, left : left + width] = rows[first : first + count]
        shape = (reach, reach, count, down, across, channels)
        pieces.view(shape).copy_(padded.as_strided(shape, strides))
        torch.mm(transform, pieces, out=moved)
        torch.bmm(moved.view(reach**2, count * each, channels), kernels, out=products)
        torch.mm(gather, products.view(reach**2, -1), out=found)
        if not math.isfinite(found.sum().item()):
            return None
        each_tile = found.view(side, side, count, down, across, outputs)
        torch.add(each_tile.permute(2, 3, 0, 4, 1, 5), shift, out=tiled[first : first + count])
    if result.shape[1:3] != (high, wide):
        result = result[:, :high, :wide].contiguous()
    return result.permute(0, 3, 1, 2)


def _cut(value: Tensor, count: int, step: int) -> Tensor:
    """A buffer `[n, step * k, ...]` as one for fewer images, without gaps."""
    shape = (value.shape[0], value.shape[1] // step * count, *value.shape[2:])
    return value.view(-1)[: math.prod(shape)].view(shape)


@functools.cache
def _transforms(side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """What inputs, kernels and products are multiplied by, both directions of an image at once.

    By Toom and Cook: polynomials are multiplied by their values at some points. Made in fractions
    and rounded once.
    """
    points = _POINTS[side]
    reach = len(points) + 1
    gather = [[point**power for point in points] + [_last(power, side)] for power in range(side)]
    kernels, inputs = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = math.prod((point - other for other in others), start=Fraction(1))
        kernels.append([point**power / scale for power in range(3)])
        inputs.append(_coefficients(others, reach))
    kernels.append([_last(power, 3) for power in range(3)])
    inputs.append(_coefficients(points, reach))

    wide = torch.float64

    def squared(matrix: Sequence[Sequence[Fraction]]) -> Tensor:
        once = torch.tensor([[float(value) for value in row] for row in matrix], dtype=wide)
        return torch.kron(once, once).to(dtype)

    return squared(inputs), squared(kernels), squared(gather)


def _last(power: int, length: int) -> Fraction:
    """The point at infinity sees the highest power alone."""
    return Fraction(int(power == length - 1))


def _coefficients(roots: Sequence[Fraction], length: int) -> list[Fraction]:
    """Of the polynomial with these roots, the constant first."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [
            high - root * low for high, low in zip(shifted, [*found, Fraction(0)], strict=True)
        ]
    return found + [Fraction(0)] * (length - len(found))
