"""The ways that `speed.py` compares with: the plain loop, the published way, other packages."""

import contextlib
import importlib
import io
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _speed_timing import Way, now
from torch import Tensor, nn
from torch.func import functional_call

import flatminima as fm
from flatminima.minimum import Minimum
from flatminima.store import Store

ROOT = Path(__file__).parents[1]
_FLOAT32, _TF32, _HALF = "plain loop", "plain loop, TF32", "plain loop, bfloat16 autocast"
LOOPS = {"cpu": (_FLOAT32,), "cuda": (_FLOAT32, _TF32, _HALF)}
"""The arithmetics of the plain loop by device; "plain loop" is float32 throughout."""

GPU_SIZES = {"mlp": [1000, 5000, 10_000, 20_000, 60_000], "vgg16": [250, 500, 1000, 2000]}
"""Batch sizes of the plain loop that are tried on a GPU."""


def trained(group: str) -> list[Minimum]:
    """The three published networks of a group at the end of their training."""
    store = Store(ROOT / "results" / "mnist-paper")
    jobs = store.manifest("mnist-paper")["jobs"]
    file = "last.safetensors"
    return [
        Minimum.from_bytes(store.read("network", job["digest"], under=[file])[file])
        for job in jobs
        if job["kind"] == "network" and job["label"].startswith(group)
    ]


def at_hand(subspace: fm.Subspace, device: str) -> fm.Subspace:
    """The subspace as a plain loop on a GPU has it: drawn once, and there."""
    if device == "cpu":
        return subspace
    origin = Minimum(
        {name: value.to(device) for name, value in subspace.origin.parameters.items()},
        {name: value.to(device) for name, value in subspace.origin.buffers.items()},
    )
    directions = [
        {name: value.to(device) for name, value in subspace.direction(index).items()}
        for index in range(subspace.dimensions)
    ]
    return fm.Subspace(origin, directions)


@contextlib.contextmanager
def computing(device: str, loop: str) -> Iterator[None]:
    """Within, a GPU computes in the arithmetic of a plain loop."""
    if device == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    # torch's own setting is float32 for products but TF32 for convolutions.
    torch.set_float32_matmul_precision("high" if loop == _TF32 else "highest")
    torch.backends.cudnn.allow_tf32 = loop == _TF32
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=loop == _HALF):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def plain_pass(
    network: nn.Module, state: Mapping[str, Tensor], images: Tensor, labels: Tensor, size: int
) -> float:
    """The loss of one point by a loop over tensors in memory."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(images), size):
            outputs = functional_call(network, dict(state), (images[start : start + size],))
            losses = F.cross_entropy(outputs, labels[start : start + size], reduction="none")
            total += float(losses.double().sum())
    return total / len(images)


class PlainLoop:
    """The plain loop over a dataset, in each arithmetic at the batch size that suits it.

    The normalised images lie in memory, on a GPU in its own.

    Args:
        network: On the dataset's device.
        data: The images.
        sizes: Batch sizes to try; of those above the number of images, that number.

    Attributes:
        sizes: The quickest of them for each arithmetic.
    """

    def __init__(self, network: nn.Module, data: fm.Dataset, sizes: Sequence[int]) -> None:
        self.network, self._device = network, data.device.type
        self._images, self._labels = data.images, data.labels
        wanted = sorted({min(size, len(data)) for size in sizes})
        self.sizes = {loop: self._best(loop, wanted) for loop in LOOPS[self._device]}

    def loss(self, state: Mapping[str, Tensor], loop: str = _FLOAT32) -> float:
        """The loss of one point."""
        with computing(self._device, loop):
            return plain_pass(self.network, state, self._images, self._labels, self.sizes[loop])

    def about(self) -> dict[str, Any]:
        """What a result says of the loop: its batch size, and on a GPU the other arithmetics'."""
        result: dict[str, Any] = {"plain_batch_size": self.sizes[_FLOAT32]}
        if self._device == "cuda":
            result["batch_sizes"] = dict(self.sizes)
            result["arithmetic"] = (
                "float32, with TF32 off for products and convolutions, wherever a name says nothing"
                " else"
            )
        return result

    def _best(self, loop: str, sizes: list[int]) -> int:
        """The batch size at which the loop is quickest."""
        if len(sizes) == 1:
            return sizes[0]
        images, labels, device = self._images, self._labels, self._device
        tensors = [*self.network.named_parameters(), *self.network.named_buffers()]
        state = {name: value.detach() for name, value in tensors}
        seconds = {}
        with computing(device, loop):
            for size in sizes:
                plain_pass(self.network, state, images[: 4 * size], labels[: 4 * size], size)
                tries = []
                for _ in range(1 if device == "cpu" else 3):
                    start = now(device)
                    plain_pass(self.network, state, images, labels, size)
                    tries.append(now(device) - start)
                seconds[size] = min(tries)
        return min(seconds, key=lambda size: seconds[size])


class PerImage(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images that are turned into tensors and normalised one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.numpy(), labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self._images[index]).float().div(255)
        return image.sub(0.1307).div(0.3081), self._labels[index]


def published_pass(state: Mapping[str, Tensor], data: PerImage, device: str) -> float:
    """One point the published study's way: a new network, and a data loader with transforms."""
    network = fm.build_model("mlp")
    network.load_state_dict(dict(state))
    network.to(device)
    total = 0.0
    with torch.no_grad():
        for images, labels in torch.utils.data.DataLoader(data, batch_size=100):
            outputs = network(images.to(device))
            total += float(F.cross_entropy(outputs, labels.to(device), reduction="sum"))
    return total / len(data)


def rivals(folder: Path, minima: list[Minimum], data: fm.Dataset, size: int) -> dict[str, Way]:
    """Planes of other packages; on a GPU without those that cannot be made there."""
    makers = {
        "loss-landscapes 3.0.6": loss_landscapes_plane,
        "landscaper 1.3.1": landscaper_plane,
    }
    ways = {}
    for name, make in makers.items():
        try:
            way = make(folder, minima, data, size)
            if data.device.type == "cuda":
                way()
            ways[name] = way
        except Exception as error:
            if data.device.type == "cpu":
                raise
            print(f"left out: {name}: {error!r}", file=sys.stderr, flush=True)
    return ways


def loss_landscapes_plane(folder: Path, minima: list[Minimum], data: fm.Dataset, size: int) -> Way:
    """The plane of the package loss-landscapes, over the same images in memory."""
    sys.path.insert(0, str(folder))
    import loss_landscapes
    from loss_landscapes.metrics import Metric

    images, labels = data.images, data.labels

    class Loss(Metric):  # type: ignore[misc]
        def __call__(self, model: Any) -> float:
            total = 0.0
            with torch.no_grad():
                for start in range(0, len(images), size):
                    outputs = model.forward(images[start : start + size])
                    part = labels[start : start + size]
                    total += float(F.cross_entropy(outputs, part, reduction="sum"))
            return total / len(images)

    def way() -> int:
        modules = [minimum.module().to(images.device) for minimum in minima]
        steps = 2
        loss_landscapes.planar_interpolation(*modules, Loss(), steps, deepcopy_model=True)
        return steps * steps

    return way


def landscaper_plane(folder: Path, minima: list[Minimum], data: fm.Dataset, size: int) -> Way:
    """The plane of the package landscaper: along two directions, for it has none through minima.

    Only its file of computations is loaded; the package itself wants plotting libraries.
    """
    sys.path.insert(0, str(folder))
    package = types.ModuleType("landscaper")
    package.__path__ = [str(folder / "landscaper")]
    sys.modules["landscaper"] = package
    compute = importlib.import_module("landscaper.compute")
    network = minima[0].module().to(data.device)
    directions = [[torch.randn_like(p) for p in network.parameters()] for _ in range(2)]
    images, labels = data.images, data.labels

    def loss(model: nn.Module, _data: Any) -> float:
        return plain_pass(model, dict(model.named_parameters()), images, labels, size)

    def way() -> int:
        steps = 2
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            # Tensors are where they are: told of a GPU it only gives back torch's spare memory,
            # which would cost it time, and whatever comes next.
            compute.compute_loss_landscape(
                network, None, directions, loss, steps=steps, distance=0.5, dim=2, device="cpu"
            )
        return steps * steps

    return way


def largest_gap(found: np.ndarray, true: np.ndarray) -> float:
    """The largest absolute difference."""
    return float(np.abs(found - true).max())
