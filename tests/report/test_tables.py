import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from flatminima.report.captions import interpolation_notes
from flatminima.report.combined import blocks, lines
from flatminima.report.contents import StudyContents, read_study
from flatminima.report.markdown import table_markdown
from flatminima.report.page import build_page
from flatminima.report.page_overview import figure_planes
from flatminima.report.perturbed import perturbed_rows
from flatminima.report.published import PUBLISHED
from flatminima.report.setting import deviations, end_note, setting_note, short_name
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


@pytest.fixture(scope="module")
def both(synthetic_store: Callable[..., Store], study: StudyContents) -> list[StudyContents]:
    """An MNIST study, and a CIFAR-10 one whose walks move running statistics too."""
    store = synthetic_store(
        name="cifar", resolution=4, dataset="cifar10", perturbed=True, quick=False, censored=False
    )
    return [study, read_study(store, "cifar")]


def test_table_1_has_the_published_rows_and_a_block_for_each_study(
    both: list[StudyContents],
) -> None:
    made = blocks(both)
    assert [block.head[0] for block in made] == ["MNIST", "CIFAR-10"]
    order = ("published", "as_published", "measured_matched", "measured_end")
    assert all(block.columns == order for block in made)
    rows = lines(made)
    assert [row.name for row in rows] == [
        "all params",
        "all params (random label)",
        "top layer",
        "top layer (random label)",
    ]
    published = [(row.cells[0], row.cells[4]) for row in rows]
    means = [[cell.mean if cell else None for cell in pair] for pair in published]
    assert means == [[13.9833, 14.2999], [4.6333, 7.3167], [2.34, 10.2667], [3.86, 4.8333]]
    own = {(c.parameters, c.group, c.column): c for c in table_cells(both[1])}
    assert rows[1].cells[6] == own["all", "random", "measured_matched"]


def test_no_study_passes_for_the_published_setting(both: list[StudyContents]) -> None:
    _, cifar = blocks(both)
    assert cifar.head[1].startswith("Reduced version. Not the published setting: ")
    for departure in (
        "10,000 training images (published: 50,000)",
        "VGG16 with width 0.5 (published: VGG16 at full width)",
        "epochs 20 natural, 40 random (published: 150)",
        "batches of 64 (published: 128)",
        "learning rate 0.1 (published: 0.01)",
        "no augmentation (published: random crop and flip)",
    ):
        assert departure in cifar.head[1]
    text = table_markdown(both)
    assert text.startswith("## Table 1\n")
    assert cifar.head[1] in text.split("\n## ")[0]


def test_the_published_settings_depart_from_nothing(study: StudyContents) -> None:
    for dataset, model, batch, augment, epochs in (
        ("mnist", "mlp", 64, "none", (30, 150)),
        ("cifar10", "vgg16", 128, "crop_flip", (150, 150)),
    ):
        natural, random = study.settings["groups"]
        settings = {
            **study.settings,
            "data": {"dataset": dataset, "limit": None},
            "groups": [{**natural, "epochs": epochs[0]}, {**random, "epochs": epochs[1]}],
            "model": {"name": model, "settings": {}},
            "training": {
                **study.section("training"),
                "batch_size": batch,
                "learning_rate": 0.01,
                "augment": augment,
            },
            "report": {"published": dataset},
        }
        same = replace(study, settings=settings)
        assert deviations(same) == []
        assert setting_note(same) == "The published setting."
        assert same.version == "full version"
        assert short_name(same) == {"mnist": "MNIST", "cifar10": "CIFAR-10"}[dataset]
    assert short_name(study) == "MNIST (quick version)"
    half = {**same.section("training"), "precision": "bfloat16"}
    (apart,) = deviations(replace(same, settings={**same.settings, "training": half}))
    assert apart == "trained in bfloat16 (published: float32)"
    own = replace(study, settings={**study.settings, "report": {}})
    assert setting_note(own) == ""


def test_every_contrast_says_what_it_holds_equal(both: list[StudyContents]) -> None:
    held = {contrast.column: contrast.held for contrast in contrasts(both[0])}
    end = "at the end of training (epochs: 20 natural against 40 random)"
    assert held == {
        "measured_matched": "at matched train loss 0.1",
        "measured_end": end,
        "as_published": end,
    }
    shorter = [n for n in both[0].networks if n.group == "natural"]
    alike = replace(both[0], networks=(*shorter, *(replace(n, group="random") for n in shorter)))
    assert end_note(alike) == "at matched epochs (20, the end of training)"


def test_perturbed_walks_have_a_table_of_their_own(both: list[StudyContents]) -> None:
    mnist, cifar = both
    assert perturbed_rows(mnist) == []
    rows = perturbed_rows(cifar)
    assert [row.group for row in rows] == ["natural", "random"]
    for row in rows:
        assert row.perturbed.mean < row.alone.mean
        assert row.ended.startswith("12 of 30, after radius")
        assert "12 of them with a negative variance" in row.ended
    columns = {column for block in blocks(both) for column in block.columns}
    assert "as_published_perturbed" not in columns
    assert "as_published_perturbed" not in {contrast.column for contrast in contrasts(cifar)}
    written = list(csv.DictReader(io.StringIO(table_csv([cifar]))))
    assert [row["column"] for row in written[-2:]] == ["as_published_perturbed"] * 2
    assert "What perturbing the running statistics does" in table_markdown([cifar])
    assert "What perturbing the running statistics does" not in table_markdown([mnist])


def test_random_labels_are_said_to_be_interpolated_or_not(study: StudyContents) -> None:
    (note,) = interpolation_notes(study)
    assert "Random labels, no augmentation: none of the 3 networks interpolates" in note
    fitted = [
        replace(n, history=n.history.assign(train_accuracy=n.history["train_accuracy"] * 0 + 1))
        if n.index < 2
        else n
        for n in study.networks
    ]
    training = {**study.section("training"), "augment": "crop_flip"}
    augmented = replace(
        study, networks=tuple(fitted), settings={**study.settings, "training": training}
    )
    (note,) = interpolation_notes(augmented)
    assert "random crop and flip: 2 of 3 networks interpolate" in note


def test_figures_keep_their_published_numbers(both: list[StudyContents]) -> None:
    mnist, cifar = both

    def numbers(studies: list[StudyContents]) -> list[tuple[str, str, str]]:
        return [(n, s.name, planes[0].group) for n, s, planes in figure_planes(studies)]

    assert [number for number, _, _ in numbers([mnist, cifar])] == ["1", "2", "3", "4"]
    again = replace(cifar, name="again")
    assert [number for number, _, _ in numbers([cifar, again])] == ["3a", "4a", "3b", "4b"]
    own = replace(mnist, name="own", settings={**mnist.settings, "report": {}})
    assert numbers([own, mnist])[:2] == [("3", "own", "natural"), ("4", "own", "random")]
