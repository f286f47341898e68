"""The class `Subspace`."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from flatminima.minimum import Minimum, State, as_minimum, split_state
from flatminima.subspace._filters import Filters, groups_of_transposed
from flatminima.subspace._names import choose
from flatminima.subspace._principal import principal_directions
from flatminima.subspace._random import RandomDirections, orthonormal
from flatminima.subspace._tensors import (
    BASIS,
    check_alike,
    check_direction,
    check_finite,
    difference,
    inner,
    norm,
    orthogonalise,
    subtract,
)
from flatminima.types import Coordinates, Parameters


class Subspace:
    """An origin, directions and the states that span it.

    Args:
        origin: The state at coordinates zero.
        directions: For each dimension the tensors to add per unit of coordinate, by parameter name;
            parameters that none of them names do not move.
        anchors: States of interest in the subspace, such as the minima that span it. Their buffers
            are what the BatchNorm policies read.

    Attributes:
        origin: A copy of the state at coordinates zero.
        anchors: Copies of the anchors.
        anchor_coordinates: Their coordinates, or those of the nearest points of the subspace.
        explained_variance_ratio: Of a subspace made by `principal`, for each direction its share of
            the summed squared distances of the states from the origin; `None` for any other.

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
        check_finite("the origin", self.origin.parameters)
        self.anchors = tuple(as_minimum(anchor) for anchor in anchors)
        for index, anchor in enumerate(self.anchors):
            check_alike(self.origin, anchor, f"anchor {index}")
        if not isinstance(directions, RandomDirections):
            for index in range(len(directions)):
                check_direction(self.origin.parameters, directions[index], index)
        self._directions = directions
        self.anchor_coordinates: Coordinates = np.zeros((len(self.anchors), len(directions)))
        self.explained_variance_ratio: Float64[np.ndarray, " dimensions"] | None = None
        if self.anchors:
            gram = self.gram()
            for index, anchor in enumerate(self.anchors):
                self.anchor_coordinates[index] = self._nearest(anchor, gram)

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
        check_finite("state 0", origin.parameters)
        basis: list[dict[str, Tensor]] = []
        for index, state in enumerate(minima[1:], start=1):
            check_alike(origin, state, f"state {index}")
            step = difference(state.parameters, origin.parameters)
            length = norm(step)
            orthogonalise(step, basis)
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
    def principal(
        cls, states: Sequence[State], dimensions: int = 2, *, origin: int = -1
    ) -> "Subspace":
        """The plane in which a training trajectory moves most: its principal components.

        The matrix whose rows are the differences of all states to the origin state is decomposed
        as it is: components are centred on that state, not on the mean of the states. The
        directions are orthonormal, so coordinates are distances in weight space; every state is an
        anchor, in order, so `anchor_coordinates` is the path to draw, and `distance_of` says how
        far off the plane each state lies. Of the two signs of a direction the one is taken in which
        the coordinate of the state that lies farthest along it is positive.

        Source: Li et al. 2018, arXiv 1712.09913, section 7. The eigenvectors are those of the
        matrix of inner products [states, states], in float64.

        Args:
            states: The states of the trajectory in order, such as the checkpoints of a run.
            dimensions: How many components, longest first.
            origin: Which of the states is at coordinates zero; by default the last.

        Raises:
            ValueError: If there are not more states than dimensions, or they span fewer dimensions
                (the message says how many), are identical, not finite, or of several architectures.
        """
        if dimensions < 1:
            raise ValueError(f"expected at least 1 dimension, got {dimensions}; ask for 1 or more")
        if len(states) <= dimensions:
            raise ValueError(
                f"expected at least {dimensions + 1} states for {dimensions} principal components,"
                f" got {len(states)}; give more checkpoints"
            )
        if not -len(states) <= origin < len(states):
            raise ValueError(
                f"expected an origin among {len(states)} states, got {origin}; -1 is the last"
            )
        # Not copied: the subspace does that.
        minima = [Minimum(*split_state(state)) for state in states]
        check_finite(f"state {origin % len(states)}", minima[origin].parameters)
        for index, state in enumerate(minima):
            check_alike(minima[origin], state, f"state {index}")
        directions, ratio = principal_directions(
            [state.parameters for state in minima], minima[origin].parameters, dimensions
        )
        subspace = cls(states[origin], directions, anchors=states)
        subspace.explained_variance_ratio = ratio
        return subspace

    @classmethod
    def random(
        cls,
        state: State,
        dimensions: int,
        seed: int,
        *,
        parameters: str | Collection[str] = "all",
        scaling: str = "unit",
        vectors: str = "still",
        transposed: str | Collection[str] = (),
        orthogonal: bool = False,
        first: int = 0,
    ) -> "Subspace":
        """Random directions around `state`: normal draws, scaled as `scaling` says.

        Draw k depends on (seed, k, parameter names) alone: not on how many are asked for, nor on
        the order or the precision in which they are used. None is kept: each is drawn when used.

        Scaled by "unit" a direction is uniform on the unit sphere of the chosen parameters, and
        coordinates are distances. Scaled by "filter" (Li et al. 2018, arXiv 1712.09913, section 4)
        or "layer" it is as long as the weights it moves, and coordinates are multiples of it: 1 is
        a step as long as those weights. `gram` has the inner products, from which `loss_surface`
        places its points in true distances.

        A filter is the slice of a weight that makes one output: along axis 0 for linear layers and
        convolutions, along axis 1 within each group for transposed convolutions. The shape does not
        tell; they are found by type where `state` is a module, and must be named in `transposed`
        where it is not. A filter of zeros does not move.

        Args:
            state: The origin.
            dimensions: How many directions.
            seed: Seed of the draws.
            parameters: "all", a glob over parameter names such as "layer4.*", or names.
            scaling: "unit": a draw divided by its norm. "filter": each filter of a draw divided by
                its norm, times the norm of that filter of the state. "layer": the same with whole
                parameter tensors.
            vectors: What "filter" and "layer" do with parameters of fewer than two dimensions
                (biases, the weights of normalisation layers). "still": they do not move, as with
                the option `biasbn` of that paper's code. "scale": each is scaled as one filter.
            transposed: Globs over the names of parameters whose outputs lie on axis 1, for "filter"
                without a module: transposed convolutions of one group, or linear layers that
                store [inputs, outputs]. Only a module tells the groups of a grouped one.
            orthogonal: Make the draws orthonormal (Gram-Schmidt in their order); they are
                independent otherwise, as a flatness radius wants them. This comes before the
                scaling, after which "filter" and "layer" directions are only nearly orthogonal.
            first: Index of the first direction, to continue a sequence.

        Raises:
            ValueError: If no parameter is chosen or none would move, for a glob in `transposed`
                that matches nothing, or for an unknown `scaling` or `vectors`.
        """
        _check_choices(dimensions, scaling, vectors)
        origin = as_minimum(state)
        names = choose(origin.parameters, parameters)
        filters = None
        if scaling != "unit":
            groups = groups_of_transposed(state, origin.parameters, transposed)
            names = _moving(origin.parameters, names, vectors)
            weights = {name: origin.parameters[name] for name in names}
            filters = Filters(weights, whole=scaling == "layer", groups=groups)
        like = {name: origin.parameters[name] for name in names}
        indices = range(first, first + dimensions)
        if not orthogonal:
            return cls(origin, RandomDirections(like, seed, indices, filters))
        basis = orthonormal(RandomDirections(like, seed, indices))
        if filters is not None:
            basis = [filters.scaled(direction) for direction in basis]
        return cls(origin, basis)

    @property
    def dimensions(self) -> int:
        """The number of directions."""
        return len(self._directions)

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of the parameters that any direction moves, in the origin's order."""
        if isinstance(self._directions, RandomDirections):
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
        other.explained_variance_ratio = self.explained_variance_ratio
        if isinstance(self._directions, RandomDirections):
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
                    sums[name] = self.origin.parameters[name].to(BASIS, copy=True)
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
        check_alike(self.origin, other, "the state")
        return self._nearest(other, self.gram())

    def distance_of(self, state: State) -> float:
        """How far off the subspace a state lies: its distance from the nearest point, in float64.

        The nearest point is that of `coordinates_of`, so `hypot` of this and of the way there is
        the distance from the origin. Parameters that no direction moves count too. The difference
        itself is formed, so that of a state in the subspace only rounding is left.

        Raises:
            ValueError: If the state is not finite, or of another architecture.
        """
        other = as_minimum(state)
        check_alike(self.origin, other, "the state")
        rest = difference(other.parameters, self.origin.parameters)
        for index, amount in enumerate(self._nearest(other, self.gram())):
            subtract(rest, self.direction(index), float(amount))
        return norm(rest)

    def gram(self) -> Float64[np.ndarray, "dimensions dimensions"]:
        """Inner products of the directions; the identity for an orthonormal basis."""
        gram = np.empty((self.dimensions, self.dimensions))
        for row in range(self.dimensions):
            here = self.direction(row)
            for column in range(row + 1):
                gram[row, column] = gram[column, row] = inner(here, self.direction(column))
        return gram

    def _nearest(
        self, other: Minimum, gram: Float64[np.ndarray, "dimensions dimensions"]
    ) -> Float64[np.ndarray, " dimensions"]:
        """Coordinates of the point nearest to a state that fits, given the Gram matrix."""
        moved = {name: other.parameters[name] for name in self.moved}
        step = difference(moved, self.origin.parameters)
        products = np.array([inner(step, self.direction(k)) for k in range(self.dimensions)])
        return np.asarray(np.linalg.solve(gram, products))

    def _check_width(self, coordinate: np.ndarray) -> None:
        if coordinate.shape != (self.dimensions,):
            raise ValueError(
                f"expected a coordinate of {self.dimensions} numbers, got shape"
                f" {coordinate.shape}; give one number per direction"
            )


def _check_choices(dimensions: int, scaling: str, vectors: str) -> None:
    """Raise `ValueError` for settings of `random` that mean nothing."""
    if dimensions < 1:
        raise ValueError(f"expected at least 1 dimension, got {dimensions}; ask for 1 or more")
    if scaling not in ("unit", "layer", "filter"):
        raise ValueError(
            f"expected scaling 'unit', 'layer' or 'filter', got {scaling!r}; check the spelling"
        )
    if vectors not in ("still", "scale"):
        raise ValueError(
            f"expected vectors 'still' or 'scale', got {vectors!r}; check the spelling"
        )


def _moving(origin: Parameters, names: tuple[str, ...], vectors: str) -> tuple[str, ...]:
    """Those of the names that directions scaled by the weights move."""
    moving = tuple(name for name in names if vectors == "scale" or origin[name].ndim >= 2)
    if not moving:
        raise ValueError(
            f"expected parameters of two dimensions or more, got vectors only, {', '.join(names)};"
            " move them with vectors='scale'"
        )
    return moving
