"""What follows a layer as plain affine maps and rectifiers, without the modules around them.

A small network spends a share of its time between its products: modules are called, their weights
are exchanged, results are written to new memory. Where nothing follows a layer but other layers in
a row, their products are called for directly, and are rectified in place.

Only the structure is asked, never the data: of `Sequential` it is known what it does with any
input, of a module with a `forward` of its own it is not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from flatminima._linear import affine
from flatminima._packed import Packed

Names: TypeAlias = tuple[str, str | None]
"""A weight, and a bias if there is one."""


@dataclass(frozen=True)
class Chain:
    """Steps from the output of a layer to the output of the network.

    Attributes:
        steps: An affine map by its names, a rectifier or a flattening by its module.
    """

    steps: tuple[Names | nn.ReLU | nn.Flatten, ...]

    def __call__(
        self,
        value: Tensor,
        state: Mapping[str, Tensor],
        packed: Packed,
        convert: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The network's output; `value` may be written to.

        Args:
            value: What the layer returned.
            state: Parameters by name.
            packed: Those that many batches meet.
            convert: Gives `value` the type that products are to have. Numbers are rectified before
                they are rounded, which gives the same ones and is quicker.
        """
        converted = False
        for step in self.steps:
            if isinstance(step, nn.ReLU):
                value = value.relu_()
            elif isinstance(step, nn.Flatten):
                value = step(value)
            else:
                value = value if converted else convert(value)
                converted = True
                weight, bias = step
                value = affine(value, state[weight], state[bias] if bias else None, packed)
        return value


def chain_behind(network: nn.Module, name: str) -> Chain | None:
    """What follows module `name`, if that is plain layers in a row, one of them affine."""
    known = {key for key, _ in network.named_parameters()}
    steps: list[Names | nn.ReLU | nn.Flatten] = []
    found = False
    for own, module in _in_a_row(network):
        hooked = module._forward_hooks or module._forward_pre_hooks
        if hooked or "forward" in vars(module):
            return None
        if not found or type(module) is nn.Sequential:
            found = found or own == name
            continue
        if type(module) is nn.Linear:
            names = (f"{own}.weight", None if module.bias is None else f"{own}.bias")
            if not {key for key in names if key} <= known:  # tied: known by another name
                return None
            steps.append(names)
        elif isinstance(module, nn.ReLU | nn.Flatten) and type(module) in (nn.ReLU, nn.Flatten):
            steps.append(module)
        elif not _passes(module):
            return None
    affine_too = any(isinstance(step, tuple) for step in steps)  # whose output is memory of its own
    return Chain(tuple(steps)) if found and affine_too else None


def _passes(module: nn.Module) -> bool:
    """Whether a module returns what it is given."""
    return type(module) is nn.Identity or (type(module) is nn.Dropout and not module.training)


def _in_a_row(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in the order in which a `Sequential` calls them, themselves included."""
    yield name, module
    if type(module) is nn.Sequential:
        for own, child in module._modules.items():
            assert child is not None
            yield from _in_a_row(child, f"{name}.{own}" if name else own)
