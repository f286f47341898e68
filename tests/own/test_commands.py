"""The commands on own networks beside a study, and bad input to every option they have."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from flatminima.cli import _own, main
from flatminima.cli._main import app
from flatminima.store import Store
from flatminima.study.run import run_study

CODE = """
import sys
import torch
from torch import nn

def build(): return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
def leaves(): sys.exit("no arguments")
def data():
    draws = torch.randn(41, 6, generator=torch.Generator().manual_seed(0))
    return draws, draws[:, :4].argmax(1)
def empty(): return torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
def infinite(): return torch.full((3, 6), torch.inf), torch.zeros(3, dtype=torch.int64)
def alone(): return torch.zeros(4, 6)
def fractions(): return torch.zeros(4, 6), torch.zeros(4)
def pictures(): return torch.zeros(4, 6), torch.zeros(4, 4)
def count(batch): return len(batch["labels"])
class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()
    def forward(self, input, labels):
        outputs = self.net(input)
        return {"loss": outputs.square().mean(), "logits": outputs}
def named(): return {"input": data()[0], "labels": data()[1]}
def mask(): return data()[1] == 1
def short(): return data()[1][:5] == 1
def nobody(): return data()[1] == 9
def nans(): return torch.full((41,), torch.nan)
def rows(): return [3, 4]
def numbered(): return range(41)
def words(): return ["even"] * 41
def nameless(): return {"a/b": mask()}
def groupless(): return {}
def mean(outputs, targets): return outputs.mean()
def wide(outputs, targets): return outputs
def three(outputs, targets): return outputs[:3, 0]
def listed(outputs, targets): return outputs[:, 0].tolist()
def loss(outputs, targets): return outputs[:, 0]
def position(outputs, targets): return outputs[:, 0]
def loss_mask(outputs, targets): return outputs[:, 0]
def raises(outputs, targets): raise KeyError("what")
number = 3
"""
STUDY = """
name = "small"
[data]
dataset = "digits"
limit = 20
[[groups]]
name = "natural"
[model]
name = "mlp"
[model.settings]
sizes = [64, 4, 10]
[training]
epochs = 1
batch_size = 10
learning_rate = 0.1
[surface]
resolution = 2
[radius]
directions = 1
block = 1
protocols = ["crossing"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An otherwise empty folder with code and three checkpoints, in which commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "task.py").write_text(CODE)
    threads = torch.get_num_threads()
    for seed, name in enumerate("abc"):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (4, 8), "2.bias": (4,)}
        state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        torch.save(state, f"{name}.pt")
    save_file({f"net.{key}": value for key, value in state.items()}, "prefixed.safetensors")
    save_file({key: value.t().contiguous() for key, value in state.items()}, "turned.safetensors")
    save_file({"x": torch.zeros(2)}, "foreign.safetensors")
    yield tmp_path
    torch.set_num_threads(threads)
    for name in ("task", "twin"):
        sys.modules.pop(name, None)


def flatminima(*words):
    with pytest.raises(SystemExit) as ended:
        main([word for given in words for word in str(given).split()])
    return ended.value.code


MODEL, DATA = "--model task:build", "--data task:data"
OWN = f"{MODEL} {DATA}"

EVERY = [
    ("--model task:leaves", "got SystemExit from it (no arguments)"),
    ("--model task.py:number", "got int; name a function or a class"),
    ("--weights foreign.safetensors", "0.weight of shape (8, 6)"),
    ("--weights turned.safetensors", "0.weight of shape (6, 8) instead of (8, 6)"),
    ("--weights prefixed.safetensors", 'pass prefix="net."'),
    ("--weights task.py", "task.py"),
    ("--weights .", "expected one checkpoint in a folder"),
    ("--data task:empty", "at least one sample"),
    ("--data task:infinite", "expected finite inputs, got 18 NaN or infinite values"),
    ("--data task:alone", "got Tensor"),
    ("--data task:number", "got int"),
    ("--data task:fractions", "expected --model 'task:build' and --loss 'cross_entropy' to take"),
    ("--data digits:middle", "expected a split out of"),
    ("--loss task:raises", "got KeyError ('what'); check shapes and types"),
    ("--loss task:number", "number"),
    ("--loss mse", "expected outputs and targets of one shape"),
    ("--loss next_token", "expected logits [N, length, tokens]"),
    ("--loss model --data task:named", "expected weight=, a function from a batch"),
    ("--weight task:gone", "no 'gone' in task"),
    ("--weight task:data", "weight only with loss='model'"),
    ("--prefix net.", "expected names that start with net."),
    ("--limit many", "'--limit'"),
    ("--batchnorm frozen", "expected a BatchNorm policy among"),
    ("--precision half", "'exact' or 'fast', got 'half'"),
    ("--batch-size -1", "'--batch-size'"),
    ("--device tpu", "got 'tpu'"),
    ("--threads x", "'--threads'"),
    ("--out a.pt/runs", "a.pt"),
    ("--out .", "expected an empty folder or a store at ."),
    ("--name ../elsewhere", "expected --name of letters"),
    ("--name a/b", "expected --name of letters"),
]
# A network that computes its own loss.
READER = (
    "--loss model --weight task:count --model task:Reader --data task:named"
    " --weights prefixed.safetensors prefixed.safetensors"
)
BESIDE = [
    ("--subset task", "expected --subset as module:name"),
    ("--subset task:gone", "expected --subset 'task:gone' to exist"),
    ("--subset task:raises", "expected --subset 'task:raises' to work without arguments"),
    ("--subset task:short", "expected 41 true or false, or whole numbers, one for each sample"),
    ("--subset task:nobody", "expected samples in group 'nobody'"),
    ("--subset task:nans", "got float32 [41]; compare, such as labels == 3"),
    ("--subset task:rows", "got int64 [2]"),
    ("--subset task:number", "got int64 []"),
    ("--subset task:numbered", "different numbers"),
    ("--subset task:words", "got list as 'words'; return one value per sample"),
    ("--subset task:groupless", "expected groups from --subset 'task:groupless', got none"),
    ("--subset task:nameless", "got 'a/b' from --subset 'task:nameless'; rename it"),
    ("--subset task:mask task:mask", "names that differ, got 'mask' again"),
    ("--metric task", "expected --metric as module:name"),
    ("--metric task:gone", "expected --metric 'task:gone' to exist"),
    ("--metric task:number", "expected --metric 'task:number' as a function"),
    ("--metric task:data", "got TypeError from it"),
    ("--metric task:raises", "got KeyError from it ('what'); check shapes and types"),
    ("--metric task:mean", "a tensor [2] of a batch of 2, got []; do not take the mean"),
    ("--metric task:wide", "got [2, 4]"),
    ("--metric task:three", "expected --metric 'task:three' to return one value per sample"),
    ("--metric task:listed", "got list"),
    ("--metric task:loss", "names of metrics that results do not have anyhow, got 'loss'"),
    ("--metric task:position", "got 'position' from --metric 'task:position'; rename"),
    ("--metric task:loss_mask --subset task:mask", "got 'loss_mask'"),
    ("--metric task:mask task:mask", "names that differ, got 'mask' twice"),
    ("--per-class --loss mse --data task:pictures", "expected targets that are classes"),
    (f"--per-class {READER}", "expected no subsets with loss='model'"),
    (f"--metric task:wide {READER}", "expected --metric 'task:wide' to return one value"),
]
WHERE = [
    ("--executor threads", "expected an executor out of 'serial', 'processes', 'ray', got"),
    ("--workers 0", "'--workers'"),
    ("--workers 2", "expected --workers only with several processes"),
    ("--address auto", "expected --address only with several processes"),
    ("--executor processes --address auto", "expected no address with executor 'processes'"),
    ("--executor ray --address auto --workers 2", "expected no number of workers"),
]
SOME = {
    "surface": [
        ("--resolution x", "'--resolution'"),
        ("--extent 1,2,3", "two numbers with a comma"),
        ("--extent 0,inf", "two numbers with a comma"),
        ("--extent nan,1", "two numbers with a comma"),
        ("--coordinates barycentric", "expected --coordinates only for three networks"),
        ("--clip nan", "expected a finite clip"),
        ("--seed 0.5", "'--seed'"),
        ("--scaling filters", "'unit', 'layer' or 'filter', got 'filters'"),
        ("--parameters conv*", "the names are 0.weight, 0.bias"),
        *BESIDE,
        *WHERE,
    ],
    "line": [
        ("--resolution 2", "'--resolution'"),
        ("--weights a.pt b.pt c.pt", "got 3"),
        *BESIDE,
    ],
    "radius": [
        ("--directions many", "'--directions'"),
        ("--threshold nan", "expected a finite threshold"),
        ("--threshold -0.1", "expected a positive threshold"),
        ("--seed x", "'--seed'"),
        ("--parameters 5.*", "expected parameters that match"),
        ("--tolerance inf", "expected a finite tolerance"),
        ("--max-radius 0", "expected a positive max_radius"),
        *WHERE,
    ],
    "check": [
        ("--threshold nan", "expected a positive threshold"),
        ("--resolution 1", "'--resolution'"),
    ],
}
UNUSED = {
    ("check", "--name"): "expected --name only with --out",
}
TABLE = [
    *(
        (command, options, UNUSED.get((command, options.split()[0]), piece))
        for command in SOME
        for options, piece in EVERY
    ),
    *((command, options, piece) for command, rows in SOME.items() for options, piece in rows),
]


@pytest.mark.parametrize(("command", "options", "piece"), TABLE)
def test_bad_input_is_one_line_and_two(folder, capsys, command, options, piece):
    weights = "--weights a.pt b.pt" if command == "line" else "--weights a.pt"
    usual = [words for words in (MODEL, DATA, weights) if words.split()[0] not in options.split()]
    if command == "line" and options.startswith("--weights") and "b.pt" not in options:
        options += " b.pt"
    assert flatminima(command, *usual, options) == 2
    error = capsys.readouterr().err
    assert error.startswith("flatminima: ")
    assert piece in error
    assert error.count("\n") == 1
    assert not list(folder.rglob("run.json"))


@pytest.mark.parametrize("command", SOME)
def test_bad_input_is_tried_for_every_option(command):
    known = {param.opts[0] for param in typer.main.get_command(app).commands[command].params}
    tried = {row[0].split()[0] for row in [*EVERY, *SOME[command]]}
    assert known - {"--help"} <= tried


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        ("surface", "Missing option '--model'"),
        ("surface --model task:build", "Missing option '--weights'"),
        ("line --weights a.pt b.pt --model task:build", "Missing option '--data'"),
        (f"check {OWN}", "Missing option '--weights'"),
        (f"radius {OWN} --weights", "requires an argument"),
        (f"radius {OWN} --weights=a.pt b.pt", "unexpected extra argument"),
        (f"radius {OWN} --weights a.pt --resolution 3", "No such option"),
        ("export", "Missing argument"),
        ("export a.pt", "Missing argument"),
        ("export a.pt x.csv", "a.pt"),
        ("export gone x.csv", "gone"),
        ("export EMPTY x.csv", "expected one surface in the store EMPTY, got 0"),
        ("report gone", "expected a store at runs"),
        ("report gone --out EMPTY", "expected the study 'gone'"),
        ("status gone", "expected a study file, got nothing there"),
    ],
)
def test_bad_usage_is_one_line_and_two(folder, capsys, words, piece):
    Store("EMPTY", create=True)
    assert flatminima(words) == 2
    error = capsys.readouterr().err
    assert piece in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(folder, capsys):
    Path("closed").mkdir(mode=0o500)
    assert flatminima("radius", OWN, "--weights a.pt --directions 1 --out closed/runs") == 2
    assert "can be read and written" in capsys.readouterr().err


def test_a_studys_name_is_refused_before_anything_is_computed(folder, capsys):
    store = Store("runs", create=True)
    store.write_manifest("mine", {"settings": {"name": "mine", "groups": []}, "jobs": []})
    assert flatminima("line", OWN, "--weights a.pt b.pt --name mine") == 2
    assert "a name that no study in runs has, got 'mine'" in capsys.readouterr().err
    assert list(store.records()) == []


def test_a_study_and_own_networks_live_in_one_store(folder, capsys):
    Path("small.toml").write_text(STUDY)
    run_study("small.toml", out="runs")
    studys = {record["digest"] for record in Store("runs").records()}
    given = (OWN, "--weights a.pt b.pt --resolution 3 --name mine")
    assert flatminima("line", *given) == 0
    assert Store("runs").studies() == ["mine", "small"]
    capsys.readouterr()
    assert flatminima("line", *given) == 0
    assert "line: nothing to do, it is in runs" in capsys.readouterr().out
    for words, piece in (
        ("status small.toml", "0 of"),
        ("report small", "reports/small/report.html"),
        ("report mine", "reports/mine/report.html"),
        ("verify runs --recompute", "everything that was recomputed agrees"),
    ):
        assert flatminima(words) == 0, words
        assert piece in capsys.readouterr().out
    for words in ("status mine", "report runs", "report mine --to page", "report mine small"):
        assert flatminima(words) == 2, words
        assert capsys.readouterr().err.count("\n") == 1
    assert studys < {record["digest"] for record in Store("runs").records()}


def test_one_option_takes_several_values_and_may_be_repeated(folder):
    given = (OWN, "--directions 1 --name mine")
    assert flatminima("radius", "--weights a.pt b.pt", *given) == 0
    assert flatminima("radius", "--weights a.pt", *given, "--weights b.pt") == 0
    jobs = json.loads(Path("runs/studies/mine/manifest.json").read_text())["jobs"]
    assert len(jobs) == 1
    kinds = [record["kind"] for record in Store("runs").records()]
    assert kinds == ["radius"] * 3


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("x --weights a b c --out d", "x --weights a --weights b --weights c --out d"),
        ("x --weights a --weights b", "x --weights a --weights b"),
        ("x --out d --weights a b", "x --out d --weights a --weights b"),
        ("run study.toml --only radii", "run study.toml --only radii"),
        ("x --weights", "x --weights"),
        ("", ""),
    ],
)
def test_values_after_an_option_are_its_values(given, meant):
    assert _own.several(given.split()) == meant.split()
