"""The tables of the page."""

import base64
import html

from flatminima.report import captions
from flatminima.report.contents import StudyContents
from flatminima.report.elements import caption, sentence, swatch
from flatminima.report.markdown import table_markdown
from flatminima.report.perturbed import perturbed_section
from flatminima.report.tables import (
    COLUMN_TITLES,
    PARAMETER_TITLES,
    contrast_header,
    contrasts,
    held_note,
    table_cells,
    table_columns,
    table_csv,
)

escape = html.escape


def table_section(study: StudyContents) -> str:
    """Table 1, the contrasts, and both as files."""
    cells = table_cells(study)
    if not cells:
        return sentence(no_radii(study))
    columns = table_columns(study)
    head = "".join(
        f'<th scope="col"{primary(column)}>{COLUMN_TITLES[column]}'
        f"<small>{escape(held_note(study, column))}</small></th>"
        for column in columns
    )
    rows = []
    for start in range(0, len(cells), len(columns)):
        line = cells[start : start + len(columns)]
        name = (
            f"{PARAMETER_TITLES[line[0].parameters]}<br>"
            f"{swatch(study, line[0].group)}{escape(line[0].group)} labels"
        )
        rows.append(
            f'<tr><th scope="row">{name}</th>'
            + "".join(
                f"<td{primary(cell.column)}><strong>{escape(cell.headline())}</strong>"
                + "".join(f"<span>{escape(text)}</span>" for text in cell.details())
                + "</td>"
                for cell in line
            )
            + "</tr>"
        )
    main = (
        '<div class="scroll" role="region" tabindex="0" aria-label="Flatness radii">'
        f'<table class="main-table"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    return (
        main
        + caption(captions.table_caption(study))
        + _contrast_table(study)
        + perturbed_section(study)
        + _files(study)
    )


def _contrast_table(study: StudyContents) -> str:
    """The contrasts, those that hold the same equal under one title."""
    titled: dict[str, list[str]] = {}
    for contrast in contrasts(study):
        column, *texts = contrast.texts()
        cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
        titled.setdefault(column, []).append(f"<tr>{cells}</tr>")
    if not titled:
        return ""
    _, *header = contrast_header(study)
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    bodies = "".join(
        f'<tbody><tr><th scope="rowgroup" colspan="{len(header)}">{escape(title)}</th></tr>'
        f"{''.join(rows)}</tbody>"
        for title, rows in titled.items()
    )
    return (
        "<details open><summary>Differences between the groups</summary>"
        '<div class="scroll" role="region" tabindex="0" aria-label="Differences between groups">'
        f'<table class="plain"><thead><tr>{head}</tr></thead>{bodies}</table></div></details>'
    )


def _files(study: StudyContents) -> str:
    """The table as files, carried inside the page."""
    links = [
        f'<a download="{escape(study.name)}-{escape(study.split)}-table.{suffix}" '
        f'href="data:{kind};base64,{base64.b64encode(text.encode()).decode()}">{words}</a>'
        for suffix, kind, text, words in (
            ("csv", "text/csv", table_csv([study]), "CSV"),
            ("md", "text/markdown", table_markdown([study]), "Markdown"),
        )
    ]
    return f'<p class="downloads">Save the table as {" or ".join(links)}.</p>'


def primary(column: str) -> str:
    """The mark of the primary comparison."""
    return ' class="primary"' if column == "measured_matched" else ""


def no_radii(study: StudyContents) -> str:
    """Why there is nothing to show of the radii."""
    return (
        "The radii of this study have not been summarised yet."
        if study.section("radius")
        else "This study asks for no radii."
    )
