"""Surfaces, lines and radii on the device are those of the processor."""

import numpy as np
import pytest
import torch
from torch import nn

import flatminima as fm
from accelerator.problems import CASES, DEVICE
from cases import half_square, perceptron, points, quadratic
from flatminima.flatness.radius import CROSSED, NON_FINITE

SAME_ATTRIBUTES = ("batchnorm", "path", "precision", "samples", "loss_name", "data_digest")


def assert_alike(found, want, **tolerance):
    """All numbers and outcomes of two datasets, and what is said of them."""
    assert list(found.variables) == list(want.variables)
    for name, values in want.variables.items():
        np.testing.assert_allclose(
            found[name].values, values.values, equal_nan=True, err_msg=name, **tolerance
        )
    for name in SAME_ATTRIBUTES:
        assert found.attrs.get(name) == want.attrs.get(name), name


@pytest.mark.parametrize("axes", ["isometric", "barycentric"])
@pytest.mark.parametrize("name", ["plane", "convolution", "keep", "recompute", "vectors batch"])
def test_surfaces(name, axes):
    case = CASES[name]
    plane = case.subspace(torch.float32)
    found, want = (
        fm.loss_surface(
            case.landscape(device, torch.float32), plane, resolution=4, coordinates=axes
        )
        for device in (DEVICE, "cpu")
    )
    assert_alike(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plane", {"clip": 3.0, "resolution": 6}),
        ("recompute", {"clip": 3.0, "resolution": 5}),
        ("plane", {"refine": 0.1, "resolution": 13}),
    ],
)
def test_surfaces_of_fewer_evaluations(name, options):
    case = CASES[name]
    plane = case.subspace()
    found, want = (
        fm.loss_surface(case.landscape(device), plane, **options) for device in (DEVICE, "cpu")
    )
    assert_alike(found, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["plane", "recompute", "residual recompute", "tied"])
def test_lines(name):
    case = CASES[name]
    start, end = case.network(0, torch.float32), case.network(1, torch.float32)
    found, want = (
        fm.loss_line(case.landscape(device, torch.float32), start, end, resolution=9)
        for device in (DEVICE, "cpu")
    )
    assert_alike(found, want, rtol=1e-6, atol=1e-6)
    for name in ("barrier", "barrier_position", "length"):
        np.testing.assert_allclose(found.attrs[name], want.attrs[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parameters", ["all", "top", "2.*"])
@pytest.mark.parametrize("protocol", ["crossing", "stepwise"])
def test_radii(protocol, parameters):
    case = CASES["plane"]
    network = case.network(0, torch.float32)
    step = {"step": 0.05} if protocol == "stepwise" else {"tolerance": 1e-3}
    found, want = (
        fm.flatness_radius(
            case.landscape(device, torch.float32),
            network,
            directions=2,
            parameters=parameters,
            protocol=protocol,
            **step,
        )
        for device in (DEVICE, "cpu")
    )
    np.testing.assert_array_equal(found.outcome, want.outcome)
    assert (want.outcome == CROSSED).any()
    np.testing.assert_allclose(found.radius, want.radius, rtol=2e-3)
    for name in ("loss", "norm"):
        np.testing.assert_allclose(found.attrs[name], want.attrs[name], rtol=1e-6)
    for name in (*SAME_ATTRIBUTES, "moved", "layer", "parameters"):
        assert found.attrs[name] == want.attrs[name], name


@pytest.mark.parametrize("policy", ["keep", "recompute", "batch"])
def test_radii_under_every_policy(policy):
    case = CASES["residual rays"]
    network = case.network(0, torch.float32)
    found, want = (
        fm.flatness_radius(
            case.landscape(device, torch.float32, batchnorm=policy), network, directions=2
        )
        for device in (DEVICE, "cpu")
    )
    assert found.attrs["batchnorm"] == policy
    np.testing.assert_array_equal(found.outcome, want.outcome)
    np.testing.assert_allclose(found.radius, want.radius, rtol=2e-3)


def test_the_radius_of_a_quadratic():
    curvatures = np.arange(1.0, 31.0)
    network, data = quadratic(curvatures)
    landscape = fm.Landscape(network, data, loss=half_square, device=DEVICE)
    found = fm.flatness_radius(landscape, network, directions=4, tolerance=1e-4, max_radius=1e3)
    rays = fm.Subspace.random(network, 4, 0)
    along = [(curvatures * rays.direction(k)["w"].numpy() ** 2).sum() for k in range(4)]
    want = np.sqrt(2 * 0.05 / np.array(along))
    np.testing.assert_array_equal(found.outcome, CROSSED)
    for sign in (1, -1):
        np.testing.assert_allclose(found.radius.sel(sign=sign), want, rtol=2e-4)


def test_the_published_fault_is_the_same_fault():
    case = CASES["recompute"]
    network = case.network(0, torch.float32)
    found, want = (
        fm.flatness_radius(
            case.landscape(device, torch.float32),
            network,
            directions=3,
            protocol="stepwise",
            step=0.05,
            buffers="perturb",
        )
        for device in (DEVICE, "cpu")
    )
    for name in ("outcome", "negative_variances"):
        np.testing.assert_array_equal(found[name], want[name])
    for name in ("radius", "first_negative"):
        np.testing.assert_allclose(found[name], want[name], rtol=2e-3)
    assert found.attrs["moved_buffers"] == want.attrs["moved_buffers"]


class Edge(nn.Module):
    """A loss that stays the same until it is no number."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x):
        return x + 0.0 * torch.sqrt(1.0 - self.w.square().sum())


@pytest.mark.parametrize("protocol", ["crossing", "stepwise"])
def test_walks_over_an_edge_are_not_finite(protocol):
    data = fm.Dataset(torch.ones(5, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.int64))
    found, want = (
        fm.flatness_radius(
            fm.Landscape(Edge(), data, loss=half_square, device=device),
            Edge(),
            directions=1,
            protocol=protocol,
            step=0.3,
            max_radius=5.0,
        )
        for device in (DEVICE, "cpu")
    )
    np.testing.assert_array_equal(found.outcome, NON_FINITE)
    np.testing.assert_allclose(found.radius, want.radius, rtol=2e-3)


def test_holes_of_a_surface_are_where_the_processor_has_them():
    network = perceptron()
    plane = fm.Subspace.random(network, 2, 0)
    found, want = (
        fm.loss_surface(
            fm.Landscape(network, points(), device=device),
            plane,
            resolution=3,
            extent=(-1e300, 1e300),
        )
        for device in (DEVICE, "cpu")
    )
    np.testing.assert_array_equal(found.outcome, [[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(found.loss.isnull(), want.loss.isnull())


def test_negative_variances_are_holes():
    case = CASES["interpolate"]
    plane = case.subspace()
    outside = plane.barycentric(np.array([[3.0, -1.0, -1.0], [1.0, 0.0, 0.0], [2.5, 0.5, -2.0]]))
    found, want = (case.landscape(device).losses(plane, outside) for device in (DEVICE, "cpu"))
    np.testing.assert_array_equal(want.finite, [False, True, False])
    np.testing.assert_array_equal(found.finite, want.finite)


@pytest.mark.parametrize("where", ["weight", "bias"])
def test_a_network_that_is_no_number_is_refused_in_a_line(where):
    broken = perceptron()
    with torch.no_grad():
        getattr(broken[0], where).view(-1)[0] = torch.nan
    landscape = fm.Landscape(perceptron(), points(), device=DEVICE)
    assert not landscape.loss_at(broken).finite[0]
    with pytest.raises(ValueError, match="expected finite weights, got 1 of"):
        fm.flatness_radius(landscape, broken, directions=1)
