"""Where results come from: code, versions and machine. Kept in `run.json` and nowhere else."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flatminima import __version__
from flatminima._devices import device_name

_PACKAGES = ("torch", "numpy", "scipy", "xarray", "zarr", "safetensors", "scikit-learn")


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Versions, machine, and the commit of the code if it runs from its repository.

    Args:
        device: Where work was done; an accelerator is named.
    """
    accelerator = device_name(device)
    return dict(_provenance()) | ({"accelerator": accelerator} if accelerator else {})


@cache
def _provenance() -> dict[str, Any]:
    """What `provenance` says, asked once: the code that runs is what was loaded first."""
    commit, dirty = _commit()
    versions = {"flatminima": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "commit": commit,
        "dirty": dirty,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "host": platform.platform(),
        "versions": versions,
    }


def _commit() -> tuple[str | None, bool | None]:
    """The commit and whether the package's files differ from it; nothing for an installed copy."""
    package = Path(__file__).parents[1]
    # Asked of a file, so that a package installed inside somebody's repository is not taken for it.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit, changes = (
        _git(package, "rev-parse", "HEAD"),
        _git(package, "status", "--porcelain", "."),
    )
    return commit, None if changes is None else changes != ""


def _git(folder: Path, *arguments: str) -> str | None:
    """The answer of git, or nothing where there is none."""
    try:
        answer = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _cpu() -> str:
    """The processor's name, and which it is of those that have it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    known: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        known.setdefault(key.strip(), value.strip())
    name = known.get("model name") or platform.processor() or platform.machine()
    # Names are shared by generations that differ by half in what they multiply.
    kind = [f"{key.split()[-1]} {known[key]}" for key in ("cpu family", "model") if key in known]
    return f"{name} ({', '.join(kind)})" if kind else name
