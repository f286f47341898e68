"""The loss at coordinates of a subspace of weight space.

Everything the package measures is an evaluation on a `Subspace`: a surface, a line, a radius. The
engine is free to choose how: `_reference` defines the answer, the other paths are faster ways to
the same one, each proven against it on the user's own network before it is used.
"""

from flatminima.landscape._landscape import Landscape
from flatminima.landscape._losses import Losses
from flatminima.landscape._tiles import losses_as_tile, tiles_as_losses
from flatminima.landscape.surface import (
    assemble_surface,
    loss_surface,
    stored_losses,
    surface_grid,
)

__all__ = [
    "Landscape",
    "Losses",
    "assemble_surface",
    "loss_surface",
    "losses_as_tile",
    "stored_losses",
    "surface_grid",
    "tiles_as_losses",
]
