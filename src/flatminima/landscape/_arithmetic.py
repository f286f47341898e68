"""How products are computed: exactly, or quickly in half precision, and by how much that is off.

Exactly is float32 as the network holds it. Quickly is bfloat16 (8 bits of mantissa) with sums in
float32, on units that do it at two to ten times the speed. Weights are formed in float32 or better
either way and rounded once: rounding the steps themselves would move a network by 0.0017 of its
norm, about as far as a radius is long.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from flatminima._convolution import gains_by_tiles
from flatminima._packed import Packed
from flatminima._processor import mkl_is_quick
from flatminima._quick import quick_products
from flatminima._seeds import derive_seed
from flatminima.landscape._layers import is_affine, own_parameters
from flatminima.landscape._meter import Meter
from flatminima.landscape._world import as_dtype, channels_last

HALF = torch.bfloat16

# One point in so many is computed in both ways. Of few points it is three, for the difference hangs
# on where in the plane a point lies, but no more than one in eight: they would cost what is saved.
_REPEATED, _FEWEST, _AT_MOST = 50, 3, 8
# Over so many examples: a mean over them tells a difference as well as one over all.
COMPARED = 10_000


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of a forward pass.

    Attributes:
        half: Whether products are in half precision.
        device: Where they are.
        weights: Names of parameters that enter products and nothing else: rounded once a point
            where they would be rounded anew in every batch.
        channels_last: Whether images are laid out so; weights of convolutions then are, too, once a
            point where they would be laid out anew in every batch.
        tiled: Whether convolutions in float32 are taken tile by tile, from fewer products; not
            what defines the answer.
    """

    half: bool
    device: torch.device
    weights: frozenset[str] = frozenset()
    channels_last: bool = False
    tiled: bool = False

    @contextlib.contextmanager
    def used(self, packed: Packed | None = None, *, affine: bool = False) -> Iterator[None]:
        """Within, torch computes so.

        Args:
            packed: Weights that many batches meet.
            affine: Whether affine layers may take their quicker way, too.
        """
        if self.half:
            with torch.autocast(self.device.type, dtype=HALF, cache_enabled=False):
                yield
            return
        with quick_products(packed, affine=affine, convolutions=self.tiled):
            yield

    def ready(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters as the products take them."""
        ready = dict(parameters)
        if self.half:
            ready |= {name: ready[name].to(HALF) for name in self.weights & ready.keys()}
        if self.channels_last:
            images = {name: value for name, value in ready.items() if value.ndim == 4}
            ready |= channels_last(images)
        return ready

    def product(self, value: Tensor) -> Tensor:
        """An activation on its way into a layer, as the products take it."""
        return value.to(HALF) if self.half else value

    def add(self, meter: Meter, point: int, outputs: Any, targets: Any) -> None:
        """Add a batch of a network's outputs to a meter."""
        if not self.half:
            meter.add(point, outputs, targets)
            return
        outputs = as_dtype(outputs, torch.float32)
        if isinstance(outputs, Tensor):
            meter.add_stack([point], outputs[None], targets)
        else:
            meter.add(point, outputs, targets)


def exact(network: nn.Module, device: torch.device, *, channels_last: bool = False) -> Arithmetic:
    """Float32 stays float32."""
    return Arithmetic(
        half=False,
        device=device,
        channels_last=channels_last,
        tiled=channels_last and device.type == "cpu" and mkl_is_quick() and gains_by_tiles(network),
    )


def fast(network: nn.Module, device: torch.device, *, channels_last: bool = False) -> Arithmetic:
    """Products in half precision."""
    holders: dict[int, bool] = {}
    for module in network.modules():
        for value in module.parameters(recurse=False):
            holders[id(value)] = holders.get(id(value), True) and is_affine(module)
    affine = {
        name
        for layer, module in network.named_modules()
        if is_affine(module)
        for name in own_parameters(network, layer)
    }
    names = {name for name, value in network.named_parameters() if holders[id(value)]}
    weights = frozenset(names & affine)
    return Arithmetic(half=True, device=device, weights=weights, channels_last=channels_last)


def check_precision(precision: str, network: nn.Module) -> None:
    """Raise `ValueError` for an unknown precision, or one that a network does not have."""
    if precision not in ("exact", "fast"):
        raise ValueError(
            f"expected precision 'exact' or 'fast', got {precision!r}; check the spelling"
        )
    wide = {value.dtype for value in network.parameters()} & {torch.float64}
    if precision == "fast" and wide:
        raise ValueError(
            "expected a network in float32 or less for precision='fast', got one in float64;"
            " call model.float(), or use precision='exact'"
        )


def repeated_points(points: int) -> Int64[np.ndarray, " repeated"]:
    """Which of so many points are computed in both ways: about a fiftieth, at random."""
    count = max(1, min(_FEWEST, points // _AT_MOST), round(points / _REPEATED))
    draw = np.random.default_rng(derive_seed(0, "repeated", points))
    return np.sort(draw.choice(points, count, replace=False))
