import json

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from flatminima._seeds import derive_seed
from flatminima.flatness.summary import merge_radii, summarise, welch
from flatness.studies import GROUPS, MISSING, alike, apart, block, history, said, settings, study


def test_hand_computed_example():
    means = {"natural": [10.0, 11.0, 12.0], "random": [4.0, 5.0, 9.0]}
    summary, _ = study(lambda _, p, g, n: means[g][n] * np.array([[0.5, 1.5]]))
    cell = summary.sel(column="measured_end", parameters="all")
    assert_allclose(cell["mean"], [means["natural"], means["random"]])
    assert_allclose(cell["geometric"][0, 0], 10 * np.sqrt(0.75))
    assert_allclose(cell["harmonic"][0, 0], 10 * ((4 + 4 / 9) / 2) ** -0.5)
    assert_allclose(cell["least"][0], [5.0, 5.5, 6.0])
    assert_allclose(cell["group_mean"], [11.0, 6.0])
    assert_allclose(cell["group_deviation"], [np.sqrt(2 / 3), np.sqrt(14 / 3)])
    assert_allclose(cell["group_relative"], [11 / 20, 6 / 20])
    assert_allclose(cell["group_interval"][0], 11 + np.array([-1, 1]) * 4.302653 / np.sqrt(3))
    # Welch by hand: variances 1 and 7 over 3 networks each, 64 / 25 = 2.56 degrees of freedom.
    half = stats.t.ppf(0.975, 2.56) * np.sqrt(8 / 3)
    absolute, relative = (cell.sel(scale=scale) for scale in ("absolute", "relative"))
    assert_allclose(absolute["difference"], 5.0)
    assert_allclose(absolute["interval"], [5 - half, 5 + half])
    assert_allclose(relative["interval"], absolute["interval"] / 20)
    assert_allclose(absolute["ratio"], 11 / 6)
    assert absolute["verdict"] == 0


def test_train_loss_is_that_of_the_checkpoint():
    summary, _ = study(apart)
    assert_allclose(summary["group_train_loss"].sel(column="measured_matched"), 0.04)
    assert_allclose(summary["group_train_loss"].sel(column="measured_end"), 0.01)


def test_statistics_are_nan_only_where_nothing_was_measured():
    histories = [
        history("natural", 0),
        history("natural", 1, outcome="diverged"),
        history("natural", 2),
        *[history("random", n, matched=1 if n else -1) for n in range(3)],
    ]
    summary, _ = study(apart, histories=histories)
    for name in ("mean", "geometric", "harmonic", "least", "median", "norm", "train_loss"):
        assert_array_equal(np.isnan(summary[name]), summary["status"] != 0, err_msg=name)


def test_claims_lead_with_matched_loss_and_name_the_exception():
    summary, _ = study(apart)
    first, exception, end, _ = json.loads(summary.attrs["sentences"])
    assert first.startswith("At matched train loss")
    assert "the natural minima are flatter than the random ones over all parameters: " in first
    assert "mean radius 10.1 against 4.10, 95 % interval of the difference 5.7" in first
    assert "n = 3 against 3" in first
    assert "r/||w|| says the same" in first
    assert exception.startswith(
        "The published exception, a larger top-layer radius for random, holds at matched train "
        "loss in absolute radius (4.10 against 10.1, "
    )
    assert ") and in r/||w|| (" in exception
    assert end.startswith("At the end of training")
    assert_array_equal(summary["verdict"].sel(parameters="all"), 1)
    assert_array_equal(summary["verdict"].sel(parameters="top"), 2)


def test_exception_is_judged_in_each_normalisation():
    summary, radii = study(apart)
    # Random top layers of ten times the norm: larger in absolute radius, smaller relative to it.
    heavy = (radii["group"] == "random") & (radii["parameters"] == "top")
    radii["norm"] = radii["norm"].where(~heavy, 200.0)
    histories = [history(g, n) for g in GROUPS for n in range(3)]
    summary = summarise(settings(), histories, radii)
    assert "holds at matched train loss in absolute radius" in said(summary)
    assert "but does not hold in r/||w||" in said(summary)


def test_no_difference_is_claimed_where_the_interval_includes_zero():
    summary, _ = study(alike)
    assert_array_equal(summary["verdict"], 0)
    assert "minima are flatter" not in said(summary)
    assert "no difference in flatness is claimed over all parameters" in said(summary)
    assert "is not confirmed at matched train loss in absolute radius" in said(summary)


def test_not_reached_gives_no_matched_verdict():
    histories = [history(g, n, matched=-1 if (g, n) == ("random", 2) else 1)
                 for g in GROUPS for n in range(3)]  # fmt: skip
    summary, radii = study(apart, histories=histories)
    matched = summary.sel(column="measured_matched")
    assert_array_equal(matched["verdict"], 3)
    assert np.isnan(matched["interval"]).all()
    assert_array_equal(matched["not_reached"].sel(group="random"), 1)
    assert_array_equal(matched["group_n"].sel(group="random"), 2)
    assert "random: not reached (1 of 3)" in json.loads(summary.attrs["sentences"])[0]
    assert "At matched train loss (" not in said(summary)
    assert len(json.loads(radii.attrs["unmeasured"])) == 2
    assert_array_equal(summary["verdict"].sel(column="measured_end", parameters="all"), 1)


def test_excluded_networks_are_left_out_and_counted():
    histories = [history(g, n, outcome="diverged" if (g, n) == ("natural", 1) else "fitted")
                 for g in GROUPS for n in range(3)]  # fmt: skip
    summary, _ = study(apart, histories=histories)
    assert_array_equal(summary["excluded"].sel(group="natural"), 1)
    assert_array_equal(summary["group_n"].sel(group="natural"), 2)
    assert_allclose(summary["group_mean"].sel(group="natural", parameters="all"), 10.1)
    assert "Left out of every number here: natural network 1 (diverged)." in said(summary)
    kept = summarise(settings(summary={"exclude": []}), histories, study(apart)[1])
    assert_array_equal(kept["group_n"], 3)


def test_a_block_can_say_itself_that_its_network_is_left_out():
    histories = [history("natural", n, outcome="diverged" if n else "fitted") for n in range(2)]
    blocks = [
        block([[1.0, 2.0]], "natural", 0),
        xr.Dataset(attrs=block([[1]], "natural", 1).attrs | {"status": "excluded"}),
    ]
    used = settings(
        groups=[{"name": "natural"}],
        training={},
        radius={"parameters": ["all"], "protocols": ["crossing"]},
        summary={"exclude": []},
    )
    cell = summarise(used, histories, merge_radii(blocks)).sel(column="measured_end")
    assert_array_equal(cell["status"].squeeze(), [0, 2])
    assert_array_equal(cell["excluded"], 1)


def test_a_lower_bound_does_not_lose_a_comparison():
    histories = [history(g, n) for g in GROUPS for n in range(3)]
    _, radii = study(apart)
    random_all = (radii["group"] == "random") & (radii["parameters"] == "all")
    radii["outcome"] = radii["outcome"].where(~random_all, 1)
    summary = summarise(settings(), histories, radii)
    assert_array_equal(summary["verdict"].sel(parameters="all"), 0)
    assert_array_equal(summary["censored"].sel(group="random", parameters="all"), 4)
    assert "but the smaller mean is only a lower bound" in said(summary)
    assert "Means are lower bounds where rays did not cross" in said(summary)

    _, radii = study(apart)  # the larger side being a bound leaves the claim standing
    natural_all = (radii["group"] == "natural") & (radii["parameters"] == "all")
    radii["outcome"] = radii["outcome"].where(~natural_all, 2)
    summary = summarise(settings(), histories, radii)
    assert_array_equal(summary["verdict"].sel(parameters="all"), 1)
    assert_array_equal(summary["non_finite"].sel(group="natural", parameters="all"), 4)


def test_radius_zero_is_a_number():
    summary, _ = study(lambda *_: np.array([[0.0, 2.0]]) + 0)
    assert_allclose(summary["geometric"], 0.0)
    assert_allclose(summary["harmonic"], 0.0)
    assert_allclose(summary["mean"], 1.0)


@pytest.mark.parametrize("networks", [1, 3])
def test_without_spread_there_is_no_interval_and_no_claim(networks):
    summary, _ = study(lambda _, p, g, n: np.array([[2.0 + (g == "natural")]]), networks=networks)
    assert np.isnan(summary["interval"]).all()
    assert_array_equal(summary["verdict"], 0)
    assert "no interval" in said(summary)


def test_a_column_that_was_not_asked_for_is_not_measured():
    changes = {"radius": {"parameters": ["all"], "protocols": ["crossing"]}}
    summary, _ = study(apart, **changes)
    assert_array_equal(summary["status"].sel(column="as_published"), 3)
    summary, _ = study(apart, training={"match_loss": None})
    assert_array_equal(summary["status"].sel(column="measured_matched"), 3)
    assert json.loads(summary.attrs["sentences"])[0].startswith("At the end of training")
    summary, _ = study(apart, radius={"parameters": ["all"], "protocols": ["stepwise"]})
    assert said(summary).startswith("Only the published protocol was repeated")


def test_the_published_walk_compares_at_the_end_where_crossings_were_not_asked_for():
    radius = {"parameters": ["all"], "protocols": ["crossing", "stepwise"]}
    summary, _ = study(apart, radius={**radius, "checkpoints": ["matched"]})
    assert_array_equal(summary["status"].sel(column="measured_end"), 3)
    text = said(summary)
    assert "At the end of training, by the published walk, with the train losses" in text
    assert "that at the end of training is at matched epochs" in text
    both, _ = study(apart, radius=radius)
    assert "by the published walk" not in said(both)


def test_a_network_on_a_spike_of_its_loss_is_seen_in_the_sentences():
    histories = [
        history(group, n, last=0.9 if (group, n) == ("random", 1) else 0.02)
        for group in GROUPS
        for n in range(3)
    ]
    summary, _ = study(apart, histories=histories)
    assert "ended with (0.0200 against 0.0200 to 0.900;" in said(summary)


def test_one_group_has_nothing_to_compare():
    histories = [history("natural", n) for n in range(2)]
    summary, _ = study(apart, histories=histories, groups=[{"name": "natural"}])
    assert "nothing to compare" in said(summary)
    assert np.isnan(summary["difference"]).all()


@pytest.mark.parametrize("matched", [1, -1])
def test_both_datasets_survive_storage(tmp_path, matched):
    histories = [history(g, n, matched=matched) for g in GROUPS for n in range(2)]
    for name, dataset in zip(("summary", "radii"), study(apart, histories=histories), strict=True):
        path = tmp_path / f"{name}.zarr"
        dataset.to_zarr(path, zarr_format=2, consolidated=False)
        stored = xr.open_zarr(path, consolidated=False).load()
        xr.testing.assert_identical(stored, dataset)


def test_merging_does_not_depend_on_the_order_of_blocks():
    blocks = [
        block(np.arange(4.0).reshape(2, 2) + first, group, 0, first=first)
        for group in GROUPS
        for first in (0, 2)
    ]
    merged = merge_radii(blocks)
    xr.testing.assert_identical(merge_radii(blocks[::-1]), merged)
    assert_array_equal(merged["direction"].values[:8], [0, 0, 1, 1, 2, 2, 3, 3])
    assert_array_equal(merged["sign"].values[:4], [1, -1, 1, -1])
    assert_allclose(merged["radius"].values[:8], [0, 1, 2, 3, 2, 3, 4, 5])
    assert merged.attrs["threshold"] == 0.05
    assert merged.sizes == {"ray": 16}


def test_nothing_merged_is_an_empty_table():
    merged = merge_radii([xr.Dataset(attrs=block([[1]], "natural", 0).attrs | MISSING)])
    assert merged.sizes == {"ray": 0}


def test_bad_input_is_refused():
    good = block([[1.0, 2.0]], "natural", 0)
    with pytest.raises(ValueError, match=r"expected every ray once, got direction 0 of network 0"):
        merge_radii([good, good])
    del good.attrs["protocol"]
    with pytest.raises(ValueError, match="got one without protocol"):
        merge_radii([good])
    histories = [history(g, n) for g in GROUPS for n in range(2)]
    with pytest.raises(ValueError, match="expected radii of network 0 of group 'natural'"):
        summarise(settings(), histories, merge_radii([]))
    with pytest.raises(ValueError, match="expected a history for network 1 of group 'random'"):
        summarise(settings(), histories[:-1], merge_radii([]))
    with pytest.raises(ValueError, match="network 0 of group 'natural' twice"):
        summarise(settings(), histories[:1] * 2, merge_radii([]))


# Truth by simulation. A network's mean radius is its own level plus what the shared directions
# contribute (crossed with networks: the same in every network) plus what this network makes of
# each direction.
NETWORK, DIRECTION, BOTH, DIRECTIONS = 0.5, 1.0, 0.7, 20


def simulated_means(rng, repeats, networks, difference=0.0):
    """Means over directions of two groups of networks: two arrays [repeats, networks]."""
    direction = DIRECTION * rng.standard_normal((repeats, 1, 1, DIRECTIONS))
    network = NETWORK * rng.standard_normal((repeats, 2, networks, 1))
    both = BOTH * rng.standard_normal((repeats, 2, networks, DIRECTIONS))
    means = (10 + direction + network + both).mean(axis=-1)
    return means[:, 0] + difference, means[:, 1]


def share_claimed(first, second):
    """In which share of the repeats the interval excludes 0."""
    intervals = np.array([welch(a, b)[0] for a, b in zip(first, second, strict=True)])
    return np.mean((intervals[:, 0] > 0) | (intervals[:, 1] < 0))


@pytest.mark.parametrize("networks", [3, 5])
def test_a_against_a_is_claimed_in_at_most_six_per_cent(networks):
    # 2,000 repeats know a share of 5 % to within 0.5 %.
    rng = np.random.default_rng(derive_seed(0, "a-against-a", networks))
    assert share_claimed(*simulated_means(rng, 2_000, networks)) <= 0.06


@pytest.mark.parametrize(("networks", "difference"), [(5, 1.0), (8, 0.8)])
def test_a_planted_difference_is_found_with_the_computed_power(networks, difference):
    deviation = np.sqrt(NETWORK**2 + BOTH**2 / DIRECTIONS)
    freedom = 2 * networks - 2
    shift = difference / (deviation * np.sqrt(2 / networks))
    limit = stats.t.ppf(0.975, freedom)
    power = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
    rng = np.random.default_rng(derive_seed(0, "planted", networks))
    found = share_claimed(*simulated_means(rng, 2_000, networks, difference))
    # Three standard errors, and what Welch's smaller degrees of freedom cost against the pooled t.
    assert found == pytest.approx(power, abs=0.04)
    assert 0.6 < power < 0.95


def test_the_summary_uses_the_networks_as_units():
    rng = np.random.default_rng(derive_seed(0, "units"))
    means = np.stack(simulated_means(rng, 1, 3, 1.0))[:, 0]
    rays = rng.standard_normal((2, 3, 4, 2))
    rays += means[..., None, None] - rays.mean(axis=(-1, -2), keepdims=True)
    summary, _ = study(lambda _, p, group, n: rays[GROUPS.index(group), n])
    interval, p_value = welch(*means)
    contrast = summary.sel(column="measured_matched", parameters="top", scale="absolute")
    assert_allclose(contrast["interval"], interval)
    assert_allclose(contrast["p_value"], p_value)


def one_outlier(size, share):
    """A flat spectrum with one eigenvalue that holds the given share of the trace."""
    return np.array([share, *np.full(size - 1, (1 - share) / (size - 1))])


@pytest.mark.parametrize(
    ("spectrum", "bias"),
    [(1 / np.arange(1, 1001), 1.019), (one_outlier(1000, 0.91), 1.64)],
    ids=["1/k", "outlier"],
)
def test_harmonic_form_has_no_bias_on_a_quadratic(spectrum, bias):
    threshold, size = 0.05, len(spectrum)
    rng = np.random.default_rng(derive_seed(0, "quadratic"))
    directions = rng.standard_normal((20_000, size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radii = np.sqrt(2 * threshold / (directions**2 @ spectrum))[:, None]
    truth = np.sqrt(2 * threshold * size / spectrum.sum())
    histories = [history("natural", 0, matched=-1)]
    one = settings(groups=[{"name": "natural"}], training={"match_loss": None})
    one["radius"] = {"parameters": ["all"], "protocols": ["crossing"]}
    summary = summarise(one, histories, merge_radii([block(radii, "natural", 0)]))
    cell = summary.sel(column="measured_end").squeeze()
    assert_allclose(cell["harmonic"], truth, rtol=0.01)
    assert_allclose(cell["mean"], bias * truth, rtol=0.01)


def test_one_group_without_spread_is_compared_by_the_others():
    """All of its networks at one limit: its mean is then known, and the others' spread decides."""
    spread = np.array([1.0, 1.2, 1.7])
    (low, high), p_value = welch(np.full(3, 2.0), spread)
    alone = stats.ttest_1samp(spread, 2.0)
    bounds = alone.confidence_interval(0.95)
    np.testing.assert_allclose([low, high], [2.0 - bounds.high, 2.0 - bounds.low], rtol=1e-12)
    np.testing.assert_allclose(p_value, alone.pvalue, rtol=1e-12)


def test_what_a_sample_was_off_by_is_told_of_all_blocks_where_there_was_one():
    rays = [[4.0, 5.0]]
    exact = block(rays, "natural", 0, parameters="top", precision="exact")
    led = [
        block(rays, "natural", n, precision="fast", sampled=3000 - n, largest_difference=0.01 * n)
        for n in range(3)
    ]
    attrs = merge_radii([exact, *led]).attrs
    assert (attrs["sampled"], attrs["largest_difference"]) == (3000, 0.02)
    assert "precision" not in attrs
    assert "sampled" not in merge_radii([exact]).attrs
