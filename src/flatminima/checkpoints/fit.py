"""The names of a checkpoint's tensors, fitted to those of a network."""

from collections.abc import Iterable, Mapping
from itertools import islice, pairwise

import torch
from torch import Tensor, nn

from flatminima.minimum import aliases

# Parts of names that torch itself puts in: DataParallel and DDP, torch.compile.
_WRAPPERS = ("module", "_orig_mod")


def memory_of(value: Tensor) -> tuple[object, ...]:
    """Equal for two names of one tensor."""
    return value.data_ptr(), value.dtype, value.shape, value.stride()


def unwrapped(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sorted, without the wrappers' parts that all names have in the same place."""
    columns = zip(*(name.split(".")[:-1] for name in found), strict=False)
    drop = {i for i, parts in enumerate(columns) if {parts[0]} == {*parts} <= {*_WRAPPERS}}
    short = {
        ".".join(part for i, part in enumerate(name.split(".")) if i not in drop): value
        for name, value in found.items()
    }
    return dict(sorted(short.items()))


def _plain(name: str) -> str:
    """`name` without the parts that wrappers put in."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _stored_names(name: str, adapter: bool) -> set[str]:
    """What a file may call the network's tensor `name`, but for wrappers."""
    forms = {_plain(name)}
    parts = name.split(".")
    # peft leaves the adapter's name out of a file, and the wrapper of modules trained in full.
    if adapter and "original_module" not in parts:
        for place in range(1, len(parts)):
            forms.add(_plain(".".join(parts[:place] + parts[place + 1 :])))
            if parts[place - 1] == "modules_to_save":
                forms.add(_plain(".".join(parts[: place - 1] + parts[place + 1 :])))
    return forms


def _targets(found: Iterable[str], own: Iterable[str], adapter: bool) -> dict[str, str]:
    """The network's name of each tensor of the file that has exactly one there."""
    exact = set(own)
    table: dict[str, set[str]] = {}
    for name in exact:
        for form in _stored_names(name, adapter):
            table.setdefault(form, set()).add(name)
    choices = {name: {name} if name in exact else table.get(_plain(name), set()) for name in found}
    return {name: next(iter(few)) for name, few in choices.items() if len(few) == 1}


def fit(
    found: Mapping[str, Tensor], network: nn.Module, *, adapter: bool = False
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The state in the network's names and order, and what keeps it from fitting, by a verb."""
    own: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    own |= dict(network.named_buffers(remove_duplicate=False))
    tied = aliases(network)
    first = {name: tied.get(name, name) for name in own}
    saved = [name for name in network.state_dict() if name in own]
    targets = _targets(found, own, adapter)
    # The tensor of the file for each of the network's, by its first name there.
    source = {first[target]: name for name, target in reversed(targets.items())}
    shapes = {
        name: (tuple(found[name].shape), tuple(own[to].shape)) for name, to in targets.items()
    }
    faults = {
        "has": [f"{n} of shape {a} instead of {b}" for n, (a, b) in shapes.items() if a != b],
        "lacks": [
            f"{name} of shape {tuple(own[name].shape)}"
            for name in (_expected(saved, targets) if adapter else saved)
            if name == first[name] and name not in source
            if not name.endswith("num_batches_tracked")
        ],
        "ties to it other values in": [
            name
            for name, to in targets.items()
            if not _equal(found[source[first[to]]], found[name])
        ],
        "also has": [name for name in found if name not in targets],
    }
    # Buffers outside the state dict are the network's own, unless the file has them.
    names = saved + [name for name in own if name in source and name not in saved]
    state = {
        name: found[source[first[name]]] if first[name] in source else own[name].cpu()
        for name in names
    }
    return state, {verb: names for verb, names in faults.items() if names}


def _expected(saved: Iterable[str], targets: Mapping[str, str]) -> list[str]:
    """The network's names of the same kinds as the adapter's, such as all `lora_A.default`."""
    kinds = set()
    for name, target in targets.items():
        parts = target.split(".")
        absent = set(parts) - set(name.split("."))
        kinds |= {f".{a}.{b}." for a, b in pairwise(parts) if b in absent}
    return [name for name in saved if any(kind in f".{name}." for kind in kinds)]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two names hold one tensor; the same memory is, even with NaN in it."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return memory_of(one) == memory_of(other) or torch.equal(one, other)


def fitting_prefixes(found: Mapping[str, Tensor], network: nn.Module) -> list[str]:
    """The first prefixes below which the file holds exactly the network's tensors."""
    # Of tied weights a file may have any name; else the first parameter's is looked for.
    first = next(iter(dict(network.named_parameters())), "")
    sought = {_plain(first)} | {_plain(n) for n, home in aliases(network).items() if home == first}
    starts: dict[str, None] = {}
    for parts in (name.split(".") for name in found):
        for place in range(1, len(parts)):
            if _plain(".".join(parts[place:])) in sought:
                starts[".".join(parts[:place]) + "."] = None
                break
    fitting = []
    for start in islice(starts, 64):  # enough for any honest file
        inner = {name[len(start) :]: v for name, v in found.items() if name.startswith(start)}
        if not fit(inner, network)[1]:
            fitting.append(start)
    return fitting[:3]
