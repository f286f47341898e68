"""Which parameters a word, a glob or a collection of names stands for."""

from collections.abc import Collection
from fnmatch import fnmatchcase


def choose(names: Collection[str], parameters: str | Collection[str]) -> tuple[str, ...]:
    """The parameter names that "all", a glob or a collection of names stands for.

    Raises:
        ValueError: If a name is unknown or nothing is chosen.
    """
    if parameters == "all":
        chosen = tuple(names)
    elif isinstance(parameters, str):
        chosen = tuple(name for name in names if fnmatchcase(name, parameters))
    else:
        unknown = sorted(set(parameters) - set(names))
        if unknown:
            raise ValueError(
                f"expected names of parameters, got {unknown[0]!r}; they are {', '.join(names)}"
            )
        chosen = tuple(name for name in names if name in set(parameters))
    if not chosen:
        raise ValueError(
            f"expected parameters that match {parameters!r}, got none; the names are"
            f" {', '.join(list(names)[:8])}"
        )
    return chosen
