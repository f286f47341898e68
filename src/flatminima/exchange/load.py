"""Read a surface; the content of the file says which program made it."""

from collections.abc import Callable
from pathlib import Path

import xarray as xr

from flatminima.exchange._checks import checked
from flatminima.exchange._damage import again
from flatminima.exchange.folder import is_zarr, read_zarr
from flatminima.exchange.loss_landscape import read_hdf5
from flatminima.exchange.mode_connectivity import read_plane
from flatminima.exchange.netcdf import read_netcdf
from flatminima.exchange.table import read_table

_BEGINNINGS: dict[bytes, Callable[[Path], xr.Dataset]] = {
    b"# flatminima": read_table,
    b"CDF": read_netcdf,
    b"\x89HDF\r\n\x1a\n": read_hdf5,
    b"PK": read_plane,
}
_KNOWN = (
    "a surface: .csv, .nc or .zarr of save_surface, .h5 of loss-landscape, or .npz of"
    " dnn-mode-connectivity"
)


def load_surface(path: str | Path) -> xr.Dataset:
    """Read a surface that `save_surface` or another program wrote.

    The content decides, not the suffix:

    - `.csv`, `.nc` and `.zarr` of `save_surface`; NetCDF and zarr of anyone that hold `loss`, `u`
      and `v` over `(y, x)` (NetCDF 4 with the libraries h5py and h5netcdf).
    - The surface file of `plot_surface.py` of loss-landscape (Li et al., 2018), with the library
      h5py. Its axes are multiples of directions whose lengths the file does not tell, and so are
      `u` and `v` here: not distances. Values that were not computed yet (-1 there) are NaN with
      the outcome 2, missing. The trained network at (0, 0) is an anchor if it is a grid point.
    - `plane.npz` of `plane.py` of dnn-mode-connectivity (Garipov et al., 2018). `x` and `y` are
      multiples of the two sides of its plane, `u` and `v` distances in weight space. `loss` is
      the bare one, `regularised_loss` the one with weight decay. The bends of the curve are the
      anchors; their losses are not in the file (NaN, outcome 2).

    Accuracies are shares between 0 and 1, losses are means per sample in the unit of the loss
    function. What a file does not tell is "unknown" in the attributes, and `samples` is 0;
    `source` names the other program. Pickled objects are never loaded.

    Args:
        path: The file, or the zarr folder.

    Returns:
        A dataset as `loss_surface` makes it, in memory.

    Raises:
        ValueError: If there is no such file, or it is empty, damaged, of another kind, or holds no
            plane; the message is one line.
        ImportError: If a library that it needs is not installed.
        OSError: If it may not be read.
    """
    path = Path(path)
    if path.is_dir():
        if not is_zarr(path):
            raise ValueError(f"expected {_KNOWN}, got the folder {path}; name a file")
        return checked(read_zarr(path), again(path))
    if not path.is_file():
        raise ValueError(f"expected a file at {path}, got nothing there; check the name")
    with path.open("rb") as file:
        beginning = file.read(16)
    for known, read in _BEGINNINGS.items():
        if beginning.startswith(known):
            return checked(read(path), again(path))
    got = "a file of another kind" if beginning else "an empty file"
    raise ValueError(f"expected {_KNOWN}, got {got}, {path}; name another")
