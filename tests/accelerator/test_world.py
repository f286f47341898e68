"""Exact is exact whatever the caller has switched on, and the caller's world is as before."""

import contextlib
import copy
import warnings

import numpy as np
import pytest
import torch

import flatminima as fm
from accelerator.problems import (
    CASES,
    DEVICE,
    FEW,
    ON_CUDA,
    assert_losses_same,
    loud,
    pictures,
    vgg,
)
from flatminima.subspace import Subspace


@pytest.mark.skipif(not ON_CUDA, reason="TF32 is a GPU's")
@pytest.mark.parametrize("what", ["products", "convolutions"])
def test_what_is_switched_on_would_change_plain_products(what):
    draw = torch.Generator().manual_seed(0)
    left = torch.randn(512, 512, generator=draw).to(DEVICE)
    image = torch.randn(8, 64, 16, 16, generator=draw).to(DEVICE)
    kernel = torch.randn(64, 64, 3, 3, generator=draw).to(DEVICE)

    def result():
        if what == "products":
            return left @ left
        return torch.nn.functional.conv2d(image, kernel)

    with loud(), torch.autocast(DEVICE, enabled=False):
        rough = result()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert not torch.equal(rough, result())
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", CASES)
def test_tf32_and_autocast_change_no_bit_of_an_exact_loss(name, world):
    case = CASES[name]
    want = case.losses(DEVICE, torch.float32)
    with loud():
        before = world()
        found = case.losses(DEVICE, torch.float32)
        assert world() == before
    assert_losses_same(found, want)


@pytest.mark.parametrize("policy", ["keep", "recompute"])
def test_nor_of_a_large_network(policy, world):
    network, data = vgg(0.5), pictures(100)
    rays = Subspace.random(network, 2, 0)

    def losses():
        return fm.Landscape(
            network, data, device=DEVICE, batchnorm=policy, recompute_batch=50
        ).losses(rays, np.eye(2))

    want = losses()
    with loud():
        before = world()
        found = losses()
        assert world() == before
    assert_losses_same(found, want)


def test_nor_of_states_gradients_surfaces_and_radii(world):
    case = CASES["keep"]
    network, plane = case.network(0, torch.float32), case.subspace(torch.float32)

    def everything():
        landscape = case.landscape(DEVICE, torch.float32)
        radii = fm.flatness_radius(landscape, network, directions=2)
        return (
            landscape.loss_at(network, batchnorm="recompute").loss,
            landscape.gradient_norm(network),
            fm.loss_surface(landscape, plane, resolution=3).loss.values,
            fm.loss_line(landscape, network, case.network(1, torch.float32)).loss.values,
            radii.radius.values,
        )

    want = everything()
    with loud():
        before = world()
        found = everything()
        assert world() == before
    for ours, theirs in zip(found, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_caller_may_switch_tf32_on_and_off_again():
    case = CASES["plane"]
    want = case.losses(DEVICE, torch.float32)
    try:
        for allowed in (True, False, True, False):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            found = case.losses(DEVICE, torch.float32)
            assert torch.backends.cuda.matmul.allow_tf32 == allowed
            assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
            assert_losses_same(found, want)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_by_its_newer_settings_changes_no_bit():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has the older settings only")
    case = CASES["keep"]
    want = case.losses(DEVICE, torch.float32)
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        found = case.losses(DEVICE, torch.float32)
        assert matmul.fp32_precision == "tf32"
        assert cudnn.conv.fp32_precision == "tf32"  # as it is from the start
    finally:
        matmul.fp32_precision = before
        torch.set_float32_matmul_precision("highest")
    assert_losses_same(found, want)


@pytest.mark.parametrize(
    ("name", "precision"), [(name, "exact") for name in CASES] + [(name, "fast") for name in FEW]
)
def test_the_model_and_the_callers_world_are_as_before(name, precision, world):
    case = CASES[name]
    network = case.network(0, torch.float32).to(DEVICE).train()
    data = case.dataset(torch.float32).to(DEVICE)
    first = next(network.parameters())
    first.requires_grad_(False)
    tensors = {key: value.clone() for key, value in network.state_dict().items()}
    inputs = copy.deepcopy(data.inputs)
    plane = case.subspace(torch.float32)
    torch.manual_seed(5)
    before = world()
    landscape = fm.Landscape(network, data, batch_size=10, **case.options)
    landscape.losses(plane, case.coordinates(plane), precision=precision)
    landscape.loss_at(network, batchnorm="recompute")
    landscape.gradient_norm(network)
    assert world() == before
    assert network.training
    assert not first.requires_grad
    assert all(value.requires_grad for value in [*network.parameters()][1:])
    assert all(value.grad is None for value in network.parameters())
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, tensors[key], rtol=0, atol=0)
    torch.testing.assert_close(data.inputs, inputs, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["plane", "recompute", "top", "suffix"])
def test_an_error_in_the_middle_leaves_the_world_as_it_was(name, world):
    case = CASES[name]
    calls = []

    def failing(outputs, targets):
        calls.append(None)
        if len(calls) > 30:
            raise ArithmeticError("in the middle")
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def evaluate():
        for _ in range(40):
            case.losses(DEVICE, torch.float32, loss=failing)

    before = world()
    with pytest.raises(ArithmeticError, match="in the middle"):
        evaluate()
    assert world() == before
    assert case.losses(DEVICE, torch.float32).finite.all()


@pytest.mark.skipif(not ON_CUDA, reason="records on a GPU only")
@pytest.mark.parametrize("error", [ArithmeticError, RuntimeError])
@pytest.mark.parametrize("name", FEW)
def test_an_error_while_recording_leaves_the_world_as_it_was(name, error, world):
    case = CASES[name]

    def failing(outputs, targets):
        if torch.cuda.is_current_stream_capturing():
            raise error("while recording")
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    want = case.losses(DEVICE)
    before = world()
    with contextlib.suppress(error):
        found = case.losses(DEVICE, loss=failing)
        np.testing.assert_allclose(found.loss, want.loss, rtol=1e-12)
    assert world() == before
    assert not torch.cuda.is_current_stream_capturing()
    assert_losses_same(case.losses(DEVICE), want)


@pytest.mark.parametrize("name", ["plane", "keep", "recompute"])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_there_is_nothing_to_warn_of(name, precision):
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            CASES[name].losses(DEVICE, torch.float32, precision=precision)
    finally:
        torch.set_warn_always(always)
