"""Principal components of a trajectory, and how far a state lies off a subspace."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import naive
from cases import flat, perceptron, states
from flatminima.minimum import Minimum
from flatminima.subspace import Subspace


@pytest.mark.parametrize("origin", [-1, 0, 2])
def test_principal_components_are_the_singular_vectors_of_the_differences(origin):
    path = states(perceptron, 6)
    subspace = Subspace.principal(path, 3, origin=origin)
    vectors = np.array([flat(state.parameters) for state in path])
    rows = vectors - vectors[origin]
    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    for k in range(3):
        ours = flat(subspace.direction(k))
        np.testing.assert_allclose(ours * np.sign(ours @ right[k]), right[k], atol=1e-10)
        # The state that is farthest along an axis is on its positive side.
        along = subspace.anchor_coordinates[:, k]
        assert along[np.argmax(np.abs(along))] > 0
    np.testing.assert_allclose(subspace.gram(), np.eye(3), atol=1e-13)
    ratio = subspace.explained_variance_ratio
    np.testing.assert_allclose(ratio, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-10)
    np.testing.assert_array_equal(subspace.cast(path[0].parameters).explained_variance_ratio, ratio)
    basis = np.array([flat(subspace.direction(k)) for k in range(3)])
    np.testing.assert_allclose(subspace.anchor_coordinates, rows @ basis.T, atol=1e-12)
    assert Subspace.through(*path[:3]).explained_variance_ratio is None


def test_principal_components_agree_with_sklearn_where_the_origin_is_the_mean():
    some = states(perceptron, 5)
    mean = {n: sum(s.parameters[n] for s in some) / 5 for n in some[0].parameters}
    subspace = Subspace.principal([*some, Minimum(mean)])
    fitted = PCA(2, svd_solver="full").fit(np.array([flat(state.parameters) for state in some]))
    for k in range(2):
        ours, theirs = flat(subspace.direction(k)), fitted.components_[k]
        np.testing.assert_allclose(ours * np.sign(ours @ theirs), theirs, atol=1e-10)
    np.testing.assert_allclose(
        subspace.explained_variance_ratio, fitted.explained_variance_ratio_, rtol=1e-10
    )


def test_a_trajectory_in_a_plane_is_reproduced():
    a, b, c = states(perceptron, 3)
    mixtures = [(0.2, 0.5), (1.0, 0.1), (-0.4, 0.3), (0.0, 0.0), (0.7, 0.7)]
    path = [Minimum(naive.through(a, b, c, x, y)) for x, y in mixtures]
    plane = Subspace.principal(path)
    np.testing.assert_allclose(plane.explained_variance_ratio.sum(), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(plane.anchor_coordinates[-1], 0.0)
    assert len(plane.anchors) == 5
    for state, coordinate in zip(path, plane.anchor_coordinates, strict=True):
        for name, value in plane.parameters_at(coordinate).items():
            torch.testing.assert_close(value, state.parameters[name], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(plane.distance_of(state), 0.0, atol=1e-12)
    with pytest.raises(
        ValueError, match="span 3 dimensions, got 5 of rank 2; ask for dimensions=2"
    ):
        Subspace.principal(path, 3)


def test_a_large_tensor_is_summed_in_parts(monkeypatch):
    path = states(perceptron, 4)
    whole = Subspace.principal(path)
    monkeypatch.setattr("flatminima.subspace._principal._COLUMNS", 7)
    parts = Subspace.principal(path)
    for k in range(2):
        np.testing.assert_allclose(
            flat(parts.direction(k)), flat(whole.direction(k)), rtol=1e-9, atol=1e-12
        )


def test_principal_components_do_not_depend_on_how_states_come():
    networks = [perceptron(seed, dtype=torch.float32) for seed in range(3)]
    modules = Subspace.principal(networks)
    dicts = Subspace.principal([network.state_dict() for network in networks])
    np.testing.assert_array_equal(modules.anchor_coordinates, dicts.anchor_coordinates)


@pytest.mark.parametrize(
    ("pick", "settings", "complaint"),
    [
        ([0, 1], {}, "expected at least 3 states for 2 principal components, got 2"),
        ([0, 0, 0], {}, "expected states that differ, got 3 identical ones"),
        ([0, 1, 0, 1], {}, "span 2 dimensions, got 4 of rank 1; ask for dimensions=1"),
        ([0, 1, 2], {"dimensions": 0}, "expected at least 1 dimension, got 0"),
        ([0, 1, 2], {"origin": 3}, "expected an origin among 3 states, got 3"),
        ([0, 1, 3], {}, r"non-finite values in 0\.bias of state 2"),
        ([3, 1, 2], {}, r"non-finite values in 0\.bias of state 0"),
        ([0, 1, 4], {}, r"0\.weight of shape .* in state 0"),
    ],
)
def test_impossible_trajectories_are_refused_in_one_line(pick, settings, complaint):
    known = states(perceptron, 4)
    known[3].parameters["0.bias"][1] = float("inf")
    known += states(lambda s: perceptron(s, sizes=(6, 9, 5, 4)), 1)
    with pytest.raises(ValueError, match=complaint) as caught:
        Subspace.principal([known[index] for index in pick], **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["through", "random", "filter", "part"])
def test_the_distance_off_a_subspace_is_that_of_the_flat_vectors(kind):
    a, b, c, d = states(perceptron, 4)
    subspace = {
        "through": lambda: Subspace.through(a, b, c),
        "random": lambda: Subspace.random(a, 3, 0),
        "filter": lambda: Subspace.random(a, 2, 0, scaling="filter"),
        "part": lambda: Subspace.random(a, 2, 0, parameters=["2.weight", "2.bias"]),
    }[kind]()
    rows = []
    for k in range(subspace.dimensions):
        full = {n: torch.zeros_like(v) for n, v in a.parameters.items()} | subspace.direction(k)
        rows.append(flat({name: full[name] for name in a.parameters}))
    step = flat(d.parameters) - flat(a.parameters)
    coordinates, *_ = np.linalg.lstsq(np.array(rows).T, step, rcond=None)
    want = np.linalg.norm(step - np.array(rows).T @ coordinates)
    np.testing.assert_allclose(subspace.distance_of(d), want, rtol=1e-12)
    inside = Minimum(subspace.parameters_at(np.full(subspace.dimensions, 0.3)))
    np.testing.assert_allclose(subspace.distance_of(inside), 0.0, atol=1e-13)
    # Just off the plane: a difference of squares would lose it.
    inside.parameters["4.bias"] = inside.parameters["4.bias"] + 1e-9
    assert 1e-10 < subspace.distance_of(inside) < 3e-9


def test_the_distance_of_a_state_of_another_network_is_refused():
    line = Subspace.through(*states(perceptron, 2))
    with pytest.raises(ValueError, match="expected states of one architecture"):
        line.distance_of(perceptron(sizes=(6, 9, 5, 4)))
