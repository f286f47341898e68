import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.data import Dataset

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def pictures(count=7):
    random = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, 3, 4, 5), generator=random, dtype=torch.uint8)
    return Dataset(images, torch.arange(count) % 3, mean=MEAN, std=STD), images


def nested(count=7):
    values = torch.arange(count * 2.0).reshape(count, 2)
    inputs = {"ids": values.long(), "rest": (values, [values + 1])}
    return Dataset(inputs, {"y": values[:, 0]})


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 25))
def test_batches_hold_every_sample_once_and_in_order(count, size):
    data, _ = pictures(count)
    batches = list(data.batches(size))
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in batches]), data.inputs)
    torch.testing.assert_close(torch.cat([targets for _, targets in batches]), data.targets)
    assert [len(targets) for _, targets in batches[:-1]] == [size] * (len(batches) - 1)


def test_images_are_normalised_by_channel():
    data, images = pictures()
    mean, std = (torch.tensor(value).double().view(1, 3, 1, 1) for value in (MEAN, STD))
    expected = ((images.double() / 255 - mean) / std).float()
    torch.testing.assert_close(data.images, expected)
    assert data.images.dtype == torch.float32
    torch.testing.assert_close(data.labels, data.targets)


@pytest.mark.parametrize("selection", [slice(2, 5), torch.tensor([6, 0, 6])])
def test_a_batch_is_a_part_of_the_whole(selection):
    data, _ = pictures()
    inputs, targets = data.batch(selection)
    torch.testing.assert_close(inputs, data.inputs[selection], rtol=0, atol=0)
    torch.testing.assert_close(targets, data.targets[selection])
    inputs, targets = nested().batch(selection)
    torch.testing.assert_close(inputs["rest"][1][0], nested().inputs["rest"][1][0][selection])
    torch.testing.assert_close(targets["y"], nested().targets["y"][selection])


def test_what_works_in_place_on_a_batch_leaves_the_data_as_they_are():
    for data in (pictures()[0], Dataset(torch.ones(7, 2), torch.zeros(7))):
        before = data.inputs.clone()
        for selection in (slice(0, 3), torch.arange(3)):
            inputs, _ = data.batch(selection)
            inputs.zero_()
        torch.testing.assert_close(data.inputs, before)


def test_a_subset_keeps_what_belongs_to_the_samples():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    changed = torch.tensor([True, False, True, False])
    data = Dataset(
        images, torch.arange(4), mean=[0.0], std=[1.0], changed=changed, classes=9, name="small"
    )
    part = data.subset(torch.tensor([2, 1]))
    assert (len(part), part.classes, part.name) == (2, 9, "small")
    assert part.changed is not None
    assert part.changed.tolist() == [True, False]
    assert part.labels.tolist() == [2, 1]


def test_classes_are_found_in_labels_and_only_there():
    assert Dataset(torch.zeros(3), torch.tensor([0, 4, 1])).classes == 5
    assert Dataset(torch.zeros(3), torch.tensor([0, -1, 1])).classes is None
    assert Dataset(torch.zeros(3), torch.zeros(3)).classes is None
    assert nested().classes is None


def test_the_digest_is_that_of_the_contents():
    first, second = nested(), nested()
    assert first.digest == second.digest
    values = torch.zeros(4, 2)
    digests = {
        Dataset(inputs, targets, mean=mean, std=mean).digest
        for inputs, targets, mean in [
            (values, torch.zeros(4), None),
            (values.double(), torch.zeros(4), None),
            (values.view(4, 1, 2), torch.zeros(4), None),
            (values, torch.ones(4), None),
            ({"x": values}, torch.zeros(4), None),
            ({"y": values}, torch.zeros(4), None),
            ((values,), torch.zeros(4), None),
            (torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4), None),
            (torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4), [0.5]),
        ]
    }
    assert len(digests) == 9


def test_subsets_of_a_named_set_have_their_own_digests():
    data = Dataset(torch.zeros(4), torch.zeros(4), digest="ab")
    digests = {data.subset(torch.tensor(chosen)).digest for chosen in ([0, 1], [1, 0], [0])}
    assert len(digests | {data.digest}) == 4
    assert data.to("cpu").digest == "ab"


def test_a_set_can_be_copied_and_sent_to_another_process():
    data, _ = pictures()
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        torch.testing.assert_close(other.inputs, data.inputs)
        assert other.digest == data.digest


@pytest.mark.parametrize(
    ("inputs", "targets", "settings", "message"),
    [
        (torch.zeros(3), torch.zeros(4), {}, r"got leading lengths \[3, 4\]"),
        (torch.zeros(0), torch.zeros(0), {}, "at least one"),
        (torch.tensor(1.0), torch.tensor(1.0), {}, "at least one"),
        (torch.zeros(3), [1, 2, 3], {}, "got int; turn arrays into tensors"),
        (torch.zeros(3), torch.tensor([0, 1, 2]), {"classes": 2}, r"from 0 to 1 .* got 0 to 2"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3), {"mean": [0.0], "std": [1.0]}, "got float32"),
        (torch.zeros(3), torch.zeros(3), {"mean": [0.0]}, "got only one of them"),
        (
            torch.zeros(3, 2, 2, 2, dtype=torch.uint8),
            torch.zeros(3),
            {"mean": [0.0], "std": [1.0]},
            "for each of 2 channels",
        ),
    ],
)
def test_refuses_what_does_not_belong_together(inputs, targets, settings, message):
    with pytest.raises(ValueError, match=message):
        Dataset(inputs, targets, **settings)


def test_refuses_what_it_does_not_have():
    with pytest.raises(ValueError, match=r"use \.inputs"):
        _ = nested().images
    with pytest.raises(ValueError, match=r"use \.targets"):
        _ = nested().labels
    with pytest.raises(ValueError, match="from 0 to 6, got 0 to 7"):
        nested().subset(torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="at least one position"):
        nested().subset(torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="batch size of at least 1, got 0"):
        next(nested().batches(0))
