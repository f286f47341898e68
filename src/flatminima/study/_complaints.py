"""What is wrong with a study file, in a sentence and in the words of the file."""

import re
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel


def sentence(error: dict[str, Any], root: type[BaseModel]) -> str:
    """One pydantic error in the words of the study file, whose tables begin with `root`."""
    place = _place(error["loc"])
    where = f"[{'.'.join(place[:-1])}] {place[-1]}" if len(place) > 1 else "".join(place)
    got = error["input"]
    match error["type"]:
        case "extra_forbidden":
            known = _keys_at(error["loc"][:-1], root)
            table = f" in [{'.'.join(place[:-1])}]" if len(place) > 1 else ""
            near = hint(place[-1], known) or f"; expected one of {', '.join(known)}"
            return f"unknown key {place[-1]!r}{table}{near}"
        case "missing":
            return f"{where}: expected this key, got none; add it"
        case "literal_error":
            choices = _choices(error["ctx"]["expected"])
            return f"{where}: expected {error['ctx']['expected']}, got {got!r}{hint(got, choices)}"
        case "value_error":
            message = str(error["ctx"]["error"])
            return f"[{'.'.join(place)}]: {message}" if place else message
        case "string_pattern_mismatch":
            return f"{where}: expected a name of letters, digits, '.', '_' and '-', got {got!r}"
        case _:
            message = re.sub("^(Input|List|Tuple) should", "expected it to", error["msg"])
            return f"{where}: {message}, got {got!r}"


def _place(loc: tuple[int | str, ...]) -> list[str]:
    """Where an error is, with the members of a list counted from one: `groups #2`, `noise`."""
    place: list[str] = []
    for part in loc:
        if isinstance(part, int) and place:
            place[-1] += f" #{part + 1}"
        elif part != "[key]":
            place.append(str(part))
    return place


def _choices(expected: str) -> list[str]:
    """The quoted values of a literal error, such as "'a', 'b' or 'c'"."""
    return expected.split("'")[1::2]


def hint(word: object, known: list[str]) -> str:
    """The nearest of the `known` words as a question, or nothing if none is near."""
    close = get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _keys_at(place: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys that the table at `place` may have."""
    table = root
    for part in place:
        if isinstance(part, int):
            continue
        annotation = table.model_fields[part].annotation if part in table.model_fields else None
        inner = [item for item in (annotation, *get_args(annotation)) if isinstance(item, type)]
        tables = [item for item in inner if issubclass(item, BaseModel)]
        if not tables:
            break
        table = tables[0]
    return list(table.model_fields)
