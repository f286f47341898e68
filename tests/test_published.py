"""What the repository publishes is what its stores say, and the README says the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flatminima.models import vgg16
from flatminima.store import Store

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "results" / "mnist-paper"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def store():
    return Store(PAPER, create=False)


def results(store, kind):
    (name,) = store.studies()
    return [job for job in store.manifest(name)["jobs"] if job["kind"] == kind]


def histories(store):
    """Training histories by group and network."""
    found = (
        store.open_payload("network", job["digest"], "history.zarr")
        for job in results(store, "network")
    )
    return {(history.attrs["group"], history.attrs["network"]): history for history in found}


def test_every_result_is_there_and_undamaged(store):
    for kind, count in {"network": 6, "summary": 1}.items():
        jobs = results(store, kind)
        assert len(jobs) == count
        for job in jobs:
            assert store.done(kind, job["digest"])
    count, faults = store.verify()
    assert count > 0
    assert faults == []


def test_surfaces_at_the_minima_are_the_networks_own_train_losses(store):
    own_histories = histories(store)
    surfaces = results(store, "surface")
    assert len(surfaces) == 4
    for job in surfaces:
        surface = store.open_payload("surface", job["digest"], "surface.zarr")
        for seed, loss in enumerate(surface["anchor_loss"].values):
            history = own_histories[surface.attrs["group"], seed]
            epochs = {"end": history.epoch.values[-1], "matched": history.attrs["matched_epoch"]}
            own = history.train_loss.sel(epoch=epochs[surface.attrs["checkpoint"]])
            np.testing.assert_allclose(loss, own, rtol=1e-6, atol=1e-6)


def test_published_networks_come_back_as_modules(store):
    from flatminima.study import stored_minimum

    (name,) = store.studies()
    minimum = stored_minimum(store, name, group="natural", checkpoint="matched")
    assert sum(p.numel() for p in minimum.module().parameters()) == 900_880


def test_runs_say_where_they_come_from(store):
    for record in store.records():
        about = record["provenance"]
        assert len(about["commit"]) == 40
        assert about["dirty"] is False
        assert about["versions"]["torch"]


def test_the_readme_shows_the_published_table_and_answer(store):
    table = (store.root / "reports" / "mnist-paper" / "table.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("|")][:6]
    assert len(rows) == 6
    for row in rows:
        assert row in README
    (summary,) = results(store, "summary")
    sentences = store.open_payload("summary", summary["digest"], "summary.zarr").attrs["sentences"]
    plain = " ".join(README.replace("\n> ", " ").split())
    for sentence in json.loads(sentences):
        assert sentence in plain


@pytest.fixture(scope="module")
def small():
    return Store(ROOT / "results" / "cifar10-small", create=False)


def test_the_small_cifar10_study_is_whole_but_for_its_weights(small):
    assert {kind: len(results(small, kind)) for kind in ("network", "surface", "summary")} == {
        "network": 6,
        "surface": 6,
        "summary": 1,
    }
    count, faults = small.verify()
    assert count > 0
    assert faults == []
    for record in small.records():
        about = record["provenance"]
        assert len(about["commit"]) == 40
        assert about["dirty"] is False
        if record["kind"] == "network":
            assert sorted(record["left_out"]) == ["last.safetensors", "matched.safetensors"]


def test_planes_of_the_small_cifar10_study_say_what_its_training_left(small):
    own_histories = histories(small)
    seen = set()
    for job in results(small, "surface"):
        surface = small.open_payload("surface", job["digest"], "surface.zarr")
        policy = surface.attrs["batchnorm"]
        seen.add((surface.attrs["group"], policy, surface["loss"].shape))
        stored = surface["anchor_stored_loss"].values
        own = [
            float(own_histories[surface.attrs["group"], seed].train_loss[-1])
            for seed in range(len(stored))
        ]
        np.testing.assert_allclose(stored, own, rtol=1e-5, atol=1e-6)
        if policy == "keep":  # the origin's statistics: its own loss there, and only there
            np.testing.assert_allclose(surface["anchor_loss"].values[0], own[0], atol=1e-6)
    assert seen == {
        (group, policy, shape)
        for group in ("natural", "random")
        for policy, shape in (
            ("recompute", (11, 11)),
            ("keep", (11, 11)),
            ("interpolate", (7, 7)),
        )
    }


def test_the_readme_shows_the_small_cifar10_study_as_it_is(small):
    table = (small.root / "reports" / "cifar10-small" / "table.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("|")][2:6]
    assert len(rows) == 4
    for row in rows:
        assert row in README
    (summary,) = results(small, "summary")
    sentences = small.open_payload("summary", summary["digest"], "summary.zarr").attrs["sentences"]
    plain = " ".join(README.replace("\n> ", " ").split())
    for sentence in json.loads(sentences):
        assert sentence in plain


def test_the_readme_quotes_the_look_into_the_difference():
    table = (ROOT / "results" / "mnist-fitted" / "table.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in table.splitlines() if "random labels |" in line]
    assert len(rows) == 2
    for row in rows:
        headline = row[2].split("<br>")[0]
        assert headline.startswith("**")
        assert headline in README


def test_the_page_on_clusters_shows_what_was_measured():
    page = " ".join((ROOT / "docs" / "clusters.md").read_text(encoding="utf-8").split())
    found = json.loads((ROOT / "results/cluster/cluster.json").read_text())
    measured, scaling = found["overhead"], found["scaling"]
    rows = {
        "nothing": ("reads and yields nothing", ".4f"),
        "reads the weights of VGG16": ("reads the 59 MB of a VGG16", ".3f"),
        "yields the weights of VGG16": ("yields the 59 MB of a VGG16", ".3f"),
    }
    for name, (words, digits) in rows.items():
        seconds = measured["seconds_per_job"][name]
        cells = [format(seconds[way], digits) for way in ("serial", "processes", "ray")]
        assert f"| {words} | {' | '.join(cells)} |" in page
    tile = found["storing"]["seconds_per_tile"]
    assert f"takes {tile['100 at once']:.4f} s to bring a tile" in page
    assert f"({tile['1 at once']:.4f} s one by one)" in page
    assert f"keeps up with {round(1 / tile['100 at once'], -1):.0f} tiles a second" in page
    assert f"Ray takes {measured['seconds_to_open']['ray']:.1f} s to start" in page
    for way in ("processes", "ray"):
        one, two = (scaling["seconds"][f"{way}, {workers}"] for workers in (1, 2))
        of_ideal = scaling["of_ideal"][way]
        assert f"{one:.1f} s and {two:.1f} s with `{way}`, {of_ideal:.2f} of ideal" in page
    assert f"at work {100 * scaling['share_of_time_at_work']['ray, 2']:.0f} %" in page


def test_the_page_on_clusters_reckons_with_what_was_measured():
    page = " ".join((ROOT / "docs" / "clusters.md").read_text(encoding="utf-8").split())
    measured = json.loads((ROOT / "results/cluster/cluster.json").read_text())
    core = json.loads((ROOT / "results/cifar10-paper/cost-cpu.json").read_text())["seconds"]
    rates = json.loads((ROOT / "results/speed/cuda.json").read_text())["works"]["mnist-plane"]
    best, reached = (
        rates["gflop_per_second"][name] * 1e9
        for name in ("float32 product, 8192^3", "exact, 400 points")
    )
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        vgg16().eval()(torch.empty(1, 3, 32, 32))
    images, points, tile = 50_000, 200 * 200, 25
    flop = images * counter.get_total_flops()
    on_a_core = core["one point under keep"]
    least, likely = flop / best, flop / reached
    assert f"p = {on_a_core:.0f} s on one core" in page
    assert f"its {flop / 1e12:.1f} TFLOP take {least:.2f} s" in page
    assert f"at the {best / 1e12:.0f} TFLOP/s in float32 that the largest products" in page
    assert f"{likely:.2f} s at the {reached / 1e12:.0f} that `exact`" in page
    hours = [points * p / 3600 for p in (on_a_core, least, likely)]
    assert f"{hours[0]:,.0f} hours of a core, or {hours[1]:.0f} to {hours[2]:.0f} hours of" in page
    tiles = points // tile
    assert f"{tiles:,} tiles of {tile} points" in page
    assert f"{tile * least:.0f} to {tile * likely:.0f} s of a GPU" in page
    rounds = tiles // 100
    minutes = [rounds * tile * p / 60 for p in (least, likely)]
    assert f"{rounds} rounds, in {minutes[0]:.0f} to {minutes[1]:.0f} minutes" in page
    per_tile = measured["storing"]["seconds_per_tile"]["100 at once"]
    assert f"more than {tile * least / per_tile // 100 * 100:,.0f} GPUs would send" in page
    fetched = measured["overhead"]["seconds_per_job"]["reads the weights of VGG16"]["ray"]
    assert f"3 x {fetched:.2f} s" in page


@pytest.mark.parametrize("name", ["kills", "power"])
def test_a_hundred_kills_and_power_cuts_were_published_and_none_did_harm(name):
    page = " ".join((ROOT / "docs" / "clusters.md").read_text(encoding="utf-8").split())
    found = json.loads((ROOT / f"results/crash-safety/{name}.json").read_text())
    kills = [kill for study in found["studies"] for kill in study["kills"]]
    assert len(kills) == found["summary"]["kills"] == 100
    assert not any(kill["faults"] for kill in kills)
    assert not any(study["faults"] for study in found["studies"])
    assert {kill["executor"] for kill in kills} == {"serial", "processes", "ray"}
    assert any(kill["killed"] == "power" for kill in kills) == (name == "power")
    assert found["environment"]["dirty"] is False
    assert f"{found['files']:,} files" in page
    assert f"[{name}.json](../results/crash-safety/{name}.json)" in page


def test_exact_losses_of_trained_networks_are_those_of_float64():
    page = " ".join((ROOT / "docs" / "definitions.md").read_text(encoding="utf-8").split())
    shares: dict[tuple[str, str], list[dict[str, float]]] = {}
    for file in sorted((ROOT / "results" / "accuracy").glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        assert found["environment"]["dirty"] is False
        for measured in found["measured"]:
            assert len(measured["loss_in_float64"]) == 3 + 10
            here = measured["largest_share_of_1_plus_loss"]
            assert here["exact"] <= 1e-6, (file.name, measured["batchnorm"])
            shares.setdefault((found["study"], measured["batchnorm"]), []).append(here)

    def worst(way, study, policy):
        return f"{max(here[way] for here in shares[study, policy]):.1e}"

    kinds = [("mnist-paper", "none"), ("cifar10-quick", "keep"), ("cifar10-quick", "recompute")]
    assert set(kinds) == set(shares)
    ours = [worst("exact", *kind) for kind in kinds]
    torchs = [worst("torch's own float32", *kind) for kind in kinds]
    assert f"by {ours[0]} of 1 + loss at most" in page
    assert f"by {ours[1]} under `keep` and {ours[2]} under `recompute`" in page
    assert f"torch's own float32 by {torchs[0]}, {torchs[1]} and {torchs[2]}" in page
