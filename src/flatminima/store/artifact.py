"""Artifacts: what jobs yield and a store keeps, and datasets as files of an artifact."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import xarray as xr

Artifact: TypeAlias = Mapping[str, bytes]


class StoreError(ValueError):
    """A store that cannot be used as it stands; its one-line message says what to do."""


def canonical(value: object) -> bytes:
    """The one JSON text of a value of mappings, lists, strings, numbers and None."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def sha256(data: bytes) -> str:
    """The hex sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def dataset_to_files(name: str, dataset: "xr.Dataset") -> dict[str, bytes]:
    """An `xarray.Dataset` as the files of a zarr folder (format 2) called `name`."""
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    dataset.to_zarr(MemoryStore(files), zarr_format=2, consolidated=False)
    return {f"{name}/{key}": files[key].to_bytes() for key in sorted(files)}


def files_to_dataset(name: str, files: Artifact) -> "xr.Dataset":
    """The dataset that `dataset_to_files` made, loaded into memory.

    Raises:
        StoreError: If there is no such dataset among the files, or its files are damaged.
    """
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    make = default_buffer_prototype().buffer.from_bytes
    chosen = {
        key.removeprefix(f"{name}/"): make(data)
        for key, data in files.items()
        if key.startswith(f"{name}/")
    }
    if not chosen:
        raise StoreError(f"expected a dataset {name} in the artifact, got {sorted(files)}")
    return open_zarr(MemoryStore(chosen), name)


def open_zarr(where: Any, name: str) -> "xr.Dataset":
    """Read a zarr folder, or a store in its place, into memory."""
    import xarray as xr

    try:
        with xr.open_zarr(where, consolidated=False) as opened:
            dataset: xr.Dataset = opened.load()
            return dataset
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(
            f"expected a dataset at {name}, got a damaged one ({message}); delete its job's folder"
            " and run the study again"
        ) from None
