"""Small networks and data sets whose answers are known, built in one place."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from flatminima.data import Dataset
from flatminima.minimum import Minimum

CLASSES = 4


class Scaled(nn.Module):
    """Multiplies its input by a weight vector; with `half_square` its loss is a quadratic."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(list(weights), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * outputs.square().sum(1)


def quadratic(curvatures: Sequence[float], at: Sequence[float] | None = None):
    """A network and data with loss `sum_j h_j w_j^2 / 2`, so `H = diag(h)`."""
    h = torch.tensor(list(curvatures), dtype=torch.float64)
    inputs = h.sqrt().expand(3, -1).contiguous()
    data = Dataset(inputs, torch.zeros(3, dtype=torch.int64))
    return Scaled(at if at is not None else [0.0] * len(h)), data


def perceptron(seed: int = 0, *, sizes: Sequence[int] = (6, 8, 5, CLASSES), dtype=torch.float64):
    """A small ReLU network with weights drawn from `seed`."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, dtype=dtype), nn.ReLU()]
    return seeded(nn.Sequential(*layers[:-1]), seed)


class ImageNet(nn.Module):
    """Convolutions with or without BatchNorm, then a linear layer."""

    def __init__(self, *, batchnorm: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, eps=eps) if batchnorm else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1))


class Tied(nn.Module):
    """Encoder and decoder share one weight; the head is called last."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 6)
        self.out = nn.Linear(6, 6)
        self.out.weight = self.into.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.into(x)))


class TwoInputs(nn.Module):
    """Takes keywords, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(3, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.tanh(self.left(left) + self.right(right)))


def seeded(network: nn.Module, seed: int) -> nn.Module:
    """Fill every parameter with seeded normal draws of a sensible size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            draw = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(0.5 * draw)
    return network


def points(samples: int = 37, *, features: int = 6, seed: int = 0, dtype=torch.float64) -> Dataset:
    """Random vectors with random classes; a prime number of them, so that batches end short."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator, dtype=dtype)
    targets = torch.randint(CLASSES, (samples,), generator=generator)
    return Dataset(inputs, targets, classes=CLASSES)


def images(samples: int = 23, *, seed: int = 0) -> Dataset:
    """Random images with random classes, float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 1, 6, 6, generator=generator, dtype=torch.float64)
    return Dataset(inputs, torch.randint(CLASSES, (samples,), generator=generator), classes=CLASSES)


def states(build, count: int) -> list[Minimum]:
    """`count` different states of one architecture."""
    made = []
    for seed in range(count):
        network = build(seed)
        made.append(
            Minimum(
                {name: value.detach().clone() for name, value in network.named_parameters()},
                {name: value.detach().clone() for name, value in network.named_buffers()},
            )
        )
    return made


def flat(parameters) -> np.ndarray:
    """All parameters as one vector, the slow way."""
    return np.concatenate([value.double().numpy().ravel() for value in parameters.values()])
