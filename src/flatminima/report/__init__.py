"""Figures, tables and a page, written from the store alone. Nothing here computes a result.

The drawing libraries are loaded on first use (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatminima.report.write import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    if name == "write_report":
        return import_module("flatminima.report.write").write_report
    raise AttributeError(f"module 'flatminima.report' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
