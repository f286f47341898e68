"""A `Subspace`: an origin in weight space and a few directions.

Coordinates are all that a `Landscape` is ever asked about; weight vectors are formed inside it. Two
kinds exist, and look the same from outside: the plane (line, space) through given states, and
random directions around one state, which are drawn anew from their seed whenever they are used.
"""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from flatminima._seeds import derive_seed
from flatminima.minimum import Minimum, State, as_minimum
from flatminima.types import Coordinates, Parameters

# Directions are kept in double precision: a basis made in float32 would put a minimum about 1e-7 of
# the plane's size off its own coordinate. One plane of a 15-million-parameter network: 240 MB.
_BASIS = torch.float64


class Subspace:
    """An origin, directions and the states that span it.

    Args:
        origin: The state at coordinates zero.
        directions: For each dimension the tensors to add per unit of coordinate, by parameter name;
            parameters that none of them names do not move.
        anchors: States of interest in the subspace, such as the minima that span it. Their buffers
            are what the BatchNorm policies read.

    Raises:
        ValueError: If a state or a direction has non-finite values, or names or shapes differ.
    """

    def __init__(
        self,
        origin: State,
        directions: Sequence[Parameters],
        *,
        anchors: Sequence[State] = (),
    ) -> None:
        self.origin = as_minimum(origin)
        _check_finite("the origin", self.origin.parameters)
        self.anchors = tuple(as_minimum(anchor) for anchor in anchors)
        for index, anchor in enumerate(self.anchors):
            _check_alike(self.origin, anchor, f"anchor {index}")
        if not isinstance(directions, _RandomDirections):
            for index in range(len(directions)):
                _check_direction(self.origin.parameters, directions[index], index)
        self._directions = directions
        self.anchor_coordinates: Coordinates = np.zeros((len(self.anchors), len(directions)))
        for index, anchor in enumerate(self.anchors):
            self.anchor_coordinates[index] = self.coordinates_of(anchor)

    @classmethod
    def through(cls, *states: State) -> "Subspace":
        """The plane through three states (the line through two, the space through more).

        The basis is made by Gram-Schmidt in float64, so coordinates are distances in weight space:
        the first state is the origin, the second lies on the first axis.

        Raises:
            ValueError: If fewer than two states are given, or they do not span a subspace of one
                dimension less than their number (identical or collinear states).
        """
        if len(states) < 2:
            raise ValueError(
                f"expected at least two states to span a subspace, got {len(states)}; three span a"
                " plane"
            )
        minima = [as_minimum(state) for state in states]
        origin = minima[0]
        _check_finite("state 0", origin.parameters)
        basis: list[dict[str, Tensor]] = []
        for index, state in enumerate(minima[1:], start=1):
            _check_alike(origin, state, f"state {index}")
            step = {
                name: value.to(_BASIS) - origin.parameters[name].to(_BASIS)
                for name, value in state.parameters.items()
            }
            length = norm(step)
            # Twice: one pass loses orthogonality when two differences are nearly parallel.
            for direction in basis + basis:
                _subtract(step, direction, inner(step, direction))
            rest = norm(step)
            if rest <= 1e-7 * max(length, norm(origin.parameters) * 1e-3):
                others = ", ".join(str(other) for other in range(index))
                raise ValueError(
                    f"expected states that span {len(minima) - 1} dimension(s), got state {index}"
                    f" on the line or plane through states {others} (it lies {rest:.3g} from it);"
                    " leave out identical or collinear states"
                )
            basis.append({name: value / rest for name, value in step.items()})
        return cls(origin, basis, anchors=minima)

    @classmethod
    def random(
        cls,
        state: State,
        dimensions: int,
        seed: int,
        *,
        parameters: str | Collection[str] = "all",
        scaling: str = "unit",
        orthogonal: bool = False,
        first: int = 0,
    ) -> "Subspace":
        """Random directions around `state`, uniform on the unit sphere of the chosen parameters.

        Direction k depends on (seed, k, parameter names) alone: not on how many are asked for, nor
        on the order or the precision in which they are used. None is kept: each is drawn when used.

        Args:
            state: The origin.
            dimensions: How many directions.
            seed: Seed of the draws.
            parameters: "all", a glob over parameter names such as "layer4.*", or names.
            scaling: "unit": a normal draw divided by its norm.
            orthogonal: Make the directions orthonormal (Gram-Schmidt in their order); they are
                independent draws otherwise, as a flatness radius wants them.
            first: Index of the first direction, to continue a sequence.

        Raises:
            ValueError: If no parameter is chosen, or for an unknown scaling.
        """
        if dimensions < 1:
            raise ValueError(f"expected at least 1 dimension, got {dimensions}; ask for 1 or more")
        if scaling != "unit":
            raise ValueError(f"expected scaling 'unit', got {scaling!r}; only 'unit' is known")
        origin = as_minimum(state)
        names = choose(origin.parameters, parameters)
        draws = _RandomDirections(
            {name: origin.parameters[name] for name in names},
            seed,
            range(first, first + dimensions),
        )
        if not orthogonal:
            return cls(origin, draws)
        moved = sum(origin.parameters[name].numel() for name in names)
        if dimensions > moved:
            raise ValueError(
                f"expected at most {moved} orthogonal directions in {moved} parameters, got"
                f" {dimensions}; ask for fewer"
            )
        basis: list[dict[str, Tensor]] = []
        for index in range(dimensions):
            step = {name: value.to(_BASIS) for name, value in draws[index].items()}
            for direction in basis + basis:
                _subtract(step, direction, inner(step, direction))
            length = norm(step)
            basis.append({name: value / length for name, value in step.items()})
        return cls(origin, basis)

    @property
    def dimensions(self) -> int:
        """The number of directions."""
        return len(self._directions)

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of the parameters that any direction moves, in the origin's order."""
        if isinstance(self._directions, _RandomDirections):
            return tuple(self._directions.like)
        named = {name for index in range(self.dimensions) for name in self._directions[index]}
        return tuple(name for name in self.origin.parameters if name in named)

    def direction(self, index: int) -> Parameters:
        """The tensors of direction `index`, by name (drawn anew where it is random)."""
        return self._directions[index]

    def cast(self, like: Parameters) -> "Subspace":
        """The same subspace with the origin's tensors in the types and on the devices of `like`."""
        other = object.__new__(Subspace)
        other.origin = Minimum(
            {name: value.to(like[name]) for name, value in self.origin.parameters.items()},
            self.origin.buffers,
        )
        other.anchors = self.anchors
        other.anchor_coordinates = self.anchor_coordinates
        if isinstance(self._directions, _RandomDirections):
            other._directions = self._directions.cast(other.origin.parameters)
        else:
            other._directions = [
                {name: value.to(like[name].device) for name, value in self.direction(k).items()}
                for k in range(self.dimensions)
            ]
        return other

    def parameters_at(self, coordinate: Float64[np.ndarray, " dimensions"]) -> dict[str, Tensor]:
        """All parameters at one coordinate, in the origin's own precision.

        The sum is formed in float64 and rounded once; a direction whose coordinate is zero is never
        drawn, and at coordinates zero the origin's tensors come back exactly.
        """
        self._check_width(coordinate)
        sums: dict[str, Tensor] = {}
        for index in np.flatnonzero(coordinate):
            for name, value in self._directions[int(index)].items():
                if name not in sums:
                    sums[name] = self.origin.parameters[name].to(_BASIS, copy=True)
                sums[name].add_(value, alpha=float(coordinate[index]))
        return {
            name: sums[name].to(value.dtype) if name in sums else value
            for name, value in self.origin.parameters.items()
        }

    def barycentric(self, weights: Float64[np.ndarray, "points anchors"]) -> Coordinates:
        """Coordinates of the weighted means of the anchors.

        Args:
            weights: One row per point; a row sums to one.

        Raises:
            ValueError: If the rows do not sum to one or do not have one weight per anchor.
        """
        if weights.shape[1] != len(self.anchors):
            raise ValueError(
                f"expected {len(self.anchors)} weights per point, one per anchor, got"
                f" {weights.shape[1]}; give an array [points, {len(self.anchors)}]"
            )
        if not np.allclose(weights.sum(axis=1), 1.0):
            raise ValueError("expected weights that sum to 1 per point, got other sums; norm them")
        return np.asarray(weights @ self.anchor_coordinates)

    def coordinates_of(self, state: State) -> Float64[np.ndarray, " dimensions"]:
        """Coordinates of the point of the subspace nearest to `state` (least squares)."""
        other = as_minimum(state)
        _check_alike(self.origin, other, "the state")
        step = {
            name: other.parameters[name].to(_BASIS) - self.origin.parameters[name].to(_BASIS)
            for name in self.moved
        }
        products = np.array([inner(step, self.direction(k)) for k in range(self.dimensions)])
        return np.asarray(np.linalg.solve(self.gram(), products))

    def gram(self) -> Float64[np.ndarray, "dimensions dimensions"]:
        """Inner products of the directions; the identity for an orthonormal basis."""
        gram = np.empty((self.dimensions, self.dimensions))
        for row in range(self.dimensions):
            here = self.direction(row)
            for column in range(row + 1):
                gram[row, column] = gram[column, row] = inner(here, self.direction(column))
        return gram

    def _check_width(self, coordinate: np.ndarray) -> None:
        if coordinate.shape != (self.dimensions,):
            raise ValueError(
                f"expected a coordinate of {self.dimensions} numbers, got shape"
                f" {coordinate.shape}; give one number per direction"
            )


class _RandomDirections(Sequence[Parameters]):
    """Isotropic unit directions, a function of seed, index and parameter names; none is kept."""

    def __init__(self, like: Parameters, seed: int, indices: range) -> None:
        self.like = dict(like)
        self._seed = seed
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def cast(self, like: Parameters) -> "_RandomDirections":
        return _RandomDirections(
            {name: like[name] for name in self.like}, self._seed, self._indices
        )

    def __getitem__(self, index: Any) -> Any:
        draws = {
            name: self._draw(self._indices[index], name, value) for name, value in self.like.items()
        }
        length = norm(draws)
        return {name: draw.to(self.like[name].device) / length for name, draw in draws.items()}

    def _draw(self, index: int, name: str, like: Tensor) -> Tensor:
        """Drawn on the CPU in float32 whatever the network's own device and precision are."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "direction", index, name))
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(_BASIS)


def choose(names: Collection[str], parameters: str | Collection[str]) -> tuple[str, ...]:
    """The parameter names that "all", a glob or a collection of names stands for.

    Raises:
        ValueError: If a name is unknown or nothing is chosen.
    """
    if parameters == "all":
        chosen = tuple(names)
    elif isinstance(parameters, str):
        chosen = tuple(name for name in names if fnmatchcase(name, parameters))
    else:
        unknown = sorted(set(parameters) - set(names))
        if unknown:
            raise ValueError(
                f"expected names of parameters, got {unknown[0]!r}; they are {', '.join(names)}"
            )
        chosen = tuple(name for name in names if name in set(parameters))
    if not chosen:
        raise ValueError(
            f"expected parameters that match {parameters!r}, got none; the names are"
            f" {', '.join(list(names)[:8])}"
        )
    return chosen


def inner(left: Parameters, right: Parameters) -> float:
    """The inner product over the names that both have, summed in float64."""
    return sum(
        float(torch.sum(value.to(_BASIS) * right[name].to(_BASIS)))
        for name, value in left.items()
        if name in right
    )


def norm(tensors: Parameters) -> float:
    """The Euclidean norm of all tensors together, summed in float64."""
    return float(np.sqrt(inner(tensors, tensors)))


def _subtract(step: dict[str, Tensor], direction: Parameters, amount: float) -> None:
    for name, value in direction.items():
        step[name].sub_(value.to(_BASIS), alpha=amount)


def _check_finite(which: str, tensors: Parameters) -> None:
    for name, value in tensors.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise ValueError(
                f"expected finite weights, got {bad} of {value.numel()} non-finite values in {name}"
                f" of {which}; the network has diverged, take an earlier checkpoint"
            )


def _check_alike(origin: Minimum, other: Minimum, which: str) -> None:
    """Same names and shapes, and finite."""
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
    _check_finite(which, theirs)


def _check_direction(origin: Parameters, direction: Mapping[str, Tensor], index: int) -> None:
    for name, value in direction.items():
        if name not in origin or origin[name].shape != value.shape:
            got = f"{tuple(value.shape)}" + ("" if name in origin else ", an unknown name")
            want = f"{tuple(origin[name].shape)}" if name in origin else "a parameter's name"
            raise ValueError(
                f"expected direction {index} to fit the origin, got {name} with {got} for {want};"
                " give tensors by parameter name"
            )
    _check_finite(f"direction {index}", direction)
