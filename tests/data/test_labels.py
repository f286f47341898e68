import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.data import Dataset, randomize_labels
from flatminima.data.sources import SCHEMES

schemes = st.sampled_from(SCHEMES)
fractions = st.floats(0, 1)
seeds = st.integers(0, 2**31)


def labelled(count, classes):
    random = torch.Generator().manual_seed(count)
    labels = torch.randint(classes, (count,), generator=random)
    return Dataset(torch.zeros(count, 1), labels, classes=classes)


def assert_binomial(count, of, probability):
    """Six standard deviations: never by chance, and far below any wrong scheme at this size."""
    spread = math.sqrt(of * probability * (1 - probability))
    assert abs(count - of * probability) <= 6 * spread + 1e-9


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(2, 12), fractions, seeds, schemes)
def test_the_mask_says_which_labels_really_differ(count, classes, fraction, seed, scheme):
    data = labelled(count, classes)
    noisy = randomize_labels(data, fraction, seed, scheme=scheme)
    torch.testing.assert_close(noisy.changed, noisy.labels != data.labels)
    assert 0 <= int(noisy.labels.min()) <= int(noisy.labels.max()) < classes
    again = randomize_labels(data, fraction, seed, scheme=scheme)
    torch.testing.assert_close(again.labels, noisy.labels)
    assert again.digest == noisy.digest


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(
    ("scheme", "share"), [("replace", lambda classes: 1 - 1 / classes), ("flip", lambda _: 1.0)]
)
def test_counts_lie_within_binomial_bounds(fraction, classes, scheme, share):
    data = labelled(20_000, classes)
    noisy = randomize_labels(data, fraction, 3, scheme=scheme)
    assert noisy.changed is not None
    assert_binomial(int(noisy.changed.sum()), len(data), fraction * share(classes))
    # The new labels are spread evenly: over the classes for one natural class at a time.
    of_first = noisy.labels[data.labels == 0]
    stay = (1 - fraction) + (fraction / classes if scheme == "replace" else 0)
    assert_binomial(int((of_first == 0).sum()), len(of_first), stay)
    for label in range(1, classes):
        expected = (1 - stay) / (classes - 1)
        assert_binomial(int((of_first == label).sum()), len(of_first), expected)


def test_an_exact_number_is_changed_by_a_full_flip():
    noisy = randomize_labels(labelled(500, 10), 1.0, 0, scheme="flip")
    assert noisy.changed is not None
    assert int(noisy.changed.sum()) == 500


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(2, 12), fractions, seeds)
def test_permuting_keeps_the_number_of_each_class(count, classes, fraction, seed):
    data = labelled(count, classes)
    noisy = randomize_labels(data, fraction, seed, scheme="permute")
    counts = [labels.bincount(minlength=classes) for labels in (data.labels, noisy.labels)]
    torch.testing.assert_close(*counts)


def test_permuting_changes_as_many_as_chance_would():
    data = labelled(20_000, 10)
    noisy = randomize_labels(data, 0.5, 0, scheme="permute")
    assert noisy.changed is not None
    assert_binomial(int(noisy.changed.sum()), len(data), 0.45)


@settings(deadline=None)
@given(seeds, schemes)
def test_a_larger_fraction_changes_the_same_labels_and_more(seed, scheme):
    if scheme == "permute":
        return
    data = labelled(200, 5)
    few, many = (randomize_labels(data, fraction, seed, scheme=scheme) for fraction in (0.2, 0.7))
    assert few.changed is not None
    assert many.changed is not None
    assert bool((many.changed | ~few.changed).all())


def test_the_given_set_and_the_inputs_are_left_alone():
    data = labelled(100, 10)
    before, digest = data.labels.clone(), data.digest
    noisy = randomize_labels(data, 1.0, 0)
    torch.testing.assert_close(data.labels, before)
    assert data.changed is None
    assert data.digest == digest != noisy.digest
    torch.testing.assert_close(noisy.inputs, data.inputs)


def test_no_noise_is_no_change():
    data = labelled(50, 10)
    noisy = randomize_labels(data, 0.0, 0)
    assert noisy.changed is not None
    assert not noisy.changed.any()
    assert noisy.digest == data.digest


def test_different_seeds_schemes_and_fractions_are_different_sets():
    data = labelled(100, 10)
    digests = {
        randomize_labels(data, fraction, seed, scheme=scheme).digest
        for fraction in (0.4, 0.5)
        for seed in (0, 1)
        for scheme in SCHEMES
    }
    assert len(digests) == 12


def test_the_global_random_state_is_as_before():
    before = torch.get_rng_state()
    randomize_labels(labelled(50, 10), 0.5, 0)
    torch.testing.assert_close(torch.get_rng_state(), before)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_refuses_a_fraction_outside_its_range(fraction):
    with pytest.raises(ValueError, match="expected a fraction from 0 to 1, got"):
        randomize_labels(labelled(5, 2), fraction, 0)


def test_refuses_an_unknown_scheme_and_targets_that_are_not_labels():
    with pytest.raises(ValueError, match="got 'shuffle'"):
        randomize_labels(labelled(5, 2), 0.5, 0, scheme="shuffle")
    with pytest.raises(ValueError, match="expected targets that are class labels"):
        randomize_labels(Dataset(torch.zeros(3), torch.zeros(3)), 0.5, 0)
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        randomize_labels(labelled(5, 1), 0.5, 0, scheme="flip")
