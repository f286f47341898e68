"""Random directions scaled to the filters of a network."""

import numpy as np
import pytest
import torch
from torch import nn

import cases
import flatminima as fm
import naive
from cases import flat, perceptron
from flatminima.landscape import surface_grid
from flatminima.minimum import Minimum
from flatminima.subspace import Subspace
from flatminima.subspace._filters import Filters


class Layers(nn.Module):
    """One of every kind of layer whose filters lie elsewhere, and a normalisation."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, dtype=dtype)
        self.grouped = nn.Conv2d(4, 6, 2, groups=2, dtype=dtype)
        self.norm = nn.BatchNorm2d(6, dtype=dtype)
        self.up = nn.ConvTranspose2d(6, 4, 2, dtype=dtype)
        self.up_grouped = nn.ConvTranspose2d(4, 6, 2, groups=2, dtype=dtype)
        self.head = nn.Linear(6, 3, dtype=dtype)


def layers(seed=0, dtype=torch.float64):
    return cases.seeded(Layers(dtype), seed)


def filters_of(name, value):
    """The slow twin: the weights that make each output of a parameter of `Layers`."""
    if name == "up.weight":
        return [value[:, output] for output in range(4)]
    if name == "up_grouped.weight":
        return [value[2 * g : 2 * g + 2, output] for g in range(2) for output in range(3)]
    return list(value)


@pytest.mark.parametrize("scaling", ["filter", "layer"])
def test_every_filter_of_a_direction_is_as_long_as_the_states_and_parallel_to_the_draw(scaling):
    network = layers()
    scaled = Subspace.random(network, 2, 5, scaling=scaling)
    plain = Subspace.random(network, 2, 5).direction(1)
    for name, value in scaled.direction(1).items():
        whole = scaling == "layer"
        mine, drawn, weights = (
            [tensor] if whole else filters_of(name, tensor)
            for tensor in (value, plain[name], network.get_parameter(name).detach())
        )
        assert len(mine) == (1 if whole else network.get_submodule(name[:-7]).bias.numel())
        for filter_, draw, weight in zip(mine, drawn, weights, strict=True):
            want = draw / draw.norm() * weight.norm()
            torch.testing.assert_close(filter_, want, rtol=1e-13, atol=1e-15)


def test_biases_and_normalisation_stay_still_unless_asked():
    network = layers()
    still = Subspace.random(network, 1, 0, scaling="filter")
    assert still.moved == tuple(
        f"{name}.weight" for name in ("conv", "grouped", "up", "up_grouped", "head")
    )
    moved = still.parameters_at(np.array([0.5]))
    for name in ("norm.weight", "norm.bias", "head.bias"):
        torch.testing.assert_close(
            moved[name], network.get_parameter(name).detach(), rtol=0, atol=0
        )
    scaled = Subspace.random(network, 1, 0, scaling="filter", vectors="scale")
    assert scaled.moved == tuple(name for name, _ in network.named_parameters())
    for name in ("norm.weight", "head.bias"):
        torch.testing.assert_close(
            scaled.direction(0)[name].norm(), network.get_parameter(name).detach().norm()
        )
    torch.testing.assert_close(
        scaled.direction(0)["up.weight"], still.direction(0)["up.weight"], rtol=0, atol=0
    )


def test_a_state_dict_is_told_which_weights_are_transposed():
    network = layers()
    given = Subspace.random(network, 1, 3, scaling="filter").direction(0)
    state = network.state_dict()
    named = Subspace.random(state, 1, 3, scaling="filter", transposed="up.*").direction(0)
    torch.testing.assert_close(named["up.weight"], given["up.weight"], rtol=0, atol=0)
    unnamed = Subspace.random(state, 1, 3, scaling="filter").direction(0)
    torch.testing.assert_close(unnamed["conv.weight"], given["conv.weight"], rtol=0, atol=0)
    torch.testing.assert_close(unnamed["up.weight"][2].norm(), state["up.weight"][2].norm())
    assert not torch.allclose(unnamed["up.weight"], given["up.weight"])


def test_a_weight_tied_to_a_transposed_convolution_is_the_first_modules():
    network = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(3, 2, 2)).double()
    network[1].weight = network[0].weight
    direction = Subspace.random(network, 1, 0, scaling="filter").direction(0)["0.weight"]
    weight = network[0].weight.detach()
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))


def test_filters_of_zeros_stay_where_they_are():
    network = layers()
    with torch.no_grad():
        network.conv.weight[1] = 0.0
        network.up.weight[:, 2] = 0.0
    direction = Subspace.random(network, 1, 0, scaling="filter").direction(0)
    assert direction["conv.weight"][1].abs().max() == 0
    assert direction["up.weight"][:, 2].abs().max() == 0
    torch.testing.assert_close(
        direction["conv.weight"][2].norm(), network.conv.weight[2].detach().norm()
    )
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
    with pytest.raises(ValueError, match="expected weights to scale directions by, got zeros only"):
        Subspace.random(network, 1, 0, scaling="filter")


def test_a_draw_of_zeros_is_not_divided_by():
    weights = {"w": torch.ones(2, 3, dtype=torch.float64)}
    filters = Filters(weights, whole=False, groups={})
    draw = {"w": torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]], dtype=torch.float64)}
    want = np.sqrt(3.0) * torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(filters.scaled(draw)["w"], want)


def test_a_scaled_direction_is_the_same_alone_or_among_others_and_in_any_precision():
    network = layers(dtype=torch.float32)
    among = Subspace.random(network, 4, 9, scaling="filter")
    alone = Subspace.random(network, 1, 9, scaling="filter", first=2)
    part = Subspace.random(network, 1, 9, scaling="filter", first=2, parameters="conv.*")
    double = among.cast(dict(layers(seed=1).named_parameters()))
    for other in (alone.direction(0), double.direction(2), among.direction(2)):
        for name, value in among.direction(2).items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=0)
    # Filters are scaled one by one, so what else moves is of no matter.
    torch.testing.assert_close(
        part.direction(0)["conv.weight"], among.direction(2)["conv.weight"], rtol=0, atol=0
    )


def test_directions_made_orthogonal_are_scaled_afterwards():
    network = layers()
    plane = Subspace.random(network, 2, 1, scaling="filter", orthogonal=True)
    straight = Subspace.random(
        network, 2, 1, orthogonal=True, parameters=list(plane.moved)
    )  # the same parameters as move here
    np.testing.assert_allclose(straight.gram(), np.eye(2), atol=1e-12)
    for name, value in plane.direction(1).items():
        drawn, weights = straight.direction(1)[name], network.get_parameter(name).detach()
        for filter_, draw, weight in zip(
            *(filters_of(name, tensor) for tensor in (value, drawn, weights)), strict=True
        ):
            torch.testing.assert_close(filter_, draw / draw.norm() * weight.norm())
    assert 0 < abs(plane.gram()[0, 1]) < 0.3 * plane.gram()[0, 0]


def test_positions_on_a_plane_of_scaled_directions_are_true_distances():
    network = perceptron()
    plane = Subspace.random(network, 2, 4, scaling="filter", vectors="scale")
    np.testing.assert_allclose(
        np.diag(plane.gram()), np.square(flat(plane.origin.parameters)).sum()
    )
    grid = surface_grid(plane, resolution=3, extent=((-1.0, 0.5), (0.0, 2.0)))
    here, there = ((0, 1), (2, 2))
    a, b = (
        flat(plane.parameters_at(np.array([grid.x.values[i], grid.y.values[j]])))
        for j, i in (here, there)
    )
    apart = np.hypot(grid.u[here] - grid.u[there], grid.v[here] - grid.v[there])
    np.testing.assert_allclose(apart, np.linalg.norm(a - b), rtol=1e-12)
    state = Minimum(plane.parameters_at(np.array([0.3, -0.7])))
    np.testing.assert_allclose(plane.coordinates_of(state), [0.3, -0.7], rtol=1e-11)


def test_a_scaled_plane_is_evaluated_like_any_other():
    network, data = perceptron(), cases.points()
    plane = Subspace.random(network, 2, 4, scaling="filter")
    coordinate = np.array([0.4, -0.2])
    want, _ = naive.loss_at(perceptron(), naive.parameters_at(plane, coordinate), data)
    found = fm.Landscape(network, data).losses(plane, coordinate[None])
    np.testing.assert_allclose(found.loss, want, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"scaling": "filters"}, "expected scaling 'unit', 'layer' or 'filter', got 'filters'"),
        ({"vectors": "move"}, "expected vectors 'still' or 'scale', got 'move'"),
        ({"scaling": "filter", "transposed": "down.*"}, r"got 'down\.\*', which matches none"),
        ({"scaling": "layer", "parameters": "*.bias"}, "got vectors only, conv.bias"),
        ({"dimensions": 0}, "expected at least 1 dimension"),
    ],
)
def test_impossible_directions_are_refused_in_one_line(settings, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        Subspace.random(layers(), **{"dimensions": 1, "seed": 0, **settings})
    assert "\n" not in str(caught.value)
