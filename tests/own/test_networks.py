"""Checkpoints, a factory, data and a loss, opened by name and checked against each other."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import flatminima as fm
from flatminima.own import open_networks

SOURCE = """
import torch
from torch import nn
from torch.utils.data import Dataset

import flatminima as fm

torch.manual_seed(5)
X, Y = torch.randn(40, 6), torch.arange(40) % 4

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(*build())

made = Net()

class Items(Dataset):
    def __len__(self): return len(X)
    def __getitem__(self, index): return X[index], Y[index]

items = Items()
pair = X, Y
named = fm.Dataset(X, Y, name="mine")

def load(): return pair
def loader(): return torch.utils.data.DataLoader(Items(), batch_size=7)

def margin(outputs, targets): return (outputs.square()).sum(1)

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = build()
    def forward(self, x, labels):
        logits = self.body(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

def named_inputs(): return {"x": X, "labels": Y}
def count(batch): return len(batch["labels"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with code and three checkpoints of one network, in three kinds of files."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(SOURCE)
    for index, name in enumerate(["a.pt", "b.safetensors", "run/model.safetensors"]):
        generator = torch.Generator().manual_seed(index)
        state = {
            "0.weight": torch.randn(8, 6, generator=generator),
            "0.bias": torch.randn(8, generator=generator),
            "2.weight": torch.randn(4, 8, generator=generator),
            "2.bias": torch.randn(4, generator=generator),
        }
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".pt"):
            torch.save(state, folder / name)
        else:
            save_file(state, folder / name)
    save_file({f"body.{name}": value for name, value in state.items()}, folder / "r.safetensors")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("nets", None)


WEIGHTS = ["a.pt", "b.safetensors", "run"]


@pytest.mark.parametrize("model", ["nets:build", "nets.py:build", "nets:Net", "nets:made"])
@pytest.mark.parametrize(
    "data", ["nets:load", "nets:loader", "nets:Items", "nets:items", "nets:pair", "nets:named"]
)
def test_all_forms_of_networks_and_data_are_the_same(model, data):
    own = open_networks(model, WEIGHTS, data)
    assert own.names == tuple(WEIGHTS)
    nets = sys.modules["nets"]
    for state in own.states:
        outputs = torch.func.functional_call(nets.build(), state.parameters, (nets.X,))
        want = torch.nn.functional.cross_entropy(outputs, nets.Y).item()
        np.testing.assert_allclose(own.landscape.loss_at(state).loss, [want], rtol=1e-6)
    assert own.landscape.dataset.name == ("mine" if data == "nets:named" else data)


def test_the_random_state_is_left_alone_and_does_not_decide_anything():
    open_networks("nets:build", WEIGHTS, "nets:load")  # its module sets a seed when imported
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = open_networks("nets:build", WEIGHTS, "nets:load").identity
    torch.testing.assert_close(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert open_networks("nets:build", WEIGHTS, "nets:load").identity == first


def test_a_limit_a_prefix_and_a_loss_by_name(folder):
    save_file(
        {f"m.{n}": v for n, v in torch.load(folder / "a.pt").items()}, folder / "p.safetensors"
    )
    own = open_networks(
        "nets:build", ["p.safetensors"], "nets:load", loss="nets:margin", prefix="m.", limit=7
    )
    assert len(own.landscape.dataset) == 7
    assert own.landscape.loss_name == "margin"
    plain = open_networks("nets:build", ["a.pt"], "nets:load", loss="nets:margin", limit=7)
    assert own.identity == plain.identity


def test_the_networks_own_loss_with_its_weight():
    own = open_networks(
        "nets:Reader", ["r.safetensors"], "nets:named_inputs", loss="model", weight="nets:count"
    )
    plain = open_networks("nets:build", ["run"], "nets:load")
    found = own.landscape.loss_at(own.states[0]).loss
    np.testing.assert_allclose(found, plain.landscape.loss_at(plain.states[0]).loss, rtol=1e-6)


def test_built_in_data_by_name():
    network = fm.models.build_model("mlp", sizes=[64, 4, 10])
    fm.Minimum(dict(network.named_parameters())).save("digits.safetensors")
    Path("small.py").write_text(
        "import flatminima as fm\n"
        "def build(): return fm.models.build_model('mlp', sizes=[64, 4, 10])\n"
    )
    own = open_networks("small:build", ["digits.safetensors"], "digits:test", limit=20)
    data = own.landscape.dataset
    assert (data.name, data.split, len(data)) == ("digits", "test", 20)
    sys.modules.pop("small")


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        (["a.pt", "b.safetensors"], ("a.pt", "b.safetensors")),
        (["run/model.safetensors", "run"], ("model.safetensors", "run")),
        (["a.pt", "./a.pt"], ("a.pt (1)", "a.pt (2)")),
        (["run", "HERE/run"], ("run (1)", "run (2)")),
    ],
)
def test_networks_are_called_by_what_tells_their_files_apart(folder, weights, names):
    here = folder.resolve()
    paths = [text.replace("HERE", str(here.parent / here.name)) for text in weights]
    found = open_networks("nets:build", paths, "nets:load").names
    if "HERE" in weights[-1]:
        assert len(set(found)) == 2
    else:
        assert found == names


def test_without_weights_nothing_is_opened():
    with pytest.raises(ValueError, match="expected --weights with one or more"):
        open_networks("nets:build", [], "nets:load")
