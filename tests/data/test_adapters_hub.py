"""`as_dataset` on sets of Hugging Face's `datasets`, which the package itself never imports."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from flatminima.data import Dataset
from flatminima.data.adapters import as_dataset

hub = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

COUNT = 300  # more than are read at once
IDS = torch.arange(COUNT * 4).reshape(COUNT, 4)
X = torch.arange(COUNT * 3.0).reshape(COUNT, 3)
Y = torch.arange(COUNT) % 3
TEXT = [f"sample {at}" for at in range(COUNT)]
RAGGED = [[0] * (1 + at // 299) for at in range(COUNT)]


def stored(**more):
    columns = {"input_ids": IDS.tolist(), "x": X.tolist(), "label": Y.tolist(), **more}
    data = hub.Dataset.from_dict(columns)
    return data.cast_column("label", hub.ClassLabel(names=["a", "b", "c"]))


def transform(batch):
    return {"x": torch.tensor(batch["x"]) / 2, "y": batch["label"]}


def noisy(batch):
    return {"x": torch.tensor(batch["x"]) + torch.rand(()), "y": batch["label"]}


PLAIN = stored()
WORDS = stored(text=TEXT)
WHOLE = Dataset({"input_ids": IDS, "x": X}, Y)
FIRST = Dataset({"input_ids": IDS[:260], "x": X[:260]}, Y[:260])
PICTURES = [Image.fromarray(np.full((2, 2 + at), at, np.uint8)) for at in range(2)]

ACCEPTED = {
    "plain": (PLAIN, {}, WHOLE),
    "limited": (PLAIN, {"limit": 260}, FIRST),
    "kept targets": (
        PLAIN.remove_columns("x").rename_column("label", "labels"),
        {"keep_targets": True},
        Dataset({"input_ids": IDS, "labels": Y}, Y),
    ),
    "selected columns": (WORDS.select_columns(["x", "label"]), {}, Dataset({"x": X}, Y)),
    "columns of its format": (
        WORDS.with_format("torch", columns=["x", "label"], dtype=torch.float64),
        {},
        Dataset({"x": X.double()}, Y.double()),
    ),
    "columns of another format": (
        WORDS.with_format("numpy", columns=["x", "label"]),
        {},
        Dataset({"x": X}, Y),
    ),
    "chosen rows": (PLAIN.select(range(260)), {}, FIRST),
    "transform": (PLAIN.with_transform(transform), {}, Dataset({"x": X / 2}, Y)),
    "stream": (PLAIN.to_iterable_dataset(), {"limit": 260}, FIRST),
    "loader": (DataLoader(PLAIN.with_format("torch"), batch_size=64), {}, WHOLE),
    "array": (
        hub.Dataset.from_dict({"x": X.tolist(), "y": X.tolist()}),
        {"targets": "y"},
        Dataset({"x": X}, X),
    ),
}


@pytest.mark.parametrize("form", ACCEPTED)
def test_a_form_is_the_same_set_as_one_made_by_hand(form):
    data, options, expected = ACCEPTED[form]
    found = as_dataset(data, **options)
    torch.testing.assert_close(found.inputs, expected.inputs, rtol=0, atol=0)
    torch.testing.assert_close(found.targets, expected.targets, rtol=0, atol=0)
    assert found.name in ("dataset", "iterabledataset")


def test_a_set_is_called_by_its_builder(tmp_path):
    (tmp_path / "data.csv").write_text("x,label\n1.5,0\n2.5,1\n")
    data = hub.Dataset.from_csv(str(tmp_path / "data.csv"), cache_dir=str(tmp_path))
    found = as_dataset(data)
    assert (found.name, found.classes) == ("csv", 2)


SORTED = PLAIN.select(torch.argsort(Y, stable=True).tolist())
NAMED = {
    "stored": SORTED,
    "stream": SORTED.to_iterable_dataset(),
    "loader": DataLoader(SORTED.with_format("torch"), batch_size=64),
    "transform": SORTED.with_transform(lambda b: {"x": torch.tensor(b["x"]), "label": b["label"]}),
}


@pytest.mark.parametrize("form", NAMED)
def test_sorted_samples_keep_the_classes_that_a_limit_leaves_out(form):
    found = as_dataset(NAMED[form], limit=90)
    assert (found.classes, found.class_names) == (3, ("a", "b", "c"))
    torch.testing.assert_close(found.labels, torch.zeros(90, dtype=torch.int64))


@pytest.mark.parametrize("data", [PLAIN.with_transform(transform), stored(label=[-1] * COUNT)])
def test_classes_that_cannot_be_those_of_the_labels_are_left_aside(data):
    assert as_dataset(data).class_names is None


REFUSED = {
    "splits": (hub.DatasetDict(train=PLAIN, test=PLAIN), "['train', 'test']; give one of them"),
    "text": (WORDS, "text in ['text']; tokenize it, or leave it out with .select_columns(['input"),
    "ragged": (stored(r=RAGGED), "got several in ['r']; pad all to one length"),
    "ragged from another chunk on": (
        stored(r=RAGGED[:-44] + [[0, 0]] * 44),
        "batches of one shape and type, got [(\"['r']\", 'torch.int64 [1]')",
    ),
    "pictures": (
        hub.Dataset.from_dict({"picture": PICTURES, "label": [0, 1]}),
        "in ['picture']; turn them into float tensors of one size in .with_transform",
    ),
    "pictures of a stream": (
        hub.Dataset.from_dict({"picture": PICTURES, "label": [0, 1]}).to_iterable_dataset(),
        "images as stored in ['picture']",
    ),
    "random transform": (PLAIN.with_transform(noisy), "got 300 of 300 that differ"),
    "missing values": (
        hub.Dataset.from_dict({"x": [1, None, 3], "label": [0, 1, 1]}),
        "got 1 NaN or infinite values in inputs['x']",
    ),
    "stream": (PLAIN.to_iterable_dataset(), "no length, got None for IterableDataset"),
    "no targets": (PLAIN.select_columns(["x", "input_ids"]), "got a dict of ['x', 'input_ids']"),
    "empty": (PLAIN.select([]), "at least one sample, got none"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_plain_set_is_refused_with_the_reason(form):
    data, piece = REFUSED[form]
    with pytest.raises(ValueError) as caught:
        as_dataset(data)
    message = str(caught.value)
    assert piece in message
    assert message.startswith("expected ")
    assert "\n" not in message
