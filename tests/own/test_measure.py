"""Measurements in steps: what makes them new, what is kept of a stopped one, and their values."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

import flatminima as fm
from flatminima.own import open_networks, plan_line, plan_radii, plan_surface, run_measurement
from flatminima.own.measure import left_to_do
from flatminima.store import Store
from flatminima.subspace import Subspace

SOURCE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

def load():
    draws = torch.randn(41, 7, generator=torch.Generator().manual_seed(3))
    return draws[:, :6], draws[:, 6].mul(3).long() % 4

def own_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")
"""
WEIGHTS = ("a.safetensors", "b.safetensors", "c.safetensors")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of code and three checkpoints, in which everything is looked up."""
    (tmp_path / "task.py").write_text(SOURCE)
    for index, name in enumerate(WEIGHTS):
        write(tmp_path / name, index)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("task", None)


def write(path, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (4, 8), "2.bias": (4,)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(drawn, path)


def opened(weights=WEIGHTS, **options):
    sys.modules.pop("task", None)
    return open_networks("task:build", weights, "task:load", **options)


def line(resolution=5, **options):
    return plan_line(opened(WEIGHTS[:2], **options), resolution=resolution)


def changed(old, new):
    Path("task.py").write_text(SOURCE.replace(old, new))


CHANGES = {
    "weights": lambda: write(Path("b.safetensors"), 7),
    "model": lambda: changed("Linear(8, 4))", "Linear(8, 4)) "),
    "data": lambda: changed("manual_seed(3)", "manual_seed(33)"),
    "loss": lambda: {"loss": "task:own_loss"},
    "policy": lambda: {"batchnorm": "keep"},
    "precision": lambda: {"precision": "fast"},
    "batch size": lambda: {"batch_size": 11},
    "limit": lambda: {"limit": 30},
    "resolution": lambda: {"resolution": 7},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_is_measured_anew(change):
    before = line().result.digest
    assert line().result.digest == before
    options = CHANGES[change]()
    assert line(**(options or {})).result.digest != before


def test_a_copy_under_another_name_is_not_measured_anew():
    before = line().result.digest
    shutil.copy("b.safetensors", "d.safetensors")
    assert plan_line(opened(["a.safetensors", "d.safetensors"]), resolution=5).result.digest == (
        before
    )


SETTINGS = {
    "surface": (
        lambda own, **options: plan_surface(own, **{"resolution": 3, **options}),
        [
            {"resolution": 4}, {"extent": (-2.0, 2.0)}, {"seed": 1}, {"scaling": "layer"},
            {"parameters": "2.*"}, {"clip": 2.0},
        ],
    ),
    "radius": (
        lambda own, **options: plan_radii(own, **{"directions": 2, **options}),
        [
            {"directions": 3}, {"threshold": 0.1}, {"seed": 1}, {"parameters": "2.*"},
            {"tolerance": 1e-2}, {"max_radius": 9.0},
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_setting_is_part_of_the_result(kind):
    plan, settings = SETTINGS[kind]
    own = opened(WEIGHTS[:1])
    digests = [plan(own, **options).result.digest for options in [{}, *settings]]
    assert len(set(digests)) == len(digests)
    assert plan(own).result.digest == digests[0]


def test_threads_are_part_of_the_result():
    before, count = line().result.digest, torch.get_num_threads()
    try:
        torch.set_num_threads(count + 1)
        assert line().result.digest != before
    finally:
        torch.set_num_threads(count)


def lost(store, job):
    """What a killed run leaves of a step: nothing that counts."""
    (store.folder(job.kind, job.digest) / "run.json").unlink()


@pytest.mark.parametrize("kind", ["surface", "radius"])
def test_a_stopped_measurement_goes_on_with_what_is_there(folder, kind):
    own = opened(WEIGHTS[:1])
    made = plan_surface(own, resolution=12) if kind == "surface" else plan_radii(own, directions=12)
    store = Store(folder / "runs", create=True)
    events = []

    def listener(event, job, seconds):
        events.append((event, job.label))

    with store.lock():
        whole = run_measurement(made, store, listener=listener)
        assert len(events) == 2 * len(made.steps) == 8
        assert left_to_do(made, store) == []
        events.clear()
        xr.testing.assert_identical(run_measurement(made, store, listener=listener), whole)
        assert events == []
        *steps, result = (job for job, _ in made.steps)
        lost(store, steps[1])
        assert left_to_do(made, store) == []  # the result is there, its steps may be gone
        lost(store, result)
        assert left_to_do(made, store) == [steps[1], result]
        xr.testing.assert_identical(run_measurement(made, store, listener=listener), whole)
        assert [label for _, label in events[::2]] == [steps[1].label, result.label]
        shutil.rmtree(store.root / "jobs")
        xr.testing.assert_identical(run_measurement(made, store), whole)


@pytest.mark.parametrize("options", [{}, {"coordinates": "barycentric"}, {"clip": 20.0}])
@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_surface_in_tiles_is_the_surface(folder, options, precision):
    own = opened(precision=precision)
    store = Store(folder / "runs", create=True)
    found = run_measurement(plan_surface(own, resolution=9, **options), store)
    plane = Subspace.through(*own.states)
    want = fm.loss_surface(own.landscape, plane, resolution=9, **options)
    assert set(found) == set(want)
    for name in want:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-6, atol=1e-9, err_msg=name)
    differing = {"networks", "repeated", "largest_difference"}
    assert set(found.attrs) - set(want.attrs) == {"networks"}
    for name in set(want.attrs) - differing:
        assert found.attrs[name] == want.attrs[name], name
    assert list(found.attrs["networks"]) == list(WEIGHTS)


def test_a_surface_around_one_network_has_it_in_the_middle(folder):
    own = opened(WEIGHTS[:1])
    made = plan_surface(own, resolution=3, scaling="layer", parameters="0.weight", seed=4)
    found = run_measurement(made, Store(folder / "runs", create=True))
    loss = own.landscape.loss_at(own.states[0]).loss[0]
    np.testing.assert_allclose(found.loss[1, 1], loss, rtol=1e-6)
    np.testing.assert_allclose(found["anchor_loss"], [loss], rtol=1e-6)
    assert float(found.x[0]) == -1.0
    # A step of length 1 is as long as the weights that move.
    length = float(own.states[0].parameters["0.weight"].norm())
    np.testing.assert_allclose(np.abs(found.u[1]), [length, 0.0, length], rtol=1e-5, atol=1e-6)


def test_radii_in_blocks_are_the_radii(folder):
    own = opened()
    made = plan_radii(own, directions=7, threshold=0.1, parameters="2.*")
    found = run_measurement(made, Store(folder / "runs", create=True))
    assert list(found.network.values) == list(WEIGHTS)
    for name, state in zip(own.names, own.states, strict=True):
        want = fm.flatness_radius(
            own.landscape, state, directions=7, threshold=0.1, parameters="2.*"
        )
        one = found.sel(network=name)
        np.testing.assert_allclose(one.radius, want.radius, rtol=1e-6)
        np.testing.assert_array_equal(one.outcome, want.outcome)
        np.testing.assert_allclose(one.norm, want.attrs["norm"])
        np.testing.assert_allclose(one.loss, want.attrs["loss"], rtol=1e-6)


def test_fast_radii_say_what_the_sample_of_any_network_was_off_by(folder):
    changed("randn(41, 7", "randn(2500, 7")
    made = plan_radii(opened(precision="fast"), directions=6, threshold=0.1)
    found = run_measurement(made, Store(folder / "runs", create=True))
    own = opened(precision="fast")
    each = [
        fm.flatness_radius(own.landscape, state, directions=count, first=first, threshold=0.1)
        for state in own.states
        for first, count in ((0, 5), (5, 1))
    ]
    assert found.attrs["sampled"] == max(one.attrs["sampled"] for one in each) > 200
    assert found.attrs["largest_difference"] == max(one.attrs["largest_difference"] for one in each)
    exact = run_measurement(
        plan_radii(opened(), directions=6, threshold=0.1), Store(folder / "other", create=True)
    )
    np.testing.assert_allclose(found.radius, exact.radius, rtol=1e-3)
    assert "sampled" not in exact.attrs


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_counts_of_networks_that_do_not_span_what_is_asked_for(count):
    for index in range(4):
        write(Path(f"{index}.safetensors"), index)
    own = opened([f"{index}.safetensors" for index in range(count)])
    if count != 2:
        with pytest.raises(ValueError, match=f"expected two networks for the line.*got {count}"):
            plan_line(own)
    if count not in (1, 3):
        with pytest.raises(ValueError, match=f"expected three networks for the plane.*got {count}"):
            plan_surface(own)
    assert len(plan_radii(own, directions=1).steps) == count + 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_that_are_no_numbers_are_refused(value):
    own = opened(WEIGHTS[:1])
    for plan, name in (
        (plan_surface, "clip"),
        (plan_radii, "threshold"),
        (plan_radii, "tolerance"),
    ):
        with pytest.raises(ValueError, match=f"expected a finite {name}"):
            plan(own, **{name: value})
