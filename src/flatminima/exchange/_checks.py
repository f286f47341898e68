"""What every surface in a file must be, whoever made it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

GRID = ("y", "x")
_NUMBERS = frozenset(
    ["bool", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


def checked(surface: xr.Dataset, cure: str) -> xr.Dataset:
    """The surface with plain attributes and no traces of the file that it came from.

    Args:
        surface: Anything that claims to be one.
        cure: The end of the message if it is none.

    Raises:
        ValueError: If it is no surface, or holds what files cannot.
    """
    _check_grid(surface, cure)
    _check_outcome(surface, cure)
    made = surface.drop_encoding()
    made.attrs = _plain_attributes(surface.attrs, "the surface")
    for name, variable in made.variables.items():
        if not (isinstance(name, str) and name.isprintable()):
            raise ValueError(f"expected variables with names of one line, got {name!r}; rename it")
        if variable.dtype.name not in _NUMBERS:
            raise ValueError(
                f"expected numbers in the variable {name!r}, got {variable.dtype}; drop it"
            )
        made[name].attrs = _plain_attributes(variable.attrs, repr(name))
    return made


def grid_variables(surface: xr.Dataset) -> list[str]:
    """The names of everything over the grid, the loss first."""
    names = [str(name) for name in surface.variables if surface[name].dims == GRID]
    return sorted(names, key=lambda name: name != "loss")


def _check_grid(surface: xr.Dataset, cure: str) -> None:
    """Two axes, and the loss and its isometric positions over them."""
    for axis in GRID:
        # Asking for a coordinate that is not there would give counted ones.
        if axis not in surface.coords or surface[axis].dims != (axis,) or surface[axis].size < 2:
            raise ValueError(f"expected two values or more along {axis}, got none such; {cure}")
        values = surface[axis]
        if values.dtype.kind not in "iuf" or not np.isfinite(values.to_numpy()).all():
            raise ValueError(f"expected finite numbers along {axis}, got others; {cure}")
    for name in ("loss", "u", "v"):
        if name not in surface or surface[name].dims != GRID:
            got = str(surface[name].dims) if name in surface else "none"
            raise ValueError(f"expected a variable {name} over (y, x), got {got}; {cure}")


def _check_outcome(surface: xr.Dataset, cure: str) -> None:
    """A loss is finite where the outcome says so: what a lost part of a file would break."""
    if "outcome" not in surface or surface["outcome"].dims != GRID:
        return
    outcome, finite = surface["outcome"].to_numpy(), np.isfinite(surface["loss"].to_numpy())
    wrong = int((~finite & (outcome == 0)).sum() + (finite & (outcome == 1)).sum())
    if wrong:
        raise ValueError(
            f"expected losses that are finite where the outcome says so, got {wrong} points that"
            f" are not so; {cure}"
        )


def _plain_attributes(attributes: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Attributes as JSON knows them."""
    return {str(key): _plain(value, f"{key!r} of {where}") for key, value in attributes.items()}


def _plain(value: Any, name: str) -> Any:
    """A value of text, numbers, booleans, None, lists and mappings of them."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part, name) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part, name) for key, part in value.items()}
    raise ValueError(
        f"expected text, numbers, booleans, None or lists of them as the attribute {name}, got"
        f" {type(value).__name__}; remove it"
    )
