"""Every option of every command does something in its situation, or is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import xarray as xr

from flatminima.cli import _own, main
from flatminima.cli._main import app
from flatminima.store import Store

CODE = """
import torch
from torch import nn

def build(): return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
def plain(): return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
def double(): return plain().double()
def linear(): return nn.Linear(6, 4)
def data():
    draws = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    return draws, draws[:, :4].argmax(1)
def some(): return data()[1] == 1
def largest(outputs, targets): return outputs.amax(1)
"""
# Of every option a value; most are those that it has anyhow.
VALUES = {
    "--model": "task:build", "--data": "task:data", "--loss": "cross_entropy", "--prefix": "net.",
    "--limit": "39", "--batchnorm": "auto", "--precision": "exact", "--batch-size": "7",
    "--device": "cpu", "--threads": "1", "--name": "networks", "--out": "runs",
    "--resolution": "3", "--extent": "-1,1", "--coordinates": "isometric", "--clip": "1000",
    "--seed": "0", "--scaling": "filter", "--parameters": "all", "--directions": "1",
    "--threshold": "0.05", "--tolerance": "0.001", "--max-radius": "9", "--subset": "task:some",
    "--metric": "task:largest", "--per-class": "", "--executor": "serial", "--workers": "2",
    "--address": "auto",
}  # fmt: skip
# With the executor that there is unless another is named.
SEVERAL = ["--workers", "--address"]
# Options that do nothing, by command and number of checkpoints; of all others each does something.
NOTHING = {
    ("surface", 1): ["--coordinates", *SEVERAL],
    ("surface", 3): ["--seed", "--scaling", "--parameters", *SEVERAL],
    ("line", 2): [],
    ("radius", 1): SEVERAL,
    ("radius", 2): SEVERAL,
    ("radius", 4): SEVERAL,
    ("check", 1): [],
    ("check", 2): [],
    ("check", 3): [],
    ("check", 4): [],
}
# By the network that is measured.
BY_NETWORK = [
    ("surface", 3, "plain", "--batchnorm auto", "for BatchNorm layers with running statistics"),
    ("surface", 1, "plain", "--batchnorm keep", "got Sequential without any"),
    ("line", 2, "plain", "--batchnorm recompute", "got Sequential without any"),
    ("radius", 1, "plain", "--batchnorm keep", "got Sequential without any"),
    ("check", 1, "plain", "--batchnorm keep", "got Sequential without any"),
    ("check", 1, "double", "--threshold 0.05", "got a network without it"),
    ("surface", 3, "linear", "--precision fast", "got that alone, which is always exact"),
    ("surface", 1, "plain", "--precision exact --parameters top", "got that alone"),
    ("line", 2, "linear", "--precision fast", "got that alone"),
    ("radius", 1, "plain", "--precision fast --parameters top", "got that alone"),
    ("check", 1, "plain", "--name mine", "expected --name only with --out"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with code and four checkpoints of every network."""
    monkeypatch.chdir(tmp_path)
    # Pages are drawn in other tests.
    monkeypatch.setattr(_own, "write_page", lambda store, name: store.report_folder(name))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "task.py").write_text(CODE)
    threads = torch.get_num_threads()
    import task

    for name in ("build", "plain", "double", "linear"):
        for seed in range(4):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                state = getattr(task, name)().state_dict()
            torch.save(state, f"{name}{seed}.pt")
            torch.save({f"net.{key}": value for key, value in state.items()}, f"net{name}{seed}.pt")
    yield tmp_path
    torch.set_num_threads(threads)
    sys.modules.pop("task")


def flatminima(*words):
    with pytest.raises(SystemExit) as ended:
        main([word for given in words for word in str(given).split()])
    return int(ended.value.code or 0)


def asked(command, count, network="build", start=""):
    """A command without further options."""
    files = " ".join(f"{start}{network}{index}.pt" for index in range(count))
    return f"{command} --model task:{network} --data task:data --weights {files}"


def options_of(command):
    known = {param.opts[0] for param in typer.main.get_command(app).commands[command].params}
    return known - {"--help", "--model", "--data", "--weights"}


@pytest.mark.parametrize(("command", "count"), NOTHING)
def test_an_option_that_would_do_nothing_is_refused_at_any_value(capsys, command, count):
    for option in NOTHING[command, count]:
        assert flatminima(asked(command, count), option, VALUES[option]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"flatminima: expected {option} only ")
        assert "; leave it out" in error
        assert error.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(("command", "count"), NOTHING)
def test_all_others_are_taken_together(command, count):
    # What a batch's own loss is the mean over is for such losses alone, which is told elsewhere.
    taken = options_of(command) - {*NOTHING[command, count], "--weight"}
    given = " ".join(f"{option} {VALUES[option]}" for option in sorted(taken))
    assert flatminima(asked(command, count, start="net"), given) in (0, 1)
    assert Store("runs").studies() == ["networks"]


@pytest.mark.parametrize(("command", "count", "network", "options", "piece"), BY_NETWORK)
def test_what_does_nothing_for_a_network_is_refused(
    capsys, command, count, network, options, piece
):
    assert flatminima(asked(command, count, network), options, "--threads 1") == 2
    error = capsys.readouterr().err
    assert piece in error
    assert error.count("\n") == 1
    assert not list(Path().rglob("run.json"))


def test_several_are_refused_together_and_an_empty_prefix(capsys):
    assert flatminima(asked("surface", 3), "--seed 1 --scaling layer") == 2
    assert "expected --seed and --scaling only around one network" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*asked("radius", 1).split(), "--prefix", ""])
    assert ended.value.code == 2
    assert "got nothing; leave it out" in capsys.readouterr().err


def test_a_name_is_for_a_store(capsys):
    assert flatminima("export build0.pt x.csv --name mine") == 2
    assert "expected --name only for a store" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seed 1", "--scaling layer", "--parameters 3.*"])
def test_a_random_plane_is_drawn_anew_by_every_option_of_it(option):
    given = asked("surface", 1), "--resolution 3 --threads 1 --name"
    assert flatminima(*given, "first") == 0
    assert flatminima(*given, "again --seed 0 --scaling filter --parameters all") == 0
    assert flatminima(*given, "other", option) == 0
    store = Store("runs")
    jobs = {name: store.manifest(name)["jobs"][0] for name in ("first", "again", "other")}
    assert jobs["first"]["digest"] == jobs["again"]["digest"] != jobs["other"]["digest"]
    steps = {name: set(job["dependencies"]) for name, job in jobs.items()}
    assert not steps["first"] & steps["other"]
    first, other = (
        store.open_payload("surface", jobs[name]["digest"], "surface.zarr")
        for name in ("first", "other")
    )
    xr.testing.assert_allclose(first.anchor_loss, other.anchor_loss)
    np.testing.assert_allclose(first.loss[1, 1], other.loss[1, 1], rtol=1e-6)
    assert float(np.abs(first.loss - other.loss).max()) > 1e-3
