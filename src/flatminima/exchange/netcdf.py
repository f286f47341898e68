"""A surface as a NetCDF file."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from flatminima.exchange._damage import readable

_RECORD = "flatminima"
"""The attribute that holds, as JSON, what NetCDF 3 would lose: types, attributes, empty arrays."""
_INT32 = 2**31
_TAKEN = frozenset(
    {
        *("assignValue", "close", "createDimension", "createVariable", "data", "dimensions"),
        *("filename", "flush", "fp", "getValue", "isrec", "itemsize", "maskandscale", "mode"),
        *("shape", "sync", "typecode", "use_mmap", "variables", "version_byte"),
    }
)
"""Names that scipy's writer uses for its own fields: an attribute would overwrite them."""


def write_netcdf(surface: xr.Dataset, path: Path) -> None:
    """Write NetCDF 3, the same whatever libraries are installed."""
    plain = surface.copy()
    plain.attrs = _native_attributes(surface.attrs)
    plain.attrs[_RECORD] = json.dumps(_record(surface))
    for name, variable in surface.variables.items():
        plain[name].attrs = _native_attributes(variable.attrs)
        plain[name].encoding = {"_FillValue": None}
    # A dimension of length 0 means an unlimited one in NetCDF 3.
    plain = plain.drop_vars([name for name, v in surface.variables.items() if v.size == 0])
    try:
        plain.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"expected names and whole numbers that NetCDF 3 can hold, got others ({error}); save"
            " a .zarr"
        ) from None


def read_netcdf(path: Path, engine: str = "scipy") -> xr.Dataset:
    """Read a file of `write_netcdf`, or of another program with the same variables.

    Raises:
        ValueError: If it is damaged.
    """
    with readable(path, "a NetCDF surface"):
        # From memory: a file that is too short fails here rather than when its pages are touched.
        source = io.BytesIO(path.read_bytes())
        with xr.open_dataset(source, engine=engine, decode_cf=False) as opened:
            found = opened.load()
        if _RECORD not in found.attrs:
            return xr.decode_cf(found)
        return _restored(found, json.loads(found.attrs[_RECORD]))


def _native_attributes(attributes: dict[Any, Any]) -> dict[Any, Any]:
    """Those attributes that other programs can read."""
    return {
        name: value
        for name, value in attributes.items()
        if _native(value) and name not in _TAKEN and not name.startswith("_")
    }


def _native(value: Any) -> bool:
    """Whether NetCDF 3 holds such an attribute so that it means the same."""
    if isinstance(value, list):
        return bool(value) and all(_native(v) and not isinstance(v, str | list) for v in value)
    if isinstance(value, bool) or value is None or isinstance(value, dict):
        return False
    return not isinstance(value, int) or -_INT32 <= value < _INT32


def _record(surface: xr.Dataset) -> dict[str, Any]:
    """All of a surface but its values."""
    return {
        "attrs": surface.attrs,
        "coords": [str(name) for name in surface.coords],
        "variables": {
            str(name): {
                "dims": list(variable.dims),
                "shape": list(variable.shape),
                "dtype": variable.dtype.name,
                "attrs": variable.attrs,
            }
            for name, variable in surface.variables.items()
        },
    }


def _restored(found: xr.Dataset, record: dict[str, Any]) -> xr.Dataset:
    """The surface as it was before NetCDF 3 narrowed it."""
    variables = {}
    for name, entry in record["variables"].items():
        empty = 0 in entry["shape"]
        values = np.zeros(entry["shape"]) if empty else found[name].to_numpy()
        values = values.reshape(entry["shape"]).astype(entry["dtype"])
        variables[name] = xr.Variable(entry["dims"], values, entry["attrs"])
    coordinates = {name: variables.pop(name) for name in record["coords"]}
    return xr.Dataset(variables, coordinates, record["attrs"])
