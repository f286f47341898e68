"""One line for whatever a library says about bytes that it cannot read."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Turn any failure to read a file into one line.

    Damaged bytes lead the libraries into errors of every type, and none of them names the cure.

    Raises:
        ValueError: If anything inside fails.
    """
    try:
        yield
    except Exception as error:
        message = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ValueError(
            f"expected {kind} in {path}, got a damaged or foreign file"
            f" ({message or type(error).__name__}); write it again"
        ) from None


def listed(names: Iterable[object]) -> str:
    """The names of what a file holds, in one line whatever they are."""
    texts = (str(name) if str(name).isprintable() else ascii(name) for name in names)
    return ", ".join(sorted(texts)) or "nothing"


def again(path: Path) -> str:
    """The cure for a file that holds something else than a surface."""
    return f"check {path} or write it again"
