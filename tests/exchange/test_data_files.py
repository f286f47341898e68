"""Tables, NetCDF and zarr give back what was saved, or one line."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from exchange.surfaces import assert_same, make_surface
from flatminima.exchange import load_surface, save_surface

DATA = (".csv", ".nc", ".zarr")


@pytest.mark.parametrize("suffix", DATA)
@pytest.mark.parametrize("anchors", [0, 3])
def test_gives_back_what_was_saved(tmp_path: Path, suffix: str, anchors: int) -> None:
    surface = make_surface(anchors=anchors)
    save_surface(surface, tmp_path / f"surface{suffix}")
    assert_same(load_surface(tmp_path / f"surface{suffix}"), surface)
    # What was read can be saved in every other form.
    for other in DATA:
        save_surface(load_surface(tmp_path / f"surface{suffix}"), tmp_path / f"b{other}")
        assert_same(load_surface(tmp_path / f"b{other}"), surface)


@pytest.mark.parametrize("suffix", DATA)
def test_the_content_decides_and_nothing_else_is_left(tmp_path: Path, suffix: str) -> None:
    surface = make_surface()
    path = tmp_path / f"a{suffix}"
    for _ in range(2):  # the second time it replaces
        save_surface(surface, path)
    assert list(tmp_path.iterdir()) == [path]
    assert_same(load_surface(path.rename(tmp_path / "other.txt")), surface)


def test_numpy_attributes_become_plain_ones(tmp_path: Path) -> None:
    surface = make_surface()
    surface.attrs = {"a": np.float64(0.1), "b": np.array([1, 2]), "c": np.bool_(True), "d": (1, 2)}
    surface["x"].attrs["e"] = (3, 4)
    for suffix in DATA:
        save_surface(surface, tmp_path / f"a{suffix}")
        found = load_surface(tmp_path / f"a{suffix}")
        assert found.attrs == {"a": 0.1, "b": [1, 2], "c": True, "d": [1, 2]}
        assert found["x"].attrs == {"e": [3, 4]}
    # The caller's own stay as they are.
    assert surface.attrs["d"] == (1, 2)
    assert surface["x"].attrs["e"] == (3, 4)


def test_pandas_and_other_programs_read_the_files(tmp_path: Path) -> None:
    surface = make_surface()
    save_surface(surface, tmp_path / "a.csv")
    table = pd.read_csv(tmp_path / "a.csv", comment="#")
    assert list(table)[:3] == ["x", "y", "loss"]
    np.testing.assert_allclose(table["loss"], surface["loss"].to_numpy().ravel(), rtol=1e-15)
    np.testing.assert_allclose(table["x"][:5], surface["x"], rtol=1e-15)
    save_surface(surface, tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc", engine="scipy") as found:
        np.testing.assert_array_equal(found["loss"], surface["loss"])
        assert found.attrs["axes"] == "barycentric"
        assert json.loads(found.attrs["flatminima"])["attrs"]["nothing"] is None


def test_netcdf_and_zarr_of_others_are_read(tmp_path: Path) -> None:
    surface = make_surface().drop_attrs().drop_vars(["interpolated", "loss_noisy, labels", "seen"])
    surface.to_netcdf(tmp_path / "a.nc", engine="scipy")
    xr.testing.assert_identical(load_surface(tmp_path / "a.nc"), surface)
    surface.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    xr.testing.assert_identical(load_surface(tmp_path / "a.zarr"), surface)


def test_netcdf_4_of_others_is_read(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    surface = make_surface()[["loss", "u", "v"]].drop_attrs()
    surface.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    xr.testing.assert_identical(load_surface(tmp_path / "a.nc"), surface)


def assert_one_line(error: pytest.ExceptionInfo[ValueError]) -> None:
    text = str(error.value)
    assert text.startswith("expected ")
    assert ", got " in text
    assert ";" in text
    assert "\n" not in text


@pytest.mark.parametrize("suffix", [".csv", ".nc"])
def test_a_file_that_is_cut_off_is_one_line(tmp_path: Path, suffix: str) -> None:
    save_surface(make_surface(), tmp_path / f"a{suffix}")
    whole = (tmp_path / f"a{suffix}").read_bytes()
    cut = tmp_path / "cut"
    for length in {0, 1, 3, *range(10, len(whole), len(whole) // 60), len(whole) - 1}:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError) as error:
            load_surface(cut)
        assert_one_line(error)


def test_a_zarr_folder_with_lost_or_damaged_parts_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    for damage in (Path.unlink, lambda chunk: chunk.write_bytes(chunk.read_bytes()[:9])):
        save_surface(make_surface(), path)
        damage(path / "loss" / "0.0")
        with pytest.raises(ValueError) as error:
            load_surface(path)
        assert_one_line(error)


def test_a_zarr_folder_that_needs_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    save_surface(make_surface(), path)
    about = json.loads((path / "loss" / ".zarray").read_text("utf-8"))
    about["filters"] = [{"id": "pickle", "protocol": 5}]
    (path / "loss" / ".zarray").write_text(json.dumps(about), "utf-8")
    with pytest.raises(ValueError, match="codec pickle, which is not allowed"):
        load_surface(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("surface: 1", "surface: 2"),
        lambda text: text.replace('"shape": [4]', '"shape": [3]'),
        lambda text: text.replace("\nx,y,loss", "\nx,y,lass"),
        lambda text: text[: text.rstrip().rfind("\n") + 1],
        lambda text: text.rstrip() + ",1\n",
        lambda text: text.replace("\n-0.4,", "\n-0.5,", 1),
        lambda text: text.replace("# attribute", "# attrbute", 1),
        lambda text: text.replace("5e-324", "five"),
    ],
)
def test_an_altered_table_is_one_line(tmp_path: Path, edit) -> None:
    path = tmp_path / "a.csv"
    save_surface(make_surface(), path)
    text = path.read_text("utf-8")
    assert edit(text) != text
    path.write_text(edit(text), "utf-8")
    with pytest.raises(ValueError) as error:
        load_surface(path)
    assert_one_line(error)


def test_what_is_no_surface_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n", "utf-8")
    (tmp_path / "folder").mkdir()
    for name in ("empty", "foreign.csv", "folder", "nothing"):
        with pytest.raises(ValueError) as error:
            load_surface(tmp_path / name)
        assert_one_line(error)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.drop_vars("loss"), "a variable loss over"),
        (lambda s: s.transpose("x", "y", ...), "a variable loss over"),
        (lambda s: s.drop_vars("x"), "two values or more along x"),
        (lambda s: s.isel(y=slice(1)), "two values or more along y"),
        (lambda s: s.assign_attrs(odd=object()), "text, numbers"),
        (lambda s: s.assign(name=("anchor", ["a", "b", "c"])), "numbers in the variable"),
        (lambda s: s.assign(outcome=s["outcome"] * 0), "where the outcome says so"),
        (lambda s: s.rename(accuracy="a\nb"), "names of one line"),
    ],
)
def test_no_surface_is_not_saved(tmp_path: Path, change, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        save_surface(change(make_surface()), tmp_path / "a.csv")
    assert_one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_place_is_one_line(tmp_path: Path) -> None:
    surface = make_surface()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.tex").touch()
    for name in ("a.txt", "a", "none/a.csv", "folder.csv", "mine.zarr"):
        with pytest.raises(ValueError) as error:
            save_surface(surface, tmp_path / name)
        assert_one_line(error)
    with pytest.raises(ValueError, match=r"\.csv, \.nc, \.zarr, \.vts, \.vtu, \.stl, \.glb"):
        save_surface(surface, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="leave it out"):
        save_surface(surface, tmp_path / "a.csv", clip=3.0)
    assert (tmp_path / "mine.zarr" / "thesis.tex").exists()


def test_a_whole_number_that_netcdf_3_cannot_hold_is_one_line(tmp_path: Path) -> None:
    surface = make_surface()
    surface["seen"] += 2**40
    with pytest.raises(ValueError, match=r"save a \.zarr") as error:
        save_surface(surface, tmp_path / "a.nc")
    assert_one_line(error)
    save_surface(surface, tmp_path / "a.csv")
    assert_same(load_surface(tmp_path / "a.csv"), surface)


@pytest.mark.parametrize("suffix", DATA)
def test_a_failure_leaves_the_old_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix}"
    surface = make_surface()
    save_surface(surface, path)

    replace, calls = os.replace, []

    def fail(source, target, **rest):
        if Path(target) == path and not calls:
            calls.append(source)
            raise OSError("no space left on device")
        return replace(source, target, **rest)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save_surface(surface * 2, path)
    assert calls
    assert list(tmp_path.iterdir()) == [path]
    assert_same(load_surface(path), surface)


@pytest.mark.parametrize(
    ("name", "module"), [("a.vts", "pyevtk.hl"), ("a.vtu", "pyevtk.hl"), ("a.stl", "trimesh")]
)
def test_a_missing_library_is_one_line(
    tmp_path: Path, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as error:
        save_surface(make_surface(), tmp_path / name)
    assert str(error.value) == (
        f"expected the library {module.split('.')[0]} for {name[1:]} files;"
        " pip install flatminima[export]"
    )
    assert list(tmp_path.iterdir()) == []
