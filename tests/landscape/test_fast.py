"""Half precision: near the exact answer, honest about the distance, and no further than asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
from cases import ImageNet, Tied, TwoInputs, images, perceptron, points, seeded
from flatminima.data import Dataset
from flatminima.landscape._arithmetic import fast, repeated_points
from flatminima.landscape._batches import Batches
from flatminima.subspace import Subspace

pytestmark = pytest.mark.usefixtures("halves")


def _float(data: Dataset) -> Dataset:
    def narrow(value):
        if isinstance(value, dict):
            return {name: narrow(part) for name, part in value.items()}
        return value.float() if value.is_floating_point() else value

    return Dataset(narrow(data.inputs), data.targets)


NETWORKS = {
    "affine": (lambda: perceptron(1, dtype=torch.float32), points, "auto", "affine"),
    "convolutions": (lambda: seeded(ImageNet(), 2), images, "keep", "affine"),
    "recomputed": (lambda: seeded(ImageNet(), 2), images, "recompute", "reference"),
    "keywords": (lambda: seeded(TwoInputs(), 3), None, "auto", None),
    "tied": (lambda: seeded(Tied(), 4), points, "auto", "reference"),
}


def _case(name: str):
    make, data, policy, path = NETWORKS[name]
    if data is None:
        draw = torch.Generator().manual_seed(0)
        inputs = {
            "left": torch.randn(30, 6, generator=draw),
            "right": torch.randn(30, 3, generator=draw),
        }
        dataset = Dataset(inputs, torch.randint(4, (30,), generator=draw))
    else:
        dataset = _float(data())
    return make().float(), dataset, policy, path


@pytest.mark.parametrize("name", NETWORKS)
def test_fast_is_near_exact_and_is_not_exact(name: str) -> None:
    network, dataset, policy, path = _case(name)
    plane = Subspace.random(network, 2, seed=0)
    at = np.random.default_rng(0).normal(size=(9, 2))
    quick, slow = (
        fm.Landscape(network, dataset, batchnorm=policy, precision=precision).losses(plane, at)
        for precision in ("fast", "exact")
    )
    if path is not None:
        assert quick.path.startswith(path)
    assert (quick.path, quick.batchnorm) == (slow.path, slow.batchnorm)
    np.testing.assert_allclose(quick.loss, slow.loss, rtol=0.03, atol=0.03)
    assert (quick.loss != slow.loss).all()
    assert quick.loss.dtype == np.float64
    assert (slow.repeated, slow.difference) == (0, 0.0)


def test_some_points_are_computed_in_both_ways_and_the_largest_difference_is_told() -> None:
    network, dataset, *_ = _case("affine")
    plane = Subspace.random(network, 2, seed=0)
    at = np.random.default_rng(1).normal(size=(201, 2))
    landscape = fm.Landscape(network, dataset, precision="fast")
    quick = landscape.losses(plane, at)
    slow = landscape.losses(plane, at, precision="exact")
    gaps = np.abs(quick.loss - slow.loss)
    assert quick.repeated == 4
    assert quick.difference == gaps[repeated_points(201)].max()
    assert 0 < quick.difference <= gaps.max()
    assert [len(repeated_points(count)) for count in (1, 9, 25, 2500)] == [1, 1, 3, 50]
    assert len(set(repeated_points(2500))) == 50


@pytest.mark.parametrize("name", ["affine", "convolutions", "recomputed", "keywords", "tied"])
def test_of_many_examples_some_are_computed_in_both_ways(monkeypatch, name: str) -> None:
    network, dataset, policy, _ = _case(name)
    plane = Subspace.random(network, 2, seed=0)
    at = np.random.default_rng(1).normal(size=(60, 2))

    def losses(data: Dataset, points: np.ndarray, precision: str) -> fm.landscape.Losses:
        landscape = fm.Landscape(
            network, data, batchnorm=policy, precision=precision, batch_size=7,
            recompute_samples=20, recompute_batch=10,
        )  # fmt: skip
        return landscape.losses(plane, points)

    whole = losses(dataset, at, "fast")
    count = len(dataset) // 2 + 1
    monkeypatch.setattr("flatminima.landscape._landscape.COMPARED", count)
    found = losses(dataset, at, "fast")
    assert (whole.repeated, whole.compared) == (3, len(dataset))
    assert (found.repeated, found.compared, found.samples) == (3, count, len(dataset))
    np.testing.assert_array_equal(found.loss, whole.loss)
    if policy != "recompute":  # whose statistics are of the whole dataset all the same
        rows = torch.linspace(0, len(dataset) - 1, count).round().long()
        some = Dataset(*dataset.batch(rows))
        near, true = (losses(some, at[repeated_points(60)], how) for how in ("fast", "exact"))
        assert found.difference == pytest.approx(np.abs(near.loss - true.loss).max(), rel=0.05)
    assert 0 < found.difference != whole.difference


def test_what_is_compared_is_spread_over_the_data_and_over_the_batches() -> None:
    data = Dataset(torch.arange(103.0)[:, None], torch.zeros(103, dtype=torch.int64))
    batches = Batches(data, None, size=10)
    assert batches.spread(103) is batches
    some = batches.spread(25)
    found = [inputs[:, 0] for inputs, _ in some]
    assert [len(rows) for rows in found] == [9, 8, 8]
    with pytest.raises(IndexError):
        some[3]
    rows = torch.cat(found).sort().values
    assert (rows[0], rows[-1]) == (0, 102)
    assert set(rows.diff().tolist()) == {4.0, 5.0}
    for each in found:  # a dataset sorted by class does not give batches of one class
        assert each[0] < 15
        assert each[-1] > 87


@pytest.mark.parametrize("compared", [10_000, 20])
def test_what_was_stopped_early_is_not_compared(monkeypatch, compared) -> None:
    monkeypatch.setattr("flatminima.landscape._landscape.COMPARED", compared)
    network, dataset, *_ = _case("affine")
    plane = Subspace.random(network, 2, seed=0)
    at = np.random.default_rng(1).normal(size=(40, 2))
    landscape = fm.Landscape(network, dataset, precision="fast", batch_size=10)
    found = landscape.losses(plane, at)
    clipped = landscape.losses(plane, at, clip=0.5 * found.loss.min())
    assert clipped.clipped.all()
    assert (clipped.repeated, clipped.difference) == (3, 0.0)
    again = repeated_points(40)
    lowest, *_, highest = np.sort(found.loss[again])
    clipped = landscape.losses(plane, at, clip=(lowest + highest) / 2)
    assert 0 < clipped.clipped[again].sum() < 3
    assert 0 < clipped.difference <= found.difference


def test_the_precision_of_one_call_leaves_the_next_alone() -> None:
    network, dataset, *_ = _case("convolutions")
    plane = Subspace.random(network, 2, seed=0)
    landscape = fm.Landscape(network, dataset, batchnorm="keep")
    before = landscape.losses(plane, np.eye(2))
    landscape.losses(plane, np.eye(2), precision="fast")
    after = landscape.losses(plane, np.eye(2))
    np.testing.assert_array_equal(before.loss, after.loss)
    assert not torch.is_autocast_enabled("cpu")


def test_a_difference_in_what_is_finite_is_infinite() -> None:
    network, dataset, *_ = _case("affine")
    exact = fm.Landscape(network, dataset).losses(Subspace.random(network, 1, 0), np.ones((3, 1)))
    loss, finite = exact.loss.copy(), exact.finite.copy()
    loss[1], finite[1] = np.nan, False
    holed = fm.landscape.Losses(loss, {}, finite, None, "affine", "none", 30)
    assert holed.difference_from(exact) == np.inf
    stopped = replace(holed, clipped=~finite, clip=1.0)
    assert stopped.difference_from(exact) == 0.0
    assert holed.difference_from(holed) == 0.0


def test_the_top_layer_is_exact_all_the_same() -> None:
    network, dataset, *_ = _case("affine")
    plane = Subspace.random(network, 2, seed=0, parameters=("4.weight", "4.bias"))
    landscape = fm.Landscape(network, dataset, precision="fast")
    found = landscape.losses(plane, np.eye(2))
    assert (found.path, found.repeated) == ("top", 0)
    np.testing.assert_array_equal(
        found.loss, landscape.losses(plane, np.eye(2), precision="exact").loss
    )


def test_a_surface_says_how_far_off_it_may_be_and_its_minima_are_exact() -> None:
    make, data, *_ = NETWORKS["affine"]
    minima = [perceptron(seed, dtype=torch.float32) for seed in range(3)]
    plane, dataset = Subspace.through(*minima), _float(data())
    quick, slow = (
        fm.loss_surface(fm.Landscape(make(), dataset, precision=p), plane, resolution=5)
        for p in ("fast", "exact")
    )
    assert quick.attrs["precision"] == "fast"
    assert quick.attrs["repeated"] == 3
    assert 0 < quick.attrs["largest_difference"] < 0.03
    assert "repeated" not in slow.attrs
    np.testing.assert_array_equal(quick["anchor_loss"], slow["anchor_loss"])
    assert (quick["loss"] != slow["loss"]).any()


def test_radii_among_few_examples_are_exact_whatever_the_landscape() -> None:
    network, dataset, *_ = _case("affine")
    quick, slow = (
        fm.flatness_radius(fm.Landscape(network, dataset, precision=p), network, directions=2)
        for p in ("fast", "exact")
    )
    said = {"precision": "fast", "sampled": 0, "largest_difference": 0.0}
    assert quick.identical(slow.assign_attrs(said))


def test_only_weights_of_products_are_rounded_ahead() -> None:
    network = seeded(ImageNet(), 0)
    names = fast(network, torch.device("cpu")).weights
    assert names == {"conv.weight", "conv.bias", "head.weight", "head.bias"}
    embedded = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 7, bias=False))
    embedded[1].weight = embedded[0].weight
    assert fast(embedded, torch.device("cpu")).weights == frozenset()


def test_double_precision_networks_are_refused() -> None:
    network = perceptron(0)
    with pytest.raises(ValueError, match="expected a network in float32 or less"):
        fm.Landscape(network, points(), precision="fast")
    plane, exact = Subspace.random(network, 1, 0), fm.Landscape(network, points())
    with pytest.raises(ValueError, match="expected a network in float32 or less"):
        exact.losses(plane, np.ones((1, 1)), precision="fast")
