import random
from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data import Dataset as TorchDataset

from flatminima.data import Dataset
from flatminima.data.adapters import as_dataset

COUNT = 11
X = torch.arange(COUNT * 6, dtype=torch.float64).reshape(COUNT, 2, 3)
IDS = torch.arange(COUNT * 4).reshape(COUNT, 4)
Y = torch.arange(COUNT) % 3
Named = namedtuple("Named", "one two")


class Samples(TorchDataset):
    """Map-style, with what a function makes of each position."""

    def __init__(self, sample, count=COUNT):
        self.sample, self.count = sample, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.sample(index)


class Unsized(TorchDataset):
    def __getitem__(self, index):
        return X[index], Y[index]


class Stream(IterableDataset):
    """An iterable dataset; it ends after `count` samples, or never."""

    def __init__(self, count=COUNT, shared=True):
        self.count, self.shared = count, shared

    def __iter__(self):
        worker = torch.utils.data.get_worker_info() if self.shared else None
        at, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while self.count is None or at < self.count:
            yield X[at % COUNT], int(Y[at % COUNT])
            at += step


class SizedStream(Stream):
    def __len__(self):
        return self.count


class Once(Stream):
    """A stream that cannot start anew."""

    def __init__(self):
        self.samples = iter(zip(X, Y, strict=True))

    def __iter__(self):
        return self.samples


class Disorder(SizedStream):
    """A stream that shuffles by itself."""

    def __iter__(self):
        for at in torch.randperm(self.count):
            yield X[at], Y[at]


def pairs(index):
    return X[index], Y[index]


def named(index):
    return {"ids": IDS[index], "rest": (X[index], [Y[index]]), "label": int(Y[index])}


def noisy(source):
    return Samples(lambda index: (X[index] + source(), Y[index]))


def collate_hub(samples):
    """A collate function whose batches are mappings of another type, as tokenizers make them."""
    return UserDict(default_collate(samples))


def of_several_lengths(samples):
    length = max(int(label) for _, label in samples) + 1
    return torch.zeros(len(samples), length), torch.tensor([int(label) for _, label in samples])


TABLE = TensorDataset(X, Y)
DICT = {"ids": IDS, "rest": (X, (Y,))}
WHOLE = Dataset(X, Y)
FIRST = Dataset(X[:5], Y[:5])
MANY = Dataset(torch.arange(700), torch.arange(700) % 5)

ACCEPTED = {
    "pair": ((X, Y), {}, WHOLE),
    "pair as a list": ([X, Y.numpy()], {}, WHOLE),
    "pair of one dict and one tensor": ([{"ids": IDS}, Y], {}, Dataset({"ids": IDS}, Y)),
    "arrays": ((X.numpy(), Y.numpy().astype(np.int16)), {}, WHOLE),
    "foreign arrays": ((X.numpy().astype(">f8")[::-1], Y.numpy()), {}, Dataset(X.flip(0), Y)),
    "nested pair": (((X, [IDS.numpy()]), {"a": Y.int()}), {}, Dataset((X, [IDS]), {"a": Y})),
    "named tuples": ((Named(X, IDS), X), {}, Dataset(Named(X, IDS), X)),
    "missing targets": ((X, X / 0), {}, Dataset(X, X / 0)),
    "limited pair": ((X, Y), {"limit": 5}, FIRST),
    "more than there are": ((X, Y), {"limit": 500}, WHOLE),
    "bool targets": ((X, Y > 1), {}, Dataset(X, Y > 1)),
    "float targets": ((X, Y.float()), {}, Dataset(X, Y.float())),
    "uint8 maps": ((X, X.to(torch.uint8)), {}, Dataset(X, X.to(torch.uint8))),
    "dict": ({"x": X, "y": Y, "labels": Y + 1}, {}, Dataset({"x": X, "y": Y}, Y + 1)),
    "dict, named targets": (
        {"x": X, "y": Y, "labels": IDS},
        {"targets": "y"},
        Dataset({"x": X, "labels": IDS}, Y),
    ),
    "dict, kept targets": (
        UserDict(input_ids=IDS, labels=Y.to(torch.uint8)),
        {"keep_targets": True},
        Dataset({"input_ids": IDS, "labels": Y}, Y),
    ),
    "list of samples": ([pairs(at) for at in range(COUNT)], {}, WHOLE),
    "list of two samples": (
        [(X[0], 1.5), (X[1], 2)],
        {},
        Dataset(X[:2], torch.tensor([1.5, 2]).double()),
    ),
    "list of dicts": ([named(at) for at in range(COUNT)], {}, Dataset(DICT, Y)),
    "torch": (TABLE, {}, WHOLE),
    "many": (Samples(lambda at: (at, at % 5), 700), {}, MANY),
    "limited torch": (TABLE, {"limit": 5}, FIRST),
    "torch of dicts": (Samples(named), {}, Dataset(DICT, Y)),
    "stream": (Stream(), {"limit": 100}, WHOLE),
    "endless stream": (Stream(None), {"limit": 5}, FIRST),
    "stream with a length": (SizedStream(), {}, WHOLE),
    "loader": (DataLoader(TABLE, batch_size=4), {}, WHOLE),
    "loader of dicts": (
        DataLoader(Samples(named), 4, collate_fn=collate_hub),
        {},
        Dataset(DICT, Y),
    ),
    "limited loader": (DataLoader(TABLE, batch_size=4, drop_last=True), {"limit": 5}, FIRST),
    "loader that drops nothing": (DataLoader(TABLE, COUNT, drop_last=True), {}, WHOLE),
    "loader in another order": (
        DataLoader(TABLE, batch_sampler=[[10, 8, 6], [4, 2, 0, 1, 3, 5, 7, 9]]),
        {},
        Dataset(*TABLE[[10, 8, 6, 4, 2, 0, 1, 3, 5, 7, 9]]),
    ),
    "loader of a part": (DataLoader(Subset(TABLE, range(5)), 2), {}, FIRST),
    "loader of a stream": (DataLoader(Stream(), 4), {"limit": 100}, WHOLE),
    "loader of an endless stream": (DataLoader(Stream(None), 4), {"limit": 5}, FIRST),
}


@pytest.mark.parametrize("form", ACCEPTED)
def test_a_form_is_the_same_set_as_one_made_by_hand(form):
    data, options, expected = ACCEPTED[form]
    found = as_dataset(data, **options)
    assert found.digest == expected.digest
    assert (len(found), found.classes) == (len(expected), expected.classes)
    torch.testing.assert_close(found.inputs, expected.inputs, rtol=0, atol=0)
    torch.testing.assert_close(found.targets, expected.targets, rtol=0, atol=0, equal_nan=True)


def test_a_set_of_this_package_stays_what_it_is():
    assert as_dataset(WHOLE) is WHOLE
    assert as_dataset(WHOLE, limit=500) is WHOLE
    torch.testing.assert_close(as_dataset(WHOLE, limit=5).inputs, X[:5], rtol=0, atol=0)
    assert (as_dataset(WHOLE, name="other").name, WHOLE.name) == ("other", "custom")


def test_workers_read_the_same():
    loader = DataLoader(TABLE, batch_size=4, num_workers=2, generator=torch.Generator())
    before = loader.generator.get_state()
    assert as_dataset(loader).digest == WHOLE.digest
    torch.testing.assert_close(loader.generator.get_state(), before)


def test_streams_are_shared_among_workers_or_refused():
    loader = DataLoader(Stream(), batch_size=1, num_workers=2)
    assert as_dataset(loader, limit=100).digest == WHOLE.digest
    with pytest.raises(ValueError, match="repeats from 2 workers; set num_workers=0"):
        as_dataset(DataLoader(Stream(shared=False), batch_size=2, num_workers=2), limit=100)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ((X, Y), "tuple"),
        (Samples(pairs), "samples"),
        (DataLoader(TABLE, batch_size=4), "tensordataset"),
    ],
)
def test_a_set_without_a_name_is_called_by_its_type(data, name):
    assert as_dataset(data).name == name
    assert as_dataset(data, name="mine").name == "mine"


class Folders(Samples):
    """Sorted by class with names for all, as torchvision's sets have them."""

    def __init__(self, classes, target_transform=None):
        super().__init__(lambda at: (X[at], at // 4))
        self.classes, self.target_transform = classes, target_transform


@pytest.mark.parametrize("wrap", ["bare", "loader", "part", "loader of a part"])
def test_sorted_samples_keep_the_classes_that_a_limit_leaves_out(wrap):
    data = Folders(["ant", "bee", ("cat", "tabby")])
    data = Subset(data, range(8)) if "part" in wrap else data
    data = DataLoader(data, batch_size=2) if "loader" in wrap else data
    found = as_dataset(data, limit=4)
    assert (found.classes, found.class_names) == (3, ("ant", "bee", "cat, tabby"))
    torch.testing.assert_close(found.labels, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    "data",
    [
        Folders(["ant", "bee"]),
        Folders([0, 1, 2]),
        Folders(3),
        Folders(["ant", "bee", "cat", "dog"], target_transform=int),
    ],
    ids=["too few", "numbers", "a number", "names of other labels"],
)
def test_classes_that_cannot_be_those_of_the_labels_are_left_aside(data):
    found = as_dataset(data)
    assert (found.classes, found.class_names) == (3, None)


def test_what_a_sample_is_made_of_leaves_no_graph():
    weight = torch.ones(3, requires_grad=True)
    found = as_dataset(Samples(lambda at: (X[at] * weight, 0)))
    assert not found.inputs.requires_grad


BAD = X.clone()
BAD[2, 0, 0], BAD[3, 1, 1] = torch.nan, torch.inf
LONG = [(torch.zeros(2 + at // 300), 0) for at in range(301)]
WEIGHTED = WeightedRandomSampler(torch.ones(COUNT), COUNT, generator=torch.Generator())
PICTURE = Image.new("L", (2, 2))

REFUSED = {
    "shuffle": (DataLoader(TABLE, 4, shuffle=True), {}, "RandomSampler, which shuffles; set"),
    "random sampler": (DataLoader(TABLE, sampler=RandomSampler(TABLE)), {}, "which shuffles"),
    "random batch sampler": (
        DataLoader(TABLE, batch_sampler=BatchSampler(RandomSampler(TABLE), 4, False)),
        {},
        "which shuffles",
    ),
    "with replacement": (
        DataLoader(TABLE, sampler=RandomSampler(TABLE, replacement=True, num_samples=50)),
        {},
        "RandomSampler, which repeats some of 11",
    ),
    "weighted": (
        DataLoader(TABLE, 4, sampler=WEIGHTED),
        {},
        "WeightedRandomSampler, which repeats",
    ),
    "subset": (
        DataLoader(TABLE, 4, sampler=SubsetRandomSampler(range(3))),
        {},
        "SubsetRandomSampler, which leaves out 8 of 11; load a Subset",
    ),
    "subset of all": (
        DataLoader(TABLE, 4, sampler=SubsetRandomSampler(range(COUNT))),
        {},
        "got another one in a second pass",
    ),
    "list of batches": (DataLoader(TABLE, batch_sampler=[[0, 1], [1]]), {}, "list, which repeats"),
    "drop_last": (DataLoader(TABLE, 4, drop_last=True), {}, "drop_last, which leaves out 3 of 11"),
    "drop_last of a batch sampler": (
        DataLoader(TABLE, batch_sampler=BatchSampler(SequentialSampler(TABLE), 6, True)),
        {"limit": 7},
        "drop_last, which leaves out 5 of 11",
    ),
    "drop_last of a stream": (
        DataLoader(Stream(), 4, drop_last=True),
        {"limit": 100},
        "expected 100 samples, got 8 with drop_last=True",
    ),
    "no batches": (DataLoader(TABLE, batch_size=None), {}, "got batch_size=None"),
    "noise of torch": (noisy(lambda: torch.rand(())), {}, "got 11 of 11 that differ"),
    "noise of numpy": (noisy(lambda: np.random.rand()), {}, "take out random augmentation"),  # noqa: NPY002
    "noise in a loader": (DataLoader(noisy(random.random), 4), {}, "got 11 of 11 that differ"),
    "disorder": (Disorder(), {}, "got another one in a second pass; turn shuffling off"),
    "once": (Once(), {"limit": 100}, "got 11 and 0 samples; let __iter__ start anew"),
    "endless": (Stream(None), {}, "has no length, got None for Stream; give the"),
    "endless loader": (DataLoader(Stream(None), 4), {}, "has no length, got None for Stream"),
    "lengths within a batch": (LONG[-2:], {}, "several within a batch; pad all to one length"),
    "lengths of batches": (LONG[:256] + LONG[-1:], {}, "padding='max_length'"),
    "lengths of a loader": (
        DataLoader(TABLE, 1, collate_fn=of_several_lengths),
        {},
        "batches of one shape and type, got [('[0]', 'torch.float32 [1]')",
    ),
    "pictures": (Samples(lambda _: (PICTURE, 0)), {}, "got PIL.Image.Image; turn images into"),
    "text": ([("one", 0), ("two", 1)], {}, "got str; tokenize text"),
    "text in arrays": ((np.array(["a", "b"]), Y[:2]), {}, "in [0], got array of <U1; tokenize"),
    "numbers in lists": ([{"ids": [1, 2], "y": 0}], {}, "['ids'] of a sample, got list of numbers"),
    "nothing": ([(X[0], None)], {}, "got NoneType; turn it into a tensor"),
    "numbers": ((X, [0, 1]), {}, "in [1][0], got int"),
    "inputs only": (TensorDataset(X), {}, "got 1 parts; return pairs"),
    "tensors": ([X[0], X[1], X[2]], {}, "got one tensor; return pairs"),
    "no targets": ({"x": X, "z": Y}, {}, "got a dict of ['x', 'z']; name the targets by"),
    "other targets": ({"x": X, "y": Y}, {"targets": "z"}, "inputs and targets (z), got a dict of"),
    "targets only": ({"y": Y}, {}, "got a dict of ['y']"),
    "targets of pairs": ((X, Y), {"targets": "y"}, "got targets='y' and keep_targets=False"),
    "kept targets of pairs": (TABLE, {"keep_targets": True}, "neither targets= nor keep_targets="),
    "targets of a set": (WHOLE, {"targets": "y"}, "with a flatminima Dataset"),
    "not finite": ((BAD, Y), {}, "got 2 NaN or infinite values in inputs;"),
    "not finite, by name": ({"a": X, "b": BAD, "y": Y}, {}, "values in inputs['b'];"),
    "lengths": ((X, Y[:5]), {"limit": 5}, "got leading lengths {'[0]': 11, '[1]': 5}"),
    "a number": ((X, torch.tensor(1)), {}, "got leading lengths"),
    "empty": ((X[:0], Y[:0]), {}, "at least one sample, got none"),
    "empty list": ([], {}, "at least one sample, got none"),
    "empty dict": ({}, {}, "at least one sample, got none"),
    "empty loader": (DataLoader(TensorDataset(X[:0], Y[:0])), {}, "at least one sample, got none"),
    "no limit": ((X, Y), {"limit": 0}, "a limit of at least 1, got 0"),
    "path": ("data.csv", {}, "a Hugging Face Dataset, got str;"),
    "three": ((X, Y, Y), {}, "a pair (inputs, targets) or a dict"),
    "unsized": (Unsized(), {}, "got Unsized"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_plain_set_is_refused_with_the_reason(form):
    data, options, piece = REFUSED[form]
    before = [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002
    with pytest.raises(ValueError) as caught:
        as_dataset(data, **options)
    message = str(caught.value)
    assert piece in message
    assert message.startswith("expected ")
    assert "; " in message
    assert "\n" not in message
    torch.testing.assert_close(torch.get_rng_state(), before[0])
    assert [np.random.get_state()[1].tolist(), random.getstate()] == before[1:]  # noqa: NPY002


def test_generators_are_used_up_no_further():
    before = WEIGHTED.generator.get_state()
    with pytest.raises(ValueError, match="repeats"):
        as_dataset(DataLoader(TABLE, 4, sampler=WEIGHTED))
    torch.testing.assert_close(WEIGHTED.generator.get_state(), before)


def test_errors_of_the_data_themselves_are_not_hidden():
    def broken(index):
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        as_dataset(Samples(broken))
