"""Principal components of states around one of them, by the small Gram matrix."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from flatminima.subspace._tensors import norm, orthogonalise
from flatminima.types import Parameters

# So many numbers of every state are in memory in float64 at once: 8 MB a state.
_COLUMNS = 2**20
# A component shorter than this share of the longest is rounding: its square is 1e-12 of the largest
# eigenvalue, where float64 has four digits left, and float32 moves a weight vector by 3e-8 of its
# norm, which is about that share of a trajectory.
_ROUNDING = 1e-6


def principal_directions(
    states: Sequence[Parameters], origin: Parameters, dimensions: int
) -> tuple[list[dict[str, Tensor]], Float64[np.ndarray, " dimensions"]]:
    """Orthonormal directions, longest component first, and their shares of the squared distances.

    With the rows `d_i = states[i] - origin` and `D D' = V diag(s^2) V'`, direction k is
    `sum_i V_ik d_i / s_k`.

    Raises:
        ValueError: If the states are identical or span fewer dimensions.
    """
    values, vectors = np.linalg.eigh(_gram(states, origin))
    # Longest first; rounding leaves zeros slightly negative.
    squares, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if squares[0] == 0:
        raise ValueError(
            f"expected states that differ, got {len(states)} identical ones; give checkpoints of"
            " different epochs"
        )
    rank = int((squares > _ROUNDING**2 * squares[0]).sum())
    if rank < dimensions:
        raise ValueError(
            f"expected states that span {dimensions} dimensions, got {len(states)} of rank {rank};"
            f" ask for dimensions={rank}, or give other states"
        )
    basis: list[dict[str, Tensor]] = []
    for coefficients in vectors.T[:dimensions]:
        step = _combination(states, origin, coefficients * _sign(coefficients))
        # Rounding of the Gram matrix leaves the shorter components askew.
        orthogonalise(step, basis)
        length = norm(step)
        basis.append({name: value / length for name, value in step.items()})
    return basis, squares[:dimensions] / squares.sum()


def _gram(states: Sequence[Parameters], origin: Parameters) -> Float64[np.ndarray, "states states"]:
    """Inner products of the differences to the origin."""
    gram = np.zeros((len(states), len(states)))
    for name, start in origin.items():
        base = start.double().flatten()
        for first in range(0, base.numel(), _COLUMNS):
            part = slice(first, first + _COLUMNS)
            rows = torch.stack(
                [each[name].flatten()[part].to(base) - base[part] for each in states]
            )
            gram += (rows @ rows.T).numpy(force=True)
    return gram


def _combination(
    states: Sequence[Parameters], origin: Parameters, coefficients: Float64[np.ndarray, " states"]
) -> dict[str, Tensor]:
    """`sum_i coefficients_i (states_i - origin)` in float64."""
    total = {}
    for name, start in origin.items():
        base = start.double()
        total[name] = torch.zeros_like(base)
        for coefficient, each in zip(coefficients, states, strict=True):
            total[name].add_(each[name].to(base) - base, alpha=float(coefficient))
    return total


def _sign(coefficients: Float64[np.ndarray, " states"]) -> float:
    """1 or -1, whichever makes the largest coefficient positive; of equal ones the first."""
    sizes = np.abs(coefficients)
    # Equal up to rounding, which is not the same on every machine.
    leading = int(np.argmax(sizes >= (1 - 1e-9) * sizes.max()))
    return float(np.sign(coefficients[leading]))
