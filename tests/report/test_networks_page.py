"""The page on own networks: made of results that are written by hand, nothing is measured."""

import html
import re

import numpy as np
import pytest
import xarray as xr

from flatminima.report import write_networks_report
from flatminima.report.networks import drawn_height
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
    ],
)
def test_a_surface_is_drawn_up_to_where_it_can_be_seen(losses, height):
    np.testing.assert_allclose(drawn_height(np.array(losses)), height)
