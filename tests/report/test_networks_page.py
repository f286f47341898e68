"""The page on own networks: made of results that are written by hand, nothing is measured."""

import html
import re

import numpy as np
import pytest
import xarray as xr

from flatminima.report import style, write_networks_report
from flatminima.report.networks import drawn_height, line_caption, line_figure
from flatminima.report.networks.maps import maps_figures, maps_section
from flatminima.report.networks.page import _drawn
from flatminima.store import Store, StoreError, dataset_to_files

NAMES = ["a <b>&.pt", "runs/seed_1", "c$x_2.safetensors"]
ABOUT = {
    "dataset": "task:data & more", "loss_name": "cross_entropy", "batchnorm": "none",
    "precision": "exact", "samples": 1234, "path": "affine",
}  # fmt: skip
RUN = {
    "commit": "0" * 40, "cpu": "a processor", "seconds": 1.5, "threads": 1,
    "started": "2026-01-01T00:00:00+00:00", "versions": {}, "python": "3.11", "platform": "Linux",
}  # fmt: skip


def line(barrier=0.75, *, accuracy=True):
    position = np.linspace(0, 1, 5)
    loss = 0.5 + 4 * barrier * position * (1 - position) if np.isfinite(barrier) else position + 0.5
    data = xr.Dataset(
        {
            "loss": ("position", loss),
            "chord": ("position", np.full(5, 0.5)),
            "standard_error": ("position", np.full(5, 0.01)),
        },
        coords={"position": position},
        attrs={
            **ABOUT, "networks": NAMES[:2], "barrier": barrier, "barrier_position": 0.5,
            "length": 12.25,
        },
    )  # fmt: skip
    if accuracy:
        data["accuracy"] = ("position", 1 - position / 3)
    return data


def radius():
    shape = (3, 4, 2)
    values = 1.0 + np.arange(24.0).reshape(shape)
    outcome = np.zeros(shape, dtype=np.int8)
    outcome[2, 3, 1] = 1
    dims = ("network", "direction", "sign")
    return xr.Dataset(
        {
            "radius": (dims, values),
            "outcome": (dims, outcome),
            "evaluations": (dims, np.full(shape, 9)),
            "reentries": (dims, np.zeros(shape, dtype=np.int64)),
            "loss": ("network", [0.111, 0.222, 0.333]),
            "norm": ("network", [10.0, 20.0, 30.0]),
        },
        coords={"network": NAMES, "direction": range(4), "sign": [-1, 1]},
        attrs={**ABOUT, "threshold": 0.05, "parameters": "2.*"},
    )


@pytest.fixture
def written(tmp_path):
    """Writes results, findings or both into a store, and the page; returns its folder."""

    def write(*, findings=None, **results):
        store = Store(tmp_path / "runs", create=True)
        jobs = []
        for index, (kind, data) in enumerate(results.items()):
            digest = f"{index:064x}"
            files = dataset_to_files(f"{kind}.zarr", data)
            store.write(kind, digest, files, settings={"own": 1}, provenance=RUN)
            jobs.append({"kind": kind, "digest": digest, "label": kind, "dependencies": []})
        settings = {"kind": "networks", "title": "Mine <i>& only"}
        manifest = {"settings": settings, "jobs": jobs}
        if findings is not None:
            manifest["findings"] = findings
        store.write_manifest("mine", manifest)
        return write_networks_report(store, "mine", tmp_path / "page").parent

    return write


def text_of(folder):
    """The words on the page."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    return html.unescape(re.sub(r"<[^>]+>", " ", page.split("<article", 1)[1]))


def test_a_line_is_told_with_its_barrier_and_its_networks(written):
    folder = written(line=line())
    text = text_of(folder)
    assert "Mine <i>& only" in text
    assert "The barrier, the largest rise above the chord (dashed), is 0.75 at 0.5." in text
    assert "Mean cross entropy over 1,234 samples of task:data & more" in text
    assert "12.25 long" in text
    assert "no BatchNorm" in text
    assert "Flatness radii" not in text
    rows = (folder / "line.csv").read_text().splitlines()
    assert set(rows[0].split(",")) == {"position", "loss", "chord", "standard_error", "accuracy"}
    assert len(rows) == 6
    assert {path.suffix for path in folder.glob("figure-line*")} >= {".png", ".svg"}
    assert not list(folder.glob("figure-radii*"))


def test_an_infinite_barrier_and_no_accuracy(written):
    text = text_of(written(line=line(np.inf, accuracy=False)))
    assert "A loss on the way is not finite: the barrier is infinite." in text


def test_radii_are_told_for_every_network(written):
    folder = written(radius=radius())
    text = text_of(folder)
    for row, name in enumerate(NAMES):
        assert name in text
        mean = 1.0 + 8 * row + 3.5
        loss, norm = 0.111 * (row + 1), 10.0 * (row + 1)
        cells = [f"{loss:.4g}", f"{mean:.4g}", f"{mean / norm:.3g}", f"{1.0 + 8 * row:.4g}"]
        assert re.search(r"\s+".join(map(re.escape, [name, *cells, str(int(row == 2))])), text)
    assert "of parameters 2.* at which the loss has risen by 0.05" in text
    assert "1 rays did not cross (open triangles)" in text
    assert len((folder / "radii.csv").read_text().splitlines()) == 25


@pytest.mark.parametrize(
    ("attrs", "words"),
    [
        ({}, "exact arithmetic, no"),
        (
            {"precision": "fast", "sampled": 123, "largest_difference": 0.00123},
            "exact arithmetic around the crossings, the way there over 123 of them that were drawn"
            " by importance (a rise differed by 0.0012 at most), no",
        ),
        (
            {"precision": "fast", "sampled": 0, "largest_difference": 0.0},
            "exact arithmetic (fast was asked for; nothing was to be gained by it here), no",
        ),
    ],
)
def test_radii_are_told_with_how_they_were_looked_for(written, attrs, words):
    assert words in text_of(written(radius=radius().assign_attrs(attrs)))


def test_findings_are_a_table_and_may_stand_alone(written):
    findings = [
        {"verdict": "ok", "question": "Is it?", "answer": "yes & <no>"},
        {"verdict": "fail", "question": "Why?", "answer": "because"},
        {"verdict": "note", "question": "So?", "answer": "well"},
    ]
    folder = written(findings=findings)
    text = " ".join(text_of(folder).split())
    for words in ("fine Is it? yes & <no>", "wrong Why? because", "to be known So? well"):
        assert words in text
    assert "<no>" not in (folder / "report.html").read_text(encoding="utf-8").split("<article")[1]


def test_names_are_never_markup(written):
    page = (written(line=line(), radius=radius()) / "report.html").read_text(encoding="utf-8")
    article = page.split("<article", 1)[1].split("</article>")[0]
    assert "<b>" not in article
    assert "<i>" not in article


def test_a_page_of_nothing_known_is_refused(tmp_path):
    with pytest.raises(StoreError, match="expected the study 'mine'"):
        write_networks_report(Store(tmp_path / "runs", create=True), "mine", tmp_path / "page")


@pytest.mark.parametrize(
    ("losses", "height"),
    [
        ([0.2, 0.5, 1.0], 1.0),
        ([0.2, 0.5, 1.234], 1.3),
        ([1.0, 1.0, 1.0, 1.0, 1.01, 100.0], 1.1),
        ([0.2, np.nan, 0.4], 0.4),
        ([np.nan, np.nan], 1.0),
        ([-2.0, -1.0], 1.0),
        ([0.0, 0.0], 1.0),
        ([0.16], 0.16),
    ],
)
def test_a_surface_is_drawn_up_to_where_it_can_be_seen(losses, height):
    np.testing.assert_allclose(drawn_height(np.array(losses)), height)


def surface(groups=2, *, metrics=("top5",), clip=None):
    """A plane through three networks on which groups of samples and metrics were told apart."""
    axis = np.linspace(-1.0, 2.0, 5)
    u, v = np.meshgrid(axis, axis)
    names = [f"group <{index}>" for index in range(groups)]
    values = {"loss": u**2 + v**2 + 0.1, "accuracy": 1 / (1 + u**2)}
    for index, name in enumerate(names):
        values |= {f"loss_{name}": (index + 1) * (u**2 + 0.1), f"accuracy_{name}": 1 / (1 + v**2)}
    values |= dict.fromkeys(metrics, u - v)
    outcome = np.zeros(u.shape, dtype=np.int8)
    if clip is not None:
        outcome[u**2 + v**2 > clip] = 2
        values = {
            name: np.where(outcome == 2, clip if name == "loss" else np.nan, each)
            for name, each in values.items()
        }
    values = {"u": u, "v": v, "outcome": outcome, **values}
    anchors = {"u": [0.0, 1.0, 0.5], "v": [0.0, 0.0, 1.0]}
    anchors |= {name: np.full(3, 0.25) for name in values if name not in ("u", "v", "outcome")}
    data = xr.Dataset(
        {name: (("y", "x"), each) for name, each in values.items()}
        | {f"anchor_{name}": ("anchor", np.asarray(each)) for name, each in anchors.items()}
        | {"anchor_distance": (("anchor", "other"), np.ones((3, 3)))},
        coords={"x": axis, "y": axis},
        attrs={**ABOUT, "networks": NAMES, "axes": "isometric", "dimensions": 2},
    )
    data["outcome"].attrs.update(
        flag_values=[0, 1, 2], flag_meanings="finite non_finite above_clip"
    )
    if clip is not None:
        data.attrs["clip"] = clip
    if groups:
        data.attrs.update(subsets=names, subset_samples=[7] * groups)
    if metrics:
        data.attrs.update(metrics=list(metrics))
    return data


def words_of(data):
    """The section of groups and metrics as text."""
    study = _drawn("mine", {}, data, ())
    with style.figure_style():
        figures = {name: text for name, _, text in maps_figures(study, data)}
    return " ".join(
        html.unescape(re.sub(r"<[^>]+>", " ", maps_section(study, data))).split()
    ), figures


def test_groups_and_metrics_are_maps_with_a_table():
    text, figures = words_of(surface())
    assert set(figures) == {"groups", "metrics"}
    for words in ("By group of samples", "group <0> (7 samples)", "Metrics", "top5"):
        assert words in text
    # The largest loss is that of a group; all are drawn on one scale.
    assert "in the same colours, drawn up to 8.2" in figures["groups"]
    assert text.count("loss (drawn up to 8.2)") == 3
    assert "loss, all samples 1,234 0.25 0.25 0.25 0.225 8.1" in text
    assert "loss, group <1> 7 0.25 0.25 0.25 0.325 8.2" in text
    assert "accuracy, group <0> 7 0.25 0.25 0.25 0.2 0.9412" in text
    assert "top5 1,234 0.25 0.25 0.25 -3 3" in text


def test_many_groups_are_not_all_drawn_but_all_told():
    text, figures = words_of(surface(17, metrics=()))
    assert "The first 15 of 17 groups; the others are in the table." in figures["groups"]
    assert text.count("loss (drawn up to") == 16
    assert "loss, group <16>" in text
    assert "metrics" not in figures


def test_of_stopped_points_nothing_is_said_for_groups():
    text, figures = words_of(surface(clip=2.0))
    assert "Of points that were stopped nothing is known for groups" in figures["groups"]
    assert "hatched: loss not computed or not finite" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0, -np.inf])
def test_maps_of_one_value_or_of_none(value):
    data = surface(1)
    for name in ("loss_group <0>", "top5"):
        data[name][:] = value
    text, _ = words_of(data)
    assert re.search("top5 1,234 0.25 0.25 0.25 (3 3|nan nan)", text)


def test_a_surface_without_them_says_nothing_of_them():
    assert words_of(surface(0, metrics=())) == ("", {})


@pytest.mark.parametrize("count", [2, 20])
def test_a_line_tells_groups_apart(count):
    data = line()
    names = [f"class_{index}" for index in range(count)]
    for name in names:
        data[f"loss_{name}"] = data["loss"] * 2
        data[f"accuracy_{name}"] = data["accuracy"] / 2
    data["top5"] = data["accuracy"]
    data.attrs.update(subsets=names, subset_samples=[7] * count, metrics=["top5"])
    loss, accuracy, top5 = line_figure(data).axes
    drawn = min(count, 15)
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        "all samples", *names[:drawn],
    ]  # fmt: skip
    strokes = {(each.get_color(), each.get_linestyle()) for each in loss.get_lines()[2:]}
    assert len(strokes) == drawn
    assert len(accuracy.get_lines()) == 1 + drawn
    assert len(top5.get_lines()) == 1
    assert ("The first 15 of 20 groups are drawn." in line_caption(data)) == (count == 20)


def test_figures_of_what_is_no_longer_measured_are_removed(written, tmp_path):
    page = tmp_path / "page"
    page.mkdir()
    for name in ("figure-groups.png", "figure-groups.svg", "figure-metrics.png", "mine.png"):
        (page / name).write_text("old")
    left = {path.name for path in written(line=line()).iterdir()}
    assert "mine.png" in left
    assert not {"figure-groups.png", "figure-groups.svg", "figure-metrics.png"} & left
