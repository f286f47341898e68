"""The quicker affine layer against torch's own, which defines it."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from flatminima import _linear, _quick
from flatminima._linear import applies, in_order, product
from flatminima._packed import Packed
from flatminima._quick import quick_products

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch was built without oneDNN"
)

sizes = st.integers(1, 70)


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, sizes, st.booleans(), st.integers(0, 9))
def test_values_and_gradients_are_those_of_the_definition(samples, before, after, biased, seed):
    inputs, weight = draw(samples, before, seed=seed), draw(after, before, seed=seed + 1)
    bias = draw(after, seed=seed + 2) if biased else None
    direction = draw(samples, after, seed=seed + 3)
    leaves = [value.requires_grad_() for value in (inputs, weight, bias) if value is not None]
    outputs = _linear._Linear.apply(inputs, weight, bias)
    gradients = torch.autograd.grad((outputs * direction).sum(), leaves)
    wide = [value.detach().double().requires_grad_() for value in leaves]
    expected = functional.linear(*wide)
    of_wide = torch.autograd.grad((expected * direction).sum(), wide)
    torch.testing.assert_close(outputs.double(), expected, atol=1e-4, rtol=1e-5)
    for got, truth in zip(gradients, of_wide, strict=True):
        torch.testing.assert_close(got.double(), truth, atol=1e-4, rtol=1e-5)


def test_a_gradient_without_memory_of_its_own_is_taken():
    inputs, weight = draw(20, 30, seed=0), draw(40, 30, seed=1).requires_grad_()
    _linear._Linear.apply(inputs, weight, None).sum().backward()
    torch.testing.assert_close(weight.grad, inputs.sum(0).expand(40, 30))


def test_a_product_is_as_exact_as_float32_allows():
    inputs, weight = draw(500, 784, seed=0), draw(800, 784, seed=1)
    truth = inputs.double() @ weight.double().T
    errors = [
        (value.double() - truth).abs().max().item()
        for value in (product(inputs, weight), functional.linear(inputs, weight))
    ]
    assert errors[0] < 4 * errors[1]


def test_it_is_used_only_where_it_is_meant():
    inputs, weight, bias = draw(64, 200, seed=0), draw(200, 200, seed=1), draw(200, seed=2)
    assert applies(inputs, weight, bias)
    assert applies(inputs, nn.Parameter(weight), None)
    assert not applies(inputs.double(), weight.double(), bias.double())
    assert not applies(inputs.view(8, 8, 200), weight, bias)
    assert not applies(inputs[:3], weight, bias)
    assert not applies(inputs[:, :5].contiguous(), weight[:, :5].contiguous(), bias)
    assert not applies(inputs, weight.T, bias)
    with torch.autocast("cpu"):
        assert not applies(inputs, weight, bias)


def test_a_network_gives_the_same_within_and_without(monkeypatch):
    called = []
    monkeypatch.setattr(_quick, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(_linear, "product", lambda *given: called.append(given) or product(*given))
    network = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 3))
    inputs = draw(64, 200, seed=0)
    with quick_products():
        within = network(inputs)
    assert len(called) == 1
    torch.testing.assert_close(within, network(inputs), atol=1e-5, rtol=1e-5)
    assert len(called) == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(16, 600), st.integers(100, 300), st.integers(170, 400), st.integers(1, 600))
def test_a_packed_weight_gives_the_same_bits(samples, before, after, expected):
    inputs, weight, bias = (
        draw(samples, before, seed=0),
        draw(after, before, seed=1),
        draw(after, seed=2),
    )
    packed = Packed([weight])
    assert torch.equal(
        product(inputs, in_order(weight, expected, packed), bias), product(inputs, weight, bias)
    )


def test_only_what_was_named_is_packed_and_once(monkeypatch):
    monkeypatch.setattr(_quick, "mkl_is_slow", lambda: True)
    named, other = draw(200, 200, seed=0), draw(200, 200, seed=1)
    packed = Packed([named])
    inputs = draw(64, 200, seed=2)
    with torch.no_grad(), quick_products(packed):
        found = [functional.linear(inputs, weight, None) for weight in (named, other, named)]
    assert in_order(named, 64, packed) is in_order(named, 64, packed)
    assert in_order(named, 64, packed) is not named
    assert in_order(other, 64, packed) is other
    torch.testing.assert_close(found[0], inputs @ named.T, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found[1], inputs @ other.T, atol=1e-3, rtol=1e-4)
    assert torch.equal(found[0], found[2])


def test_threads_that_meet_a_weight_at_once_pack_it_once(monkeypatch):
    packs, reorder = [], torch.ops.mkldnn._reorder_linear_weight

    def slowly(*given):
        packs.append(1)
        time.sleep(0.05)
        return reorder(*given)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", slowly)
    weight = draw(200, 200, seed=0)
    packed = Packed([weight])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: in_order(weight, 64, packed), range(4)))
    assert len(packs) == 1
    assert all(value is found[0] for value in found)
