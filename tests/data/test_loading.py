import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.data import load_dataset, randomize_labels
from flatminima.data.sources import data_digest


def test_digits_are_split_by_class():
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.images.shape == (1442, 1, 8, 8)
    share = test.labels.bincount() / (test.labels.bincount() + train.labels.bincount())
    torch.testing.assert_close(share, torch.full((10,), 0.2), atol=0.01, rtol=0)
    assert abs(float(train.images.mean())) < 1e-3
    assert abs(float(train.images.std()) - 1) < 1e-3


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 1400), st.integers(0, 5))
def test_a_subset_is_balanced(limit, seed):
    counts = load_dataset("digits", limit=limit, seed=seed).labels.bincount(minlength=10)
    assert int(counts.sum()) == limit
    assert int(counts.max() - counts.min()) <= 1


def test_a_subset_is_the_seeds_own_and_lies_within_a_larger_one():
    def rows(limit, seed):
        data = load_dataset("digits", limit=limit, seed=seed)
        return {tuple(row.tolist()) for row in data.images.flatten(1)}

    assert rows(100, 0) == rows(100, 0)
    assert rows(100, 0) != rows(100, 1)
    assert rows(97, 0) < rows(303, 0)


def test_a_subset_beyond_what_a_class_has_takes_the_rest_from_the_others():
    full = load_dataset("digits")
    counts = load_dataset("digits", limit=1441).labels.bincount()
    assert int((full.labels.bincount() - counts).sum()) == 1
    whole = load_dataset("digits", limit=1442)
    torch.testing.assert_close(whole.images, full.images)
    assert whole.digest == full.digest


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("limit", [None, 50])
@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_the_digest_is_known_before_anything_is_read(split, limit, fraction):
    data = load_dataset("digits", split, limit=limit, seed=3)
    noisy = randomize_labels(data, fraction, 7, scheme="flip")
    assert noisy.digest == data_digest(
        "digits", split, limit=limit, seed=3, fraction=fraction, noise_seed=7, scheme="flip"
    )


def test_randomised_training_labels_leave_the_test_split_alone():
    before = load_dataset("digits", "test")
    randomize_labels(load_dataset("digits"), 1.0, 0)
    after = load_dataset("digits", "test")
    torch.testing.assert_close(after.labels, before.labels)
    assert after.digest == before.digest


def test_the_global_random_state_is_as_before():
    before = torch.get_rng_state()
    load_dataset("digits", limit=100)
    torch.testing.assert_close(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mnits", {}, "got 'mnits'; did you mean 'mnist'"),
        (
            "imagenet",
            {},
            r"out of \['cifar10', 'digits', 'fashion_mnist', 'mnist'\]",
        ),
        ("digits", {"split": "valid"}, r"out of \['test', 'train'\], got 'valid'"),
        ("digits", {"limit": 0}, "from 1 to 1442 samples, got 0"),
        ("digits", {"limit": 1443}, "from 1 to 1442 samples, got 1443"),
    ],
)
def test_refuses_what_there_is_not(name, settings, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, **settings)


def test_sources_load_no_heavy_library():
    program = (
        "import sys, flatminima.data.sources as s; s.data_digest('mnist', 'train');"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'pooch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.network
def test_mnist_is_the_official_one():
    train, test = load_dataset("mnist"), load_dataset("mnist", "test")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(float(train.images.mean())) < 1e-3
    assert abs(float(train.images.std()) - 1) < 1e-3
    assert load_dataset("mnist", limit=100).labels.bincount().tolist() == [10] * 10
