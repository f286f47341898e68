"""Checkpoints from strangers: what is read, what is refused, and that nothing of it runs."""

import argparse
import collections
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from cases import ImageNet, Tied, perceptron, seeded
from flatminima.checkpoints import load_state
from flatminima.minimum import Minimum, split_state


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=0)


def refused(path, *expected, **options):
    """The line with which `path` is refused, which has every word of `expected`."""
    with pytest.raises(ValueError) as caught:
        load_state(path, **options)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.startswith("expected ")
    assert ", got " in line
    assert "; " in line
    for word in expected:
        assert word in line
    return line


@pytest.fixture
def image_net():
    network = seeded(ImageNet(), 1)
    network.norm.running_mean.fill_(3.0)
    return network


def old(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def moved(state, start):
    return {start + name: value for name, value in state.items()}


WRITERS = {
    "safetensors": lambda n, p: safetensors.torch.save_file(n.state_dict(), p),
    "minimum": lambda n, p: Minimum(*split_state(n)).save(p),
    "torch": lambda n, p: torch.save(n.state_dict(), p),
    "old torch": lambda n, p: old(n.state_dict(), p),
    "parameters": lambda n, p: torch.save(
        {**dict(n.named_parameters()), **dict(n.named_buffers())}, p
    ),
    "nested": lambda n, p: torch.save({"epoch": 3, "model": {"state_dict": n.state_dict()}}, p),
    "later holder": lambda n, p: torch.save(
        {"model": {"name": "vgg"}, "net": n.state_dict(), "weights": [1, 2]}, p
    ),
    "lightning": lambda n, p: torch.save(
        {
            "state_dict": n.state_dict(),
            "callbacks": {"early": {"best": torch.tensor(1.0)}},
            "hyper_parameters": {"rate": 0.1, "sizes": [1, 2], "nothing": None},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        },
        p,
    ),
    "ddp": lambda n, p: torch.save(moved(n.state_dict(), "module."), p),
    "compiled ddp": lambda n, p: torch.save(moved(n.state_dict(), "_orig_mod.module."), p),
}


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a"])
@pytest.mark.parametrize("writer", WRITERS)
def test_content_decides_and_the_state_comes_back(tmp_path, image_net, writer, name):
    WRITERS[writer](image_net, tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    state = image_net.state_dict()
    same(load_state(tmp_path / name, network=ImageNet()), state)
    same(load_state(str(tmp_path / name)), dict(sorted(state.items())))
    assert sorted(tmp_path.rglob("*")) == before


def test_types_stay_and_the_tensors_outlive_the_file(tmp_path):
    state = {
        "a": torch.arange(4, dtype=torch.bfloat16),
        "b": torch.arange(4).expand(3, 4),
        "c": torch.tensor(True),
    }
    torch.save(state, tmp_path / "a.pt")
    found = load_state(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"\0" * (tmp_path / "a.pt").stat().st_size)
    same(found, state)
    found["b"][0, 0] = 7
    assert found["b"][1, 0] == 0
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("write", [torch.save, old])
def test_options_of_a_training_script_are_left_alone(tmp_path, image_net, write):
    options = argparse.Namespace(lr=0.1, names=["a", "b"], resume=None)
    write({"state_dict": image_net.state_dict(), "args": options}, tmp_path / "a.pt")
    same(load_state(tmp_path / "a.pt", network=image_net), image_net.state_dict())


def test_wrappers_in_the_middle_are_taken_off_where_the_network_lacks_them(tmp_path):
    network = nn.ModuleDict({"model": perceptron(), "head": nn.Linear(2, 2)})
    state = {k.replace("model.", "model._orig_mod."): v for k, v in network.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    same(load_state(tmp_path / "a.pt", network=network), network.state_dict())
    assert "model._orig_mod.0.weight" in load_state(tmp_path / "a.pt"), "not all names have it"
    torch.save(network.state_dict(), tmp_path / "b.pt")
    wrapped = nn.DataParallel(network)
    same(load_state(tmp_path / "b.pt", network=wrapped), wrapped.state_dict())
    torch.save(wrapped.state_dict(), tmp_path / "c.pt")
    same(load_state(tmp_path / "c.pt", network=wrapped), wrapped.state_dict())


def test_a_prefix_is_taken_off_or_suggested(tmp_path):
    network = perceptron()
    state = {**moved(network.state_dict(), "module.net._orig_mod."), "loss.weight": torch.ones(2)}
    torch.save(state, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "lacks 0.weight", '; pass prefix="module.net."', network=network)
    for prefix in ("module.net.", "module.net", "module.net._orig_mod."):
        found = load_state(tmp_path / "a.pt", network=network, prefix=prefix)
        same(found, network.state_dict())
    found = load_state(tmp_path / "a.pt", prefix="module.net.")
    same(found, dict(sorted(network.state_dict().items())))
    refused(tmp_path / "a.pt", "start with other.", "module.net._orig_mod.0.", prefix="other")
    refused(tmp_path / "a.pt", 'pass prefix="module.net."', network=network, prefix="module")
    torch.save({**state, "module.net.more": torch.ones(1)}, tmp_path / "b.pt")
    refused(tmp_path / "b.pt", "also has more", network=network, prefix="module.net.")


def test_tied_weights_may_have_either_name_or_both(tmp_path):
    network = seeded(Tied(), 0)
    state = network.state_dict()
    for left_out in ([], ["into.weight"], ["out.weight"]):
        kept = {name: value.clone() for name, value in state.items() if name not in left_out}
        safetensors.torch.save_file(kept, tmp_path / "a")
        found = load_state(tmp_path / "a", network=Tied())
        same(found, state)
        assert found["into.weight"] is found["out.weight"]
        split_state(found, network)
    torch.save(moved({n: v for n, v in state.items() if n != "into.weight"}, "a."), tmp_path / "b")
    refused(tmp_path / "b", 'prefix="a."', network=network)
    torch.save({**state, "out.weight": state["out.weight"] + 1}, tmp_path / "c")
    refused(tmp_path / "c", "out.weight", "ties", network=network)


def test_buffers_are_needed_unless_they_count_batches_or_are_not_saved(tmp_path, image_net):
    image_net.norm.num_batches_tracked.fill_(5)
    image_net.register_buffer("grid", torch.ones(2), persistent=False)
    state = image_net.state_dict()
    kept = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "a")
    same(load_state(tmp_path / "a", network=image_net), state)
    torch.save({**state, "grid": torch.zeros(2)}, tmp_path / "b")
    same(load_state(tmp_path / "b", network=image_net), {**state, "grid": torch.zeros(2)})
    del kept["norm.running_mean"]
    torch.save(kept, tmp_path / "c")
    refused(tmp_path / "c", "lacks norm.running_mean of shape (3,)", network=image_net)


def test_a_mismatch_names_tensors_and_shapes_in_one_line(tmp_path):
    torch.save({**perceptron().state_dict(), "x\ny": torch.ones(1)}, tmp_path / "a.pt")
    line = refused(tmp_path / "a.pt", network=perceptron(sizes=(6, 9, 5, 4)))
    assert "has 0.weight of shape (8, 6) instead of (9, 6), 0.bias of shape (8,) instead" in line
    assert "also has x?y; check that it comes from the same architecture" in line


# Folders.


def sharded(folder, state, *, suffix=".safetensors", table=None):
    """A folder of two shards and their index."""
    names = list(state)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    write = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    held = {}
    for number, some in enumerate((names[:2], names[2:])):
        shard = f"{stem}-{number}{suffix}"
        write({name: state[name] for name in some}, folder / shard)
        held |= dict.fromkeys(some, shard)
    index = json.dumps({"metadata": {}, "weight_map": {**held, **(table or {})}})
    (folder / f"{stem}{suffix}.index.json").write_text(index)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_put_together(tmp_path, image_net, suffix):
    sharded(tmp_path, image_net.state_dict(), suffix=suffix)
    same(load_state(tmp_path, network=ImageNet()), image_net.state_dict())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"x": "../model-0.safetensors"}, ["../model-0.safetensors"]),
        ({"x": "/etc/passwd"}, ["/etc/passwd"]),
        ({"x": "..\\a.safetensors"}, ["..\\a"]),
        ({"x": ".."}, ["shards beside"]),
        ({"x": "model-7.safetensors"}, ["no model-7.safetensors"]),
        ({"x": "model\0.safetensors"}, ["no model?.safetensors"]),
        ({"x": "model-0.safetensors"}, ["no x in model-0.safetensors"]),
        ({"x": 3}, ["weight_map"]),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, image_net, table, words):
    folder = tmp_path / "inner"
    folder.mkdir()
    sharded(folder, image_net.state_dict(), table=table)
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "model-0.safetensors")
    refused(folder, *words)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 9999, '{"weight_map": {}}', "\xff"])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path, "weight_map")


def test_a_folder_holds_one_checkpoint(tmp_path, image_net):
    refused(tmp_path, "has no files")
    (tmp_path / "readme.md").write_text("hello")
    refused(tmp_path, "readme.md")
    torch.save(image_net.state_dict(), tmp_path / "epoch=1.CKPT")
    same(load_state(tmp_path, network=ImageNet()), image_net.state_dict())
    torch.save(perceptron().state_dict(), tmp_path / "last.pt")
    refused(tmp_path, "epoch=1.CKPT, last.pt")
    # What transformers would read comes before what lies beside it.
    torch.save(perceptron().state_dict(), tmp_path / "pytorch_model.bin")
    WRITERS["safetensors"](image_net, tmp_path / "model.safetensors")
    same(load_state(tmp_path, network=ImageNet()), image_net.state_dict())


class Adapted(nn.Module):
    """Named as peft names a network: a frozen layer, an adapter and a module trained in full."""

    def __init__(self, *adapters):
        super().__init__()
        self.q = nn.Module()
        self.q.base_layer = nn.Linear(3, 3)
        self.q.lora_A = nn.ModuleDict({name: nn.Linear(3, 2, bias=False) for name in adapters})
        self.q.lora_B = nn.ModuleDict({name: nn.Linear(2, 3, bias=False) for name in adapters})
        self.head = nn.Module()
        self.head.original_module = nn.Linear(3, 1)
        self.head.modules_to_save = nn.ModuleDict({name: nn.Linear(3, 1) for name in adapters})


def test_an_adapter_is_completed_with_the_networks_own_tensors(tmp_path):
    theirs, ours = seeded(Adapted("default"), 1), seeded(Adapted("other"), 2)
    kept = {
        name.replace(".modules_to_save", "").replace(".default", ""): value
        for name, value in theirs.state_dict().items()
        if "default" in name
    }
    (tmp_path / "adapter_config.json").write_text("{}")
    safetensors.torch.save_file(kept, tmp_path / "adapter_model.safetensors")
    same(load_state(tmp_path), dict(sorted(kept.items())))
    trained = {n.replace("default", "other"): v for n, v in theirs.state_dict().items()}
    wanted = {n: trained[n] if "other" in n else v for n, v in ours.state_dict().items()}
    same(load_state(tmp_path, network=ours), wanted)
    refused(tmp_path, "also has head.bias", "peft", network=Adapted("a", "b"))
    refused(tmp_path, "also has head.bias", "peft", network=perceptron())
    del kept["head.bias"]
    safetensors.torch.save_file(kept, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, "lacks head.modules_to_save.other.bias", network=ours)


# Files that would run code.


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


class Whole(nn.Module):
    def __init__(self, target):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.bomb = Bomb(target)


def zipped_bomb(bomb, path):
    """A torch file in all but its pickle."""
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, pickle.dumps(bomb, 2) if name.endswith(".pkl") else data)


BOMBS = {
    "bare": lambda b, p: torch.save(b, p),
    "bare, old": lambda b, p: old(b, p),
    "in a state": lambda b, p: torch.save({"a": torch.ones(2), "b": b}, p),
    "beside a state": lambda b, p: torch.save({"state_dict": {"a": torch.ones(2)}, "b": b}, p),
    "beside a state, old": lambda b, p: old({"state_dict": {"a": torch.ones(2)}, "b": b}, p),
    "in options": lambda b, p: torch.save(
        {"state_dict": {"a": torch.ones(2)}, "args": argparse.Namespace(b=b)}, p
    ),
    "whole": lambda b, p: torch.save(Whole(b.target), p),
    "whole, old": lambda b, p: old(Whole(b.target), p),
    "in a zip": zipped_bomb,
    **{
        f"pickle {protocol}": lambda b, p, protocol=protocol: p.write_bytes(
            pickle.dumps(b, protocol)
        )
        for protocol in range(6)
    },
}


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_does_not_go_off(tmp_path, bomb, name):
    target = tmp_path / "gone off"
    folder = tmp_path / "folder"
    folder.mkdir()
    BOMBS[bomb](Bomb(target), folder / name)
    for path in (folder / name, folder):
        line = refused(path, name)
        if name != "model.safetensors" and bomb != "pickle 0" and bomb != "pickle 1":
            assert "not unpickled, as that runs code; save it again where you trust it" in line
    assert not target.exists()
    assert [entry.name for entry in folder.iterdir()] == [name]


def test_the_bombs_are_live(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "gone off")))
    assert (tmp_path / "gone off").exists()


# Files that are damaged, or none.


def cut(data, keep):
    return data[: int(len(data) * keep)]


def lying(header, payload=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def archive_of(entries, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def tar_of(name):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return out.getvalue()


def saved(content):
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def saved_old(content):
    out = io.BytesIO()
    old(content, out)
    return out.getvalue()


def cycle():
    content = {"epoch": 1}
    content["model"] = content
    return content


SAFE = safetensors.torch.save({"a": torch.ones(64)})
DATA = pickle.dumps(collections.OrderedDict(), 2)

BROKEN = {
    "empty": b"",
    "one byte": b"\x80",
    "text": b"Not a checkpoint\n" * 20,
    "image": b"\x89PNG\r\n\x1a\n" + b"\0" * 90,
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "safetensors cut": cut(SAFE, 0.9),
    "safetensors cut in its header": cut(SAFE, 0.1),
    "safetensors of nothing": lying({}),
    "huge header": struct.pack("<Q", 1 << 60) + b"{}" * 40,
    "long header": struct.pack("<Q", 99_000_000) + b"{}" * 40,
    "header of garbage": lying(b"{" + b"\xff" * 40),
    "deep header": lying(b'{"a":' * 5000),
    "overlap": lying({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),
    "beyond the end": lying({"a": entry(0, 800, (200,))}, b"\0" * 8),
    "wrong size": lying({"a": entry(0, 8, (1 << 40,))}, b"\0" * 8),
    "overflow": lying({"a": entry(0, 8, (1 << 62, 1 << 62))}, b"\0" * 8),
    "negative": lying({"a": entry(-8, 8)}, b"\0" * 8),
    "unknown type": lying({"a": entry(0, 8, (2,), "Q32")}, b"\0" * 8),
    "torch cut": cut(saved({"a": torch.ones(999)}), 0.7),
    "torch cut early": cut(saved({"a": torch.ones(999)}), 0.02),
    "old torch cut": cut(saved_old({"a": torch.ones(999)}), 0.7),
    "old torch cut early": cut(saved_old({"a": torch.ones(999)}), 0.02),
    "zip of text": archive_of({"readme.txt": "hello"}),
    "zip of nothing": archive_of({}),
    "zip that leads out": archive_of({"a/data.pkl": DATA, "a/../../evil": "x"}),
    "zip with two roots": archive_of({"a/data.pkl": DATA, "/evil": "x"}),
    "zip bomb": archive_of({"a/data.pkl": b"\0" * 9_000_000}, zipfile.ZIP_DEFLATED),
    "program": archive_of({"a/data.pkl": DATA, "a/constants.pkl": DATA}),
    "zip without storages": archive_of({"a/data.pkl": pickle.dumps({"a": 1}, 2)}),
    "tar": tar_of("../evil"),
    "list": saved([torch.ones(2)]),
    "tensor": saved(torch.ones(2)),
    "empty state": saved({}),
    "numbers": saved({"a": 1.5, "b": "c"}),
    "mixed": saved({"a": torch.ones(2), "epoch": 3}),
    "unnamed": saved({0: torch.ones(2)}),
    "cycle": saved(cycle()),
    "sparse": saved({"a": torch.eye(3).to_sparse()}),
    "meta": saved({"a": torch.empty(10**9, device="meta")}),
    "complex": saved({"a": torch.ones(2, dtype=torch.complex64)}),
    "float8": saved({"a": torch.ones(2).to(torch.float8_e4m3fn)}),
    "expanded": saved({"a": torch.ones(1).expand(10**12)}),
}

WORDS = {
    "empty": "empty",
    "lfs": "git lfs pull",
    "program": "TorchScript",
    "zip that leads out": "do not trust",
    "zip with two roots": "do not trust",
    "zip bomb": "do not trust",
    "zip of text": "something else",
    "list": "a list",
    "mixed": "epoch (int)",
    "numbers": "under state_dict, model_state_dict, model, net, weights",
    "cycle": "model (dict)",
    "sparse": "sparse",
    "meta": "meta",
    "complex": "complex64",
    "float8": "unquantised",
    "expanded": "contiguous",
}


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, broken, name):
    (tmp_path / name).write_bytes(BROKEN[broken])
    refused(tmp_path / name, name, WORDS.get(broken, ""))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_refused(tmp_path):
    value = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"a": value}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "qint8", "unquantised")


def test_a_path_that_cannot_be_read_is_refused(tmp_path, image_net):
    refused(tmp_path / "none.pt", "No such file")
    refused(tmp_path / "no\0ne.pt", "null")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "pipe")
    torch.save(image_net.state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.pt").chmod(0)
    if not os.access(tmp_path / "a.pt", os.R_OK):  # who runs as root may read it all the same
        refused(tmp_path / "a.pt", "Permission denied")


def test_an_unreadable_file_is_refused_whoever_runs(tmp_path, image_net, monkeypatch):
    torch.save(image_net.state_dict(), tmp_path / "a.pt")

    def denied(self, *args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "open", denied)
    refused(tmp_path / "a.pt", "Permission denied")
