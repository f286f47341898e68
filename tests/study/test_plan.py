from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flatminima.data.sources import data_digest
from flatminima.study import job as job_module
from flatminima.study.auto import resolve
from flatminima.study.config import load_study, parse_study
from flatminima.study.job import Job
from flatminima.study.plan import RESULTS, needed, plan_study

STUDIES = Path(__file__).parents[2] / "studies"
Make = Callable[..., dict[str, Any]]


def _plan(settings: dict[str, Any]) -> list[Job]:
    return plan_study(resolve(parse_study(settings)))


def _digests(jobs: list[Job], *kinds: str) -> set[str]:
    return {job.digest for job in jobs if job.kind in kinds}


# Names of results of the paper study. A change here makes everybody's stored results of that kind
# be computed again: it is right only together with a new version of the kind.
GOLDEN = {
    "natural/0 epochs 1-5": "d654c8f458d1f01aeaa5",
    "random/2 epochs 146-150": "3f096021c732216d16b4",
    "natural/0 network": "6228740afb646dedc9c7",
    "random/2 network": "788923fe3bf92349a5c4",
    "natural train surface end tile 1/50": "0fca48ede054435e8dd9",
    "random train surface end": "04a3cea3fcb47e7b540c",
    "natural/0 train radius all crossing end 1-5": "c2a774007b9f63c7527d",
    "natural/0 train radius all crossing matched 1-5": "8d5e7f16e09b4f77994f",
    "random/1 train radius top stepwise end 16-20": "dba714caa8d4a787bcd2",
    "train summary": "30c1855c3c89bd206f8d",
}


def test_the_names_of_the_paper_study_stay() -> None:
    jobs = plan_study(resolve(load_study(STUDIES / "mnist-paper.toml")))
    assert Counter(job.kind for job in jobs) == {
        "train": 3 * 6 + 3 * 30,
        "network": 6,
        "tile": 4 * 50,
        "surface": 4,
        "radius": 6 * 3 * 2 * 4,
        "summary": 1,
    }
    by_label = {job.label: job.digest[:20] for job in jobs}
    assert {label: by_label[label] for label in GOLDEN} == GOLDEN


def test_a_fast_and_an_exact_study_share_what_is_exact_in_both(smallest: Make) -> None:
    quick, slow = (_plan(smallest(run={"precision": p})) for p in ("fast", "exact"))
    for kind, same in (("network", True), ("tile", False), ("surface", False)):
        assert (_digests(quick, kind) == _digests(slow, kind)) == same, kind

    def radii(jobs: Sequence[Job]) -> dict[str, str]:
        return {job.label: job.digest for job in jobs if job.kind == "radius"}

    before, after = radii(slow), radii(quick)
    assert before.keys() == after.keys()
    shared = {label for label in before if before[label] == after[label]}
    assert shared == {label for label in before if " top " in label}
    assert shared < before.keys()


def test_jobs_come_after_what_they_need_and_say_what_they_read(smallest: Make) -> None:
    seen: dict[str, Job] = {}
    for job in _plan(smallest()):
        assert job.digest not in seen
        assert len(job.inputs) == len(job.dependencies)
        for digest, (kind, files) in zip(job.dependencies, job.inputs, strict=True):
            assert seen[digest].kind == kind
            assert files
        seen[job.digest] = job


def test_tiles_segments_and_blocks_cover_everything_once(smallest: Make) -> None:
    settings = smallest(training={"epochs": 5}, radius={"directions": 5, "block": 2})
    jobs = _plan(settings)
    natural = [job for job in jobs if job.label.startswith("natural")]
    segments = [j.settings["segment"] for j in natural if j.kind == "train"]
    assert segments == [[0, 2], [2, 4], [4, 5]] * 3
    tiles = [(j.settings["first"], j.settings["count"]) for j in natural if j.kind == "tile"]
    assert tiles == [(0, 5), (5, 4)]
    blocks = {(j.settings["first"], j.settings["count"]) for j in natural if j.kind == "radius"}
    assert blocks == {(0, 2), (2, 2), (4, 1)}
    ways = Counter(
        (j.settings["protocol"], j.settings["checkpoint"], j.settings["parameters"])
        for j in natural
        if j.kind == "radius"
    )
    assert ways == {
        (protocol, checkpoint, parameters): 9
        for protocol, checkpoint in (
            ("crossing", "end"),
            ("crossing", "matched"),
            ("stepwise", "end"),
        )
        for parameters in ("all", "top")
    }


@pytest.mark.parametrize(
    ("changed", "same", "other"),
    [
        ({"title": "t"}, RESULTS, ()),
        ({"report": {"clip": 2.0}}, RESULTS, ()),
        ({"name": "renamed"}, ("train", "network", "surface", "radius"), ("summary",)),
        ({"surface": None}, ("train", "network", "radius", "summary"), ()),
        ({"radius": None}, ("train", "network", "surface"), ()),
        ({"radius": {"threshold": 0.1}}, ("train", "network", "surface"), ("radius", "summary")),
        ({"surface": {"tile": 4}}, ("train", "network", "radius"), ("tile", "surface")),
        ({"summary": {"exclude": []}}, ("network", "surface", "radius"), ("summary",)),
        ({"training": {"seed": 7}}, (), RESULTS),
        ({"training": {"momentum": 0.5}}, (), RESULTS),
        ({"data": {"limit": 41}}, (), RESULTS),
        ({"data": {"seed": 1}}, (), RESULTS),
        ({"run": {"threads": 2}}, (), ("train", "tile", *RESULTS)),
        ({"run": {"batch_size": 7}}, ("train", "network"), ("tile", "surface", "radius")),
    ],
    ids=str,
)
def test_a_setting_renames_what_reads_it_and_nothing_else(
    smallest: Make, changed: dict[str, Any], same: tuple[str, ...], other: tuple[str, ...]
) -> None:
    before, after = _plan(smallest()), _plan(smallest(**changed))
    for kind in same:
        assert _digests(before, kind) == _digests(after, kind)
    for kind in other:
        assert not _digests(before, kind) & _digests(after, kind)


def test_noise_settings_of_a_group_without_noise_change_nothing(smallest: Make) -> None:
    plain = smallest(groups=[{"name": "a"}])
    told = smallest(groups=[{"name": "a", "noise": 0.0, "noise_seed": 5, "scheme": "flip"}])
    assert _digests(_plan(plain), *RESULTS) == _digests(_plan(told), *RESULTS)


def test_groups_with_the_same_training_share_it(smallest: Make) -> None:
    one = _plan(smallest(groups=[{"name": "a"}]))
    two = _plan(smallest(groups=[{"name": "a"}, {"name": "b"}]))
    assert _digests(one, "train") == _digests(two, "train")
    assert len(_digests(two, "network")) == 6


def test_the_data_digests_are_those_of_the_data(smallest: Make) -> None:
    jobs = _plan(smallest(data={"split": ["train", "test"]}))
    train = next(job for job in jobs if job.label.startswith("random/0 epochs"))
    assert train.data == {
        "train": data_digest(
            "digits", "train", limit=40, seed=0, fraction=0.5, noise_seed=1, scheme="replace"
        ),
        "test": data_digest("digits", "test"),
    }
    splits = {job.settings["split"]: dict(job.data) for job in jobs if job.kind == "surface"}
    assert splits["test"] == {"test": data_digest("digits", "test")}


def test_a_later_setting_without_effect_keeps_old_names(
    smallest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = next(job for job in _plan(smallest()) if job.kind == "train")
    later = {**job.settings, "recipe": {**job.settings["recipe"], "smoothing": 0.0}, "ema": None}
    later_on = {"recipe.smoothing": 0.0, "ema": None, "gone.x": 1}
    monkeypatch.setattr(job_module, "_ADDED", {"train": {**job_module._ADDED["train"], **later_on}})
    assert Job("train", later, data=job.data).digest == job.digest
    effective = {**later, "recipe": {**later["recipe"], "smoothing": 0.1}}
    assert Job("train", effective, data=job.data).digest != job.digest


def test_a_new_version_of_a_kind_renames_it_and_what_follows(
    smallest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _plan(smallest())
    monkeypatch.setitem(job_module.VERSIONS, "network", 2)
    after = _plan(smallest())
    assert _digests(before, "train") == _digests(after, "train")
    assert not _digests(before, *RESULTS) & _digests(after, *RESULTS)


def test_radii_of_all_parameters_keep_their_names_where_those_of_a_part_change(
    smallest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named() -> dict[str, set[str]]:
        radii = [job for job in _plan(smallest()) if job.kind == "radius"]
        moved = {job.settings["parameters"] for job in radii}
        return {m: {j.digest for j in radii if j.settings["parameters"] == m} for m in moved}

    before = named()
    monkeypatch.setitem(job_module._OF_PARTS, "radius", 99)
    after = named()
    assert before["all"] == after["all"]
    assert not before["top"] & after["top"]


def test_what_is_exact_keeps_its_name_where_half_precision_comes_to_mean_other_bytes(
    smallest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, quick = smallest(), smallest(run={"precision": "fast"})
    before = [_plan(exact), _plan(quick)]
    monkeypatch.setitem(job_module._FAST, "tile", 99)
    after = [_plan(exact), _plan(quick)]
    assert _digests(before[0], "tile") == _digests(after[0], "tile")
    assert not _digests(before[1], "tile") & _digests(after[1], "tile")
    assert _digests(before[1], "radius") == _digests(after[1], "radius")


def test_points_in_half_precision_have_a_version_of_their_own_where_a_part_moves_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = {"parameters": "top", "run": {"precision": "fast"}}
    quick, slow = Job("tile", part), Job("tile", {**part, "run": {"precision": "exact"}})
    before = [quick.digest, slow.digest]
    monkeypatch.setitem(job_module._FAST, "tile", 99)
    after = [Job("tile", quick.settings).digest, Job("tile", slow.settings).digest]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_networks_of_convolutions_have_versions_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def named() -> dict[str, list[str]]:
        models = [{"model": {"name": name}} for name in ("mlp", "vgg16")]
        kinds = ("tile", "network")
        return {kind: [Job(kind, settings).digest for settings in models] for kind in kinds}

    before = named()
    monkeypatch.setitem(job_module._IN_PARTS, "tile", 99)
    after = named()
    assert before["tile"][0] == after["tile"][0]
    assert before["tile"][1] != after["tile"][1]
    assert before["network"] == after["network"]


def test_only_what_results_need_is_to_do(smallest: Make) -> None:
    jobs = _plan(smallest())
    every = _digests(jobs, *job_module.VERSIONS)
    assert {job.digest for job in needed(jobs, set())} == every
    assert needed(jobs, _digests(jobs, *RESULTS)) == []
    networks = _digests(jobs, "network")
    assert {job.kind for job in needed(jobs, networks)} == {"tile", "surface", "radius", "summary"}
    radii = _digests(jobs, "radius")
    assert {job.kind for job in needed(jobs, radii, ["radius", "summary"])} == {
        *("train", "network", "summary"),
    }
    assert {job.kind for job in needed(jobs, set(), ["network"])} == {"train", "network"}
    surfaces = {job.kind for job in needed(jobs, set(), ["tile", "surface"])}
    assert surfaces == {"train", "network", "tile", "surface"}


def test_auto_is_settled_once(smallest: Make) -> None:
    study = resolve(parse_study(smallest()))
    assert isinstance(study.run.batch_size, int)
    assert study.surface is not None
    assert study.surface.batchnorm == "recompute"
    earlier = study.model_dump(mode="json")
    earlier["run"]["batch_size"] = 123
    assert resolve(parse_study(smallest()), earlier).run.batch_size == 123
    assert resolve(parse_study(smallest(run={"batch_size": 9})), earlier).run.batch_size == 9
    other = smallest(model={"settings": {"sizes": [64, 7, 10]}})
    assert resolve(parse_study(other), earlier).run.batch_size == study.run.batch_size
    elsewhere = resolve(parse_study(smallest(run={"device": "cuda"})), earlier)
    assert elsewhere.run.batch_size > study.run.batch_size


@pytest.mark.parametrize(
    ("device", "units", "precision"),
    [
        ("cpu", "halves", "bfloat16"),
        ("cpu", "no_halves", "float32"),
        ("cuda", "no_halves", "bfloat16"),  # of a GPU that is elsewhere
        ("mps", "halves", "float32"),
    ],
)
def test_training_is_in_half_precision_where_there_are_units_for_it(
    request: pytest.FixtureRequest, smallest: Make, device: str, units: str, precision: str
) -> None:
    request.getfixturevalue(units)
    settings = smallest(training={"precision": "auto"}, run={"device": device})
    assert resolve(parse_study(settings)).training.precision == precision


@pytest.mark.usefixtures("no_halves")
def test_a_store_that_moves_keeps_the_precision_that_its_networks_were_trained_in(
    smallest: Make,
) -> None:
    settings = smallest(training={"precision": "auto"})
    earlier = resolve(parse_study(settings)).model_dump(mode="json")
    earlier["training"]["precision"] = "bfloat16"
    assert resolve(parse_study(settings), earlier).training.precision == "bfloat16"
    asked = smallest(training={"precision": "float32"})
    assert resolve(parse_study(asked), earlier).training.precision == "float32"
    other = smallest(training={"precision": "auto"}, model={"settings": {"sizes": [64, 7, 10]}})
    assert resolve(parse_study(other), earlier).training.precision == "float32"


def test_the_stored_settings_are_a_study_again(smallest: Make) -> None:
    study = resolve(parse_study(smallest()))
    assert parse_study(study.model_dump(mode="json")) == study


def test_further_splits_are_measured_beside_the_first(smallest: Make) -> None:
    """Test-set losses are drawn and measured too, without renaming the results on train."""
    alone = _plan(smallest())
    both = _plan(smallest(data={"split": ["train", "test"]}))
    assert _digests(alone) <= _digests(both)
    for kind in ("surface", "radius", "summary"):
        splits = [job for job in both if job.kind == kind]
        assert len(splits) == 2 * len([job for job in alone if job.kind == kind])


def test_radii_are_measured_at_the_checkpoints_asked_for(smallest: Make) -> None:
    both, matched = (
        {
            (job.settings["protocol"], job.settings["checkpoint"]): job.digest
            for job in _plan(smallest(radius={"checkpoints": checkpoints}))
            if job.kind == "radius"
        }
        for checkpoints in (["end", "matched"], ["matched"])
    )
    assert set(both) - set(matched) == {("crossing", "end")}
    assert matched.items() <= both.items()


def test_a_limit_of_the_top_layer_renames_its_radii_alone(smallest: Make) -> None:
    without, limited = (
        {
            (job.settings["parameters"], job.digest): job.settings["max_radius"]
            for job in _plan(smallest(radius=radius))
            if job.kind == "radius"
        }
        for radius in ({}, {"max_radius": {"top": 40.0}})
    )
    assert set(without.values()) == {None}
    for (parameters, digest), limit in limited.items():
        assert limit == {"all": None, "top": 40.0}[parameters]
        assert ((parameters, digest) in without) == (parameters == "all")
