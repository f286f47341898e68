"""Which affine layers a network calls, found by hooks on one real batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from flatminima.landscape._proof import AGREEMENT
from flatminima.landscape._world import arguments, channels_last


@dataclass
class Trace:
    """The calls of one forward pass, in their order.

    Attributes:
        calls: Names of the modules that own parameters themselves, once per call.
        outputs: What the network returned.
        last: For each of them its last output.
    """

    calls: list[str] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    outputs: Any = None


def trace(network: nn.Module, inputs: Any) -> Trace:
    """Run `network` once and record which parameter-owning modules it calls."""
    found = Trace()
    handles = []
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        handles.append(module.register_forward_pre_hook(_noting(found.calls, name)))
        handles.append(module.register_forward_hook(_keeping(found.last, name)))
    try:
        args, kwargs = arguments(inputs)
        found.outputs = network(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def is_affine(module: nn.Module) -> bool:
    """Whether the module's output is affine in its own weight and bias (Linear, convolution)."""
    return isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, LazyModuleMixin)


def check_initialised(network: nn.Module) -> None:
    """Raise `ValueError` for lazy layers that have not seen data yet."""
    for name, module in network.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise ValueError(
                f"expected a network with its weights in place, got the uninitialised"
                f" {type(module).__name__} {name!r}; pass one batch through the network first"
            )


def shared_with(network: nn.Module, name: str) -> str | None:
    """The first other module that holds a parameter of module `name`, if any."""
    own = {id(value) for value in network.get_submodule(name).parameters(recurse=False)}
    for other, value in network.named_parameters(remove_duplicate=False):
        home = other.rpartition(".")[0]
        if id(value) in own and home != name:
            return home
    return None


def own_parameters(network: nn.Module, name: str) -> tuple[str, ...]:
    """Full names of the parameters of the module `name` itself."""
    prefix = f"{name}." if name else ""
    return tuple(
        prefix + own for own, _ in network.get_submodule(name).named_parameters(recurse=False)
    )


class Captured(Exception):
    """Raised to leave a forward pass once a layer's input is in hand."""


def inputs_of(network: nn.Module, name: str, inputs: Any) -> Tensor:
    """The input of module `name` in a forward pass, which goes no further than there."""
    seen: list[Tensor] = []

    def take(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else next(iter(kwargs.values())))
        raise Captured

    handle = network.get_submodule(name).register_forward_pre_hook(take, with_kwargs=True)
    try:
        args, kwargs = arguments(inputs)
        network(*args, **kwargs)
    except Captured:
        pass
    finally:
        handle.remove()
    return seen[0]


def inputs_and_outputs(network: nn.Module, name: str, inputs: Any) -> tuple[Tensor, Tensor]:
    """The input of module `name` and the network's output, of one full forward pass."""
    seen: list[Tensor] = []

    def take(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        # A copy: whatever follows may work in place.
        seen.append((args[0] if args else next(iter(kwargs.values()))).clone())

    handle = network.get_submodule(name).register_forward_pre_hook(take, with_kwargs=True)
    try:
        args, kwargs = arguments(inputs)
        outputs = network(*args, **kwargs)
    finally:
        handle.remove()
    return seen[0], outputs


def largest_output(network: nn.Module, inputs: Any) -> int:
    """Bytes of the largest tensor that any module returns for these inputs; at least 1."""
    sizes = [1]

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.nbytes)

    handles = [module.register_forward_hook(look) for module in network.modules()]
    try:
        args, kwargs = arguments(inputs)
        network(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)


def writes_to_buffers(network: nn.Module, inputs: Any) -> bool:
    """Whether a forward pass leaves other buffers behind than it found; they are put back."""
    before = {name: value.clone() for name, value in network.named_buffers()}
    args, kwargs = arguments(inputs)
    network(*args, **kwargs)
    after = dict(network.named_buffers())
    written = [name for name, value in before.items() if not torch.equal(value, after[name])]
    for name in written:
        after[name].copy_(before[name])
    return bool(written)


def takes_channels_last(network: nn.Module, inputs: Any) -> bool:
    """Whether the other layout of images is quicker for this network and gives the same outputs.

    It is for float32 convolutions on a CPU (by 8 to 35 %, torch 2.13), and on a GPU, where products
    in bfloat16 gain most. A network that asks for strides, such as by `view`, may refuse it.
    """
    first = next(network.parameters(), None)
    if first is None or first.dtype != torch.float32 or first.device.type not in ("cpu", "cuda"):
        return False
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return False
    try:
        want, got = (
            network(*args, **kwargs)
            for args, kwargs in map(arguments, (inputs, channels_last(inputs)))
        )
    except RuntimeError:
        return False
    return isinstance(want, Tensor) and torch.allclose(
        got, want, rtol=AGREEMENT[torch.float32], atol=AGREEMENT[torch.float32], equal_nan=True
    )


def top_layer(network: nn.Module, inputs: Any) -> str:
    """The name of the affine layer that the network calls last.

    Raises:
        ValueError: If there is none, it is called more than once, shares its weights with another
            layer, or the network has several outputs.
    """
    found = trace(network, inputs)
    kind = type(network).__name__
    if not isinstance(found.outputs, Tensor):
        raise ValueError(
            f"expected a network with one output tensor for parameters='top', {kind} returns"
            f" {type(found.outputs).__name__}; choose its top layer by name, such as 'head.*'"
        )
    affine = [call for call in found.calls if is_affine(network.get_submodule(call))]
    if not affine:
        raise ValueError(
            f"expected a Linear or convolution layer for parameters='top', {kind} calls none;"
            " choose parameters by name"
        )
    name = affine[-1]
    if affine.count(name) > 1:
        raise ValueError(
            f"expected a top layer that is called once, {kind} calls {name!r} {affine.count(name)}"
            " times; choose parameters by name"
        )
    other = shared_with(network, name)
    if other is not None:
        raise ValueError(
            f"expected a top layer with weights of its own, {name!r} shares them with {other!r};"
            " choose parameters by name"
        )
    return name


def ends_with(network: nn.Module, name: str, inputs: Any) -> bool:
    """Whether the outputs are the outputs of layer `name` up to reshapes.

    Probed at the layer's own weights and at weights a thousand times as large, of either sign, so
    that a rectifier, a clamp or a log-softmax after the layer cannot hide.
    """
    layer = network.get_submodule(name)
    saved = {own: value.clone() for own, value in layer.named_parameters(recurse=False)}
    try:
        for factor in (1.0, 1e3, -1e3):
            with torch.no_grad():
                for own, value in layer.named_parameters(recurse=False):
                    value.copy_(saved[own] * factor)
            found = trace(network, inputs)
            if found.outputs.numel() != found.last[name].numel():
                return False
            if not torch.equal(found.outputs.reshape(-1), found.last[name].reshape(-1)):
                return False
    finally:
        with torch.no_grad():
            for own, value in layer.named_parameters(recurse=False):
                value.copy_(saved[own])
    return True


def leading_layer(network: nn.Module, inputs: Any) -> str | None:
    """The first parameter-owning module called, if it is one that the affine path can share.

    It must be a plain Linear or convolution, called once, with weights of its own and no hooks.
    That its input depends on no parameter is proven later, on the answers.
    """
    found = trace(network, inputs)
    if not found.calls:
        return None
    name = found.calls[0]
    layer = network.get_submodule(name)
    plain = type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooked = bool(layer._forward_hooks or layer._forward_pre_hooks)
    alone = found.calls.count(name) == 1 and shared_with(network, name) is None
    return name if name and plain and alone and not hooked else None


def _noting(calls: list[str], name: str) -> Callable[..., None]:
    return lambda _module, _args: calls.append(name)


def _keeping(outputs: dict[str, Any], name: str) -> Callable[..., None]:
    return lambda _module, _args, output: outputs.update({name: output})
