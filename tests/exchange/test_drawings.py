"""Files for ParaView and meshes, read back."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from exchange.surfaces import make_surface
from flatminima.exchange import save_surface
from flatminima.exchange.mesh import default_clip

TYPES = {"Float64": "<f8", "Float32": "<f4", "Int8": "i1", "UInt8": "u1", "Int64": "<i8"}
TYPES["Int32"] = "<i4"


def read_vtk(path: Path) -> tuple[ElementTree.Element, dict[str, np.ndarray]]:
    """The header, and every array of the appended data by name."""
    head, _, rest = path.read_bytes().partition(b'<AppendedData encoding="raw">')
    header = ElementTree.fromstring(head + b"</VTKFile>")
    assert header.get("header_type") == "UInt64"
    raw = rest[rest.index(b"_") + 1 :]
    arrays = {}
    for element in header.iter("DataArray"):
        start = int(element.attrib["offset"])
        size = int(np.frombuffer(raw, "<u8", 1, start)[0])
        values = np.frombuffer(raw[start + 8 : start + 8 + size], TYPES[element.attrib["type"]])
        arrays[element.attrib["Name"]] = values
    return header, arrays


def test_a_structured_grid_holds_everything_at_the_isometric_positions(tmp_path: Path) -> None:
    pytest.importorskip("pyevtk")
    surface = make_surface(4, 5)
    save_surface(surface, tmp_path / "a.VTS")
    assert [path.name for path in tmp_path.iterdir()] == ["a.VTS"]
    header, arrays = read_vtk(tmp_path / "a.VTS")
    assert header.find("StructuredGrid").get("WholeExtent") == "0 4 0 3 0 0"
    assert header.find(".//PointData").get("Scalars") == "loss"
    points = arrays.pop("points").reshape(-1, 3)
    # x runs fastest in VTK, as in the rows of our arrays.
    expected = [surface["u"].to_numpy().ravel(), surface["v"].to_numpy().ravel(), np.zeros(20)]
    np.testing.assert_array_equal(points, np.column_stack(expected))
    names = {name for name, v in surface.variables.items() if v.dims == ("y", "x")}
    assert set(arrays) == names | {"x", "y"}
    for name in names:
        np.testing.assert_array_equal(arrays[name], surface[name].to_numpy().ravel())
    np.testing.assert_array_equal(arrays["x"][:5], surface["x"])


def test_a_name_with_markup_stays_valid(tmp_path: Path) -> None:
    pytest.importorskip("pyevtk")
    save_surface(make_surface().rename(accuracy='a<b> & "c"'), tmp_path / "a.vts")
    assert 'a<b> & "c"' in read_vtk(tmp_path / "a.vts")[1]


def test_anchors_become_points(tmp_path: Path) -> None:
    pytest.importorskip("pyevtk")
    surface = make_surface()
    save_surface(surface, tmp_path / "a.vtu")
    _, arrays = read_vtk(tmp_path / "a.vtu")
    np.testing.assert_array_equal(arrays["points"].reshape(3, 3)[:, 0], surface["anchor_u"])
    np.testing.assert_array_equal(arrays["loss"], surface["anchor_loss"])
    np.testing.assert_array_equal(arrays["index"], [0, 1, 2])
    with pytest.raises(ValueError, match="got 0 anchors"):
        save_surface(make_surface(anchors=0), tmp_path / "b.vtu")


def load_mesh(path: Path):
    """The triangles of a file as the library reads them, without merging corners."""
    trimesh = pytest.importorskip("trimesh")
    return trimesh.load_mesh(path, process=False)


def height_of(surface, clip):
    """What the heights are to be, written down once more."""
    width = max(np.ptp(surface["u"].to_numpy()), np.ptp(surface["v"].to_numpy()))
    return np.minimum(surface["loss"].to_numpy(), clip) / clip * width / 2


def test_a_printed_relief_has_heights_and_holes(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    surface = make_surface(6, 7)
    surface["loss"][2, 3] = np.inf
    surface["outcome"][2, 3] = 1
    save_surface(surface, tmp_path / "a.stl", clip=2.5)
    mesh = load_mesh(tmp_path / "a.stl")
    assert len(mesh.faces) == 2 * (5 * 6 - 4 - 1)  # four cells around the hole, one at a corner
    height = height_of(surface, 2.5)
    used = np.isfinite(surface["loss"].to_numpy())
    corners = np.column_stack([surface[n].to_numpy()[used] for n in "uv"] + [height[used]])
    found = np.unique(mesh.vertices.round(4), axis=0)
    np.testing.assert_allclose(found, np.unique(corners.round(4), axis=0), atol=2e-4)
    width = np.ptp(surface["u"].to_numpy())
    np.testing.assert_allclose(mesh.vertices[:, 2].max(), width / 2, rtol=1e-6)
    assert (mesh.face_normals[:, 2] > 0).all()


def test_a_coloured_relief_stands_upright(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    surface = make_surface(6, 7)
    save_surface(surface.assign(v=-surface["v"]), tmp_path / "a.glb")
    mesh = load_mesh(tmp_path / "a.glb")
    assert len(mesh.faces) == 2 * (5 * 6 - 1)
    clip = default_clip(surface)
    expected = height_of(surface, clip).ravel()
    np.testing.assert_allclose(
        mesh.vertices[:, 1], expected[np.isfinite(expected)], rtol=1e-5, atol=1e-9
    )
    # What is drawn has v negated, and v points away from the viewer.
    v = surface["v"].to_numpy().ravel()[np.isfinite(expected)]
    np.testing.assert_allclose(mesh.vertices[:, 2], v, rtol=1e-5)
    assert (mesh.face_normals[:, 1] > 0).all()
    low, high = mesh.vertices[:, 1].argmin(), mesh.vertices[:, 1].argmax()
    colours = mesh.visual.vertex_colors
    np.testing.assert_allclose(colours[low], [68, 1, 84, 255], atol=2)  # viridis
    np.testing.assert_allclose(colours[high], [253, 231, 37, 255], atol=2)


def test_the_default_clip_is_the_documented_one() -> None:
    surface = make_surface()
    loss = surface["loss"].to_numpy()
    assert default_clip(surface) == np.nanmedian(loss)
    surface["anchor_loss"][0] = 0.5
    assert default_clip(surface) == 2.5
    surface["anchor_loss"][0] = 50.0
    assert default_clip(surface) == np.nanmax(loss)
    assert default_clip(surface.drop_vars("anchor_loss")) == np.nanmedian(loss)


def test_a_flat_surface_is_a_flat_mesh(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    surface = make_surface()
    surface["loss"] *= np.nan
    surface["loss"][:2] = 0.0
    surface["outcome"] = surface["loss"].isnull().astype(np.int8)
    surface["anchor_loss"] *= 0
    save_surface(surface, tmp_path / "a.glb")
    np.testing.assert_array_equal(load_mesh(tmp_path / "a.glb").vertices[:, 1], 0.0)


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    surface = make_surface()
    for clip, said in ((-1.0, "above the lowest"), (np.nan, "a finite clip")):
        with pytest.raises(ValueError, match=said):
            save_surface(surface, tmp_path / "a.stl", clip=clip)
    surface["loss"][:, ::2] = np.nan
    surface["outcome"][:, ::2] = 1
    with pytest.raises(ValueError, match="four finite losses"):
        save_surface(surface, tmp_path / "a.stl")
    assert list(tmp_path.iterdir()) == []
