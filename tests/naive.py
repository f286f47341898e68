"""Slow twins: the quantities of the package, written as their definitions read."""

import torch
from torch import nn

from flatminima.data import Dataset
from flatminima.minimum import Minimum
from flatminima.subspace import Subspace


def loss_at(network: nn.Module, parameters, data: Dataset) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, one example at a time, weights written into a module."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(parameters[name])
    network.eval()
    total, right = 0.0, 0
    with torch.no_grad():
        for row in range(len(data)):
            inputs, targets = data.batch(slice(row, row + 1))
            outputs = network(inputs)
            total += float(nn.functional.cross_entropy(outputs, targets).double())
            right += int(outputs.argmax(1) == targets)
    return total / len(data), right / len(data)


def parameters_at(subspace: Subspace, coordinate) -> dict[str, torch.Tensor]:
    """`w0 + sum_k c_k u_k`, tensor by tensor."""
    result = {}
    for name, value in subspace.origin.parameters.items():
        moved = value.double().clone()
        for k in range(subspace.dimensions):
            direction = subspace.direction(k)
            if name in direction:
                moved = moved + float(coordinate[k]) * direction[name].double()
        result[name] = moved.to(value.dtype)
    return result


def through(a: Minimum, b: Minimum, c: Minimum, x: float, y: float) -> dict[str, torch.Tensor]:
    """The point with barycentric weights x, y, 1 - x - y, as the published programs form it."""
    return {
        name: x * a.parameters[name] + y * b.parameters[name] + (1 - x - y) * c.parameters[name]
        for name in a.parameters
    }
