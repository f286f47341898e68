"""Lightning's checkpoints and a folder of transformers through the door of the commands."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flatminima.own import check_networks, open_networks
from flatminima.subspace import Subspace

# The libraries' own notes, on workers, devices and what they will deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")

LIGHTNING = """
import lightning.pytorch as lightning
import torch
from torch import nn

class Task(lightning.LightningModule):
    def __init__(self, width=5):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x): return self.model(x)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self): return torch.optim.Adam(self.parameters(), 0.1)

def net(): return Task().model
def data():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(list(zip(x, x[:, :3].argmax(1))), batch_size=8)
"""
WRITER = """
import torch, transformers

def build():
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(config)

def texts():
    ids = torch.randint(2, 32, (9, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Writes a module of a user's, and imports it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(text):
        import importlib

        (tmp_path / "hub_task.py").write_text(text)
        sys.modules.pop("hub_task", None)
        importlib.invalidate_caches()
        return importlib.import_module("hub_task")

    yield write
    sys.modules.pop("hub_task", None)


def compare(own, naive):
    """Losses at five points of a plane against states formed by hand."""
    plane = Subspace.random(own.states[0], 2, 0, scaling="layer", vectors="scale")
    draws = 0.3 * np.random.default_rng(0).normal(size=(5, 2))
    losses = own.landscape.losses(plane, draws)
    for found, (a, b) in zip(losses.loss, draws.tolist(), strict=True):
        u, v = plane.direction(0), plane.direction(1)
        state = {
            name: (
                value.double()
                + (a * u[name].double() if name in u else 0)
                + (b * v[name].double() if name in v else 0)
            ).to(value.dtype)
            for name, value in own.states[0].parameters.items()
        }

        def call(state=state, **inputs):
            network = own.network.eval()
            return torch.func.functional_call(network, state, (), inputs, tie_weights=True)

        with torch.no_grad():
            np.testing.assert_allclose(found, naive(call), rtol=2e-6, atol=1e-6)


def test_a_lightning_checkpoint_of_the_module_or_of_the_network_inside(task, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    code = task(LIGHTNING)
    module = code.Task()
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, code.data())
    trainer.save_checkpoint("last.ckpt")
    whole = open_networks("hub_task:Task", ["last.ckpt"], "hub_task:data")
    inside = open_networks("hub_task:net", ["last.ckpt"], "hub_task:data", prefix="model.")
    inputs, targets = whole.landscape.dataset.inputs, whole.landscape.dataset.targets
    compare(whole, lambda call: F.cross_entropy(call(x=inputs).double(), targets).item())
    compare(inside, lambda call: F.cross_entropy(call(input=inputs).double(), targets).item())
    with pytest.raises(ValueError, match=r'pass prefix="model\."'):
        open_networks("hub_task:net", ["last.ckpt"], "hub_task:data")


@pytest.mark.parametrize("loss", ["next_token", "model"])
def test_a_folder_of_transformers(task, loss):
    pytest.importorskip("transformers")
    code = task(WRITER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        code.build().save_pretrained("written")
    own = open_networks("hub_task:build", ["written"], "hub_task:texts", loss=loss)
    assert own.names == ("written",)
    ids = code.texts()["input_ids"]

    def naive(call):
        logits = call(input_ids=ids).logits[:, :-1].double()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()

    compare(own, naive)
    findings = list(check_networks(own, resolution=3))
    assert not [finding for finding in findings if finding.verdict == "fail"]
