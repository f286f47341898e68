"""The loss over a grid of a plane (a line, for two minima), as a labelled dataset."""

import numpy as np
import xarray as xr
from jaxtyping import Float64

from flatminima.landscape._landscape import Landscape
from flatminima.landscape._losses import Losses
from flatminima.landscape._refine import refine_losses
from flatminima.subspace import Subspace
from flatminima.types import Coordinates, PerPoint, Real

# Isometric axes reach this share of the anchors' width beyond them on every side.
_MARGIN = 0.3
# The square of the published figures.
_BARYCENTRIC = (-0.4, 1.3)

FINITE, NON_FINITE, ABOVE_CLIP = 0, 1, 2


def loss_surface(
    landscape: Landscape,
    subspace: Subspace,
    *,
    resolution: int = 50,
    extent: tuple[Real, Real] | tuple[tuple[Real, Real], tuple[Real, Real]] | None = None,
    coordinates: str = "isometric",
    clip: Real | None = None,
    refine: Real | None = None,
) -> xr.Dataset:
    """Evaluate the loss over a grid of a plane.

    Args:
        landscape: The network, data and loss.
        subspace: A plane, for instance `Subspace.through` three minima.
        resolution: Grid points along each axis.
        extent: From and to along both axes, or one such pair per axis; by default the anchors with
            a margin (`isometric`), or -0.4 to 1.3 (`barycentric`, the published square).
        coordinates: "isometric": x and y are coordinates of the subspace, distances in weight
            space if its basis is orthonormal. "barycentric": x, y and 1 - x - y are the weights of
            the three anchors.
        clip: Stop a point as soon as its loss is certain to be above: far from the minima that
            saves most of the work. For losses that are never negative.
        refine: Evaluate a coarse grid, halve its cells only where the loss differs by more than
            this (relative to `sqrt(1 + loss^2)`) from what their surroundings had led to expect,
            and interpolate the rest. 0.1 is usual: a fifth to a third of the points of the
            published MNIST planes, and off by 0.024 at most.

    Returns:
        A dataset over `y` and `x` with `loss`, `accuracy` (where targets are classes),
        `standard_error` and `outcome` (0 finite, 1 non-finite), the isometric position `u`, `v` of
        every grid point, and the anchors' positions, losses and distances. A non-finite loss is
        NaN in `loss` and flagged in `outcome`. With `precision="fast"` the attributes `repeated`,
        `compared_samples` and `largest_difference` say how many points were computed exactly
        too, over how many examples, and by how much their losses differed at most. For a network
        with BatchNorm, `anchor_stored_loss` is each anchor's loss with the statistics that its own
        training left. With `clip` the outcome may be 2, above_clip: `loss` is then `clip`, which
        the true one exceeds, and
        `accuracy` and `standard_error` are not known (NaN). The anchors are evaluated whole. With
        `refine` the variable `interpolated` is 1 where nothing was evaluated; `held_out` of the
        interpolated points were, in the end, and `held_out_largest` and `held_out_rms` say how far
        the interpolation was off there, in the measure of `refine`.

    Raises:
        ValueError: If the subspace is no plane, the resolution is below 2, the extent is empty, or
            barycentric coordinates are asked of a plane without three anchors; with `clip` as
            `Landscape.losses` does.
    """
    grid = surface_grid(subspace, resolution=resolution, extent=extent, coordinates=coordinates)
    points = grid_coordinates(grid)
    # The anchors' own losses are exact whatever the precision of the surface.
    anchors = landscape.losses(subspace, subspace.anchor_coordinates, precision="exact")
    stored = stored_losses(landscape, subspace)
    if refine is None:
        losses = landscape.losses(subspace, points, clip=clip).followed_by(anchors)
        return assemble_surface(grid, losses, landscape, stored=stored)
    if not (np.isfinite(refine) and refine > 0):
        raise ValueError(f"expected a positive refine, got {refine}; 0.1 is usual")
    losses, refinement = refine_losses(
        lambda chosen: landscape.losses(subspace, points[chosen], clip=clip),
        grid.sizes["y"],
        grid.sizes["x"],
        float(refine),
    )
    surface = assemble_surface(grid, losses.followed_by(anchors), landscape, stored=stored)
    interpolated = refinement.interpolated.reshape(grid["u"].shape).astype(np.int8)
    surface["interpolated"] = (("y", "x"), interpolated)
    surface["interpolated"].attrs.update(flag_values=[0, 1], flag_meanings="evaluated interpolated")
    return surface.assign_attrs(
        refine=float(refine),
        held_out=refinement.held_out,
        held_out_largest=refinement.largest,
        held_out_rms=refinement.root_mean_square,
    )


def stored_losses(landscape: Landscape, subspace: Subspace) -> PerPoint | None:
    """Each anchor's loss with the statistics that its own training left, beside any policy.

    Returns:
        One loss per anchor (NaN where it is not finite), or `None` if the network stores no
        statistics.
    """
    if not landscape.stores_statistics:
        return None
    found = [landscape.loss_at(anchor, batchnorm="keep").loss[0] for anchor in subspace.anchors]
    return np.array(found, dtype=np.float64)


def surface_grid(
    subspace: Subspace,
    *,
    resolution: int = 50,
    extent: tuple[Real, Real] | tuple[tuple[Real, Real], tuple[Real, Real]] | None = None,
    coordinates: str = "isometric",
) -> xr.Dataset:
    """The grid of `loss_surface` without losses: axes, positions and anchors."""
    if subspace.dimensions != 2:
        raise ValueError(
            f"expected a plane (2 dimensions), got {subspace.dimensions}; span it by three minima"
            " or two directions"
        )
    if resolution < 2:
        raise ValueError(f"expected a resolution of at least 2, got {resolution}; 50 is usual")
    if coordinates not in ("isometric", "barycentric"):
        raise ValueError(
            f"expected coordinates 'isometric' or 'barycentric', got {coordinates!r}; check the"
            " spelling"
        )
    barycentric = coordinates == "barycentric"
    if barycentric and len(subspace.anchors) != 3:
        raise ValueError(
            f"expected three anchors for barycentric coordinates, got {len(subspace.anchors)};"
            " use Subspace.through(a, b, c) or coordinates='isometric'"
        )
    x_extent, y_extent = _extents(subspace, extent, barycentric)
    x, y = np.linspace(*x_extent, resolution), np.linspace(*y_extent, resolution)
    columns, rows = np.meshgrid(x, y)
    flat = np.stack([columns.ravel(), rows.ravel()], axis=1)
    if barycentric:
        flat = subspace.barycentric(np.column_stack([flat, 1.0 - flat.sum(axis=1)]))
    isometry = _isometry(subspace)
    position = (flat @ isometry.T).reshape(resolution, resolution, 2)
    anchors = subspace.anchor_coordinates
    own = np.eye(3)[:, :2] if barycentric else anchors
    anchor_position = anchors @ isometry.T
    distances = np.linalg.norm(anchor_position[:, None] - anchor_position[None], axis=-1)
    grid = xr.Dataset(
        {
            "u": (("y", "x"), position[..., 0]),
            "v": (("y", "x"), position[..., 1]),
            "anchor_x": ("anchor", own[:, 0]),
            "anchor_y": ("anchor", own[:, 1]),
            "anchor_u": ("anchor", anchor_position[:, 0]),
            "anchor_v": ("anchor", anchor_position[:, 1]),
            "anchor_distance": (("anchor", "other"), distances),
            "coordinate": (("y", "x", "dimension"), flat.reshape(resolution, resolution, 2)),
        },
        coords={"x": x, "y": y},
        attrs={"axes": coordinates, "dimensions": 2},
    )
    unit = "weight of the anchor" if barycentric else "distance in weight space"
    grid["x"].attrs["long_name"] = f"{unit} (first)" if barycentric else unit
    grid["y"].attrs["long_name"] = f"{unit} (second)" if barycentric else unit
    for name in ("u", "v"):
        grid[name].attrs["long_name"] = "distance in weight space"
    return grid


def grid_coordinates(grid: xr.Dataset) -> Coordinates:
    """The points of a grid, row by row (y outer, x inner), as coordinates of its subspace."""
    values = grid["coordinate"].to_numpy()
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1]), dtype=np.float64)


def assemble_surface(
    grid: xr.Dataset, losses: Losses, landscape: Landscape, *, stored: PerPoint | None = None
) -> xr.Dataset:
    """Put losses into a grid.

    Args:
        grid: From `surface_grid`.
        losses: At `grid_coordinates(grid)` followed by the anchors.
        landscape: Where they come from, for the attributes.
        stored: From `stored_losses`; becomes `anchor_stored_loss`.
    """
    shape = grid["u"].shape
    cells = shape[0] * shape[1]
    names = {"loss": losses.loss, **losses.metrics}
    if losses.standard_error is not None:
        names["standard_error"] = losses.standard_error
    surface = grid.drop_vars("coordinate")
    for name, values in names.items():
        surface[name] = (("y", "x"), values[:cells].reshape(shape))
        surface[f"anchor_{name}"] = ("anchor", values[cells:])
    if stored is not None:
        surface["anchor_stored_loss"] = ("anchor", stored)
    outcome = np.where(losses.finite, FINITE, NON_FINITE).astype(np.int8)
    meanings = ["finite", "non_finite"]
    if losses.clipped is not None:
        outcome[losses.clipped] = ABOVE_CLIP
        meanings.append("above_clip")
    surface["outcome"] = (("y", "x"), outcome[:cells].reshape(shape))
    surface["outcome"].attrs.update(
        flag_values=list(range(len(meanings))), flag_meanings=" ".join(meanings)
    )
    data = landscape.dataset
    surface.attrs.update(
        batchnorm=losses.batchnorm,
        path=losses.path,
        precision=landscape.precision,
        samples=losses.samples,
        loss_name=landscape.loss_name,
        dataset=data.name,
        split=data.split,
        data_digest=data.digest,
        batch_size=landscape.batch_size,
    )
    if losses.clip is not None:
        surface.attrs.update(clip=losses.clip)
    if landscape.precision == "fast":
        surface.attrs.update(
            repeated=losses.repeated,
            compared_samples=losses.compared,
            largest_difference=losses.difference,
        )
    if landscape.stores_statistics:
        pooled = losses.batchnorm == "recompute"
        surface.attrs.update(
            recompute_samples=landscape.recompute_samples if pooled else 0,
            recompute_batch=landscape.recompute_batch if pooled else 0,
        )
    return surface


def _extents(
    subspace: Subspace,
    extent: tuple[Real, Real] | tuple[tuple[Real, Real], tuple[Real, Real]] | None,
    barycentric: bool,
) -> tuple[tuple[float, float], tuple[float, float]]:
    if extent is None and barycentric:
        return _BARYCENTRIC, _BARYCENTRIC
    if extent is None:
        if len(subspace.anchors) < 2:
            raise ValueError(
                "expected an extent for a plane that is not spanned by minima, got none; give"
                " extent=(-1.0, 1.0), say"
            )
        low, high = (f(subspace.anchor_coordinates, axis=0) for f in (np.min, np.max))
        margin = _MARGIN * float((high - low).max())
        return tuple(  # type: ignore[return-value]
            (float(a - margin), float(b + margin)) for a, b in zip(low, high, strict=True)
        )
    pairs = np.asarray(extent, dtype=np.float64)
    if pairs.shape == (2,):
        pairs = np.stack([pairs, pairs])
    if pairs.shape != (2, 2) or not (pairs[:, 0] < pairs[:, 1]).all():
        raise ValueError(
            f"expected an extent (from, to) or one such pair per axis, from below to, got {extent}"
        )
    return (float(pairs[0, 0]), float(pairs[0, 1])), (float(pairs[1, 0]), float(pairs[1, 1]))


def _isometry(subspace: Subspace) -> Float64[np.ndarray, "2 2"]:
    """The matrix from coordinates to an orthonormal frame of the plane."""
    return np.asarray(np.linalg.cholesky(subspace.gram()).T)
