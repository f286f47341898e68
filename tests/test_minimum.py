"""States: splitting, saving, and coming back as a module."""

import pytest
import safetensors.torch
import torch

from cases import ImageNet, Tied, perceptron, seeded
from flatminima import Minimum, build_model
from flatminima.minimum import split_state


def of_mlp(seed=0):
    torch.manual_seed(seed)
    network = build_model("mlp", sizes=(4, 3, 2))
    return network, Minimum(
        dict(network.named_parameters()),
        {},
        seed=seed,
        epoch=7,
        recipe={"epochs": 7},
        model={"name": "mlp", "settings": {"sizes": [4, 3, 2]}},
    )


def test_saved_and_loaded_state_is_bit_identical_with_its_origin(tmp_path):
    network, minimum = of_mlp()
    minimum.save(tmp_path / "a.safetensors")
    again = Minimum.load(tmp_path / "a.safetensors")
    for name, value in network.named_parameters():
        torch.testing.assert_close(again.parameters[name], value.detach(), rtol=0, atol=0)
    assert list(again.parameters) == sorted(again.parameters), "sums depend on the order"
    assert (again.seed, again.epoch, again.recipe) == (0, 7, {"epochs": 7})
    inputs = torch.ones(1, 4)
    torch.testing.assert_close(again.module()(inputs), network(inputs), rtol=0, atol=0)
    assert repr(again) == "Minimum(mlp, 23 parameters, seed=0, epoch=7)"


def test_the_file_is_a_plain_state_dict_to_anybody_else(tmp_path):
    network, minimum = of_mlp()
    minimum.save(tmp_path / "a.safetensors")
    fresh = build_model("mlp", sizes=(4, 3, 2))
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"))
    torch.testing.assert_close(fresh[1].weight, network[1].weight, rtol=0, atol=0)


def test_buffers_survive_and_are_told_apart(tmp_path):
    network = seeded(ImageNet(), 1)
    network.norm.running_mean.fill_(3.0)
    Minimum(*split_state(network)).save(tmp_path / "b.safetensors")
    again = Minimum.load(tmp_path / "b.safetensors")
    assert set(again.buffers) == {
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }
    module = again.module(ImageNet)
    torch.testing.assert_close(module.norm.running_mean, torch.full((3,), 3.0))


def test_a_safetensors_file_from_elsewhere_is_a_state(tmp_path):
    network = seeded(ImageNet(), 1)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "c.safetensors")
    found = Minimum.load(tmp_path / "c.safetensors")
    assert set(found.parameters) == {name for name, _ in network.named_parameters()}


def test_tied_weights_of_a_state_dict_are_one_parameter():
    network = seeded(Tied(), 0)
    parameters, _ = split_state(network.state_dict(), network)
    assert "out.weight" not in parameters
    broken = {name: value.clone() for name, value in network.state_dict().items()}
    broken["out.weight"] += 1
    with pytest.raises(ValueError, match=r"expected out\.weight to equal into\.weight"):
        split_state(broken, network)


def test_a_module_of_a_network_without_a_name_needs_a_factory():
    minimum = Minimum(dict(perceptron().named_parameters()))
    with pytest.raises(ValueError, match="expected a factory"):
        minimum.module()
    torch.testing.assert_close(minimum.module(perceptron)[0].weight, perceptron()[0].weight)


@pytest.mark.parametrize("content", [b"", b"not a tensor", b"\x00" * 64, b"\x80\x02}q\x00."])
def test_a_foreign_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a safetensors file") as caught:
        Minimum.load(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path):
    _, minimum = of_mlp()
    (tmp_path / "t.safetensors").write_bytes(minimum.to_bytes()[:-20])
    with pytest.raises(ValueError, match=r"t\.safetensors, which is none or cut short"):
        Minimum.load(tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="No such file"):
        Minimum.load(tmp_path / "absent.safetensors")


def test_a_state_of_a_newer_version_is_refused(monkeypatch, tmp_path):
    _, minimum = of_mlp()
    monkeypatch.setattr("flatminima.minimum._FORMAT", 99)
    minimum.save(tmp_path / "n.safetensors")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="got format 99"):
        Minimum.load(tmp_path / "n.safetensors")


def test_missing_and_unknown_tensors_are_named():
    network = perceptron()
    state = dict(network.state_dict())
    state["extra"] = state.pop("4.bias")
    with pytest.raises(ValueError, match=r"lacks 4\.bias and has extra besides"):
        split_state(state, network)
