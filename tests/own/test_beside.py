"""Groups of samples and metrics of own networks: their values, their names, and the page."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

import flatminima as fm
from flatminima.cli import main
from flatminima.own import open_networks, plan_line, plan_surface, run_measurement
from flatminima.own.beside import measured_beside
from flatminima.store import Store
from flatminima.study.execute import StudyFailed

SOURCE = """
import numpy as np
import torch
from torch import nn
import flatminima as fm

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

def load():
    draws = torch.randn(41, 7, generator=torch.Generator().manual_seed(3))
    return draws[:, :6], draws[:, 6].mul(3).long() % 4

def clothes():
    return fm.Dataset(*load(), class_names=["coat", "shirt/top", "shoe", "bag"])

def even(): return load()[1] % 2 == 0
def parity(): return load()[1] % 2
def names(): return {"low": (load()[1] < 2).numpy(), "by": load()[1].numpy() % 2}
listed = [True] * 20 + [False] * 21
array = np.arange(41) < 7
def small(): return (load()[1] % 2).to(torch.uint8)

def largest(outputs, targets): return outputs.amax(1)
def hits(outputs, targets): return outputs.argmax(1) == targets
def weighted(outputs, targets): return outputs[:, 0] * (targets + 1), targets + 1

class Top:
    def __init__(self, count): self.count = count
    def __call__(self, outputs, targets):
        return (outputs.topk(self.count, 1).indices == targets[:, None]).any(1)

top2 = Top(2)
"""
WEIGHTS = ("a.safetensors", "b.safetensors", "c.safetensors")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of code and three checkpoints, in which everything is looked up."""
    (tmp_path / "task.py").write_text(SOURCE)
    for seed, name in enumerate(WEIGHTS):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (4, 8), "2.bias": (4,)}
        drawn = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        save_file(drawn, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("task", None)


def opened(weights=WEIGHTS, data="task:load", limit=None, **beside):
    own = open_networks("task:build", weights, data, limit=limit)
    return measured_beside(own, limit=limit, **beside)


def outputs_at(state):
    """The network's outputs by hand."""
    task = sys.modules["task"]
    inputs, targets = task.load()
    return torch.func.functional_call(task.build(), state, (inputs,)).double(), targets


def test_every_value_on_a_surface_is_that_of_a_plain_loop(folder):
    own = opened(
        subsets=["task:even", "task:parity", "task:names", "task:listed", "task:array"],
        metrics=["task:largest", "task:hits", "task:weighted", "task:top2"],
        per_class=True,
    )
    found = run_measurement(plan_surface(own, resolution=3), Store(folder / "runs", create=True))
    plane = fm.Subspace.through(*own.states)
    labels = sys.modules["task"].load()[1]
    groups = {
        "even": labels % 2 == 0, "parity_0": labels % 2 == 0, "parity_1": labels % 2 == 1,
        "low": labels < 2, "by_0": labels % 2 == 0, "by_1": labels % 2 == 1,
        "listed": torch.arange(41) < 20, "array": torch.arange(41) < 7,
    } | {f"class_{label}": labels == label for label in range(4)}  # fmt: skip
    assert set(found.attrs["subsets"]) == set(groups)
    sizes = dict(zip(found.attrs["subsets"], found.attrs["subset_samples"], strict=True))
    assert sizes == {name: int(mask.sum()) for name, mask in groups.items()}
    assert found.attrs["metrics"] == ["largest", "hits", "weighted", "top2"]
    places = [(found.isel(y=row, x=column), "") for row in range(3) for column in range(3)]
    places += [(found.isel(anchor=index), "anchor_") for index in range(3)]
    for place, prefix in places:
        x, y = (float(place["anchor_x" if prefix else "x"]), float(place[f"{prefix}y"]))
        outputs, targets = outputs_at(plane.parameters_at(np.array([x, y])))
        losses = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
        right = (outputs.argmax(1) == targets).double()
        weights = targets.double() + 1
        want = {
            "loss": losses.mean(),
            "largest": outputs.amax(1).mean(),
            "hits": right.mean(),
            "weighted": (outputs[:, 0] * weights).sum() / weights.sum(),
            "top2": (outputs.topk(2, 1).indices == targets[:, None]).any(1).double().mean(),
        }
        for name, mask in groups.items():
            want |= {f"loss_{name}": losses[mask].mean(), f"accuracy_{name}": right[mask].mean()}
        for name, value in want.items():
            np.testing.assert_allclose(place[prefix + name], value, rtol=1e-5, atol=1e-5)


def test_a_line_has_them_too(folder):
    own = opened(WEIGHTS[:2], subsets=["task:even"], metrics=["task:largest"])
    found = run_measurement(plan_line(own, resolution=5), Store(folder / "runs", create=True))
    assert found.attrs["subsets"] == ["even"]
    assert found.attrs["subset_samples"] == [int(sys.modules["task"].even().sum())]
    for index, state in enumerate(own.states):
        outputs, targets = outputs_at(state.parameters)
        losses = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
        end = found.isel(position=-index)
        np.testing.assert_allclose(end.loss_even, losses[targets % 2 == 0].mean(), rtol=1e-5)
        np.testing.assert_allclose(end.largest, outputs.amax(1).mean(), rtol=1e-5)


def test_what_is_measured_beside_is_part_of_a_results_name():
    base = open_networks("task:build", WEIGHTS[:2], "task:load")

    def digest(**beside):
        return plan_line(measured_beside(base, **beside), resolution=3).result.digest

    assert measured_beside(base) is base
    before = digest(subsets=["task:even"]), digest(metrics=["task:hits"])
    asked = [{}, {"subsets": ["task:array"]}, {"metrics": ["task:largest"]}, {"per_class": True}]
    found = {*before, *(digest(**each) for each in asked)}
    assert len(found) == 6
    assert digest(subsets=["task:even"]) == before[0]
    # A group is its samples, whatever code says which: a metric is its code.
    Path("task.py").write_text(SOURCE.replace("% 2 == 0", "% 3 == 0"))
    sys.modules.pop("task")
    base = open_networks("task:build", WEIGHTS[:2], "task:load")
    assert digest(subsets=["task:even"]) not in found
    assert digest(metrics=["task:hits"]) not in found


def test_a_metrics_own_file_and_what_it_imports_count():
    Path("scores.py").write_text("import shared\ndef score(outputs, targets): return outputs[:, 0]")
    Path("shared.py").write_text("x = 1\n")

    def digest():
        for name in ("scores", "shared"):
            sys.modules.pop(name, None)
        own = opened(WEIGHTS[:2], metrics=["scores:score"])
        return plan_line(own, resolution=3).result.digest

    before = digest()
    assert digest() == before
    Path("shared.py").write_text("x = 2\n")
    assert digest() != before


def test_groups_are_of_the_first_samples_with_a_limit():
    own = opened(WEIGHTS[:2], limit=12, subsets=["task:even", "task:parity"])
    labels = sys.modules["task"].load()[1][:12]
    assert own.subsets["even"] == int((labels % 2 == 0).sum())
    assert sum(own.subsets[f"parity_{k}"] for k in (0, 1)) == 12
    with pytest.raises(ValueError, match=r"expected 12 true or false.*got bool \[41\]"):
        measured_beside(own, subsets=["task:even"])


def test_classes_have_their_names_and_small_numbers_are_groups():
    own = opened(WEIGHTS[:2], data="task:clothes", per_class=True, subsets=["task:small"])
    assert list(own.subsets)[:4] == ["coat", "shirt-top", "shoe", "bag"]
    assert list(own.subsets)[4:] == ["small_0", "small_1"]


def test_more_groups_than_anybody_looks_at():
    Path("many.py").write_text(
        "import torch\ndef data(): return torch.zeros(500, 6), torch.zeros(500).long()\n"
        "def numbers(): return torch.arange(500) // 2\n"
    )
    own = open_networks("task:build", WEIGHTS[:2], "many:data")
    with pytest.raises(ValueError, match=r"at most 200 groups .* got 250 different numbers"):
        measured_beside(own, subsets=["many:numbers"])
    sys.modules.pop("many")


def test_a_metric_that_fails_later_is_told_in_one_line(folder):
    Path("late.py").write_text(
        "def score(outputs, targets):\n"
        "    return outputs[:, 0] if len(targets) == 2 else outputs[:1, 0]\n"
    )
    own = opened(WEIGHTS[:2], metrics=["late:score"])
    with pytest.raises(StudyFailed, match=r"a tensor \[41\] of a batch of 41, got \[1\]") as failed:
        run_measurement(plan_line(own, resolution=3), Store(folder / "runs", create=True))
    assert failed.value.bad_input
    assert "\n" not in str(failed.value)
    sys.modules.pop("late")


def flatminima(*words):
    with pytest.raises(SystemExit) as ended:
        main([word for given in words for word in given.split()])
    return int(ended.value.code or 0)


OWN = "--model task:build --data task:load --threads 1 --weights"


def test_commands_tell_groups_and_metrics_apart_and_the_page_shows_them(folder, capsys):
    beside = "--subset task:even --metric task:largest"
    assert flatminima("surface", OWN, *WEIGHTS, "--resolution 4", beside) == 0
    printed = capsys.readouterr().out
    assert "even (" in printed
    assert "largest: " in printed
    assert flatminima("line", OWN, *WEIGHTS[:2], "--resolution 4 --per-class") == 0
    assert "class_3 (" in capsys.readouterr().out
    report = folder / "runs/reports/networks"
    page = (report / "report.html").read_text(encoding="utf-8")
    for text in ("By group of samples", "Map of the loss, even (", "Metrics", "loss, class_2"):
        assert text in page
    assert "loss_class_1" in (report / "line.csv").read_text().splitlines()[0]
    assert flatminima("export runs plane.csv") == 0
    table = fm.load_surface("plane.csv")
    assert {"loss_even", "accuracy_even", "largest"} <= set(table)
    assert list(np.atleast_1d(table.attrs["subsets"])) == ["even"]


def test_stopped_points_of_groups_are_not_known(folder):
    own = opened(subsets=["task:even"], metrics=["task:hits"])
    made = plan_surface(own, resolution=4, clip=2.0)
    found = run_measurement(made, Store(folder / "runs", create=True))
    stopped = (found.outcome == 2).values
    assert stopped.any()
    for name in ("loss_even", "hits"):
        np.testing.assert_array_equal(np.isnan(found[name]), stopped)
    xr.testing.assert_equal(found.loss.where(stopped, 0.0) > 0, found.outcome == 2)
