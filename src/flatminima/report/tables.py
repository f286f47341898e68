"""Table 1 in the published form, and the contrasts between the groups."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flatminima.report.contents import COLUMNS, PERTURBED, StudyContents
from flatminima.report.published import NETWORKS, PUBLISHED, RAYS
from flatminima.report.setting import checkpoint_note
from flatminima.report.words import number, span

PARAMETER_TITLES = {"all": "all parameters", "top": "top layer"}
COLUMN_TITLES = {
    "published": "published",
    "as_published": "as published, repeated",
    "measured_end": "as measured at the end",
    "measured_matched": "as measured at matched loss",
}
_METHODS = {
    "as_published": "as published, repeated",
    "measured_end": "as measured",
    "measured_matched": "as measured",
}
NOTE = (
    "Mean radius over the networks of the mean over their rays, ± population deviation of the "
    "networks' means (the published form); in brackets the 95 % t interval on the n networks' "
    "means. ≥ marks a mean that is a lower bound, because some rays did not cross. The least "
    "radius is the least of the sampled rays, not the worst direction."
)


@dataclass(frozen=True)
class Cell:
    """One group's radii in one column of the table; NaN where there is no such number."""

    study: str
    parameters: str
    group: str
    column: str
    n: int
    mean: float
    deviation: float
    low: float
    high: float
    relative: float
    geometric: float
    harmonic: float
    least: float
    rays: int
    not_crossed: int
    train_loss: float
    loss_low: float
    loss_high: float
    networks: int
    not_reached: int
    excluded: int

    def headline(self) -> str:
        """The mean and the deviation, in the published form."""
        if math.isnan(self.mean):
            return "not reached" if self.not_reached else "not measured"
        bound = "≥ " if self.not_crossed else ""
        spread = f" ± {self.deviation:.2f}" if self.n > 1 else ""
        return f"{bound}{number(self.mean)}{spread}"

    def details(self) -> list[str]:
        """What must stand beside the mean, a line each."""
        lines = []
        if self.column == "published":
            return [f"n = {self.n}, {self.rays} rays", "no interval, loss or norm given"]
        if not math.isnan(self.mean):
            interval = (
                f"95 % [{number(self.low)}, {number(self.high)}], n = {self.n}"
                if math.isfinite(self.low) and math.isfinite(self.high)
                else f"no interval, n = {self.n}"
            )
            lines = [
                interval,
                f"train loss {span(self.loss_low, self.loss_high)}",
                f"r/‖w‖ {self.relative:.3g}",
                f"least of {self.rays} rays {number(self.least)}",
            ]
        if self.not_crossed:
            lines.append(f"{self.not_crossed} of {self.rays} rays did not cross")
        if self.not_reached:
            lines.append(f"not reached ({self.not_reached} of {self.networks})")
        if self.excluded:
            lines.append(f"excluded ({self.excluded} of {self.networks})")
        return lines


@dataclass(frozen=True)
class Contrast:
    """The first group against the second in one column, for one scale of the radius."""

    column: str
    held: str
    """What the column holds equal between the groups: the train loss, the epochs, or neither."""
    parameters: str
    scale: str
    difference: float
    low: float
    high: float
    p_value: float
    ratio: float
    verdict: str

    def texts(self) -> list[str]:
        """The cells of its row."""
        gap = not math.isfinite(self.difference)
        return [
            f"{_METHODS[self.column]}, {self.held}",
            PARAMETER_TITLES[self.parameters],
            {"absolute": "r", "relative": "r/‖w‖"}[self.scale],
            "-" if gap else number(self.difference, signed=True),
            "-"
            if gap or not math.isfinite(self.low)
            else f"[{number(self.low, signed=True)}, {number(self.high, signed=True)}]",
            "-" if not math.isfinite(self.p_value) else f"{self.p_value:.2g}",
            "-" if not math.isfinite(self.ratio) else f"{self.ratio:.3g}",
            self.verdict,
        ]


def held_note(study: StudyContents, column: str) -> str:
    """What a column holds equal between the groups; nothing is known of the published one."""
    return checkpoint_note(study, COLUMNS[column].checkpoint) if column in COLUMNS else ""


def table_columns(study: StudyContents) -> list[str]:
    """The columns the study's table has: the published one if known, and those it asked for."""
    published = ["published"] if PUBLISHED.get(study.published) else []
    return [*published, *(column for column in COLUMNS if _asked(study, column))]


def _asked(study: StudyContents, column: str) -> bool:
    """Whether the study measures a column at all, be it that a network never got there."""
    if study.summary is None:
        return True
    status = study.summary["status"]
    unasked = str(status.attrs["flag_meanings"]).split().index("not_measured")
    return bool((status.sel(column=column) != unasked).any())


def table_cells(study: StudyContents) -> list[Cell]:
    """Table 1, row by row: parameters, then group, then column."""
    if study.summary is None:
        return []
    cells = []
    for parameters in study.summary["parameters"].values:
        for group in study.groups:
            cells += [
                _published(study, str(parameters), group)
                if column == "published"
                else measured_cell(study, str(parameters), group, column)
                for column in table_columns(study)
            ]
    return cells


def perturbed_cells(study: StudyContents) -> list[Cell]:
    """The walks that moved running statistics too, which stand in no column of Table 1."""
    if study.summary is None or PERTURBED not in study.summary["column"].values:
        return []
    cells = (
        measured_cell(study, str(parameters), group, PERTURBED)
        for parameters in study.summary["parameters"].values
        for group in study.groups
    )
    return [cell for cell in cells if cell.n]


def contrast_header(study: StudyContents) -> list[str]:
    """The header of the table of contrasts."""
    first, second = study.groups[:2]
    return [
        "column", "moved", "scale", f"{first} \N{MINUS SIGN} {second}",
        "95 % interval", "p (Welch)", "ratio", "verdict",
    ]  # fmt: skip


def contrasts(study: StudyContents) -> Iterator[Contrast]:
    """The first group against the second, the primary comparison first."""
    if study.summary is None or len(study.groups) < 2:
        return
    meanings = str(study.summary["verdict"].attrs["flag_meanings"]).split()
    first, second = study.groups[:2]
    words = {
        "none": "no difference claimed",
        "bound": "none: the smaller mean is a lower bound",
        "first_flatter": f"{first} flatter",
        "second_flatter": f"{second} flatter",
        "unmatched": "no verdict: loss not matched",
    }
    for column in reversed([column for column in COLUMNS if _asked(study, column)]):
        for parameters in study.summary["parameters"].values:
            for scale in study.summary["scale"].values:
                cell = study.summary.sel(column=column, parameters=parameters, scale=scale)
                low, high = cell["interval"].values
                verdict = meanings[int(cell["verdict"])]
                if verdict == "none" and float(low) * float(high) > 0:
                    # The summary withholds a verdict where the smaller mean may be larger.
                    verdict = "bound"
                yield Contrast(
                    column=column,
                    held=held_note(study, column),
                    parameters=str(parameters),
                    scale=str(scale),
                    difference=float(cell["difference"]),
                    low=float(low),
                    high=float(high),
                    p_value=float(cell["p_value"]),
                    ratio=float(cell["ratio"]),
                    verdict=words[verdict],
                )


def table_csv(studies: Sequence[StudyContents]) -> str:
    """Table 1 with one row per cell, walks that moved running statistics last.

    A number that does not exist is empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "study", "split", "parameters", "group", "column", "n", "mean", "deviation",
            "interval_low", "interval_high", "relative_radius", "geometric_mean", "harmonic_form",
            "least_radius", "rays", "rays_not_crossed",
            "train_loss", "train_loss_low", "train_loss_high",
            "networks", "not_reached", "excluded",
        ]
    )  # fmt: skip
    for study in studies:
        for cell in (*table_cells(study), *perturbed_cells(study)):
            first, *rest = vars(cell).values()
            values = [first, study.split, *rest]
            writer.writerow(
                "" if isinstance(v, float) and not math.isfinite(v) else v for v in values
            )
    return out.getvalue()


def _published(study: StudyContents, parameters: str, group: str) -> Cell:
    """The published number for a group, if there is one."""
    known = PUBLISHED[study.published].get((parameters, group))
    nan = math.nan
    return Cell(
        study=study.name, parameters=parameters, group=group, column="published",
        n=NETWORKS if known else 0,
        mean=known.mean if known else nan,
        deviation=known.deviation if known else nan,
        low=nan, high=nan, relative=nan, geometric=nan, harmonic=nan, least=nan,
        rays=NETWORKS * RAYS if known else 0,
        not_crossed=0, train_loss=nan, loss_low=nan, loss_high=nan,
        networks=NETWORKS, not_reached=0, excluded=0,
    )  # fmt: skip


def measured_cell(study: StudyContents, parameters: str, group: str, column: str) -> Cell:
    """One group's numbers in one column of the summary."""
    assert study.summary is not None
    cell = study.summary.sel(column=column, parameters=parameters, group=group)
    low, high = cell["group_interval"].values
    return Cell(
        study=study.name,
        parameters=parameters,
        group=group,
        column=column,
        n=int(cell["group_n"]),
        mean=float(cell["group_mean"]),
        deviation=float(cell["group_deviation"]),
        low=float(low),
        high=float(high),
        relative=float(cell["group_relative"]),
        geometric=float(cell["group_geometric"]),
        harmonic=float(cell["group_harmonic"]),
        least=float(cell["group_least"]),
        rays=int(cell["group_rays"]),
        not_crossed=int(cell["group_not_crossed"]),
        train_loss=float(cell["group_train_loss"]),
        loss_low=float(cell["train_loss"].min()),
        loss_high=float(cell["train_loss"].max()),
        networks=cell.sizes["network"],
        not_reached=int(cell["not_reached"]),
        excluded=int(cell["excluded"]),
    )
