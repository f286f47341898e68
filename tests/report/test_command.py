"""`flatminima report`: which studies are meant, and where their page goes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatminima.cli import main
from flatminima.cli._report import find_studies
from flatminima.store import Store

TINY: dict[str, Any] = {"resolution": 4, "surfaces": (), "summary": False}


@pytest.fixture(scope="module")
def stores(synthetic_store: Callable[..., Store]) -> tuple[Path, Path]:
    """A store with two studies, and one with a third."""
    runs = synthetic_store(name="first", **TINY)
    runs.write_manifest("second", runs.manifest("first"))
    return runs.root, synthetic_store(name="third", **TINY).root


@pytest.fixture
def wrote(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    """The names and folders of the reports that were written, without their pages being drawn."""
    found: list[tuple[list[str], Path]] = []

    def write(store: Store, studies: list[str], out: Path, *, beside: Any = ()) -> Path:
        found.append(([*studies, *(name for _, name in beside)], out))
        return out / "report.html"

    monkeypatch.setattr("flatminima.report.write_report", write, raising=False)
    return found


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["report", *map(str, arguments)])
    return int(caught.value.code or 0)


def found(*studies: str | Path, out: Path) -> list[tuple[Path, str]]:
    return [(store.root, name) for store, name in find_studies(list(map(str, studies)), out)]


def test_names_files_and_stores_are_found(stores: tuple[Path, Path], tmp_path: Path) -> None:
    runs, other = stores
    text = (Path(__file__).parents[2] / "studies" / "digits-tiny.toml").read_text(encoding="utf-8")
    file = tmp_path / "study.toml"
    file.write_text(text.replace('"digits-tiny"', '"second"'), encoding="utf-8")
    assert found("first", other, file, out=runs) == [
        (runs, "first"),
        (other, "third"),
        (runs, "second"),
    ]
    assert found(runs, out=tmp_path / "nowhere") == [(runs, "first"), (runs, "second")]


def test_a_name_is_meant_rather_than_a_folder_of_that_name(
    stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, _ = stores
    Store(tmp_path / "first", create=True)
    monkeypatch.chdir(tmp_path)
    assert found("first", out=runs) == [(runs, "first")]


def test_a_report_goes_to_its_store_or_where_it_is_told(
    stores: tuple[Path, Path], tmp_path: Path, wrote: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, other = stores
    assert call("first", "--out", runs) == 0
    assert "report" in Store(runs).manifest("first")
    assert call(other) == 0
    assert call("second", "first", "--out", runs) == 0
    assert call("second", other, "--out", runs, "--to", tmp_path / "page") == 0
    # A study's own report takes its place when it is whole.
    assert (runs / "reports" / "first").is_dir()
    assert (other / "reports" / "third").is_dir()
    assert wrote == [
        (["first"], runs / "tmp" / f"report-first.{os.getpid()}"),
        (["third"], other / "tmp" / f"report-third.{os.getpid()}"),
        (["second", "first"], runs / "reports" / "second+first"),
        (["second", "third"], tmp_path / "page"),
    ]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "page" / "report.html")


def test_a_store_that_is_only_read_stays_as_it_is(
    stores: tuple[Path, Path], tmp_path: Path, wrote: list[Any]
) -> None:
    _, other = stores
    before = {path: path.stat().st_mtime_ns for path in other.rglob("*")}
    assert call(other, "--to", tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in other.rglob("*")} == before
    assert len(wrote) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument"),
        (["RUNS", "OTHER"], "expected --to FOLDER for a report on studies of several stores"),
        (["unknown", "--out", "RUNS"], "expected the study 'unknown'"),
        (["FOLDER", "--out", "RUNS"], "got the folder FOLDER without store.json"),
        (["EMPTY"], "expected a study in the store EMPTY"),
        (["first", "RUNS", "--out", "RUNS", "--to", "page"], "got 'first' 2 times"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_refused(
    stores: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FOLDER").mkdir()
    Store("EMPTY", create=True)
    places = {"RUNS": str(stores[0]), "OTHER": str(stores[1])}
    assert call(*(places.get(argument, argument) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("page").exists()


def test_studies_of_two_stores_on_one_page(stores: tuple[Path, Path], tmp_path: Path) -> None:
    runs, other = stores
    assert call(runs / "", other, "--to", tmp_path) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name in ("first", "second", "third"):
        assert f'<article class="study" id="{name}">' in page
    assert page.count('id="_overview"') == 1
