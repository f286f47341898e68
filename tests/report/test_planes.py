"""What is counted on planes under several BatchNorm policies, on losses that are known."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from flatminima.report.captions import planes_caption
from flatminima.report.contents import StudyContents, Surface, read_study
from flatminima.report.page import build_page
from flatminima.report.page_planes import has_planes
from flatminima.report.planes import plane_facts, stored_difference, what_to_see
from flatminima.report.surfaces import levels_below, surfaces_figure
from flatminima.store import Store

CONSTANT = math.log(10)


def plane(policy: str, loss: list[list[float]], anchors: list[float]) -> Surface:
    """A plane over x, y in 0, 1, 2 whose minima lie at three corners."""
    values = np.array(loss)
    guess = np.abs(values - CONSTANT) < 0.01
    data = xr.Dataset(
        {
            "loss": (("y", "x"), values),
            "accuracy": (("y", "x"), np.where(guess, 0.1, 0.6)),
            "anchor_loss": ("anchor", anchors),
            "anchor_stored_loss": ("anchor", [0.01, 0.02, 0.03]),
            "anchor_x": ("anchor", [0.0, 2.0, 1.0]),
            "anchor_y": ("anchor", [0.0, 0.0, 1.5]),
        },
        coords={"x": [0.0, 1.0, 2.0], "y": [0.0, 1.0, 2.0]},
        attrs={"batchnorm": policy},
    )
    return Surface("natural", "end", "train", data, asked=(policy, 3))


OWN = plane("recompute", [[0.01, 1, 0.02], [1, 3, 1], [2.25, 4, 5]], [0.0105, 0.0195, 0.03])
KEEP = plane(
    "keep",
    [[0.01, CONSTANT, CONSTANT], [CONSTANT, math.nan, 1], [2.25, CONSTANT, math.nan]],
    [0.01, 2.4, math.nan],
)


def test_points_are_counted() -> None:
    own, keep = plane_facts([OWN, KEEP], 10)
    assert (own.points, own.holes, own.constant, own.chance, own.low) == (9, 0, 1, 0, 5)
    assert (keep.holes, keep.constant, keep.chance, keep.low) == (2, 5, 4, 2)
    assert own.broken is None
    # The two holes and the four points of guessing; 2.25 is no constant output on either plane.
    assert keep.broken == 6
    assert own.lost == []
    assert keep.lost == [2, 3]


def test_the_centroid_lies_between_grid_points() -> None:
    own, keep = plane_facts([OWN, KEEP], 10)
    assert own.centre == pytest.approx(0.5 * 1 + 0.5 * 3)  # at x = 1, y = 0.5
    assert math.isnan(keep.centre)


def test_a_coarser_plane_is_compared_between_the_points_of_the_first() -> None:
    assert KEEP.data is not None
    coarse = Surface("natural", "end", "train", KEEP.data.isel(x=[0, 2], y=[0, 2]))
    _, facts = plane_facts([OWN, coarse], 10)
    assert facts.points == 4
    assert facts.broken == 2  # x = 2 at both ends of y


def test_without_the_first_plane_nothing_is_called_broken() -> None:
    missing = Surface("natural", "end", "train", None, "1 of 3 networks ended at chance")
    (facts,) = plane_facts([missing, KEEP], 10)
    assert facts.broken is None
    assert "broken" not in " ".join(what_to_see([facts], 10))


def test_words_follow_the_counts() -> None:
    own, keep = what_to_see(plane_facts([OWN, KEEP], 10), 10)
    assert "of 9 points 0 % are holes, 11 % lie within 5 % of ln 10 = 2.303" in own
    assert "56 % below 1.15, half of that; the loss at the centroid of the minima is 2.00" in own
    assert "broken" not in own
    assert "22 % are holes, 56 % lie within 5 % of ln 10 (44 % with the accuracy of gue" in keep
    assert "Minima 2 and 3 have losses 2.4 and none (a hole) there, against 0.02 and 0.03" in keep
    assert "the statistics are those of minimum 1" in keep
    assert "At 6 of the 9 points" in keep


def test_the_difference_at_the_minima_is_policy_less_stored() -> None:
    assert OWN.data is not None
    np.testing.assert_allclose(stored_difference(OWN.data), [0.0005, -0.0005, 0.0], atol=1e-12)
    assert stored_difference(OWN.data.drop_vars("anchor_stored_loss")) is None


@pytest.fixture(scope="module")
def study(synthetic_store: Callable[..., Store]) -> StudyContents:
    store = synthetic_store(
        name="policies", resolution=8, dataset="cifar10", policies=("keep", "interpolate")
    )
    return read_study(store, "policies")


def test_rows_show_the_studys_own_policy_and_planes_all(study: StudyContents) -> None:
    (row,) = study.surface_rows()
    assert [(s.group, s.policy) for s in row] == [("natural", "recompute"), ("random", "recompute")]
    groups = [[(s.group, s.policy) for s in planes] for planes in study.planes()]
    policies = ("recompute", "keep", "interpolate")
    assert groups == [[(group, policy) for policy in policies] for group in ("natural", "random")]


def test_a_study_that_keeps_statistics_has_that_plane_first(study: StudyContents) -> None:
    surface = {**study.section("surface"), "batchnorm": "keep"}
    kept = StudyContents(**{**vars(study), "settings": {**study.settings, "surface": surface}})
    assert {s.policy for s in kept.surface_rows()[0]} == {"keep"}
    assert all(planes[0].policy == "keep" for planes in kept.planes())


def test_the_page_draws_all_planes_with_their_holes_and_minima(study: StudyContents) -> None:
    page = build_page([study])
    section = page.split('id="policies-policies"')[1].split("</section>")[0]
    assert section.count("<svg") == 2 * 2 * 3  # groups, relief and map, policies
    for policy, size in (("recompute", 8), ("keep", 8), ("interpolate", 4)):
        assert section.count(f"<h4>{policy} ({size} by {size} points)</h4>") == 2
    counts = [(s.policy, s.holes) for s in study.planes()[1]]
    told = ", ".join(f"{policy} {holes}" for policy, holes in counts if holes)
    assert f"Holes (hatched on maps, left open in reliefs): {told}." in section
    assert section.count("own statistics 0.0074") == 3
    assert "+2.2" in section
    assert "\N{MINUS SIGN}0.0003" in section
    assert re.search(r"<th scope=\"row\">keep</th><td>8 by 8</td>", section)
    assert "Difference from those with the statistics that training left" in page


def test_a_minimum_above_the_clip_is_pinned_to_the_plateau(study: StudyContents) -> None:
    high = study.planes()[0][0]
    assert high.data is not None
    lifted = Surface(
        high.group, "end", "train", high.data.assign(anchor_loss=("anchor", [0.01, 2.0, 7.9]))
    )
    (axes, *_) = surfaces_figure([(study, [lifted])]).axes
    heights = [max(line.get_data_3d()[2]) for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(heights, [0.01, 2.0, study.clip])


def test_a_caption_says_which_minima_have_no_basin(study: StudyContents) -> None:
    _, own, keep, interpolate = planes_caption(study, study.planes()[0]).split("\n")
    assert "Minima 2 and 3 have losses" in keep
    assert "Minim" not in own.replace("minima", "")
    assert "where recompute shows neither" in interpolate


def test_a_network_without_batchnorm_has_no_such_section(
    synthetic_store: Callable[..., Store],
) -> None:
    plain = read_study(synthetic_store(name="plain", resolution=4), "plain")
    assert not has_planes(plain)
    assert "BatchNorm policies" not in build_page([plain])


def test_the_lines_of_a_map_differ_and_lie_below_its_top_at_every_height() -> None:
    for clip in [*np.arange(1, 400) / 10, *np.arange(1, 1000) / 1000]:
        levels = levels_below(float(clip))
        assert len(levels) >= 2, clip
        assert (np.diff(levels) > 0).all(), clip
        assert levels[-1] < clip
