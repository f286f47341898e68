"""Refinement: what is evaluated keeps its bits, what is not is close, and it says how close."""

import numpy as np
import pytest

import flatminima as fm
from cases import perceptron, points, states
from flatminima.landscape._losses import Losses
from flatminima.landscape._refine import refine_losses
from flatminima.subspace import Subspace


def on_grid(values, clip=None):
    """An evaluation that looks values up, and the list of what it was asked."""
    asked = []

    def evaluate(chosen):
        asked.extend(chosen.tolist())
        loss = values.ravel()[chosen]
        clipped = None
        if clip is not None:
            clipped = loss > clip
            loss = np.minimum(loss, clip)
        return Losses(
            loss,
            {"accuracy": 1 / (1 + loss)},
            np.isfinite(loss),
            None,
            "affine",
            "none",
            1,
            clip=clip,
            clipped=clipped,
        )

    return evaluate, asked


def bowl(rows=33, columns=41):
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    return 4 * x**2 + 2 * y**2 + x * y


def test_a_smooth_surface_needs_few_points_and_is_close():
    truth = bowl()
    evaluate, asked = on_grid(truth)
    losses, refinement = refine_losses(evaluate, *truth.shape, 0.05)
    assert len(asked) == len(set(asked)) < truth.size / 2
    off = np.abs(losses.loss - truth.ravel()) / np.sqrt(1 + truth.ravel() ** 2)
    assert off.max() < 0.05
    np.testing.assert_array_equal(losses.loss[asked], truth.ravel()[asked])
    np.testing.assert_array_equal(np.flatnonzero(~refinement.interpolated), np.sort(asked))
    assert refinement.held_out >= 10
    assert 0 < refinement.root_mean_square <= refinement.largest <= off.max() * 3
    np.testing.assert_allclose(losses.metrics["accuracy"], 1 / (1 + truth.ravel()), atol=0.05)


def test_a_smaller_tolerance_evaluates_more_and_is_closer():
    truth = bowl()
    errors, counts = [], []
    for tolerance in (0.3, 0.03, 0.003):
        evaluate, asked = on_grid(truth)
        losses, _ = refine_losses(evaluate, *truth.shape, tolerance)
        counts.append(len(asked))
        errors.append(np.abs(losses.loss - truth.ravel()).max())
    assert counts == sorted(counts)
    assert errors == sorted(errors, reverse=True)


def test_points_gather_where_the_surface_bends():
    rows = columns = 49
    _y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    ridge = np.exp(-(((x - 0.3) / 0.06) ** 2))
    evaluate, asked = on_grid(ridge)
    refine_losses(evaluate, rows, columns, 0.02)
    near = np.abs(x - 0.3).ravel()[asked] < 0.15
    share = (np.abs(x - 0.3) < 0.15).mean()
    assert near.mean() > 1.5 * share


def test_holes_stay_holes_and_are_surrounded_by_evaluated_points():
    truth = bowl()
    truth[5:12, 6:15] = np.nan
    evaluate, _ = on_grid(truth)
    losses, refinement = refine_losses(evaluate, *truth.shape, 0.1)
    np.testing.assert_array_equal(losses.finite, np.isfinite(truth).ravel())
    assert not refinement.interpolated.reshape(truth.shape)[5:12, 6:15].any()


def test_the_held_out_points_give_a_bad_interpolation_away():
    noise = np.random.default_rng(0).random((33, 33)) * 1e-3
    truth = noise.copy()
    truth[1::2, 1::2] += 5.0  # between the lines of every coarser grid
    evaluate, _ = on_grid(truth)
    losses, refinement = refine_losses(evaluate, 33, 33, 0.1)
    missed = np.abs(losses.loss - truth.ravel()).max()
    assert missed > 4
    assert refinement.largest > 1


def test_a_plateau_is_not_refined():
    truth = np.where(bowl() > 1.0, 9.0, bowl())
    evaluate, asked = on_grid(truth, clip=2.0)
    losses, _ = refine_losses(evaluate, *truth.shape, 0.05)
    assert losses.loss.max() == 2.0
    np.testing.assert_array_equal(losses.clipped, losses.loss == 2.0)
    assert len(asked) < truth.size


@pytest.mark.parametrize("shape", [(2, 2), (2, 9), (5, 5), (14, 29)])
def test_any_grid(shape):
    truth = bowl(*shape)
    evaluate, asked = on_grid(truth)
    losses, refinement = refine_losses(evaluate, *shape, 1e9)
    assert len(set(asked)) == len(asked)
    assert losses.loss.shape == (truth.size,)
    assert np.isfinite(losses.loss).all()
    assert refinement.interpolated.sum() + len(asked) == truth.size


def test_a_refined_surface():
    landscape = fm.Landscape(perceptron(), points())
    plane = Subspace.through(*states(perceptron, 3))
    whole = fm.loss_surface(landscape, plane, resolution=25)
    found = fm.loss_surface(landscape, plane, resolution=25, refine=0.1)
    evaluated = found["interpolated"].values == 0
    assert 0.1 < evaluated.mean() < 0.9
    np.testing.assert_array_equal(found["loss"].values[evaluated], whole["loss"].values[evaluated])
    scale = np.sqrt(1 + whole["loss"] ** 2)
    assert float((np.abs(found["loss"] - whole["loss"]) / scale).max()) < 0.1
    assert found.attrs["refine"] == 0.1
    assert found.attrs["held_out"] >= 10
    assert found.attrs["held_out_rms"] <= found.attrs["held_out_largest"] < 0.1
    np.testing.assert_array_equal(found["anchor_loss"], whole["anchor_loss"])
    assert "interpolated" not in whole
    with pytest.raises(ValueError, match="positive refine"):
        fm.loss_surface(landscape, plane, refine=0.0)
