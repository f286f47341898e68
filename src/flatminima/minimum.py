"""A `Minimum`: what training yields and geometry takes.

A state is parameters and buffers. Geometry acts on the parameters only; the buffers travel along
and are read by the BatchNorm policies.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch
import xarray as xr
from torch import Tensor, nn

from flatminima.models import build_model
from flatminima.types import Buffers, Parameters

_FORMAT = 1
_KEY = "flatminima"
# Names that BatchNorm gives its buffers; the rule for a state dict that comes without its network.
_BUFFER_SUFFIXES = ("running_mean", "running_var", "num_batches_tracked")

State: TypeAlias = "Minimum | nn.Module | Mapping[str, Tensor]"


class Minimum:
    """The parameters and buffers of a network at one moment of its training, and their origin.

    Args:
        parameters: Trainable tensors by name; of tied weights the first name only.
        buffers: The other tensors of the state, by name.
        history: Losses per epoch (dimension `epoch`), as `train` records them.
        recipe: The training recipe as a plain mapping.
        seed: The seed of initialisation and batch order.
        model: `{"name": ..., "settings": {...}}` for a network built by name, else `None`.
        epoch: The number of finished epochs.
        matched: The same run's first epoch end at or below its `match_loss`, if it got there.
    """

    def __init__(
        self,
        parameters: Parameters,
        buffers: Buffers | None = None,
        *,
        history: xr.Dataset | None = None,
        recipe: Mapping[str, Any] | None = None,
        seed: int | None = None,
        model: Mapping[str, Any] | None = None,
        epoch: int | None = None,
        matched: "Minimum | None" = None,
    ) -> None:
        self.parameters: dict[str, Tensor] = dict(parameters)
        self.buffers: dict[str, Tensor] = dict(buffers or {})
        self.history = history
        self.recipe = dict(recipe) if recipe is not None else None
        self.seed = seed
        self.model = dict(model) if model is not None else None
        self.epoch = epoch
        self.matched = matched

    def __repr__(self) -> str:
        count = sum(value.numel() for value in self.parameters.values())
        name = self.model["name"] if self.model else "network"
        return f"Minimum({name}, {count:,} parameters, seed={self.seed}, epoch={self.epoch})"

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers together, under the names of the network's own state dict."""
        return {**self.parameters, **self.buffers}

    def module(self, factory: Callable[[], nn.Module] | None = None) -> nn.Module:
        """A network holding this state, in evaluation mode.

        Args:
            factory: Builds the network; needed unless it was built from a name.

        Raises:
            ValueError: If there is neither a name nor a factory, or the network does not fit.
        """
        if factory is not None:
            network = factory()
        elif self.model is not None:
            network = build_model(self.model["name"], **self.model["settings"])
        else:
            raise ValueError(
                "expected a factory for this network, got none, and it was not built from a name;"
                " call module(factory) with a function that builds it"
            )
        parameters, buffers = split_state(self, network)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(parameters[name])
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
        return network.eval()

    def to_bytes(self) -> bytes:
        """The state as a safetensors file: plain names, and the rest as JSON in its header.

        The history and the matched checkpoint are not part of it; a study stores them beside it.
        """
        about = {
            "format": _FORMAT,
            "buffers": sorted(self.buffers),
            "recipe": self.recipe,
            "seed": self.seed,
            "model": self.model,
            "epoch": self.epoch,
        }
        tensors = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        return safetensors.torch.save(tensors, {_KEY: json.dumps(about, sort_keys=True)})

    def save(self, path: str | Path) -> None:
        """Write the state to `path` (safetensors)."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "the given bytes") -> "Minimum":
        """The inverse of `to_bytes`; a safetensors file from elsewhere is taken as a state dict.

        Raises:
            ValueError: If the bytes are no safetensors file, or one written by a newer version.
        """
        try:
            # safetensors hands them out in another order each time, and sums over tensors would
            # differ in their last bits.
            tensors = dict(sorted(safetensors.torch.load(data).items()))
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ValueError(
                f"expected a safetensors file, got {source}, which is none or cut short ({error});"
                " save it again, or fetch it again"
            ) from None
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        if _KEY not in header:
            return cls(*_split_by_name(tensors))
        about = json.loads(header[_KEY])
        if about["format"] > _FORMAT:
            raise ValueError(
                f"expected a state of format {_FORMAT} or older, got format {about['format']} in"
                f" {source}; install a newer flatminima"
            )
        names = set(about["buffers"])
        return cls(
            {name: value for name, value in tensors.items() if name not in names},
            {name: value for name, value in tensors.items() if name in names},
            recipe=about["recipe"],
            seed=about["seed"],
            model=about["model"],
            epoch=about["epoch"],
        )

    @classmethod
    def load(cls, path: str | Path) -> "Minimum":
        """Read what `save` wrote, or any safetensors state dict.

        Raises:
            ValueError: If there is no such file, or it is no safetensors file.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(
                f"expected a safetensors file at {path}, got: {error.strerror}; check the path"
            ) from None
        return cls.from_bytes(data, source=str(path))


def split_state(
    state: State, network: nn.Module | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state into detached parameters and buffers, checked against `network` if given.

    Without a network, a bare state dict is split by the names and types that BatchNorm gives its
    buffers; a `Landscape` checks the outcome against its own network.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape; the message names it.
    """
    if isinstance(state, Minimum):
        parameters, buffers = state.parameters, state.buffers
    elif isinstance(state, nn.Module):
        module = unwrapped(state)
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    else:
        parameters, buffers = _split_by_name(state if network is None else _bare(state, network))
    if network is not None:
        parameters, buffers = _fit({**parameters, **buffers}, network)
    return (
        {name: value.detach() for name, value in parameters.items()},
        {name: value.detach() for name, value in buffers.items()},
    )


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside `DataParallel`, its distributed kin, and `torch.compile`."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def _bare(tensors: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """The names of a state dict without what such wrappers put before all of them."""
    own = network.state_dict()
    for prefix in ("module.", "_orig_mod.", "module."):
        alike = all(name.startswith(prefix) for name in tensors)
        if alike and not any(name in own for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def as_minimum(state: State, network: nn.Module | None = None) -> Minimum:
    """`state` as a `Minimum` whose tensors nobody else writes to."""
    parameters, buffers = split_state(state, network)
    return Minimum(
        {name: value.clone() for name, value in parameters.items()},
        {name: value.clone() for name, value in buffers.items()},
        model=state.model if isinstance(state, Minimum) else None,
        seed=state.seed if isinstance(state, Minimum) else None,
        epoch=state.epoch if isinstance(state, Minimum) else None,
    )


def _split_by_name(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers of a state dict whose network is unknown."""
    buffers = {
        name: value
        for name, value in tensors.items()
        if name.endswith(_BUFFER_SUFFIXES) or not value.is_floating_point()
    }
    return {name: value for name, value in tensors.items() if name not in buffers}, buffers


def _fit(
    tensors: Mapping[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sort `tensors` by the network's own parameters and buffers, and check every shape."""
    wanted = dict(network.named_parameters())
    held = dict(network.named_buffers())
    tied = aliases(network)
    known = set(wanted) | set(held) | set(tied)
    unknown = sorted(set(tensors) - known)
    missing = sorted(name for name in wanted if name not in tensors)
    saved = set(network.state_dict())
    missing += sorted(name for name in held if name in saved and name not in tensors)
    if missing or unknown:
        raise ValueError(
            f"expected the tensors of {type(network).__name__}, got a state that lacks"
            f" {_some(missing)} and has {_some(unknown)} besides; check that it comes from the same"
            " architecture"
        )
    for name, value in tensors.items():
        home = tied.get(name, name)
        like = wanted[home] if home in wanted else held[home]
        if like.shape != value.shape:
            raise ValueError(
                f"expected {name} of shape {tuple(like.shape)} for {type(network).__name__}, got"
                f" {tuple(value.shape)}; the state comes from another architecture"
            )
        if home != name and not torch.equal(tensors[home], value):
            raise ValueError(
                f"expected {name} to equal {home}, with which it is tied in"
                f" {type(network).__name__}, got different values; untie them or mend the state"
            )
    return (
        {name: tensors[name] for name in wanted},
        # Buffers that are not part of a state dict (persistent=False) are the network's own.
        {name: tensors.get(name, held[name]) for name in held},
    )


def aliases(network: nn.Module) -> dict[str, str]:
    """Further names of tied tensors, each with the first name of the same tensor."""
    first = {id(value): name for name, value in network.named_parameters()}
    first |= {id(value): name for name, value in network.named_buffers()}
    pairs = [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
    return {name: first[id(value)] for name, value in pairs if first[id(value)] != name}


def _some(names: list[str]) -> str:
    """A few of `names`, for a message of one line."""
    shown = ", ".join(names[:3]) or "nothing"
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
