"""Whether a file is the official one; reading files that may be compressed."""

import gzip
import hashlib
import io
import zlib
from pathlib import Path

from flatminima.data._table import SourceFile

_GZIP_MAGIC = b"\x1f\x8b"


def decoded(content: bytes, *, most: int | None = None) -> bytes:
    """The uncompressed content of a file that may be compressed.

    `most` bounds what is unpacked, so that a wrong file cannot fill the memory.
    """
    if not content.startswith(_GZIP_MAGIC):
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        return stream.read() if most is None else stream.read(most)


def fault_of_bytes(content: bytes, file: SourceFile) -> str:
    """What is wrong with the bytes of a file; empty if nothing is."""
    if file.name != file.download:
        try:
            content = decoded(content, most=file.size + 1)
        except (OSError, EOFError, zlib.error) as error:
            return f"expected a whole gzip file, got one that does not unpack ({error})"
    if len(content) != file.size:
        more = "more" if len(content) > file.size else "truncated"
        length = f"over {file.size}" if len(content) > file.size else str(len(content))
        return f"expected {file.size} bytes, got {length} ({more})"
    method, expected = file.digest.split(":")
    got = hashlib.new(method, content, usedforsecurity=False).hexdigest()
    if got != expected:
        return f"expected {method} {expected}, got {got} (altered)"
    return ""


def fault_of(path: Path, file: SourceFile) -> str:
    """What is wrong with a file on disk; empty if nothing is."""
    try:
        return fault_of_bytes(path.read_bytes(), file)
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
