"""Random directions: functions of seed, index and parameter names, of which none is kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flatminima._seeds import derive_seed
from flatminima.subspace._filters import Filters
from flatminima.subspace._tensors import BASIS, norm, orthogonalise
from flatminima.types import Parameters


class RandomDirections(Sequence[Parameters]):
    """Isotropic unit directions, or normal draws scaled by `filters`; each is drawn when used.

    Args:
        like: The parameters that move.
        seed: Seed of the draws.
        indices: Of the directions.
        filters: How draws are scaled; to unit length if left out.
    """

    def __init__(
        self, like: Parameters, seed: int, indices: range, filters: Filters | None = None
    ) -> None:
        self.like = dict(like)
        self._seed = seed
        self._indices = indices
        self._filters = filters

    def __len__(self) -> int:
        return len(self._indices)

    def cast(self, like: Parameters) -> "RandomDirections":
        """The same directions on the devices of `like`."""
        here = {name: like[name] for name in self.like}
        return RandomDirections(here, self._seed, self._indices, self._filters)

    def __getitem__(self, index: Any) -> Any:
        draws = {
            name: self._draw(self._indices[index], name, value) for name, value in self.like.items()
        }
        if self._filters is not None:
            return self._filters.scaled(draws)
        length = norm(draws)
        return {name: draw / length for name, draw in draws.items()}

    def _draw(self, index: int, name: str, like: Tensor) -> Tensor:
        """Drawn on the CPU in float32 whatever the network's own device and precision are."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "direction", index, name))
        draw = torch.randn(like.shape, generator=generator, dtype=torch.float32)
        return draw.to(like.device).to(BASIS)


def orthonormal(draws: RandomDirections) -> list[dict[str, Tensor]]:
    """The draws made orthonormal by Gram-Schmidt in their order.

    Raises:
        ValueError: If there are more of them than parameters that move.
    """
    moved = sum(value.numel() for value in draws.like.values())
    if len(draws) > moved:
        raise ValueError(
            f"expected at most {moved} orthogonal directions in {moved} parameters, got"
            f" {len(draws)}; ask for fewer"
        )
    basis: list[dict[str, Tensor]] = []
    for index in range(len(draws)):
        step = {name: value.to(BASIS) for name, value in draws[index].items()}
        orthogonalise(step, basis)
        length = norm(step)
        basis.append({name: value / length for name, value in step.items()})
    return basis
