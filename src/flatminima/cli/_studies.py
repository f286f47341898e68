"""Which study is meant: its file, or its name in a store."""

from pathlib import Path
from typing import Any

from flatminima.store import Store
from flatminima.study.config import StudyError


def study_source(text: str, out: Path) -> str | dict[str, Any]:
    """A study file, or the settings of the study of that name in the store at `out`.

    Raises:
        StudyError: There is neither, or own networks were measured under that name.
    """
    if text.endswith(".toml") or Path(text).is_file() or not (out / "store.json").exists():
        return text
    store = Store(out)
    if text not in store.studies():
        known = ", ".join(store.studies()) or "none"
        raise StudyError(
            f"expected a study file or the name of a study in {out}, got {text!r}; there are:"
            f" {known}"
        )
    settings: dict[str, Any] = store.manifest(text)["settings"]
    if "data" not in settings:
        raise StudyError(
            f"expected a study, got {text!r}, under which own networks were measured; their jobs"
            " run one after the other in the command that measures them"
        )
    return settings
