import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from flatminima.report import write_report
from flatminima.report.captions import radii_caption
from flatminima.report.contents import read_study
from flatminima.store import Store, StoreError

FIGURES = ("surfaces", "contours", "training", "radii")


@pytest.fixture(scope="module")
def store(synthetic_store: Callable[..., Store]) -> Store:
    return synthetic_store()


@pytest.fixture(scope="module")
def report(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(store, ["synthetic"], tmp_path_factory.mktemp("report") / "new" / "folder")


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    """The page's text without the drawing library."""
    return report.read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def test_writes_figures_tables_and_page(report: Path) -> None:
    assert report.name == "report.html"
    for name in FIGURES:
        assert (report.parent / f"figure-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (report.parent / f"figure-{name}.svg").read_text()
    assert (
        (report.parent / "table.csv")
        .read_text()
        .startswith("study,split,parameters,group,column,n")
    )
    assert "published" in (report.parent / "table.md").read_text()


def test_the_drawing_library_is_inlined_once(report: Path) -> None:
    library = get_plotlyjs()
    assert "</script" not in library.lower()
    assert report.read_text(encoding="utf-8").count(library) == 1


def test_the_page_asks_nothing_of_any_server(page: str) -> None:
    references = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]+)""", page)
    assert references
    assert all(reference.startswith(("#", "data:")) for reference in references)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_text_from_the_store_is_escaped(page: str) -> None:
    assert "Synthetic numbers &amp; &lt;shapes&gt;" in page
    assert "<shapes>" not in page
    assert "<b>beyond</b>" not in page
    assert "Synthetic CPU &lt;64&gt;" in page


def test_the_page_carries_unclipped_losses_and_null_for_holes(store: Store, page: str) -> None:
    match = re.search(r'<script type="application/json" id="surfaces">(.*?)</script>', page, re.S)
    assert match is not None
    (row,) = json.loads(match[1])["rows"]
    study = read_study(store, "synthetic")
    for drawn, surface in zip(row["surfaces"], study.surfaces, strict=True):
        assert surface.data is not None
        stored = surface.data["loss"].values
        np.testing.assert_allclose(np.array(drawn["loss"], dtype=float), stored, rtol=1e-5)
        assert stored[np.isfinite(stored)].max() > row["clip"]
    assert row["surfaces"][1]["loss"][-1][-1] is None


def test_answer_provenance_and_settings_are_shown(page: str) -> None:
    assert "at matched training loss the natural minima are flatter" in page
    for text in ("2026-01-02", "0123456789ab", "torch 2.13.0", "quick version", "summary.exclude"):
        assert text in page
    assert "synthetic-host" not in page


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_captions_state_data_policy_n_loss_and_version(page: str) -> None:
    captions = re.findall(r'<p class="caption">(.*?)</p>', page, re.S)
    surfaces = next(text for text in captions if text.startswith("Loss on the plane"))
    for fact in (
        "MNIST, 10,000 training samples",
        "16 by 16 points",
        "barycentric grid",
        "n = 3",
        "natural 0.0071 to 0.0082",
        "BatchNorm policy: recompute",
        "plateau at 3.5",
        "random 10.",
        "Quick version",
    ):
        assert fact in surfaces


def test_the_caption_of_radii_says_what_a_sample_was_off_by(store: Store) -> None:
    study = read_study(store, "synthetic")
    assert study.radii is not None
    assert "drawn by importance" not in radii_caption(study)
    said = {"sampled": 3000, "largest_difference": 0.00612}
    led = replace(study, radii=study.radii.assign_attrs(said))
    want = "over 3,000 of them, drawn by importance, where a rise differed by 0.0061 at most"
    assert want in radii_caption(led)


def test_writing_twice_gives_the_same_bytes(store: Store, report: Path, tmp_path: Path) -> None:
    again = write_report(store, ["synthetic"], tmp_path)
    for path in again.parent.iterdir():
        assert path.read_bytes() == (report.parent / path.name).read_bytes(), path.name


def test_a_surface_that_was_not_made_says_why(
    synthetic_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = synthetic_store(made=False, matched=False, resolution=4)
    page = write_report(store, ["synthetic"], tmp_path).read_text(encoding="utf-8")
    said = "There is no surface for random labels: 1 of 3 networks ended at chance."
    assert page.count(said) == 2  # as a relief and as a map
    assert "not reached (2 of 3)" in page
    assert (tmp_path / "figure-surfaces.png").exists()


def test_what_is_missing_is_said(synthetic_store: Callable[..., Store], tmp_path: Path) -> None:
    (tmp_path / "figure-radii.png").write_bytes(b"from an earlier report")
    store = synthetic_store(surfaces=(), summary=False)
    page = write_report(store, ["synthetic"], tmp_path).read_text(encoding="utf-8")
    for sentence in (
        "No answer yet",
        "This study asks for no surface.",
        "The radii of this study have not been summarised yet.",
    ):
        assert sentence in page
    assert "plotly.js" not in page
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if name.startswith("figure")} == {
        "figure-training.png",
        "figure-training.svg",
    }


def test_unfinished_results_are_counted_and_steps_are_not(
    synthetic_store: Callable[..., Store],
) -> None:
    store = synthetic_store(surfaces=(), summary=False)
    assert read_study(store, "synthetic").missing == 0
    manifest = store.manifest("synthetic")
    later = [{"kind": kind, "digest": "0" * 64} for kind in ("train", "tile", "summary")]
    store.write_manifest("synthetic", {**manifest, "jobs": [*manifest["jobs"], *later]})
    assert read_study(store, "synthetic").missing == 1


def test_several_studies_on_one_page(synthetic_store: Callable[..., Store], tmp_path: Path) -> None:
    store = synthetic_store(resolution=4)
    manifest = store.manifest("synthetic")
    settings = {**manifest["settings"], "title": "Second"}
    store.write_manifest("second", {**manifest, "settings": settings})
    page = write_report(store, ["synthetic", "second"], tmp_path).read_text(encoding="utf-8")
    assert page.count('<article class="study"') == 3  # with the overview
    rest = page.replace(get_plotlyjs(), "")
    ids = re.findall(r'\sid="([^"]+)"', rest)
    assert len(ids) == len(set(ids))
    assert rest.count("Second") > 2


def test_an_unknown_study_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected the study 'other'.*synthetic"):
        write_report(store, ["other"], tmp_path / "out")
    with pytest.raises(ValueError, match="expected the name of at least one study"):
        write_report(store, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import flatminima.report", "torch xarray matplotlib plotly numpy"),
        ("from flatminima.report import write_report", "torch plotly"),
    ],
)
def test_importing_loads_little(statement: str, absent: str) -> None:
    code = f"{statement}; import sys; print(*(set({absent.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
