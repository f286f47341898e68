"""Own networks measured by several processes: the same bytes, and what may differ on a machine."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flatminima.cli import _own, main
from flatminima.own import Anew, open_networks, plan_radii, plan_surface
from flatminima.store import Store

CODE = """
import torch
from torch import nn

def build(): return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
def data():
    draws = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    return draws, draws[:, :4].argmax(1)
def some(): return data()[1] == 1
def largest(outputs, targets): return outputs.amax(1)
def fails_far_away(outputs, targets):
    if outputs.abs().max() > 100:
        raise RuntimeError("too far")
    return nn.functional.cross_entropy(outputs, targets, reduction="none")
"""
WEIGHTS = ["a.pt", "b.pt", "c.pt"]
ASKED = "--model task:build --data task:data --threads 1"
THREE = "--weights a.pt b.pt c.pt"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of code and three checkpoints, in which everything is looked up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # Pages are drawn in other tests.
    monkeypatch.setattr(_own, "write_page", lambda store, name: store.report_folder(name))
    (tmp_path / "task.py").write_text(CODE)
    shapes = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (4, 8), "2.bias": (4,)}
    for seed, name in enumerate(WEIGHTS):
        generator = torch.Generator().manual_seed(seed)
        torch.save({key: torch.randn(s, generator=generator) for key, s in shapes.items()}, name)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    sys.modules.pop("task", None)


def flatminima(*words):
    with pytest.raises(SystemExit) as ended:
        main([word for given in words for word in given.split()])
    return int(ended.value.code or 0)


def payloads(store):
    found = {}
    for job in sorted((Path(store) / "jobs").iterdir()):
        files = sorted(path for path in (job / "payload").rglob("*") if path.is_file())
        found[job.name] = {str(path.relative_to(job)): path.read_bytes() for path in files}
    return found


COMMANDS = {
    "surface": f"surface {ASKED} {THREE} --resolution 9 --subset task:some --metric task:largest",
    "random plane": f"surface {ASKED} --weights a.pt --resolution 8 --extent -2,2 --per-class",
    "radius": f"radius {ASKED} --weights a.pt b.pt --directions 7 --parameters 2.*",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_several_processes_give_the_same_bytes(capsys, command):
    assert flatminima(COMMANDS[command], "--out alone") == 0
    said = capsys.readouterr().out
    assert flatminima(COMMANDS[command], "--out beside --executor processes --workers 2") == 0
    again = capsys.readouterr().out
    alone, beside = payloads("alone"), payloads("beside")
    assert len(alone) >= 3
    assert alone == beside
    results = [
        [line for line in text.splitlines() if not line.startswith(("[", "report:"))]
        for text in (said, again)
    ]
    assert results[0] == results[1] != []
    # The next one finds everything done, by whichever executor.
    assert flatminima(COMMANDS[command], "--out beside") == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cluster_gives_the_same_bytes():
    pytest.importorskip("ray", reason="Ray is an extra: make extras installs it")
    assert flatminima(COMMANDS["surface"], "--out alone") == 0
    assert flatminima(COMMANDS["surface"], "--out beside --executor ray --workers 2") == 0
    assert payloads("alone") == payloads("beside")


def test_where_nothing_is_said_a_process_has_one_thread(capsys):
    few = ASKED.replace("--threads 1", "")
    surface = f"surface {few} {THREE} --resolution 4"
    assert flatminima(surface, "--executor processes --workers 1") == 0
    capsys.readouterr()
    assert flatminima(surface, "--threads 1") == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("executor", ["serial", "processes --workers 2"])
def test_a_failing_step_is_told_of_and_the_others_are_kept(capsys, executor):
    surface = f"surface {ASKED} {THREE} --resolution 9 --loss task:fails_far_away"
    assert flatminima(surface, "--extent -30,30 --executor", executor) == 1
    error = capsys.readouterr().err
    assert error.startswith("flatminima: points ")
    assert "RuntimeError: too far (its log: runs/logs/tile-" in error
    assert error.endswith("all finished work is kept\n")
    assert error.count("\n") == 1
    logs = [path.read_text() for path in Path("runs/logs").glob("tile-*")]
    assert any('raise RuntimeError("too far")' in log for log in logs)
    assert not Store("runs").studies()


# What a worker makes of the words it is sent.


def sent(kind, **options):
    """A measurement here, and what is sent to do it elsewhere."""
    words = {"model": "task:build", "weights": WEIGHTS, "data": "task:data"}
    plan = {"surface": plan_surface, "radius": plan_radii}[kind]
    made = plan(open_networks(**words), **options)
    return made, Anew.of(kind, words, {}, options, threads=torch.get_num_threads())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("surface", {"resolution": 3}),
        ("surface", {"resolution": 3, "extent": (-0.4, 1.3), "coordinates": "barycentric"}),
        ("radius", {"directions": 2, "max_radius": 9.0}),
    ],
)
def test_a_step_done_from_words_has_the_same_bytes(kind, options, monkeypatch, tmp_path):
    made, anew = sent(kind, **options)
    step = made.steps[0][0]
    sys.modules.pop("task")
    monkeypatch.chdir(tmp_path.parent)  # workers begin where they like
    assert anew(step, {}) == made.do(step, {})
    assert Path.cwd() == tmp_path.parent


def test_other_code_on_a_worker_is_refused():
    made, anew = sent("surface", resolution=3)
    Path("task.py").write_text(CODE.replace("manual_seed(0)", "manual_seed(1)"))
    sys.modules.pop("task")
    with pytest.raises(ValueError, match="to be those that were asked for, got others"):
        anew(made.steps[0][0], {})


def test_other_weights_on_a_worker_are_refused():
    made, anew = sent("radius", directions=1)
    shutil.copy("b.pt", "a.pt")
    with pytest.raises(ValueError, match="give every machine the same files"):
        anew(made.steps[0][0], {})


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    made, anew = sent("surface", resolution=3)
    monkeypatch.chdir("/")
    shutil.rmtree(tmp_path)
    with pytest.raises(ValueError, match=f"expected the folder {tmp_path} on "):
        anew(made.steps[0][0], {})
    tmp_path.mkdir()


def test_ray_is_not_told_which_gpu_to_take():
    own = SimpleNamespace(landscape=SimpleNamespace(device=torch.device("cuda:1")), states=[])
    with pytest.raises(ValueError, match=r"--device cuda with --executor ray, got cuda:1; Ray"):
        _own._opened(_own.Where("ray"), own, [], print)
