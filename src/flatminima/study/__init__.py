"""Studies: a settings file becomes jobs, jobs become artifacts in a store.

The names are imported on first use (PEP 562): reading settings and planning need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatminima.study.config import Study, StudyError, load_study, parse_study
    from flatminima.study.job import Job
    from flatminima.study.plan import plan_study
    from flatminima.study.results import stored_minimum
    from flatminima.study.run import run_study

_HOME = {
    "Job": "job",
    "Study": "config",
    "StudyError": "config",
    "load_study": "config",
    "parse_study": "config",
    "plan_study": "plan",
    "run_study": "run",
    "stored_minimum": "results",
}

__all__ = [
    "Job",
    "Study",
    "StudyError",
    "load_study",
    "parse_study",
    "plan_study",
    "run_study",
    "stored_minimum",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"flatminima.study.{_HOME[name]}"), name)
    raise AttributeError(f"module 'flatminima.study' has no attribute {name!r}")
