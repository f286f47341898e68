"""Networks and data of other libraries: each loss equals that of a plain loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import flatminima as fm

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLES, LENGTH = 12, 7


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def tokens():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, 30, (SAMPLES, LENGTH), generator=generator)


def compare(network, dataset, naive, parameters="all", **settings):
    """Losses at five coordinates against `naive(call)`, with weights formed by hand in float64."""
    landscape = fm.Landscape(network, dataset, batch_size=5, **settings)
    names = landscape.parameter_names(parameters)
    state = landscape.state(network)
    plane = fm.Subspace.random(state, 2, 0, parameters=names, scaling="layer", vectors="scale")
    coordinates = 0.3 * np.random.default_rng(0).normal(size=(5, 2))
    losses = landscape.losses(plane, coordinates)
    for row, coordinate in enumerate(coordinates):
        weights = {name: value.clone() for name, value in state.parameters.items()}
        for name in names:
            moved = state.parameters[name].double()
            for index, amount in enumerate(coordinate):
                direction = plane.direction(index)
                if name in direction:
                    moved = moved + amount * direction[name].double()
            weights[name] = moved.float()

        def call(weights=weights, **inputs):
            return torch.func.functional_call(network, weights, (), inputs, tie_weights=True)

        with torch.no_grad():
            want = naive(call)
        np.testing.assert_allclose(losses.loss[row], want, rtol=1e-5, atol=1e-6)
    return losses


def small_gpt2():
    config = transformers.GPT2Config(
        vocab_size=32,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return seeded(lambda: transformers.GPT2LMHeadModel(config))


def test_a_causal_language_model_with_tied_weights():
    network, ids = small_gpt2(), tokens()
    labels = ids.clone()
    labels[:, :2] = -100
    labels[3, 4:] = -100

    def naive(call):
        logits = call(input_ids=ids).logits[:, :-1].double()
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).item()

    data = {"input_ids": ids, "labels": labels}
    own = compare(network, data, naive, loss="model")
    named = compare(network, data, naive, loss="next_token")
    assert own.standard_error is None
    assert named.standard_error is not None
    np.testing.assert_allclose(own.loss, named.loss, rtol=1e-6)
    radii = fm.flatness_radius(fm.Landscape(network, data, loss="model"), network, directions=1)
    assert radii.outcome.values.max() <= 1


def test_a_sequence_classifier_with_a_mask():
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    network = seeded(lambda: transformers.BertForSequenceClassification(config))
    ids = tokens()
    mask = (torch.arange(LENGTH) < torch.arange(SAMPLES)[:, None] % LENGTH + 1).long()
    labels = torch.arange(SAMPLES) % 3

    def naive(call):
        logits = call(input_ids=ids, attention_mask=mask).logits.double()
        return F.cross_entropy(logits, labels).item()

    data = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    losses = compare(network, data, naive)
    assert set(losses.metrics) == {"accuracy"}
    last = compare(network, data, naive, parameters="classifier.*")
    assert last.path.startswith(("suffix", "reference"))


def test_a_vision_transformer():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=4, num_channels=1, num_labels=3,
    )  # fmt: skip
    network = seeded(lambda: transformers.ViTForImageClassification(config))
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(SAMPLES, 1, 8, 8, generator=generator)
    labels = torch.arange(SAMPLES) % 3

    def naive(call):
        return F.cross_entropy(call(pixel_values=pixels).logits.double(), labels).item()

    compare(network, {"pixel_values": pixels, "labels": labels}, naive)


def test_an_adapter_moves_alone():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    network = seeded(lambda: peft.get_peft_model(small_gpt2(), config))
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(3))
    ids = tokens()

    def naive(call):
        logits = call(input_ids=ids).logits[:, :-1].double()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()

    data = {"input_ids": ids, "labels": ids}
    landscape = fm.Landscape(network, data, loss="model")
    assert all("lora_" in name for name in landscape.parameter_names("all"))
    compare(network, data, naive, loss="model")


def test_data_of_the_hub():
    datasets = pytest.importorskip("datasets")
    network, ids = small_gpt2(), tokens()
    rows = {"input_ids": ids.tolist(), "labels": ids.tolist()}
    found = datasets.Dataset.from_dict(rows)
    want = fm.Landscape(network, {"input_ids": ids, "labels": ids}, loss="next_token")
    got = fm.Landscape(network, found, loss="next_token")
    np.testing.assert_array_equal(got.loss_at(network).loss, want.loss_at(network).loss)
