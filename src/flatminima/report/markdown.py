"""All tables as one Markdown text."""

from collections.abc import Sequence

from flatminima.report import combined, perturbed
from flatminima.report.contents import StudyContents
from flatminima.report.perturbed import perturbed_rows
from flatminima.report.tables import (
    COLUMN_TITLES,
    NOTE,
    PARAMETER_TITLES,
    contrast_header,
    contrasts,
    table_cells,
    table_columns,
)


def table_markdown(studies: Sequence[StudyContents]) -> str:
    """Table 1 of all studies where there are several; then each study's own tables."""
    parts = []
    if len({study.name for study in studies}) > 1:
        parts += _combined(studies)
    for study in studies:
        parts.append(f"## {_plain(study.heading)} ({study.version})\n")
        cells = table_cells(study)
        if not cells:
            parts.append("No radius has been summarised yet.\n")
            continue
        columns = table_columns(study)
        rows = [["", *(COLUMN_TITLES[column] for column in columns)]]
        for start in range(0, len(cells), len(columns)):
            line = cells[start : start + len(columns)]
            name = f"{PARAMETER_TITLES[line[0].parameters]}, {_plain(line[0].group)} labels"
            rows.append([name, *("<br>".join([f"**{c.headline()}**", *c.details()]) for c in line)])
        parts += [_markdown_rows(rows), NOTE + "\n"]
        against = [[_plain(text) for text in contrast.texts()] for contrast in contrasts(study)]
        if against:
            header = [_plain(text) for text in contrast_header(study)]
            parts.append(_markdown_rows([header, *against]))
        moved = [[_plain(text) for text in row.texts()] for row in perturbed_rows(study)]
        if moved:
            parts += [f"### {perturbed.TITLE}\n", _markdown_rows([perturbed.HEADER, *moved])]
            parts.append(perturbed.NOTE + "\n")
    return "\n".join(parts)


def _combined(studies: Sequence[StudyContents]) -> list[str]:
    """Table 1 in the published layout, a block of columns for each study."""
    # A study comes once for each split; its first is the one that it is about.
    first = {study.name: study for study in reversed(studies)}
    made = combined.blocks([study for study in studies if first[study.name] is study])
    if not made:
        return []
    head = [""]
    for block in made:
        about = ": ".join(_plain(text) for text in block.head)
        head += [f"{about}<br>**{combined.TITLES[column]}**" for column in block.columns]
    rows = [
        [_plain(line.name), *("<br>".join(combined.cell_texts(cell)) for cell in line.cells)]
        for line in combined.lines(made)
    ]
    caption = _plain(combined.combined_caption(made))
    return ["## Table 1\n", _markdown_rows([head, *rows]), caption + "\n"]


def _markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|" + " --- |" * len(rows[0])
    return "\n".join([head, rule, *body]) + "\n"


def _plain(text: str) -> str:
    """Text from the store that cannot break a Markdown table or smuggle in HTML."""
    for sign, harmless in {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "\n": " "}.items():
        text = text.replace(sign, harmless)
    return text
