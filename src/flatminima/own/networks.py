"""Checkpoints, a factory, data and a loss, opened and checked against each other."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatminima._devices import check_device
from flatminima.checkpoints import load_state
from flatminima.data import Dataset, load_dataset
from flatminima.data._table import SOURCES
from flatminima.data.adapters import as_dataset
from flatminima.landscape import Landscape
from flatminima.minimum import Minimum, as_minimum
from flatminima.own.objects import load_object
from flatminima.own.sources import source_digest, watched


@dataclass(frozen=True)
class OwnNetworks:
    """What the commands measure.

    Attributes:
        names: What to call the networks: the names of their files, told apart.
        states: The networks.
        landscape: Their data and loss.
        network: What the factory made.
        loss: As `Landscape` takes it.
        weight: Likewise.
        identity: All that decides their losses, as plain values: part of every result's digest.
        subsets: Groups of samples whose losses are told apart, with how many are in each.
        metrics: Names of what else is measured of a sample.
    """

    names: tuple[str, ...]
    states: tuple[Minimum, ...]
    landscape: Landscape
    network: nn.Module
    loss: Any
    weight: Any
    identity: dict[str, Any]
    subsets: Mapping[str, int] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()


def open_networks(
    model: str,
    weights: Sequence[str | Path],
    data: str,
    *,
    loss: str = "cross_entropy",
    weight: str | None = None,
    prefix: str | None = None,
    limit: int | None = None,
    batchnorm: str = "auto",
    precision: str = "exact",
    batch_size: int | None = None,
    device: str | None = None,
) -> OwnNetworks:
    """Open a user's networks.

    Args:
        model: `module:factory` (or a file, or a module's instance): makes the network.
        weights: Checkpoint files or folders.
        data: `module:function` that returns data, or the data itself; or the name of a built-in
            data set, with `:test` for its test split.
        loss: A name that `Landscape` knows, or `module:function`.
        weight: `module:function`, what a batch's own loss is the mean over, with the loss "model".
        prefix: What stands before the parameters' names in the checkpoints.
        limit: Only so many samples.
        batchnorm: Policy.
        precision: "exact" or "fast".
        batch_size: Examples per forward pass.
        device: Where to compute.

    Raises:
        ValueError: In one line, for whatever does not exist or fit.
    """
    if not weights:
        raise ValueError("expected --weights with one or more checkpoints, got none; name a file")
    check_device(device or "cpu")
    with watched(model):
        network = _network(model)
    states = [
        as_minimum(load_state(path, network=network, prefix=prefix), network) for path in weights
    ]
    dataset = _dataset(data, limit)
    own_loss: Any = loss
    if ":" in loss:
        with watched(loss):
            own_loss = load_object(loss, "--loss")
    own_weight = None
    if weight is not None:
        with watched(weight):
            own_weight = load_object(weight, "--weight")
    options = {"loss": own_loss, "weight": own_weight, "device": device}
    with watched(model):
        _try(network, dataset, options, model, data, loss)
    landscape = Landscape(
        network,
        dataset,
        **options,
        batchnorm=batchnorm,
        precision=precision,
        batch_size=batch_size,
    )
    identity = {
        "model": named(model),
        "weights": [_digest(state) for state in states],
        "data": dataset.digest,
        "loss": named(loss),
        "weight": named(weight or ""),
        "batchnorm": batchnorm,
        "run": {
            "precision": precision,
            "batch_size": landscape.batch_size,
            "device": landscape.device.type,
        },
    }
    return OwnNetworks(
        _names(weights), tuple(states), landscape, network, own_loss, own_weight, identity
    )


def _network(name: str) -> nn.Module:
    """The network that a factory makes, whatever random state it is called in."""
    made = load_object(name, "--model")
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ValueError(
                f"expected --model {name!r} as a function that returns a network, got"
                f" {type(made).__name__}; name a function or a class"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = called(made, name, "--model")
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"expected --model {name!r} to return an nn.Module, got {type(made).__name__}; return"
            " the network"
        )
    return made


def _dataset(name: str, limit: int | None) -> Dataset:
    """Built-in data by name, or a user's own in any form that `as_dataset` takes."""
    known, _, split = name.partition(":")
    if known in SOURCES:
        return load_dataset(known, split or "train", limit=limit)
    if ":" not in name:
        raise ValueError(
            f"expected --data as module:function or one of {', '.join(SOURCES)}, got {name!r};"
            " for a function load in net.py write net:load"
        )
    found = load_object(name, "--data")
    if isinstance(found, type) or (callable(found) and not hasattr(found, "__getitem__")):
        found = called(found, name, "--data")
    return as_dataset(found, name=None if isinstance(found, Dataset) else name, limit=limit)


def _try(
    network: nn.Module, dataset: Dataset, options: dict[str, Any], model: str, data: str, loss: str
) -> None:
    """Run network and loss on two samples, to say in one line what does not fit."""
    first = dataset.subset(torch.arange(min(2, len(dataset))))
    inputs = first.inputs
    shape = f" {list(inputs.shape)}" if isinstance(inputs, torch.Tensor) else ""
    try:
        Landscape(network, first, **options).loss_at(network)
    except ValueError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"expected --model {model!r} and --loss {loss!r} to take a batch of --data {data!r}"
            f"{shape}, got {type(error).__name__} ({text}); check shapes and types"
        ) from error


def called(function: Any, name: str, what: str) -> Any:
    """What a user's function returns; its own error in one line."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"expected {what} {name!r} to work without arguments, got {type(error).__name__} from"
            f" it ({error}); call it by itself to see where"
        ) from error


def _digest(state: Minimum) -> str:
    """The sha256 of a state's tensors, whatever file they came in."""
    found = hashlib.sha256()
    for name, value in sorted(state.state_dict().items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(data.numpy().tobytes())
    return found.hexdigest()


def named(name: str) -> dict[str, str]:
    """What is used by its name, and the digest of the files it comes from."""
    return {"name": name, "source": source_digest(name) if ":" in name else ""}


def _names(weights: Sequence[str | Path]) -> tuple[str, ...]:
    """The shortest ends of the paths that tell them apart."""
    paths = [Path(path) for path in weights]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{path.name} ({index + 1})" for index, path in enumerate(paths))
