"""Losses in parts that are stored one by one, and put together again."""

from collections.abc import Sequence
from dataclasses import replace

import xarray as xr

from flatminima.landscape._losses import Losses


def losses_as_tile(losses: Losses) -> xr.Dataset:
    """Losses at some points of a grid as a dataset over `point`."""
    tile = xr.Dataset({"loss": ("point", losses.loss), "finite": ("point", losses.finite)})
    tile = tile.assign({name: ("point", values) for name, values in losses.metrics.items()})
    if losses.standard_error is not None:
        tile["standard_error"] = ("point", losses.standard_error)
    if losses.clipped is not None:
        tile["clipped"] = ("point", losses.clipped)
    if losses.repeated:
        tile.attrs.update(
            repeated=losses.repeated, compared=losses.compared, difference=losses.difference
        )
    return tile


def tiles_as_losses(tiles: Sequence[xr.Dataset], anchors: Losses, clip: float | None) -> Losses:
    """The losses of tiles in their order, followed by those at the anchors, for a surface.

    Args:
        tiles: From `losses_as_tile`, of one landscape.
        anchors: On the same landscape.
        clip: That the tiles were computed with.
    """
    points = xr.concat(tiles, "point")
    error = anchors.standard_error
    return replace(
        anchors,
        loss=points["loss"].values,
        metrics={name: points[name].values for name in anchors.metrics},
        finite=points["finite"].values,
        standard_error=None if error is None else points["standard_error"].values,
        repeated=sum(tile.attrs.get("repeated", 0) for tile in tiles),
        compared=max(tile.attrs.get("compared", 0) for tile in tiles),
        difference=max(tile.attrs.get("difference", 0.0) for tile in tiles),
        clip=clip,
        clipped=points["clipped"].values if "clipped" in points else None,
    ).followed_by(anchors)
