"""Sums and products of tensors by parameter name, in double precision, and checks of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from flatminima.minimum import Minimum
from flatminima.types import Parameters

# Directions are kept in double precision: a basis made in float32 would put a minimum about 1e-7 of
# the plane's size off its own coordinate. One plane of a 15-million-parameter network: 240 MB.
BASIS = torch.float64


def inner(left: Parameters, right: Parameters) -> float:
    """The inner product over the names that both have, summed in float64."""
    return sum(
        float(torch.sum(value.to(BASIS) * right[name].to(value.device, BASIS)))
        for name, value in left.items()
        if name in right
    )


def norm(tensors: Parameters) -> float:
    """The Euclidean norm of all tensors together, summed in float64."""
    return float(np.sqrt(inner(tensors, tensors)))


def difference(values: Parameters, origin: Parameters) -> dict[str, Tensor]:
    """`values - origin` in float64, over the names of `values`."""
    return {
        name: value.to(origin[name].device, BASIS) - origin[name].to(BASIS)
        for name, value in values.items()
    }


def subtract(step: dict[str, Tensor], direction: Parameters, amount: float) -> None:
    """Take `amount` times a direction from `step`, in place."""
    for name, value in direction.items():
        step[name].sub_(value.to(BASIS), alpha=amount)


def orthogonalise(step: dict[str, Tensor], basis: Sequence[Parameters]) -> None:
    """Take from `step` its parts along an orthonormal basis, in place (Gram-Schmidt)."""
    # Twice: one pass loses orthogonality when two differences are nearly parallel.
    for direction in [*basis, *basis]:
        subtract(step, direction, inner(step, direction))


def check_finite(which: str, tensors: Parameters) -> None:
    """Raise `ValueError` for a value that is not finite; the message names tensor and count."""
    for name, value in tensors.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise ValueError(
                f"expected finite weights, got {bad} of {value.numel()} non-finite values in {name}"
                f" of {which}; the network has diverged, take an earlier checkpoint"
            )


def check_alike(origin: Minimum, other: Minimum, which: str) -> None:
    """Raise `ValueError` unless names and shapes are the same and all is finite."""
    ours, theirs = origin.parameters, other.parameters
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours:
            raise ValueError(
                f"expected states of one architecture, got {name} only in"
                f" {'the origin' if name in ours else which}; compare networks of one kind"
            )
        if ours[name].shape != theirs[name].shape:
            raise ValueError(
                f"expected states of one architecture, got {name} of shape"
                f" {tuple(ours[name].shape)} in the origin and {tuple(theirs[name].shape)} in"
                f" {which}; compare networks of one kind"
            )
    check_finite(which, theirs)


def check_direction(origin: Parameters, direction: Mapping[str, Tensor], index: int) -> None:
    """Raise `ValueError` unless a direction has the origin's names and shapes, and is finite."""
    for name, value in direction.items():
        if name not in origin or origin[name].shape != value.shape:
            got = f"{tuple(value.shape)}" + ("" if name in origin else ", an unknown name")
            want = f"{tuple(origin[name].shape)}" if name in origin else "a parameter's name"
            raise ValueError(
                f"expected direction {index} to fit the origin, got {name} with {got} for {want};"
                " give tensors by parameter name"
            )
    check_finite(f"direction {index}", direction)
