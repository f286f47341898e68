"""What the published walk does when it moves running statistics too: a table of its own."""

import html
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flatminima.report.contents import PERTURBED_PROTOCOL, StudyContents
from flatminima.report.published import PUBLISHED
from flatminima.report.tables import PARAMETER_TITLES, Cell, measured_cell, perturbed_cells
from flatminima.report.words import number, span

HEADER = (
    "",
    "published",
    "parameters alone",
    "running statistics too",
    "walks ended by a loss that is not finite",
)
TITLE = "What perturbing the running statistics does"
NOTE = (
    "Both walks go in the published steps from the end of training. The published programs added "
    "the random direction to BatchNorm's running statistics and counters as well, so that a "
    "variance can turn negative, and took a loss that is not finite for one that had risen. The "
    "last columns repeat that fault to show its size; they enter no comparison."
)


@dataclass(frozen=True)
class PerturbedRow:
    """One group's walks with the parameters alone, and with running statistics too."""

    group: str
    alone: Cell
    perturbed: Cell
    published: str
    ended: str
    """How many walks a loss that is not finite ended, and at which radii."""

    def texts(self) -> list[str]:
        """The cells of its row."""
        return [
            f"{PARAMETER_TITLES[self.alone.parameters]}, {self.group} labels",
            self.published,
            f"{self.alone.headline()}, n = {self.alone.n}",
            # As the published programs counted, for whom such a walk had ended like any other.
            f"{self.perturbed.headline().removeprefix('≥ ')}, n = {self.perturbed.n}",
            self.ended,
        ]


def perturbed_rows(study: StudyContents) -> list[PerturbedRow]:
    """A row for each group, or nothing where the study did not repeat the fault."""
    return list(_rows(study))


def perturbed_section(study: StudyContents) -> str:
    """HTML: the table with its caption, or nothing."""
    rows = perturbed_rows(study)
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in HEADER)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        + "</tr>"
        for name, *texts in (row.texts() for row in rows)
    )
    return (
        f"<details open><summary>{TITLE}</summary>"
        f'<div class="scroll" role="region" tabindex="0" aria-label="{TITLE}">'
        f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="caption">{html.escape(NOTE)}</p></details>'
    )


def _rows(study: StudyContents) -> Iterator[PerturbedRow]:
    for cell in perturbed_cells(study):
        known = PUBLISHED.get(study.published, {}).get((cell.parameters, cell.group))
        yield PerturbedRow(
            group=cell.group,
            alone=measured_cell(study, cell.parameters, cell.group, "as_published"),
            perturbed=cell,
            published=f"{number(known.mean)} ± {known.deviation:.2f}" if known else "-",
            ended=_ended(study, cell.parameters, cell.group),
        )


def _ended(study: StudyContents, parameters: str, group: str) -> str:
    radii = study.radii
    assert radii is not None
    mine = (
        (radii["protocol"] == PERTURBED_PROTOCOL)
        & (radii["parameters"] == parameters)
        & (radii["group"] == group)
    ).values
    walks = radii.isel(ray=np.flatnonzero(mine))
    meanings = str(walks["outcome"].attrs["flag_meanings"]).split()
    ended = walks["outcome"].values == meanings.index("non_finite")
    text = f"{int(ended.sum())} of {walks.sizes['ray']}"
    if ended.any():
        found = walks["radius"].values[ended]
        text += f", after radius {span(float(np.min(found)), float(np.max(found)))}"
    if "negative_variances" in walks and ended.any():
        negative = int((walks["negative_variances"].values[ended] > 0).sum())
        text += f"; {negative} of them with a negative variance"
    if "first_negative" in walks:
        first = float(walks["first_negative"].min())
        text += (
            f"; the first variance falls below zero at {number(first)}"
            if np.isfinite(first)
            else "; no variance falls below zero"
        )
    return text
