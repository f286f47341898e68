"""Networks of timm, in an environment of their own: `make test-timm` makes it and runs this."""

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import flatminima as fm
from flatminima.cli import main
from flatminima.store import Store

ROOT = Path(__file__).parents[2]


def _load_torchvision() -> None:
    """Import torchvision, whose builds for CUDA do not load beside a CPU build of torch.

    Without its compiled part the import ends at two operators for boxes, which it describes to
    torch but has not got. No network of timm calls them: once they are declared, the rest is plain
    Python.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
        import torchvision  # noqa: F401


if importlib.util.find_spec("torchvision") is not None:
    _load_torchvision()
timm = pytest.importorskip("timm", reason="timm has an environment of its own: make test-timm")

from timm.models import save_for_hf  # noqa: E402
from timm.utils import CheckpointSaver, ModelEmaV3  # noqa: E402

# Of each: the settings that make it small, and the layer that it calls last.
NETWORKS = {
    "resnet18": ({}, "fc"),
    "vit_tiny_patch16_224": ({"img_size": 32, "patch_size": 8}, "head"),
    "convnext_atto": ({}, "head.fc"),
}
SAMPLES, CLASSES = 23, 10


def build(name):
    return timm.create_model(name, num_classes=CLASSES, **NETWORKS[name][0])


def pictures(seed=0):
    """Random images, as many as make the last batch short, and classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(SAMPLES, 3, 32, 32, generator=generator)
    return images, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def made(name, seed):
    """A network whose every parameter is random, with statistics of its own where it keeps any."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(name)
        with torch.no_grad():
            # Zeros and layer scales of 1e-6 would hide whole branches.
            for value in network.parameters():
                value.add_((0.02 if value.ndim > 1 else 0.2) * torch.randn_like(value))
            network.train()(pictures(seed + 1)[0])
    return network.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def three(request):
    """A name and three states of that network."""
    return request.param, [made(request.param, seed).state_dict() for seed in range(3)]


def naive_loss(network, tensors, images, classes):
    """The mean cross-entropy of `network` with these tensors, one image at a time in float64."""
    network = network.eval()
    total = 0.0
    with torch.no_grad():
        for image, label in zip(images, classes.tolist(), strict=True):
            logits = torch.func.functional_call(network, tensors, (image[None],), strict=True)[0]
            total += float(logits.double().logsumexp(0) - logits.double()[label])
    return total / len(images)


def test_losses_in_a_plane_are_those_of_weighted_means(three):
    name, states = three
    images, classes = pictures()
    weights = np.random.default_rng(0).dirichlet(np.ones(3), size=5)
    plane = fm.Subspace.through(*states)
    scape = fm.Landscape(build(name), (images, classes), batchnorm="keep", batch_size=8)
    found = scape.losses(plane, plane.barycentric(weights))

    network = build(name)
    moving = dict(network.named_parameters())
    wanted = []
    for row in weights.tolist():
        # "keep": what is no parameter is the first state's, everywhere.
        tensors = dict(states[0])
        for key in moving:
            parts = [w * state[key].double() for w, state in zip(row, states, strict=True)]
            tensors[key] = sum(parts).float()
        wanted.append(naive_loss(network, tensors, images, classes))
    np.testing.assert_allclose(found.loss, wanted, rtol=1e-6)
    assert np.ptp(wanted) > 1e-3  # the points differ by far more than what is allowed

    normalised = any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert found.batchnorm == ("keep" if normalised else "none")
    if normalised:
        others = {**tensors, **{key: states[1][key] for key in dict(network.named_buffers())}}
        assert abs(naive_loss(network, others, images, classes) - wanted[-1]) > 1e-3


def test_a_surface_has_the_networks_own_losses_at_its_anchors(three):
    name, states = three
    images, classes = pictures()
    scape = fm.Landscape(build(name), (images, classes), batchnorm="keep")
    surface = fm.loss_surface(scape, fm.Subspace.through(*states), resolution=3)
    wanted = [naive_loss(build(name), state, images, classes) for state in states]
    if surface.batchnorm == "none":
        np.testing.assert_allclose(surface.anchor_loss, wanted, rtol=1e-6)
    else:
        np.testing.assert_allclose(surface.anchor_stored_loss, wanted, rtol=1e-6)


def test_the_top_layer_is_the_classifier(three):
    name, states = three
    top = NETWORKS[name][1]
    scape = fm.Landscape(build(name), pictures())
    assert scape.top_layer() == top
    radii = fm.flatness_radius(
        scape, states[0], threshold=0.05, directions=2, seed=0, parameters="top"
    )
    assert radii.moved == sum(states[0][f"{top}.{kind}"].numel() for kind in ("weight", "bias"))
    assert np.isfinite(radii.radius).all()


def same(found, wanted):
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["torch", "safetensors", "both", "bin"])
def test_checkpoints_and_folders_are_read(three, kind, tmp_path):
    name, states = three
    network = build(name)
    network.load_state_dict(states[1])
    path = tmp_path / "kept"
    if kind == "torch":
        torch.save(network.state_dict(), path)
    elif kind == "safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        save_for_hf(network, path, safe_serialization="both" if kind == "both" else False)
        assert (path / "config.json").exists()
    same(fm.load_state(path, network=build(name)), states[1])


@pytest.mark.parametrize("options", [None, argparse.Namespace(model="resnet18", lr=0.1)])
def test_what_a_training_saves_is_read(options, tmp_path):
    network = made("resnet18", 0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    averaged = ModelEmaV3(made("resnet18", 1))
    saver = CheckpointSaver(
        network, optimizer, args=options, model_ema=averaged, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(epoch=1, metric=0.5)
    found = fm.load_state(tmp_path / "last.pth.tar", network=build("resnet18"))
    same(found, network.state_dict())


# timm leaves the files of images to be closed by whoever collects them.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_images_in_folders_with_the_transform_of_evaluation(tmp_path):
    from PIL import Image
    from timm.data import create_dataset, create_transform, resolve_model_data_config

    random = np.random.default_rng(0)
    for index in range(4):
        folder = tmp_path / "photos" / f"class-{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    settings = resolve_model_data_config(build("resnet18"), {"img_size": 32})

    def photos(**options):
        transform = create_transform(**settings, **options)
        return create_dataset("", root=str(tmp_path / "photos"), transform=transform)

    images = torch.stack([image for image, _ in photos()])
    classes = torch.tensor([label for _, label in photos()])
    network = made("resnet18", 0)
    found = fm.Landscape(network, photos()).loss_at(network)
    wanted = naive_loss(network, network.state_dict(), images, classes)
    np.testing.assert_allclose(found.loss, [wanted], rtol=1e-6)
    with pytest.raises(ValueError, match="4 of 4 that differ; take out random augmentation"):
        fm.Landscape(network, photos(is_training=True))


NET = """
import timm
import torch


def build():
    return timm.create_model("convnext_atto", num_classes=10)


def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 3, 32, 32, generator=generator)
    teacher = build().eval()
    teacher.load_state_dict(torch.load("teacher.pt"))
    with torch.no_grad():
        return images, teacher(images).argmax(1)
"""


def flatminima(*words):
    with pytest.raises(SystemExit) as ended:
        main([word for given in words for word in given.split()])
    return int(ended.value.code or 0)


def test_the_commands_measure_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("timm_net.py").write_text(NET)
    teacher = made("convnext_atto", 0).state_dict()
    torch.save(teacher, "teacher.pt")
    states = []
    for seed, path in enumerate(["a.pt", "b.safetensors", "c.pth.tar"]):
        generator = torch.Generator().manual_seed(seed)
        states.append(
            {
                key: value + 0.002 * torch.randn(value.shape, generator=generator)
                for key, value in teacher.items()
            }
        )
        if path.endswith(".safetensors"):
            safetensors.torch.save_file(states[-1], path)
        elif path.endswith(".tar"):
            torch.save({"state_dict": states[-1], "args": argparse.Namespace(lr=0.1)}, path)
        else:
            torch.save(states[-1], path)

    own = "--model timm_net:build --data timm_net:data --threads 1"
    three = "--weights a.pt b.safetensors c.pth.tar"
    try:
        assert flatminima("check", own, three, "--resolution 3") == 0
        assert "none wrong" in capsys.readouterr().out
        assert flatminima("surface", own, three, "--resolution 3") == 0
        images, classes = sys.modules["timm_net"].data()
    finally:
        sys.modules.pop("timm_net", None)
        torch.serialization.clear_safe_globals()

    store = Store("runs")
    job = next(job for job in store.manifest("networks")["jobs"] if job["kind"] == "surface")
    surface = store.open_payload("surface", job["digest"], "surface.zarr")
    wanted = [naive_loss(build("convnext_atto"), state, images, classes) for state in states]
    np.testing.assert_allclose(surface.anchor_loss, wanted, rtol=1e-6)


def test_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "own-models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(import timm\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    namespace = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        exec(compile(code, "docs/own-models.md", "exec"), namespace)
    assert namespace["surface"].anchor_accuracy.min() > 0.9
    assert namespace["radii"].moved == 512 * 10 + 10


PLAIN = """
import importlib, pkgutil, sys
import torch
import flatminima as fm

for module in pkgutil.walk_packages(fm.__path__, "flatminima."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
torch.manual_seed(0)
states = [torch.nn.Linear(3, 2) for _ in range(3)]
scape = fm.Landscape(states[0], (torch.randn(9, 3), torch.arange(9) % 2))
fm.loss_surface(scape, fm.Subspace.through(*states), resolution=3)
fm.flatness_radius(scape, states[0], threshold=0.05, directions=1, seed=0)
print(*{name.split(".")[0] for name in sys.modules})
"""


def test_measuring_a_plain_network_imports_neither_timm_nor_torchvision():
    # Here they could be imported; in the usual environment such an import would be an error.
    assert importlib.util.find_spec("torchvision") is not None
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "flatminima" in done.stdout.split()
    assert set(done.stdout.split()) & {"timm", "torchvision"} == set()
