"""Checkpoints as Lightning, transformers and peft write them; skipped where they are not there."""

import json

import pytest
import torch
from torch import nn

from cases import seeded
from flatminima.checkpoints import load_state
from flatminima.minimum import as_minimum

# The libraries' own notes, on workers, devices and what they will deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=0)


def perturbed(network, seed):
    """`network` with other values everywhere, so that nothing fits by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return network.eval()


def test_a_lightning_checkpoint(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Task(lightning.LightningModule):
        def __init__(self, rate=0.1, sizes=(4, 3)):
            super().__init__()
            self.save_hyperparameters()
            self.model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))

        def training_step(self, batch, index):
            return self.model(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.hparams.rate)

    task = Task()
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[lightning.callbacks.ModelCheckpoint(tmp_path / "kept", save_last=True)],
    )
    trainer.fit(task, torch.utils.data.DataLoader(torch.ones(4, 4), batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = task.state_dict()
    same(load_state(tmp_path / "last.ckpt"), dict(sorted(state.items())))
    same(load_state(tmp_path, network=Task()), state)
    network = seeded(Task().model, 1)
    with pytest.raises(ValueError, match=r'; pass prefix="model\."$'):
        load_state(tmp_path / "last.ckpt", network=network)
    found = load_state(tmp_path / "last.ckpt", network=network, prefix="model.")
    same(found, task.model.state_dict())
    with pytest.raises(ValueError, match=r"one checkpoint in a folder.*last\.ckpt"):
        load_state(tmp_path / "kept")


def language_model(seed=0):
    """A tiny GPT-2; its head is tied to its embedding, and the files leave the head out."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=99, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0
    )
    return perturbed(transformers.GPT2LMHeadModel(config), seed)


@pytest.mark.parametrize("size", ["5GB", "50KB"])
def test_a_transformers_folder(tmp_path, size):
    network, other = language_model(1), language_model(2)
    network.save_pretrained(tmp_path, max_shard_size=size)
    sharded = (tmp_path / "model.safetensors.index.json").exists()
    assert sharded == (size == "50KB")
    found = load_state(tmp_path, network=other)
    same(found, network.state_dict())
    assert found["lm_head.weight"] is found["transformer.wte.weight"]
    assert "lm_head.weight" not in load_state(tmp_path)
    tokens = torch.arange(8)[None]
    ours = as_minimum(found, other).module(lambda: language_model(3))
    torch.testing.assert_close(ours(tokens).logits, network(tokens).logits, rtol=0, atol=0)
    if sharded:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        shard = sorted(set(index["weight_map"].values()))[1]
        (tmp_path / shard).unlink()
        with pytest.raises(ValueError, match=f"no {shard}; fetch them too"):
            load_state(tmp_path)


def test_a_transformers_body_is_found_in_its_model(tmp_path):
    network, other = language_model(1), language_model(2)
    network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'; pass prefix="transformer\."$'):
        load_state(tmp_path, network=other.transformer)
    found = load_state(tmp_path, network=other.transformer, prefix="transformer.")
    same(found, network.transformer.state_dict())


def test_trained_batchnorm_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    network = perturbed(transformers.ResNetForImageClassification(config), 1)
    network.train()(torch.ones(2, 3, 32, 32))
    network.save_pretrained(tmp_path)
    other = transformers.ResNetForImageClassification(config)
    same(load_state(tmp_path, network=other), network.state_dict())


def test_a_peft_adapter(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(seed, name="default"):
        config = peft.LoraConfig(
            r=2, target_modules=["c_attn"], modules_to_save=["ln_f"], fan_in_fan_out=True
        )
        base = language_model(7)
        return perturbed(peft.get_peft_model(base, config, adapter_name=name), seed)

    theirs, ours = adapted(1), adapted(2)
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    found = load_state(tmp_path, network=ours)
    kept = load_state(tmp_path)
    assert "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight" in kept
    trained = {n for n in ours.state_dict() if ".default." in n}
    assert len(trained) == len(kept) == 2 * 2 + 2
    own, wanted = ours.state_dict(), theirs.state_dict()
    same(found, {name: wanted[name] if name in trained else own[name] for name in own})
    renamed = load_state(tmp_path, network=adapted(3, "mine"))
    assert {n.replace(".mine.", ".default.") for n in renamed} == set(found)
    with pytest.raises(ValueError, match="the network that peft made"):
        load_state(tmp_path, network=language_model(7))
