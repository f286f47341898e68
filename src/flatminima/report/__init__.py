"""Figures, tables and a page, written from the store alone. Nothing here computes a result.

The drawing libraries are loaded on first use (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatminima.report.networks import write_networks_report
    from flatminima.report.write import write_report

_HOME = {
    "write_networks_report": "flatminima.report.networks",
    "write_report": "flatminima.report.write",
}

__all__ = ["write_networks_report", "write_report"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'flatminima.report' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
