"""The IDX format, in which the MNIST family of data sets is published.

Two zero bytes, a type code (8: unsigned byte), the number of dimensions, then each dimension as a
big-endian 32-bit integer, then the values, last dimension fastest.
"""

import math
import struct

import numpy as np
from jaxtyping import UInt8

_UNSIGNED_BYTE = 8
_MOST_DIMENSIONS = 4


def read_idx(content: bytes, *, name: str = "IDX data") -> UInt8[np.ndarray, "..."]:
    """The array of unsigned bytes held in `content`.

    Args:
        content: The whole uncompressed file.
        name: What to call it in an error.

    Returns:
        A read-only array with one to four dimensions, as the header says.

    Raises:
        ValueError: The header is not that of an IDX file of unsigned bytes, or the number of bytes
            is not what the header promises.

    Examples:
        >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        array([7, 8, 9], dtype=uint8)
    """
    if len(content) < 4:
        raise ValueError(
            f"{name}: expected an IDX file, got only {len(content)} bytes; fetch it again"
        )
    zero, kind, dimensions = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != _UNSIGNED_BYTE or not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(
            f"{name}: expected an IDX file of unsigned bytes (magic 0000080n, n from 1 to "
            f"{_MOST_DIMENSIONS}), got magic {content[:4].hex()}; give the official uncompressed "
            "file"
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(
            f"{name}: expected {header} bytes of header, got {len(content)} bytes in all; "
            "fetch it again"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        raise ValueError(
            f"{name}: expected {expected} bytes for the shape {shape} in its header, got "
            f"{len(content)}: the file is {fault}; fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
