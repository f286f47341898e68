"""What is evaluated on both devices: networks, data, a subspace and what must come of it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatminima as fm
from cases import CLASSES, ImageNet, Tied, TwoInputs, images, perceptron, points, seeded
from flatminima.landscape import Losses
from flatminima.minimum import Minimum
from flatminima.subspace import Subspace

DEVICE = os.environ.get("FLATMINIMA_TEST_DEVICE", "cuda")
ON_CUDA = DEVICE == "cuda"

# VGG16 as published where it takes a moment, a slim one elsewhere.
WIDTH = 1.0 if ON_CUDA else 0.125


class Residual(nn.Module):
    """A stem, two blocks and a head."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.norm(self.conv(x)))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3)
        self.first, self.second = self.Block(), self.Block()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(torch.relu(self.stem(x)))).mean((2, 3)))


class Again(nn.Module):
    """The first layer is called once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.b(torch.tanh(self.a(x)))))


class Normed(nn.Module):
    """BatchNorm of vectors, by its cumulative average, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


class WriterForCausalLM(nn.Module):
    """A language model in miniature that computes its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.embed(input_ids).cumsum(1)))
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def _initialised(build: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Networks whose running statistics differ, so that policies do."""

    def made(seed: int) -> nn.Module:
        network = seeded(build(), seed)
        for name, value in network.named_buffers():
            if name.endswith("running_mean"):
                value.fill_(0.1 * seed)
            elif name.endswith("running_var"):
                value.fill_(1.0 + seed)
        return network

    return made


def _keywords() -> fm.Dataset:
    left, right = points().inputs, points(features=3, seed=1).inputs
    return fm.Dataset({"left": left, "right": right}, points().targets)


def _itself() -> fm.Dataset:
    return fm.Dataset(points().inputs, points().inputs)


def _several_labels() -> fm.Dataset:
    inputs = points().inputs
    labels = torch.arange(len(inputs) * CLASSES).reshape(-1, CLASSES) % 3 == 0
    return fm.Dataset(inputs, labels.long())


def texts() -> fm.Dataset:
    """Token ids, of which some, and of one text all, are not to be predicted."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 7, (11, 5), generator=draw)
    labels = ids.clone()
    labels[torch.rand(11, 5, generator=draw) < 0.3] = -100
    labels[2] = -100
    return fm.Dataset({"input_ids": ids}, labels)


def weighted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and weights."""
    weights = 1.0 + targets.to(outputs)
    return F.cross_entropy(outputs, targets, reduction="none") * weights, weights


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """How far the target's logit is above the largest other."""
    own = outputs.gather(1, targets[:, None])
    others = outputs.scatter(1, targets[:, None], -torch.inf).max(1, keepdim=True).values
    return (own - others)[:, 0]


def converted(data: fm.Dataset, dtype: torch.dtype) -> fm.Dataset:
    """The same data with floating tensors in another type."""

    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: one(part) for name, part in value.items()}
        return value.to(dtype) if value.is_floating_point() else value

    return fm.Dataset(one(data.inputs), one(data.targets), classes=data.classes)


@dataclass(frozen=True)
class Case:
    """Points of a subspace, and the way in which they are evaluated.

    Attributes:
        build: A network from a seed.
        data: In float64.
        path: How the path's name begins.
        moves: Globs of what random directions move; none is the plane through three networks.
        options: Of the landscape.
    """

    build: Callable[[int], nn.Module]
    data: Callable[[], fm.Dataset]
    path: str
    moves: str | tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def network(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Of weights that float32 has, whatever type they are in; draws from no random state."""
        with torch.random.fork_rng(devices=[]):
            return self.build(seed).float().to(dtype)

    def dataset(self, dtype: torch.dtype = torch.float64) -> fm.Dataset:
        return converted(converted(self.data(), torch.float32), dtype)

    def subspace(self, dtype: torch.dtype = torch.float64) -> Subspace:
        networks = [self.network(seed, dtype) for seed in range(3)]
        if self.moves is None:
            return Subspace.through(*networks)
        return Subspace.random(networks[0], 2, 0, parameters=self.moves)

    def coordinates(self, subspace: Subspace, count: int = 11) -> np.ndarray:
        """Around the origin; between the networks, where there are some.

        Eleven are enough for what is done only where there are many points.
        """
        draw = np.random.default_rng(0)
        if self.moves is not None:
            return draw.normal(size=(count, 2))
        return subspace.barycentric(draw.dirichlet(np.ones(3), size=count))

    def landscape(self, device: str, dtype: torch.dtype = torch.float64, **more: Any):
        sizes = {"batch_size": 10, "recompute_batch": 7, "recompute_samples": 21}
        options = {**sizes, **self.options, **more}
        return fm.Landscape(self.network(0, dtype), self.dataset(dtype), device=device, **options)

    def losses(self, device: str, dtype: torch.dtype = torch.float64, **more: Any) -> Losses:
        """At all points; what is asked of `losses` itself is taken out of the options."""
        asked = {name: more.pop(name) for name in ("precision", "clip") if name in more}
        subspace = self.subspace(dtype)
        return self.landscape(device, dtype, **more).losses(
            subspace, self.coordinates(subspace), **asked
        )


def _policy(build: Callable[[int], nn.Module], data: Any, policy: str, path: str) -> Case:
    return Case(build, data, path, options={"batchnorm": policy})


_imagenet, _residual, _normed = map(_initialised, (ImageNet, Residual, Normed))

CASES = {
    "plane": Case(perceptron, points, "affine"),
    "rays": Case(perceptron, points, "affine", "*"),
    "suffix": Case(perceptron, points, "suffix", ("2.weight", "2.bias", "4.weight", "4.bias")),
    "top": Case(perceptron, points, "top", "4.*"),
    "convolution": Case(lambda s: seeded(ImageNet(batchnorm=False), s), images, "affine"),
    "residual rays": Case(_residual, images, "affine", "*"),
    "residual suffix": Case(_residual, images, "suffix", "second.*"),
    "residual top": Case(_residual, images, "top", "head.*"),
    "residual recompute": _policy(_residual, images, "recompute", "reference"),
    "keep": _policy(_imagenet, images, "keep", "affine"),
    "recompute": _policy(_imagenet, images, "recompute", "reference"),
    "interpolate": _policy(_imagenet, images, "interpolate", "reference"),
    "batch": _policy(_imagenet, images, "batch", "reference"),
    "vectors keep": _policy(_normed, points, "keep", "affine"),
    "vectors recompute": _policy(_normed, points, "recompute", "reference"),
    "vectors interpolate": _policy(_normed, points, "interpolate", "reference"),
    "vectors batch": _policy(_normed, points, "batch", "reference"),
    "tied": Case(lambda s: seeded(Tied(), s), points, "reference"),
    "called twice": Case(lambda s: seeded(Again(), s), points, "reference"),
    "keywords": Case(lambda s: seeded(TwoInputs(), s), _keywords, ""),
}

# What stands for all where one of each kind is enough.
FEW = ("plane", "suffix", "keep", "recompute", "residual recompute", "batch")

MEASURES = {
    "classes": Case(perceptron, points, "affine", options={"subsets": "classes"}),
    "classes of the top": Case(perceptron, points, "top", "4.*", {"subsets": "classes"}),
    "metrics": Case(
        perceptron,
        points,
        "affine",
        options={
            "metrics": {"margin": margin, "weighted": weighted},
            "subsets": {"even": torch.arange(37) % 2 == 0, "first": np.arange(37) < 3},
        },
    ),
    "metrics recompute": Case(
        _imagenet, images, "reference", options={"batchnorm": "recompute", "subsets": "classes"}
    ),
    "callable": Case(perceptron, points, "affine", options={"loss": margin}),
    "weighted": Case(perceptron, points, "affine", options={"loss": weighted}),
    "weighted top": Case(perceptron, points, "top", "4.*", {"loss": weighted}),
    "mse": Case(lambda s: seeded(Tied(), s), _itself, "reference", options={"loss": "mse"}),
    "several labels": Case(
        perceptron, _several_labels, "affine", options={"loss": "binary_cross_entropy"}
    ),
    "next token": Case(
        lambda s: seeded(WriterForCausalLM(), s), texts, "", options={"loss": "next_token"}
    ),
    "next token head": Case(
        lambda s: seeded(WriterForCausalLM(), s), texts, "", "head.*", {"loss": "next_token"}
    ),
    "own loss": Case(lambda s: seeded(WriterForCausalLM(), s), texts, "", None, {"loss": "model"}),
}


def vgg(width: float = WIDTH) -> nn.Module:
    """VGG16 at initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return fm.build_model("vgg16", width=min(width, WIDTH))


def pictures(count: int) -> fm.Dataset:
    """Random images."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=draw)
    return fm.Dataset(pixels, labels, classes=10, mean=[0.5] * 3, std=[0.25] * 3)


def assert_losses_close(found: Losses, want: Losses, *, rtol: float, atol: float) -> None:
    """Everything that is told of the points."""
    assert (found.path, found.batchnorm) == (want.path, want.batchnorm)
    assert (found.samples, found.clip) == (want.samples, want.clip)
    np.testing.assert_array_equal(found.finite, want.finite)
    np.testing.assert_allclose(found.loss, want.loss, rtol=rtol, atol=atol)
    assert found.metrics.keys() == want.metrics.keys()
    for name, values in want.metrics.items():
        np.testing.assert_allclose(
            found.metrics[name], values, rtol=rtol, atol=atol, err_msg=name, equal_nan=True
        )
    assert (found.standard_error is None) == (want.standard_error is None)
    if found.standard_error is not None and want.standard_error is not None:
        np.testing.assert_allclose(
            found.standard_error, want.standard_error, rtol=rtol, atol=atol, equal_nan=True
        )
    assert (found.clipped is None) == (want.clipped is None)
    if found.clipped is not None and want.clipped is not None:
        np.testing.assert_array_equal(found.clipped, want.clipped)


def assert_losses_same(found: Losses, want: Losses) -> None:
    """Bit for bit."""
    assert_losses_close(found, want, rtol=0.0, atol=0.0)
    assert (found.repeated, found.difference) == (want.repeated, want.difference)


def assert_states_same(found: Minimum, want: Minimum) -> None:
    """Bit for bit, and so are their histories."""
    assert found.to_bytes() == want.to_bytes()
    assert found.history is not None
    assert found.history.identical(want.history)


@contextmanager
def loud() -> Iterator[None]:
    """Within, the caller has switched on everything that makes products less exact."""
    cudnn = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    try:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            yield
    finally:
        # Not allow_tf32 = False, after which torch refuses to say its precision if that of another
        # backend was touched in between; one test tells of that, the others shall not suffer.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = cudnn


def seen_by(job: Any, inputs: Any) -> dict[str, bytes]:
    """A job that tells what a worker sees of GPUs."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        torch.ones(3, device="cuda").sum().item()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
    return {"count": str(count).encode(), "visible": visible.encode()}
