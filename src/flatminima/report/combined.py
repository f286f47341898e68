"""Table 1 in the published layout: rows as published, a block of columns for each study."""

from collections.abc import Sequence
from dataclasses import dataclass

from flatminima.report.contents import PARAMETERS, StudyContents
from flatminima.report.setting import dataset_name, end_note, matched_note, setting_note
from flatminima.report.tables import Cell, held_note, table_cells, table_columns
from flatminima.report.words import span

TITLES = {
    "published": "published",
    "as_published": "repeated as published",
    "measured_matched": "measured (primary)",
    "measured_end": "measured",
}
"""In the order of a block."""
NOTE = (
    "Mean radius over the networks of the mean over their rays, ± population deviation of the "
    "networks' means; n counts networks, loss is the train loss at which the radii were measured. "
    "≥ marks a lower bound. The primary comparison, shaded, is at matched train loss; the "
    "published walk (whole steps, two-sided, rounded down) and the column at the end of training "
    "are not matched in loss. Intervals, r/‖w‖ and verdicts are in the tables of each study below."
)


@dataclass(frozen=True)
class Block:
    """The columns of one study."""

    study: StudyContents
    columns: tuple[str, ...]

    @property
    def head(self) -> list[str]:
        """The data set, and how this study stands to the published setting."""
        notes = [f"{self.study.version.capitalize()}.", setting_note(self.study)]
        return [dataset_name(self.study), " ".join(notes).strip()]

    def column_head(self, column: str) -> list[str]:
        """A column's title and what it holds equal."""
        return [text for text in (TITLES[column], held_note(self.study, column)) if text]


@dataclass(frozen=True)
class Line:
    """A row: its published name, and a cell for every column of every block, if there is one."""

    name: str
    parameters: str
    group: str
    cells: tuple[Cell | None, ...]


def blocks(studies: Sequence[StudyContents]) -> list[Block]:
    """A block for each study that has radii."""
    return [
        Block(study, tuple(c for c in TITLES if c in table_columns(study)))
        for study in studies
        if study.summary is not None
    ]


def lines(made: Sequence[Block]) -> list[Line]:
    """All rows, in the published order."""
    cells = {
        (block.study.name, cell.parameters, cell.group, cell.column): cell
        for block in made
        for cell in table_cells(block.study)
    }
    groups = list(dict.fromkeys(group for block in made for group in block.study.groups))
    found = {(parameters, group) for _, parameters, group, _ in cells}
    known = [p for p in PARAMETERS if any(p == parameters for parameters, _ in found)]
    others = sorted({parameters for parameters, _ in found} - set(PARAMETERS))
    return [
        Line(
            name=row_name(parameters, group),
            parameters=parameters,
            group=group,
            cells=tuple(
                cells.get((block.study.name, parameters, group, column))
                for block in made
                for column in block.columns
            ),
        )
        for parameters in [*known, *others]
        for group in groups
        if (parameters, group) in found
    ]


def row_name(parameters: str, group: str) -> str:
    """As the published table names its rows."""
    name = {"all": "all params", "top": "top layer"}.get(parameters, parameters)
    return name if group == "natural" else f"{name} ({group} label)"


def cell_texts(cell: Cell | None) -> list[str]:
    """The mean and what must stand beside it, a line each."""
    if cell is None:
        return ["-"]
    texts = [cell.headline()]
    if cell.n:
        texts.append(f"n = {cell.n}")
    if cell.column != "published" and cell.n:
        texts.append(f"loss {span(cell.loss_low, cell.loss_high)}")
    if cell.not_crossed:
        texts.append(f"{cell.not_crossed} of {cell.rays} not crossed")
    if cell.not_reached:
        texts.append(f"not reached ({cell.not_reached} of {cell.networks})")
    if cell.excluded:
        texts.append(f"excluded ({cell.excluded} of {cell.networks})")
    return texts


def combined_caption(made: Sequence[Block]) -> str:
    """Under Table 1: the note, and what each study holds equal."""
    held = "; ".join(
        f"{dataset_name(block.study)} ({block.study.version}) {matched_note(block.study)} and "
        f"{end_note(block.study)}"
        for block in made
    )
    return f"{NOTE} Compared are: {held}."
