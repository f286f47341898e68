"""Libraries that only some files need."""

from importlib import import_module
from typing import Any


def library(name: str, purpose: str) -> Any:
    """Import an optional library, or say in one line how to get it.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        top = name.split(".")[0]
        if (error.name or "").split(".")[0] != top:
            raise
        raise ImportError(
            f"expected the library {top} for {purpose} files; pip install flatminima[export]"
        ) from None
