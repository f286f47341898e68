"""Convolutions from fewer products against torch's own, which define them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from flatminima import _convolution
from flatminima._convolution import Tiling, convolve, gains_by_tiles, side_for, transformed
from flatminima._packed import Packed
from flatminima._quick import quick_products


def draw(*shape, seed=0, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype)


def images(*shape, seed=0, dtype=torch.float32):
    return draw(*shape, seed=seed, dtype=dtype).to(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 7),
    st.integers(1, 11),
    st.integers(1, 11),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.integers(0, 9),
)
def test_it_gives_what_the_definition_does(count, height, width, padding, side, biased, seed):
    if height + 2 * padding[0] < 3 or width + 2 * padding[1] < 3:
        return
    wide = torch.float64
    inputs = images(count, 3, height, width, seed=seed, dtype=wide)
    weight = draw(5, 3, 3, 3, seed=seed + 1, dtype=wide)
    bias = draw(5, seed=seed + 2, dtype=wide) if biased else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_convolution, "_CHUNK", 2000)  # a few images at a time
        patch.setattr(_convolution, "_CHUNK_TILES", 2)
        got = convolve(inputs, weight, bias, padding, side, Packed())
    want = functional.conv2d(inputs, weight, bias, padding=padding)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("side", "times"), [(2, 1.5), (4, 6.0)])
@pytest.mark.parametrize("channels", [64, 256])
def test_it_is_about_as_exact_as_the_direct_way(side, times, channels):
    inputs, weight = images(20, channels, 8, 8).relu(), draw(channels, channels, 3, 3, seed=1)
    inputs = inputs.to(memory_format=torch.channels_last)
    truth = functional.conv2d(inputs.double(), weight.double(), padding=1)
    direct = functional.conv2d(inputs, weight, padding=1)
    tiled = convolve(inputs, weight, None, (1, 1), side, Packed())
    direct_error, error = ((got - truth).square().mean().sqrt() for got in (direct, tiled))
    assert error < times * direct_error


def test_kernels_of_weights_that_were_named_are_made_once(monkeypatch):
    made = []
    monkeypatch.setattr(
        _convolution, "transformed", lambda *args, **kw: made.append(1) or transformed(*args, **kw)
    )
    inputs, weight, other = images(2, 3, 8, 8), draw(5, 3, 3, 3, seed=1), draw(5, 3, 3, 3, seed=2)
    packed = Packed([weight])
    found = [
        convolve(inputs, each, None, (1, 1), 4, packed) for each in (weight, other, weight, other)
    ]
    assert len(made) == 3
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_numbers_that_are_not_finite_are_left_to_the_direct_way(value):
    inputs = images(3, 4, 8, 8)
    inputs[1, 2, 3, 3] = value
    assert convolve(inputs, draw(5, 4, 3, 3), None, (1, 1), 4, Packed()) is None


def asked(inputs, layer):
    with torch.no_grad():
        return side_for(
            inputs, layer.weight, layer.stride, layer.padding, layer.dilation, layer.groups
        )


@pytest.mark.parametrize(
    ("size", "side"),
    [(32, 4), (28, 4), (14, 4), (16, 4), (8, 4), (6, 2), (4, 4), (2, 2), (1, None)],
)
def test_tiles_are_those_of_the_fewest_products(size, side):
    layer = nn.Conv2d(64, 64, 3, padding=1)
    assert asked(images(100, 64, size, size), layer) == side
    if side is not None:
        assert 9 * size**2 / Tiling(side).products(size, size) >= 1.5


def test_it_is_used_only_where_it_is_meant():
    inputs, layer = images(100, 64, 8, 8), nn.Conv2d(64, 64, 3, padding=1)
    assert asked(inputs, layer) == 4
    assert asked(inputs, nn.Conv2d(64, 64, 3)) is not None  # six outputs along a side
    for other in (
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, dilation=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 5, padding=1),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1).double(),
    ):
        assert asked(inputs, other) is None
    assert asked(inputs.contiguous(), layer) is None
    assert asked(inputs.double(), layer) is None
    assert asked(inputs[:4], layer) is None  # too few tiles
    with torch.autocast("cpu"):
        assert asked(inputs, layer) is None
    with torch.enable_grad():
        assert side_for(inputs, layer.weight, (1, 1), (1, 1), (1, 1), 1) is None


def test_networks_gain_by_their_structure():
    assert gains_by_tiles(nn.Sequential(nn.Conv2d(64, 64, 3)))
    assert not gains_by_tiles(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Linear(64, 64)))
    assert not gains_by_tiles(nn.Sequential(nn.Conv2d(64, 64, 1)))
    assert not gains_by_tiles(nn.Sequential(nn.Conv2d(64, 64, 3, stride=2)))


def test_within_convolutions_are_taken_so_and_without_they_are_not(monkeypatch):
    called = []
    monkeypatch.setattr(
        _convolution, "convolve", lambda *given: called.append(given) or convolve(*given)
    )
    layer, inputs = nn.Conv2d(64, 64, 3, padding=1), images(10, 64, 8, 8)
    with torch.no_grad():
        want = layer(inputs)
        with quick_products(convolutions=True):
            got = layer(inputs)
        with quick_products():
            layer(inputs)
        layer(inputs)
    assert len(called) == 1
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_an_infinity_goes_where_the_direct_way_lets_it(monkeypatch):
    layer, inputs = nn.Conv2d(64, 64, 3, padding=1), images(10, 64, 8, 8)
    inputs[3, 5, 2, 2] = float("inf")
    with torch.no_grad(), quick_products(convolutions=True):
        got = layer(inputs)
    assert torch.equal(got.isfinite(), layer(inputs).isfinite())
