"""Radii that a sample of the examples leads to, against those that all of them are asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flatminima as fm
from cases import perceptron, points, quadratic
from flatminima.flatness._crossing import _Ray, first_crossings
from flatminima.flatness._sample import Sample, stepwise_by_sample
from flatminima.flatness._walk import CENSORED, CROSSED, NON_FINITE, Walk, stepwise
from flatminima.landscape import Losses
from flatminima.landscape._importance import draw
from flatminima.subspace import Subspace

RAYS, THRESHOLD = 3, 0.05
MANY = 4000


class Asked:
    """A walk whose loss along each ray is a function of direction and signed distance."""

    def __init__(self, function):
        self.points = []

        def losses(_subspace, coordinates):
            index = np.abs(coordinates).argmax(1)
            at = coordinates[np.arange(len(coordinates)), index]
            self.points += [(int(k), float(t)) for k, t in zip(index, at, strict=True) if t]
            loss = np.array([function(k, t) for k, t in zip(index, at, strict=True)], dtype=float)
            finite = np.isfinite(loss)
            loss = np.where(finite, loss, np.nan)
            return Losses(loss, {}, finite, None, "known", "none", MANY)

        network, _ = quadratic([1.0] * 4)
        self.walk = Walk(losses, Subspace.random(network, RAYS, 0), THRESHOLD)


def crossings(function, sampled, **given):
    """The radii by all examples, those that a sample leads to, and what was asked for these."""
    options = {"guess": 1.0, "limit": 100.0, "tolerance": 1e-3, **given}
    alone, led = Asked(function), Asked(function)
    sample = Sample(Asked(sampled).walk, MANY // 10)
    want = first_crossings(alone.walk, **options)
    got = first_crossings(led.walk, **options, sample=sample)
    assert len(led.points) == got.evaluations.sum()
    return want, got, led.points


@given(
    scale=st.floats(0.05, 20.0),
    power=st.floats(1.0, 4.0),
    off=st.lists(st.floats(0.8, 1.25), min_size=RAYS, max_size=RAYS),
    bend=st.floats(-0.3, 0.3),
)
@settings(max_examples=60, deadline=None)
def test_a_sample_that_is_off_leads_to_the_same_crossing(scale, power, off, bend):
    def function(k, t):
        return THRESHOLD * (abs(t) / (scale * (1 + k / 10))) ** power

    def sampled(k, t):
        return function(k, t) * off[k] * (1e-9 + abs(t) / scale) ** bend

    want, got, points = crossings(function, sampled)
    np.testing.assert_array_equal(got.outcome, CROSSED)
    true = np.repeat([scale * (1 + k / 10) for k in range(RAYS)], 2)
    np.testing.assert_allclose(got.radius, true, rtol=1e-3)
    np.testing.assert_allclose(got.radius, want.radius, rtol=1e-3)
    # Each crossing lies between two points, one below and one above, of all examples.
    for ray, radius in enumerate(true):
        sign = 1 if ray % 2 == 0 else -1
        at = np.array([sign * t for k, t in points if k == ray // 2 and sign * t > 0])
        below, above = at[at < radius].max(), at[at >= radius].min()
        assert above - below <= 1e-3 * above


def test_a_sample_that_is_off_by_a_factor_leaves_three_evaluations_of_seven():
    def function(k, t):
        return 0.01 * (1 + k) * abs(t) ** 2.5

    want, got, _ = crossings(function, lambda k, t: 1.15 * function(k, t))
    assert want.evaluations.mean() > 6
    assert got.evaluations.max() <= 3


def guided(doubt):
    """A ray that is known at 1 and at 8, where it is over, and whose guide is over at 2."""
    guide, ray = (_Ray(Asked(lambda *_: 0.0).walk, 0, 1) for _ in range(2))
    guide.add(np.array([1.0, 2.0, 3.0]), THRESHOLD * np.array([0.1, 3.0, 0.2]))
    ray.add(np.array([1.0, 8.0]), THRESHOLD * np.array([0.1, 1.1]))
    ray.guide, ray.doubt = guide, doubt * THRESHOLD
    return ray


def test_where_a_guide_is_surely_over_all_examples_are_asked_first():
    assert guided(0.1).filling() == [2.0]
    unsure = guided(2.5).filling()
    assert len(unsure) > 1
    assert 2.0 not in unsure


def test_a_reentry_that_a_guide_has_seen_counts():
    assert guided(0.1).reentries == 1


@given(first=st.floats(0.1, 3.0), hump=st.floats(0.9, 2.0), off=st.floats(0.85, 1.2))
@settings(max_examples=40, deadline=None)
def test_a_crossing_before_a_dip_is_found_where_the_sample_sees_it(first, hump, off):
    """Over for `hump`, which is more than a quarter of where it is over for good."""
    start, end = (1.0 + hump) * first, (2.0 + hump) * first

    def function(_, t):
        away = abs(t)
        over = THRESHOLD * (away / (first if away < start else end)) ** 2
        return 0.1 * over if start <= away < end else over

    _, got, _ = crossings(function, lambda k, t: off * function(k, t))
    np.testing.assert_allclose(got.radius, first, rtol=1e-3)


def test_where_a_sample_says_that_it_is_over_all_examples_are_asked():
    """A hump of the sample alone is no crossing, and one of all examples is, however it came up."""

    def rising(_, t):
        return THRESHOLD * (t / 8.0) ** 2

    def humped(k, t):
        return 3.0 * THRESHOLD if 2.0 < abs(t) < 4.0 else rising(k, t)

    _, got, points = crossings(rising, humped)
    np.testing.assert_allclose(got.radius, 8.0, rtol=1e-3)
    assert any(2.0 < abs(t) < 4.0 for _, t in points)
    _, got, _ = crossings(humped, humped)
    assert (got.radius < 2.01).all()


def test_what_lies_within_the_difference_is_asked_of_all_examples():
    """The sample is off by half of the threshold: it cannot tell what is not over at 0.6 of it."""

    def function(_, t):
        return THRESHOLD * abs(t)

    def lower(_, t):
        return 0.5 * THRESHOLD * abs(t)

    _, near, sure = crossings(function, function)
    _, off, doubtful = crossings(function, lower)
    np.testing.assert_allclose(near.radius, 1.0, rtol=1e-3)
    np.testing.assert_allclose(off.radius, 1.0, rtol=1e-3)

    def before(points):
        return sum(0.5 < abs(t) < 0.9 for _, t in points)

    assert before(sure) == 0
    assert before(doubtful) >= 2 * RAYS


def test_what_does_not_cross_is_said_by_all_examples():
    _, got, points = crossings(lambda k, t: 0.0, lambda k, t: 1e-6 * t * t, limit=7.0)
    np.testing.assert_array_equal(got.outcome, CENSORED)
    np.testing.assert_array_equal(got.radius, 7.0)
    assert len(points) == 2 * RAYS
    _, got, _ = crossings(lambda k, t: THRESHOLD * t * t / 9.0, lambda k, t: 0.0, limit=7.0)
    np.testing.assert_array_equal(got.outcome, CROSSED)
    np.testing.assert_allclose(got.radius, 3.0, rtol=1e-3)
    _, got, _ = crossings(lambda k, t: 0.0, lambda k, t: THRESHOLD * t * t / 9.0, limit=7.0)
    np.testing.assert_array_equal(got.outcome, CENSORED)


@pytest.mark.parametrize("of_sample", [0.0, np.nan])
def test_a_loss_that_is_not_finite_is_an_outcome(of_sample):
    def function(_, t):
        return 0.0 if abs(t) < 2.0 else np.nan

    _, got, _ = crossings(function, lambda k, t: 0.0 if abs(t) < 2.0 else of_sample)
    np.testing.assert_array_equal(got.outcome, NON_FINITE)
    np.testing.assert_allclose(got.radius, 2.0, rtol=1e-6)


@given(
    slopes=st.lists(st.floats(0.002, 0.06), min_size=RAYS, max_size=RAYS),
    off=st.floats(0.6, 1.6),
    sign=st.sampled_from([1, -1]),
)
@settings(max_examples=60, deadline=None)
def test_a_sample_leads_a_stepwise_walk_to_the_same_step(slopes, off, sign):
    def function(k, t):
        return sign * slopes[k] * abs(t)

    alone, led = Asked(function), Asked(function)
    sample = Sample(Asked(lambda k, t: off * function(k, t)).walk, MANY // 10)
    want = stepwise(alone.walk, step=1.0, limit=12.0, stride=4)
    got = stepwise_by_sample(led.walk, sample, step=1.0, limit=12.0, stride=4)
    np.testing.assert_array_equal(got.radius, want.radius)
    np.testing.assert_array_equal(got.outcome, want.outcome)
    assert got.evaluations.sum() == len(led.points)


def test_a_stepwise_walk_ends_where_the_loss_is_not_finite():
    def function(_, t):
        return 0.001 * t if t < 5.0 else np.inf

    led = Asked(function)
    sample = Sample(Asked(lambda k, t: 0.001 * t).walk, MANY // 10)
    got = stepwise_by_sample(led.walk, sample, step=1.0, limit=5.0, stride=4)
    np.testing.assert_array_equal(got.outcome, NON_FINITE)
    np.testing.assert_array_equal(got.radius, 4.0)


@pytest.mark.parametrize("protocol", ["crossing", "stepwise"])
@pytest.mark.parametrize("parameters", ["all", "2.*"])
def test_fast_radii_of_a_network_are_its_radii(protocol, parameters):
    network, data = perceptron(dtype=torch.float32), points(MANY, dtype=torch.float32)
    options = {"directions": 4, "protocol": protocol, "parameters": parameters, "step": 0.2}
    exact, fast = (
        fm.flatness_radius(fm.Landscape(network, data, precision=each), network, **options)
        for each in ("exact", "fast")
    )
    np.testing.assert_allclose(fast.radius, exact.radius, rtol=1e-3)
    np.testing.assert_array_equal(fast.outcome, exact.outcome)
    assert fast.evaluations.sum() < exact.evaluations.sum()
    assert (fast.attrs["precision"], fast.attrs["sampled"]) == ("fast", MANY // 10)
    assert fast.attrs["largest_difference"] > 0.0
    assert "sampled" not in exact.attrs


class OneWeight(nn.Module):
    """Multiplies by one weight."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return x * self.w


def few():
    return perceptron(dtype=torch.float32), points(200, dtype=torch.float32), {}, {}


def top():
    data = points(MANY, dtype=torch.float32)
    return perceptron(dtype=torch.float32), data, {}, {"parameters": "top"}


def own_loss():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = perceptron(dtype=torch.float32)

        def forward(self, x, labels):
            return {"loss": nn.functional.cross_entropy(self.inside(x), labels)}

    data = points(MANY, dtype=torch.float32)
    given = fm.Dataset({"x": data.inputs}, data.targets)
    return Network(), given, {"loss": "model", "weight": lambda batch: len(batch["labels"])}, {}


def negative():
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none") - 1.0

    return perceptron(dtype=torch.float32), points(MANY, dtype=torch.float32), {"loss": loss}, {}


@pytest.mark.parametrize("case", [few, top, own_loss, negative])
def test_where_a_sample_saves_nothing_or_says_nothing_all_is_exact(case):
    network, data, given, options = case()
    exact, fast = (
        fm.flatness_radius(
            fm.Landscape(network, data, precision=each, **given), network, directions=2, **options
        )
        for each in ("exact", "fast")
    )
    np.testing.assert_array_equal(fast.radius, exact.radius)
    assert fast.attrs["sampled"] == 0


def test_a_sample_leaves_its_landscape_as_it_was():
    network, data = perceptron(dtype=torch.float32), points(MANY, dtype=torch.float32)
    masks = {"some": torch.arange(MANY) % 3 == 0}
    landscape = fm.Landscape(network, data, subsets=masks)
    subspace = Subspace.random(network, 2, 0)
    before = landscape.losses(subspace, np.ones((1, 2)))
    some = landscape._sampled(landscape.state(network), 400)
    assert some is not None
    found = some.losses(subspace, np.ones((1, 2)))
    after = landscape.losses(subspace, np.ones((1, 2)))
    assert found.samples == len(some.dataset)
    assert found.path == before.path == "affine"
    assert not found.metrics
    np.testing.assert_array_equal(before.loss, after.loss)
    assert "loss_some" in after.metrics


def test_a_sampled_loss_is_the_mean_in_which_examples_weigh_what_they_stand_for():
    network, data = perceptron(), points(MANY)
    landscape = fm.Landscape(network, data)
    each = nn.functional.cross_entropy(network(data.inputs), data.targets, reduction="none")
    drawn, weights = draw(each.detach().numpy(), 400)
    some = landscape._sampled(landscape.state(network), 400)
    assert some is not None
    want = np.average(each.detach().numpy()[drawn], weights=np.float32(weights))
    np.testing.assert_allclose(some.loss_at(network).loss[0], want, rtol=1e-12)
    np.testing.assert_allclose(
        some.loss_at(network).loss, landscape.loss_at(network).loss, rtol=0.1
    )


def test_a_sample_keeps_the_weights_that_a_loss_gives():
    """A sum and a weight per example, as of sequences of different lengths."""
    network = OneWeight()
    lengths = torch.arange(1.0, MANY + 1, dtype=torch.float64)
    data = fm.Dataset(torch.full((MANY, 1), 2.0, dtype=torch.float64), lengths)
    landscape = fm.Landscape(network, data, loss=lambda outputs, n: (outputs[:, 0] * n, n))
    some = landscape._sampled(landscape.state(network), 400)
    assert some is not None
    np.testing.assert_allclose(some.loss_at(network).loss, 2.0, rtol=1e-12)


@given(seed=st.integers(0, 2**31), spread=st.floats(0.0, 3.0), zeros=st.floats(0.0, 0.9))
@settings(max_examples=40, deadline=None)
def test_drawn_examples_stand_for_all(seed, spread, zeros):
    rng = np.random.default_rng(seed)
    losses = np.exp(spread * rng.normal(size=3000)) * (rng.random(3000) > zeros)
    drawn, weights = draw(losses, 300)
    assert abs(len(drawn) - 300) <= 1
    assert (np.diff(drawn) > 0).all()
    assert (weights >= 1.0).all()
    # In their order by loss the examples that are drawn stand for those around them.
    np.testing.assert_allclose(weights.sum(), 3000, rtol=0.05)
    np.testing.assert_allclose((weights * losses[drawn]).sum(), losses.sum(), rtol=0.15)
    again, _ = draw(losses, 300)
    np.testing.assert_array_equal(drawn, again)


def test_examples_of_one_loss_are_drawn_alike():
    drawn, weights = draw(np.zeros(1000), 100)
    assert len(drawn) == 100
    np.testing.assert_allclose(weights, 10.0)
    drawn, weights = draw(np.ones(50), 50)
    np.testing.assert_array_equal(drawn, np.arange(50))
    np.testing.assert_allclose(weights, 1.0)


def test_rounding_of_an_example_that_stands_for_many_does_not_pass_for_a_wrong_path():
    """Nearly all examples are fitted: the few of them that are drawn stand for thousands."""
    network, data = perceptron(dtype=torch.float32), points(MANY, dtype=torch.float32)
    with torch.no_grad():
        network[-1].weight.mul_(1e3)
        targets = network(data.inputs).argmax(1)
    landscape = fm.Landscape(network, fm.Dataset(data.inputs, targets, classes=4))
    some = landscape._sampled(landscape.state(network), 400)
    assert some is not None
    weights = some._batches.weights
    assert 0.5 < float(weights.max()) <= 1.0
    subspace = Subspace.random(network, 2, 0)
    assert some.losses(subspace, np.ones((1, 2))).path == "affine"
    with torch.no_grad():
        losses = nn.functional.cross_entropy(network(data.inputs), targets, reduction="none")
    drawn, exact = draw(losses.double().numpy(), 400)
    scale = float(weights[0]) / exact[0]
    assert np.log2(scale) == pytest.approx(round(np.log2(scale)))
    np.testing.assert_allclose(weights, scale * exact, rtol=1e-6)
    assert len(drawn) == len(weights)


class Counting(nn.Module):
    """Counts its calls in a buffer, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.inside = perceptron(dtype=torch.float32)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.inside(x) + 0.01 * self.calls


def test_to_draw_a_sample_leaves_the_buffers_of_a_state():
    network, data = Counting(), points(MANY, dtype=torch.float32)
    landscape = fm.Landscape(network, data)
    state = landscape.state(network)
    before = {name: value.clone() for name, value in state.buffers.items()}
    assert landscape._sampled(state, 400) is not None
    torch.testing.assert_close(state.buffers, before, rtol=0.0, atol=0.0)
