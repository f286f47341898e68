"""The head of a page of several studies: their answers, Table 1 and the published figures."""

import html
from collections.abc import Sequence

from flatminima.report import captions, combined
from flatminima.report.contents import Planes, StudyContents, Surface
from flatminima.report.elements import caption, card, missing, sentence, swatch
from flatminima.report.inline_svg import inline_svg, page_style
from flatminima.report.page_planes import relief_cards
from flatminima.report.page_tables import primary
from flatminima.report.published import FIGURES
from flatminima.report.setting import dataset_name, setting_note
from flatminima.report.style import figure_style
from flatminima.report.surfaces import relief_panel

escape = html.escape

SECTIONS = {"_answers": "Answers", "_table-1": "Table 1", "_figures": "Figures"}
"""By ids that no study's can be: their names begin with a letter or a digit."""


def overview(studies: Sequence[StudyContents]) -> str:
    """The whole head, before the studies one by one."""
    sections = {
        "_answers": _answers(studies),
        "_table-1": _table(studies),
        "_figures": _figures(studies),
    }
    names = " and ".join(dict.fromkeys(map(dataset_name, studies)))
    body = "".join(
        f'<section id="{key}"{" class=answer" if key == "_answers" else ""}>'
        f"<h2>{SECTIONS[key]}</h2>{content}</section>"
        for key, content in sections.items()
    )
    return f'<article class="study" id="_overview"><h1>{escape(names)}</h1>{body}</article>'


def figure_planes(studies: Sequence[StudyContents]) -> list[tuple[str, StudyContents, Planes]]:
    """Every figure's number, study and planes: one group, at the end of training.

    The published figures keep their numbers, with a letter where several studies show the same;
    what has no published counterpart is counted on from there.
    """
    found = []
    for study in studies:
        rows: dict[str, Planes] = {}
        first = [row for row in study.surface_rows() if row[0].checkpoint == "end"]
        for surface in (first or study.surface_rows() or [[]])[0]:
            beside = [p for p in study.planes() if p[0].place == surface.place]
            rows[surface.group] = beside[0] if beside else [surface]
        found += [(FIGURES.get((study.published, g)), study, p) for g, p in rows.items()]
    numbers = [number for number, _, _ in found]
    further = max((number for number in numbers if number), default=0)
    figures = []
    for place, (number, study, planes) in enumerate(found):
        name = str(number)
        if number is None:
            further += 1
            name = str(further)
        elif numbers.count(number) > 1:
            name += "abcdefghijklmnopqrstuvwxyz"[numbers[:place].count(number) % 26]
        figures.append((name, study, planes))
    return figures


def figure_title(number: str, study: StudyContents, surface: Surface) -> str:
    """E.g. "Figure 3. CIFAR-10, natural labels (reduced version)"."""
    whole = "" if study.version == "full version" else f" ({study.version})"
    return f"Figure {number}. {dataset_name(study)}, {surface.group} labels{whole}"


def _answers(studies: Sequence[StudyContents]) -> str:
    """The leading sentence of every study, with the way to the rest."""
    parts = []
    for study in studies:
        name = f'<a href="#{escape(study.name)}">{escape(dataset_name(study))}</a>'
        about = " ".join(text for text in (f"{study.version}.", setting_note(study)) if text)
        lead = study.sentences[0] if study.sentences else "No radius has been summarised yet."
        parts.append(
            f'<h3>{name}, <span class="muted">{escape(about)}</span></h3><p>{escape(lead)}</p>'
        )
    return "".join(parts)


def _table(studies: Sequence[StudyContents]) -> str:
    made = combined.blocks(studies)
    if not made:
        return sentence("No radius of these studies has been summarised yet.")
    tops = "".join(
        f'<th scope="colgroup" colspan="{len(block.columns)}">{escape(block.head[0])}'
        f"<small>{escape(block.head[1])}</small></th>"
        for block in made
    )
    heads = "".join(
        f'<th scope="col"{primary(column)}>{escape(title)}'
        f"<small>{escape(' '.join(notes))}</small></th>"
        for block in made
        for column in block.columns
        for title, *notes in [block.column_head(column)]
    )
    columns = [column for block in made for column in block.columns]
    rows = "".join(
        f'<tr><th scope="row">{escape(line.name)}</th>'
        + "".join(
            f"<td{primary(column)}>{_cell(combined.cell_texts(cell))}</td>"
            for column, cell in zip(columns, line.cells, strict=True)
        )
        + "</tr>"
        for line in combined.lines(made)
    )
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Table 1">'
        '<table class="main-table combined">'
        f"<thead><tr><td></td>{tops}</tr><tr><td></td>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{caption(combined.combined_caption(made))}"
    )


def _cell(texts: Sequence[str]) -> str:
    first, *rest = texts
    return f"<strong>{escape(first)}</strong>" + "".join(f"<span>{escape(t)}</span>" for t in rest)


def _figures(studies: Sequence[StudyContents]) -> str:
    """The published figures: a plane by itself in half the width, one under policies in all."""
    parts, pair = [], []
    for number, study, planes in figure_planes(studies):
        title = figure_title(number, study, planes[0])
        head = f"<h3>{swatch(study, planes[0].group)}{escape(title)}</h3>"
        if len(planes) == 1:
            pair.append(_single(number, study, planes[0], head))
            continue
        parts.append(_pair(pair))
        pair = []
        parts.append(
            f'<div id="_figure-{number}" class="figure">{head}'
            f"{relief_cards(study, planes, f'figure-{number}')}"
            f"{caption(captions.planes_caption(study, planes))}</div>"
        )
    parts.append(_pair(pair))
    return "".join(parts) or sentence("No surface of these studies has been computed yet.")


def _pair(figures: Sequence[str]) -> str:
    return f'<div class="pair figure">{"".join(figures)}</div>' if figures else ""


def _single(number: str, study: StudyContents, surface: Surface, head: str) -> str:
    if surface.data is None:
        drawn = missing(surface)
    else:
        with figure_style(**page_style(f"figure-{number}")):
            drawn = card(
                inline_svg(relief_panel(study, surface), figure_title(number, study, surface))
            )
    text = f"{captions.plane_caption(study, surface)} More of it: the study's own section below."
    return f'<div id="_figure-{number}">{head}{drawn}{caption(text)}</div>'
