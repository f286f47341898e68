"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from flatminima.store.artifact import Artifact, StoreError


def write_files(folder: Path, files: Artifact) -> None:
    """Write every file of an artifact below `folder`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace a small file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that this module wrote."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        value = None
    if not isinstance(value, dict):
        raise StoreError(
            f"expected a JSON record in {path}, got a damaged file; delete {path.parent} and run"
            " the study again"
        )
    return value
