"""A surface as a zarr folder."""

import json
from pathlib import Path
from typing import Any

import xarray as xr

from flatminima.exchange._damage import readable

_CODECS = frozenset(
    {
        *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),
        *("bytes", "crc32c", "sharding_indexed", "shuffle", "transpose"),
    }
)
"""Compression and byte order. Among the others is one that unpickles."""


def is_zarr(path: Path) -> bool:
    """Whether a folder is the root of a zarr group."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def write_zarr(surface: xr.Dataset, path: Path) -> None:
    """Write the folder as stores hold it: format 2."""
    surface.to_zarr(path, zarr_format=2, consolidated=False)


def read_zarr(path: Path) -> xr.Dataset:
    """Read a folder of `write_zarr`, or of another program with the same variables.

    Raises:
        ValueError: If it is damaged, or holds arrays that only pickle can read.
    """
    with readable(path, "a zarr surface"):
        for name in (".zarray", "zarr.json"):
            for file in sorted(path.rglob(name)):
                _check_codecs(json.loads(file.read_text("utf-8")))
        with xr.open_zarr(path, consolidated=False) as opened:
            loaded: xr.Dataset = opened.load()
            return loaded


def _check_codecs(description: dict[str, Any]) -> None:
    """Refuse an array that would run more than a decompressor."""
    used = [description.get("compressor"), *(description.get("filters") or [])]
    used += description.get("codecs") or []
    for codec in used:
        if codec is None:
            continue
        name = str(codec.get("id") or codec.get("name"))
        if name not in _CODECS:
            raise ValueError(f"its arrays need the codec {name}, which is not allowed")
        inner = codec.get("configuration") or {}
        _check_codecs({"codecs": [*inner.get("codecs", []), *inner.get("index_codecs", [])]})
