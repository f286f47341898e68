"""The commands on a user's own networks, from a folder with a single Python file."""

import importlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr

from flatminima.cli import main
from flatminima.own import networks as opened
from flatminima.store import Store

NET = '''
"""A small network on random points, and what may go wrong with one."""
import torch
from torch import nn


def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def other():
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))


def wrapped():
    return nn.ModuleDict({"model": build()})


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator)
    return inputs, inputs[:, :4].argmax(1)


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=7)


def shuffled():
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data()), batch_size=7, shuffle=True
    )


def holes():
    inputs, targets = data()
    inputs[3, 2] = torch.nan
    return inputs, targets


def wide():
    return torch.zeros(5, 7), torch.zeros(5, dtype=torch.int64)


def nothing():
    return None


def broken():
    raise RuntimeError("no such luck")


def negative(outputs, targets):
    return -outputs.square().sum(1)


def summed(outputs, targets):
    return outputs.square().sum()


number = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with net.py and three fitted networks, in which commands are given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    sys.modules.pop("net", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    net = importlib.import_module("net")
    inputs, targets = net.data()
    for seed, name in enumerate("abc"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = net.build()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
        torch.save(network.state_dict(), f"{name}.pt")
    safetensors.torch.save_file(network.state_dict(), "c.safetensors")
    prefixed = {f"model.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": prefixed}, "prefixed.ckpt")
    yield tmp_path
    sys.modules.pop("net", None)


def flatminima(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([word for given in words for word in given.split()])
    return int(ended.value.code or 0)


OWN = "--model net:build --data net:data --threads 1"
THREE = "--weights a.pt b.pt c.safetensors"


def result(kind: str, name: str = "networks") -> xr.Dataset:
    store = Store("runs")
    job = next(job for job in store.manifest(name)["jobs"] if job["kind"] == kind)
    return store.open_payload(kind, job["digest"], f"{kind}.zarr")


def test_all_commands_make_one_page(folder, capsys):
    assert flatminima("check", OWN, THREE, "--out runs --resolution 3") == 0
    assert flatminima("surface", OWN, THREE, "--resolution 4") == 0
    assert flatminima("line", OWN, "--weights a.pt b.pt --resolution 5") == 0
    assert flatminima("radius", OWN, THREE, "--directions 2") == 0
    page = Path("runs/reports/networks/report.html").read_text(encoding="utf-8")
    for text in ("1 a.pt, 2 b.pt, 3 c.safetensors", "The barrier", "least", "What are the losses?"):
        assert text in page
    names = {path.name for path in Path("runs/reports/networks").iterdir()}
    assert {"figure-surface.png", "figure-line.svg", "line.csv", "radii.csv"} <= names
    printed = capsys.readouterr().out
    assert "losses at the networks" in printed
    assert "barrier" in printed
    assert "mean radius" in printed
    assert flatminima("report networks") == 0
    assert flatminima("verify runs --recompute") == 0
    assert flatminima("export runs plane.csv") == 0
    assert len(Path("plane.csv").read_text().splitlines()) > 16


def test_the_surface_is_that_of_a_plain_loop(folder):
    import net

    import flatminima as fm

    assert flatminima("surface", OWN, THREE, "--resolution 3 --clip 1000") == 0
    surface = result("surface")
    states = [torch.load(f"{name}.pt", weights_only=True) for name in "abc"]
    plane = fm.Subspace.through(*states)
    inputs, targets = net.data()
    for row in range(3):
        for column in range(3):
            at = np.array([surface.x[column], surface.y[row]])
            state = plane.parameters_at(at)
            outputs = torch.func.functional_call(net.build(), state, (inputs,))
            want = torch.nn.functional.cross_entropy(outputs.double(), targets).item()
            np.testing.assert_allclose(surface.loss[row, column], want, rtol=1e-5, atol=1e-6)


def test_a_second_call_computes_nothing_and_a_changed_source_everything(folder, capsys):
    command = ("surface", OWN, THREE, "--resolution 8")
    assert flatminima(*command) == 0
    first = sorted(path.name for path in Path("runs/jobs").iterdir())
    capsys.readouterr()
    assert flatminima(*command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert sorted(path.name for path in Path("runs/jobs").iterdir()) == first
    Path("net.py").write_text(NET + "\n# changed\n")
    sys.modules.pop("net")  # as in a new process
    assert flatminima(*command) == 0
    assert len(list(Path("runs/jobs").iterdir())) == 2 * len(first)


def test_a_stopped_surface_goes_on_where_it_was(folder, monkeypatch):
    import shutil

    command = ("surface", OWN, THREE, "--resolution 12")
    assert flatminima(*command) == 0
    whole = result("surface")
    jobs = sorted(Path("runs/jobs").iterdir())
    assert len(jobs) == 4
    for job in jobs:
        if job.name.startswith("surface") or job == jobs[-1]:
            shutil.rmtree(job)
    kept = {path: path.stat().st_mtime_ns for path in Path("runs/jobs").glob("*/run.json")}
    assert flatminima(*command) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    xr.testing.assert_identical(result("surface"), whole)


def test_checkpoints_with_a_prefix_and_data_in_other_forms(folder):
    given = "--model net:build --threads 1 --directions 1"
    assert flatminima("radius", given, "--data net.py:loader --weights prefixed.ckpt") == 2
    extra = "--weights prefixed.ckpt --prefix model."
    assert flatminima("radius", given, "--data net.py:loader", extra) == 0
    assert flatminima("radius", given, "--data net:data --weights c.pt --name plain") == 0
    np.testing.assert_allclose(
        result("radius").radius.values, result("radius", "plain").radius.values, rtol=1e-3
    )


def test_a_random_plane_lies_around_one_network(folder):
    assert flatminima("surface", OWN, "--weights a.pt --resolution 3 --extent -0.5,0.5") == 0
    surface = result("surface")
    np.testing.assert_allclose(surface.loss[1, 1], surface.anchor_loss[0], rtol=1e-6)


def test_a_network_with_broken_weights_is_told_and_not_measured(folder, capsys):
    state = torch.load("a.pt", weights_only=True)
    state["0.weight"][0, 0] = torch.nan
    torch.save(state, "nan.pt")
    assert flatminima("check", OWN, "--weights nan.pt") == 1
    assert "not finite" in capsys.readouterr().out
    assert flatminima("radius", OWN, "--weights nan.pt") == 2
    assert flatminima("surface", OWN, "--weights a.pt b.pt nan.pt") == 2
    assert "expected finite weights" in capsys.readouterr().err


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


BAD = [
    ("surface", "--model nett:build", "expected the module 'nett'"),
    ("surface", "--model net:buil", "did you mean 'build'"),
    ("surface", "--model net", "as module:name or file.py:name"),
    ("surface", "--model gone.py:build", "expected the file gone.py"),
    ("surface", "--model net:number", "a function that returns a network, got int"),
    ("surface", "--model net:nothing", "to return an nn.Module, got NoneType"),
    ("surface", "--model net:broken", "got RuntimeError from it (no such luck)"),
    ("surface", "--model net:other", "(9, 6)"),
    ("surface", "--data net:dat", "did you mean 'data'"),
    ("surface", "--data nist", "module:function or one of digits"),
    ("surface", "--data net:nothing", "NoneType"),
    ("surface", "--data net:broken", "no such luck"),
    ("surface", "--data net:shuffled", "shuffl"),
    ("surface", "--data net:holes", "1"),
    ("surface", "--data net:wide", "to take a batch of --data 'net:wide' [2, 7]"),
    ("surface", "--limit 0", "--limit"),
    ("surface", "--loss crossentropy", "expected a loss among"),
    ("surface", "--loss net:summed", "expected one loss per sample"),
    ("surface", "--loss net:gone", "no 'gone' in net"),
    ("surface", "--loss model", "inputs by name"),
    ("surface", "--weight net:summed", "weight only with loss='model'"),
    ("surface", "--prefix model.", "model."),
    ("surface", "--batchnorm kept", "kept"),
    ("surface", "--precision double", "'exact' or 'fast'"),
    ("surface", "--batch-size 0", "--batch-size"),
    ("surface", "--device gpu", "a device of this machine (cpu, cuda or mps)"),
    ("surface", "--threads 0", "--threads"),
    ("surface", "--out net.py", "net.py"),
    ("surface", "--out .", "expected an empty folder or a store"),
    ("surface", "--resolution 1", "--resolution"),
    ("surface", "--extent 3", "two numbers with a comma"),
    ("surface", "--extent 2,1", "from below to"),
    ("surface", "--coordinates polar", "'isometric' or 'barycentric'"),
    ("surface", "--clip -1", "expected a positive clip"),
    ("surface", "--clip 2 --loss net:negative", "never negative"),
    ("surface", "--parameters 0.*", "expected --parameters only around one network"),
    ("surface", "--weights a.pt b.pt", "expected three networks"),
    ("surface", "--weights a.pt a.pt b.pt", "identical or collinear"),
    ("surface", "--weights a.pt b.pt gone.pt", "gone.pt"),
    ("surface", "--weights a.pt b.pt net.py", "net.py"),
    ("surface", "--weights a.pt b.pt bomb.pt", "bomb.pt"),
    ("surface", "--weights a.pt --scaling polar", "polar"),
    ("surface", "--weights a.pt --parameters no.*", "match"),
    ("line", "--weights a.pt", "expected two networks"),
    ("line", "--weights a.pt a.pt", "identical or collinear"),
    ("line", "--weights a.pt b.pt --resolution 2", "--resolution"),
    ("radius", "--threshold 0", "expected a positive threshold"),
    ("radius", "--directions 0", "--directions"),
    ("radius", "--parameters no.*", "expected parameters that match"),
    ("radius", "--tolerance 0", "expected a positive tolerance"),
    ("radius", "--max-radius -2", "expected a positive max_radius"),
    ("radius", "--model net:Tied --parameters top --weights tied.pt", "shares them with"),
    ("check", "--threshold 0", "expected a positive threshold"),
    ("check", "--resolution 1", "--resolution"),
]


@pytest.mark.parametrize(("command", "options", "complaint"), BAD)
def test_bad_input_gets_one_line_and_code_2(folder, capsys, command, options, complaint):
    import net

    torch.save(net.Tied().state_dict(), "tied.pt")
    Path("bomb.pt").write_bytes(pickle.dumps(Bomb()))
    given = dict.fromkeys(["--model net:build", "--data net:data", THREE])
    words = [word for word in given if word.split()[0] not in options.split()]
    capsys.readouterr()
    assert flatminima(command, *words, options) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("flatminima: ")
    assert error.count("\n") == 1
    assert not Path("exploded").exists()
    assert not list(Path("runs").glob("jobs/*"))


def test_names_are_the_shortest_that_tell_apart():
    assert opened._names(["x/a.pt", "y/b.pt"]) == ("a.pt", "b.pt")
    assert opened._names(["x/a.pt", "y/a.pt"]) == ("x/a.pt", "y/a.pt")
    assert opened._names(["a.pt", "a.pt"]) == ("a.pt (1)", "a.pt (2)")


def test_a_study_may_not_take_the_name_of_own_networks(folder, capsys):
    assert flatminima("radius", OWN, "--weights a.pt --directions 1 --name mine") == 0
    Path("mine.toml").write_text(
        'name = "mine"\n[data]\ndataset = "digits"\n[[groups]]\nname = "natural"\n'
        '[model]\nname = "mlp"\nsettings = { sizes = [64, 10] }\n[training]\nepochs = 1\n'
    )
    kept = Store("runs").manifest("mine")
    assert flatminima("run mine.toml") == 2
    assert "under which own networks were measured" in capsys.readouterr().err
    assert Store("runs").manifest("mine") == kept
