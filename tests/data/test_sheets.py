"""CIFAR-10 from pictures: small ones of the same form, made here."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from flatminima.data import _sheets
from flatminima.data._sheets import SheetError, official_files

RECORDS = 3
NAMES = ["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"]


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
    monkeypatch.setattr(_sheets, "_RECORDS", RECORDS)


def contents():
    """Images [N, C, H, W] and labels by official name."""
    random = np.random.default_rng(3)
    return {
        name: (
            random.integers(256, size=(RECORDS, 3, 32, 32), dtype=np.uint8),
            random.integers(10, size=RECORDS, dtype=np.uint8),
        )
        for name in NAMES
    }


def picture(images, mode="RGB"):
    """One row for each image, its pixels in reading order."""
    rows = images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rows)).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def members(made):
    labels = {"train_lables.json": [], "test_lables.json": []}
    files = {}
    for name, (images, own) in made.items():
        files[name.replace(".bin", ".png")] = picture(images)
        labels["test_lables.json" if "test" in name else "train_lables.json"] += own.tolist()
    return files | {name: json.dumps(values).encode() for name, values in labels.items()}


def archive(folder, files):
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def test_records_are_a_label_and_three_planes(tmp_path):
    made = contents()
    found = dict(official_files(archive(tmp_path, members(made)), NAMES))
    assert list(found) == NAMES
    for name, (images, labels) in made.items():
        expected = b"".join(
            bytes([label]) + b"".join(plane.tobytes() for plane in image)
            for image, label in zip(images, labels, strict=True)
        )
        assert found[name] == expected


def test_only_what_is_asked_for_is_needed(tmp_path):
    files = members(contents())
    del files["data_batch_1.png"], files["test_batch.png"], files["test_lables.json"]
    path = archive(tmp_path, files)
    assert [name for name, _ in official_files(path, ["data_batch_2.bin"])] == ["data_batch_2.bin"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_batch_1.png": None}, r"does not hold data_batch_1\.png"),
        ({"train_lables.json": None}, r"does not hold train_lables\.json"),
        ({"train_lables.json": b"[1, 2"}, "is no list of labels"),
        ({"train_lables.json": b"[1, 2]"}, r"expected 3 labels for data_batch_1\.bin, got 2"),
        ({"data_batch_1.png": b"GIF89a"}, "is no whole PNG picture"),
        ({"data_batch_1.png": "cut"}, "is no whole PNG picture"),
        ({"data_batch_1.png": "grey"}, "1024 x 3 pixels in RGB, got 1024 x 3 in L"),
        ({"data_batch_1.png": "long"}, "1024 x 3 pixels in RGB, got 1024 x 6 in RGB"),
    ],
)
def test_a_package_that_is_not_right_is_one_line(tmp_path, change, message):
    made = contents()
    files = members(made)
    images = made["data_batch_1.bin"][0]
    special = {
        "cut": files["data_batch_1.png"][:-400],
        "grey": picture(images, "L"),
        "long": picture(np.concatenate([images, images])),
    }
    for name, content in change.items():
        del files[name]
        if content is not None:
            files[name] = special.get(content, content)
    with pytest.raises(SheetError, match=message) as caught:
        list(official_files(archive(tmp_path, files), NAMES))
    assert "\n" not in str(caught.value)


def test_what_is_no_archive_is_one_line(tmp_path):
    path = tmp_path / "package.tgz"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(SheetError, match="does not unpack"):
        list(official_files(path, NAMES))
