"""A surface as one table of text: a row per grid point, everything else in lines of comment."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import xarray as xr

from flatminima.exchange._checks import grid_variables
from flatminima.exchange._damage import readable

_FIRST = "# flatminima surface: "
_FORMAT = 1
_KINDS = ("attribute", "coordinate", "variable")


def write_table(surface: xr.Dataset, path: Path) -> None:
    """Write the file; floats with the fewest digits that give back every bit."""
    names = grid_variables(surface)
    y, x = np.meshgrid(surface["y"].to_numpy(), surface["x"].to_numpy(), indexing="ij")
    columns = {"x": x.ravel(), "y": y.ravel()}
    columns |= {name: surface[name].to_numpy().ravel() for name in names}
    table = pd.DataFrame({name: _without_bools(values) for name, values in columns.items()})
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{_FIRST}{_FORMAT}\n")
        file.writelines(f"# {line}\n" for line in _header(surface))
        table.to_csv(file, index=False, lineterminator="\n", na_rep="nan")


def read_table(path: Path) -> xr.Dataset:
    """Read what `write_table` wrote.

    Raises:
        ValueError: If it is damaged, or of a newer format.
    """
    with readable(path, "a table of save_surface"):
        text = path.read_bytes().decode("utf-8")
        if not text.endswith("\n"):
            raise ValueError("its last line is cut off")
        lines = text.splitlines()
        count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        if lines[0] != f"{_FIRST}{_FORMAT}":
            raise ValueError(f"it begins with {lines[0]!r} instead of format {_FORMAT}")
        found = _parse_header(lines[1:count])
        return _assemble(found, lines[count:])


def _without_bools(values: np.ndarray) -> np.ndarray:
    """Numbers only: 0 and 1 are the same in every program."""
    return values.astype(np.int8) if values.dtype.kind == "b" else values


def _header(surface: xr.Dataset) -> Iterator[str]:
    """Lines `kind name: JSON` for all that the columns do not say."""
    for name, value in surface.attrs.items():
        yield f"attribute {_quoted(str(name))}: {json.dumps(value)}"
    columns = {"x", "y", *grid_variables(surface)}
    for name, variable in surface.variables.items():
        entry: dict[str, Any] = {
            "dims": list(variable.dims),
            "shape": list(variable.shape),
            "dtype": variable.dtype.name,
            "attrs": variable.attrs,
        }
        if name not in columns:
            entry["data"] = variable.to_numpy().tolist()
        kind = "coordinate" if name in surface.coords else "variable"
        yield f"{kind} {_quoted(str(name))}: {json.dumps(entry)}"


def _quoted(name: str) -> str:
    """A name as it is, or as JSON if it could be misread."""
    return name if name.isidentifier() and name.isascii() else json.dumps(name)


def _parse_header(lines: list[str]) -> dict[str, dict[str, Any]]:
    """The entries of every kind by name."""
    found: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
    for line in lines:
        kind, rest = line.removeprefix("# ").split(" ", 1)
        if rest.startswith('"'):
            name, end = json.JSONDecoder().raw_decode(rest)
            value = rest[end:].removeprefix(": ")
        else:
            name, value = rest.split(": ", 1)
        found[kind][name] = json.loads(value)
    return found


def _assemble(found: dict[str, dict[str, Any]], rows: list[str]) -> xr.Dataset:
    """Put the columns and the header together."""
    entries = found["coordinate"] | found["variable"]
    columns = _columns(entries, rows)
    ny, nx = entries["loss"]["shape"]
    x, y = columns["x"][:nx], columns["y"][::nx]
    if not ((columns["x"] == np.tile(x, ny)).all() and (columns["y"] == np.repeat(y, nx)).all()):
        raise ValueError("its rows are not a grid, y outer and x inner")
    columns |= {"x": x, "y": y}
    variables = {}
    for name, entry in entries.items():
        values = np.asarray(columns[name] if name in columns else entry["data"])
        shaped = values.astype(entry["dtype"]).reshape(entry["shape"])
        variables[name] = xr.Variable(entry["dims"], shaped, entry["attrs"])
    coordinates = {name: variables.pop(name) for name in found["coordinate"]}
    return xr.Dataset(variables, coordinates, found["attribute"])


def _columns(entries: dict[str, dict[str, Any]], rows: list[str]) -> dict[str, np.ndarray]:
    """The columns of the table by name, whole or not at all."""
    types = {name: entry["dtype"] for name, entry in entries.items() if "data" not in entry}
    ny, nx = entries["loss"]["shape"]
    names, *cells = csv.reader(rows, strict=True)
    if len(cells) != ny * nx or {len(row) for row in cells} != {len(types)}:
        raise ValueError(f"its table is not {ny * nx} rows of {len(types)} values")
    # Numpy reads every digit; readers of tables may round the last.
    texts = dict(zip(names, np.array(cells).T, strict=True))
    return {name: texts[name].astype(kind.replace("bool", "int8")) for name, kind in types.items()}
