import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from flatminima.report.contents import StudyContents, read_study
from flatminima.report.markdown import table_markdown
from flatminima.report.page import build_page
from flatminima.report.published import PUBLISHED
from flatminima.report.tables import (
    contrasts,
    table_cells,
    table_columns,
    table_csv,
)
from flatminima.report.words import number
from flatminima.store import Store


@pytest.fixture(scope="module")
def study(synthetic_store: Callable[..., Store]) -> StudyContents:
    return read_study(synthetic_store(resolution=4), "synthetic")


@pytest.fixture(scope="module")
def unmatched(synthetic_store: Callable[..., Store]) -> StudyContents:
    return read_study(synthetic_store(resolution=4, matched=False), "synthetic")


def test_columns_that_were_not_asked_for_are_left_out(study: StudyContents) -> None:
    assert study.summary is not None
    summary = study.summary.copy(deep=True)
    unasked = summary["status"].attrs["flag_meanings"].split().index("not_measured")
    summary["status"].loc[{"column": ["measured_end", "measured_matched"]}] = unasked
    stepwise = replace(study, summary=summary)
    assert table_columns(stepwise) == ["published", "as_published"]
    assert {contrast.column for contrast in contrasts(stepwise)} == {"as_published"}
    assert "not measured" not in table_markdown([stepwise])


def test_every_split_has_its_rows_and_its_place_on_the_page(
    synthetic_store: Callable[..., Store],
) -> None:
    store = synthetic_store(name="splits", resolution=4, splits=("train", "test"))
    both = read_study(store, "splits")
    assert both.split == "train"
    (other,) = both.further
    assert other.split == "test"
    rows = list(csv.DictReader(io.StringIO(table_csv([both, other]))))
    assert [row["split"] for row in rows] == ["train"] * 16 + ["test"] * 16
    page = build_page([both])
    assert page.count("The same on the test split") == 2  # its table and its radii
    ids = re.findall(r'\bid="([^"]+)"', page.split("<script>")[0])
    assert len(ids) == len(set(ids)) > 20


def test_published_numbers() -> None:
    mnist = PUBLISHED["mnist"]
    means = [mnist[p, g].mean for p in ("all", "top") for g in ("natural", "random")]
    assert means == [13.9833, 4.6333, 2.34, 3.86]
    cifar = PUBLISHED["cifar10"]
    means = [cifar[p, g].mean for p in ("all", "top") for g in ("natural", "random")]
    assert means == [14.2999, 7.3167, 10.2667, 4.8333]


def test_cells_are_the_summary(study: StudyContents) -> None:
    cells = {(c.parameters, c.group, c.column): c for c in table_cells(study)}
    assert len(cells) == 2 * 2 * 4
    assert study.summary is not None
    where = {"parameters": "top", "group": "random", "column": "measured_matched"}
    chosen = study.summary.sel(where)
    cell = cells["top", "random", "measured_matched"]
    np.testing.assert_allclose(cell.mean, chosen["group_mean"])
    np.testing.assert_allclose([cell.low, cell.high], chosen["group_interval"])
    np.testing.assert_allclose(cell.least, chosen["least"].min())
    assert (cell.n, cell.rays) == (3, 60)
    assert f"least of 60 rays {number(cell.least)}" in cell.details()


def test_csv_has_a_row_per_cell_and_nothing_where_there_is_no_number(study: StudyContents) -> None:
    rows = list(csv.DictReader(io.StringIO(table_csv([study, study]))))
    assert len(rows) == 2 * 16
    published = rows[0]
    assert published["column"] == "published"
    assert float(published["mean"]) == 13.9833
    assert published["interval_low"] == published["train_loss"] == ""
    np.testing.assert_allclose(float(rows[1]["train_loss"]), 0.00887, rtol=1e-3)


def test_unmatched_networks_are_named_and_give_no_verdict(unmatched: StudyContents) -> None:
    cells = [c for c in table_cells(unmatched) if c.column == "measured_matched"]
    assert ["not reached (2 of 3)" in c.details() for c in cells] == [False, True, False, True]
    verdicts = {c.verdict for c in contrasts(unmatched) if c.column == "measured_matched"}
    assert verdicts == {"no verdict: loss not matched"}
    assert all(
        math.isnan(c.difference) for c in contrasts(unmatched) if c.column == "measured_matched"
    )


def test_a_mean_with_rays_that_did_not_cross_is_a_lower_bound(study: StudyContents) -> None:
    at_end = [c for c in table_cells(study) if c.column == "measured_end"]
    assert all(c.headline().startswith("≥ ") for c in at_end)
    assert all("2 of 60 rays did not cross" in c.details() for c in at_end)
    assert not any("flatter" in c.verdict for c in contrasts(study) if c.column == "measured_end")


def test_primary_comparison_comes_first(study: StudyContents) -> None:
    assert next(contrasts(study)).column == "measured_matched"


def test_markdown(study: StudyContents) -> None:
    text = table_markdown([study])
    assert text.startswith("## Synthetic numbers &amp; &lt;shapes&gt; (quick version)\n")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0].count("|") == len(table_columns(study)) + 2
    assert "**13.98 ± 0.17**" in table[2]


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (13.9833, False, "13.98"),
        (0.123456, False, "0.123"),
        (2.0, True, "+2.00"),
        (-1.5, True, "\N{MINUS SIGN}1.50"),
        (math.nan, False, "-"),
    ],
)
def test_number(value: float, signed: bool, text: str) -> None:
    assert number(value, signed=signed) == text
