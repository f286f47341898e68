"""Points stopped early are exactly those above the clip; all others keep their bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flatminima as fm
from cases import ImageNet, images, perceptron, points, seeded, states
from flatminima.landscape import _landscape
from flatminima.subspace import Subspace

AROUND = 2 * np.random.default_rng(0).normal(size=(9, 2))


def cases():
    network = perceptron()
    names = [name for name, _ in network.named_parameters()]
    for path, moved in {"affine": names, "suffix": names[2:], "top": names[-2:]}.items():
        yield path, network, points(), Subspace.random(network, 2, 0, parameters=moved)
    plane = Subspace.through(*states(lambda s: seeded(ImageNet().double(), s), 3))
    yield "reference", seeded(ImageNet().double(), 0), images(), plane


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_on_every_path_the_outcome_is_that_of_the_whole_pass(monkeypatch, case, threads):
    path, network, data, subspace = case
    monkeypatch.setattr(_landscape, "_ENOUGH", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        landscape = fm.Landscape(network, data, batch_size=3, recompute_batch=5)
        whole = landscape.losses(subspace, AROUND)
        clip = float(np.median(whole.loss))
        found = landscape.losses(subspace, AROUND, clip=clip)
    finally:
        torch.set_num_threads(before)
    assert found.path == path
    above = whole.loss > clip
    assert above.any()
    np.testing.assert_array_equal(found.clipped, above)
    np.testing.assert_array_equal(found.loss, np.where(above, clip, whole.loss))
    np.testing.assert_array_equal(
        found.metrics["accuracy"], np.where(above, np.nan, whole.metrics["accuracy"])
    )
    assert np.isnan(found.standard_error[above]).all()
    assert found.finite.all()
    assert whole.clipped is None


@given(clip=st.floats(0.05, 30), seed=st.integers(0, 50), batch_size=st.integers(1, 40))
@settings(max_examples=25)
def test_at_any_clip(clip, seed, batch_size):
    landscape = fm.Landscape(perceptron(), points(seed=seed), batch_size=batch_size)
    plane = Subspace.through(*states(perceptron, 3))
    whole, found = (landscape.losses(plane, AROUND, clip=c) for c in (None, clip))
    np.testing.assert_array_equal(found.clipped, whole.loss > clip)
    np.testing.assert_array_equal(found.loss, np.minimum(whole.loss, clip))


def test_work_is_saved():
    class Counting(torch.nn.Module):
        passes = 0

        def __init__(self):
            super().__init__()
            self.network = perceptron()

        def forward(self, x):
            Counting.passes += 1
            return self.network(x)

    network = Counting()
    landscape = fm.Landscape(network, points(), batch_size=1)
    ray = Subspace.random(network, 1, 0)
    far = np.full((1, 1), 100.0)
    needed = []
    for clip in (None, 0.1):
        landscape.losses(ray, far, clip=clip)
        Counting.passes = 0
        landscape.losses(ray, far, clip=clip)
        needed.append(Counting.passes)
    assert needed[1] < needed[0] / 1.5


def test_a_loss_that_is_not_finite_stays_so():
    network = perceptron()
    landscape = fm.Landscape(network, points())
    ray = Subspace.random(network, 1, 0)
    found = landscape.losses(ray, np.array([[1e200], [0.0]]), clip=1e300)
    assert not found.finite[0]
    assert not found.clipped.any()


@pytest.mark.usefixtures("halves")
def test_in_half_precision_the_difference_is_that_of_known_points():
    network = perceptron(dtype=torch.float32)
    landscape = fm.Landscape(network, points(dtype=torch.float32), precision="fast")
    plane = Subspace.random(network, 2, 0)
    around = np.random.default_rng(0).normal(size=(40, 2))
    everything = landscape.losses(plane, around, clip=1e-3)
    assert everything.clipped.all()
    assert everything.difference == 0.0
    some = landscape.losses(
        plane, around, clip=float(np.median(landscape.losses(plane, around).loss))
    )
    assert 0 < some.difference < 0.1


@pytest.mark.parametrize(
    ("loss", "clip", "message"),
    [
        ("cross_entropy", 0.0, "a positive clip"),
        ("cross_entropy", float("nan"), "a positive clip"),
        (lambda outputs, targets: outputs.sum(1) - 100.0, 1.0, "never negative"),
        (
            lambda outputs, targets: (outputs.exp().sum(1), torch.ones(len(targets))),
            1.0,
            "weighted",
        ),
    ],
)
def test_refused(loss, clip, message):
    network = perceptron()
    landscape = fm.Landscape(network, points(), loss=loss)
    with pytest.raises(ValueError, match=message):
        landscape.losses(Subspace.random(network, 2, 0), AROUND, clip=clip)


def test_a_surface_says_which_points_were_stopped():
    landscape = fm.Landscape(perceptron(), points())
    plane = Subspace.through(*states(perceptron, 3))
    whole = fm.loss_surface(landscape, plane, resolution=6)
    found = fm.loss_surface(landscape, plane, resolution=6, clip=2.0)
    assert found.attrs["clip"] == 2.0
    assert found["outcome"].attrs["flag_meanings"] == "finite non_finite above_clip"
    np.testing.assert_array_equal(found["outcome"] == 2, whole["loss"] > 2.0)
    np.testing.assert_array_equal(found["loss"], np.minimum(whole["loss"], 2.0))
    np.testing.assert_array_equal(found["anchor_loss"], whole["anchor_loss"])
    assert whole["outcome"].attrs["flag_meanings"] == "finite non_finite"
    assert "clip" not in whole.attrs
