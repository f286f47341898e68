"""What evaluations on a GPU may cost in memory and in waiting."""

import gc
import warnings

import numpy as np
import pytest
import torch

import flatminima as fm
from accelerator.problems import ON_CUDA
from cases import perceptron

pytestmark = pytest.mark.skipif(not ON_CUDA, reason="asks CUDA")


def _plane(features, *, samples, batch_size, **options):
    """A landscape, a plane through three networks, and points of it."""
    draw = torch.Generator().manual_seed(0)
    data = fm.Dataset(
        torch.randn(samples, features, generator=draw),
        torch.randint(10, (samples,), generator=draw),
    )
    networks = [
        perceptron(seed, sizes=(features, 64, 32, 10), dtype=torch.float32) for seed in range(3)
    ]
    landscape = fm.Landscape(networks[0], data, device="cuda", batch_size=batch_size, **options)
    return landscape, fm.Subspace.through(*networks)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_more_points_take_no_more_memory(precision):
    landscape, plane = _plane(784, samples=20_000, batch_size=5_000, precision=precision)
    coordinates = np.random.default_rng(0).normal(size=(50, 2))
    landscape.losses(plane, coordinates[:5])
    peaks = {}
    for count in (5, 50):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        landscape.losses(plane, coordinates[:count])
        torch.cuda.synchronize()
        peaks[count] = torch.cuda.max_memory_allocated()
    assert peaks[5] > 20_000 * 784 * 4
    assert peaks[50] <= 1.2 * peaks[5], peaks


def test_a_landscape_that_is_gone_leaves_no_memory():
    def use():
        landscape, plane = _plane(784, samples=20_000, batch_size=5_000)
        landscape.losses(plane, np.eye(2))
        fm.flatness_radius(landscape, plane.origin, directions=2)

    use()  # libraries keep what they make room for on first use
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    use()
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20


@pytest.mark.parametrize("parameters", [None, "2.*", "4.*"], ids=["affine", "suffix", "top"])
def test_points_are_evaluated_without_waiting_for_each(parameters):
    batches, points = 4, 20
    landscape, plane = _plane(32, samples=4 * 50, batch_size=50)
    if parameters is not None:
        plane = fm.Subspace.random(plane.origin, 2, 0, parameters=parameters)
    coordinates = np.random.default_rng(0).normal(size=(points, 2))
    landscape.losses(plane, coordinates)  # the path is chosen
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            torch.ones(1, device="cuda").item()
            known = len(caught)
            landscape.losses(plane, coordinates)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught[known:]]
    waits = [text for text in waits if "synchroniz" in text]
    assert any("synchroniz" in str(warning.message) for warning in caught[:known])
    assert len(waits) < points * batches, (len(waits), sorted(set(waits)))
