"""What is measured beside the loss: its mean over groups of samples, and metrics of the user's.

Names come from the user and become those of variables in results, so they must be told apart.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.data import Dataset
from flatminima.landscape import Landscape
from flatminima.landscape._subsets import members_of
from flatminima.own.networks import OwnNetworks, called, named
from flatminima.own.objects import load_object
from flatminima.own.sources import watched

# More groups than anybody looks at: the numbers were those of samples.
_MOST = 200
_NAME = re.compile(r'(?!__)\w[^/\\:*?"<>|]{0,99}')  # part of a folder's name, in the store
# Variables of surfaces, lines and their parts, beside those that `Landscape` knows of.
_TAKEN = re.compile(
    "finite|clipped|point|position|distance|chord|coordinate|dimension|anchor|other"
)


def measured_beside(
    own: OwnNetworks,
    *,
    subsets: Sequence[str] = (),
    metrics: Sequence[str] = (),
    per_class: bool = False,
    limit: int | None = None,
) -> OwnNetworks:
    """The same networks, of which more is measured than the loss.

    Args:
        own: The networks.
        subsets: `module:function` that says which samples are in a group, or what it would return:
            a mask `[N]`; whole numbers `[N]`, for a group of each number; or a mapping of names to
            these.
        metrics: `module:function` from outputs and targets to one value per sample, or to sums and
            weights.
        per_class: Also a group of each class.
        limit: That the data was opened with: groups are then those of the first samples, too.

    Raises:
        ValueError: In one line, for whatever does not exist or fit, and names that are not told
            apart.
    """
    if not (subsets or metrics or per_class):
        return own
    data = own.landscape.dataset
    masks: dict[str, Tensor] = {}
    if per_class:
        _join(masks, _classes(data), "--per-class")
    for given in subsets:
        found = load_object(given, "--subset")
        if callable(found):
            found = called(found, given, "--subset")
        _join(masks, _masks(_last(given), found, len(data), limit, given), f"--subset {given!r}")
    functions = _metrics(metrics)
    landscape = _landscape(own, data, functions, masks)
    identity = dict(own.identity)
    if masks:
        identity["subsets"] = {name: _digest(mask) for name, mask in masks.items()}
    if functions:
        identity["metrics"] = {_last(given): named(given) for given in metrics}
    sizes = {name: int(mask.sum()) for name, mask in masks.items()}
    return replace(
        own, landscape=landscape, identity=identity, subsets=sizes, metrics=tuple(functions)
    )


def _landscape(
    own: OwnNetworks, data: Dataset, metrics: Mapping[str, "_Metric"], masks: Mapping[str, Tensor]
) -> Landscape:
    """The landscape of the networks with more measures, tried on two samples before."""
    usual: dict[str, Any] = {
        "loss": own.loss,
        "weight": own.weight,
        "device": own.landscape.device,
        "metrics": metrics,
    }
    first = data.subset(torch.arange(min(2, len(data)), device=data.device))
    with ExitStack() as stack:
        for metric in metrics.values():
            stack.enter_context(watched(metric.given))
        Landscape(own.network, first, **usual).loss_at(own.states[0])
    return Landscape(
        own.network,
        data,
        **usual,
        subsets=masks,
        batchnorm=own.landscape.batchnorm,
        precision=own.landscape.precision,
        batch_size=own.landscape.batch_size,
    )


def _last(given: str) -> str:
    """What a function is called where its results are."""
    return given.rpartition(":")[2].rpartition(".")[2]


def _join(masks: dict[str, Tensor], more: Mapping[str, Tensor], what: str) -> None:
    """Add groups to those there are."""
    for name, mask in more.items():
        if name in masks:
            raise ValueError(
                f"expected groups of samples with names that differ, got {name!r} again from"
                f" {what}; rename one"
            )
        if not (_NAME.fullmatch(name) and name.isprintable()):
            raise ValueError(
                f"expected groups named by a letter or digit and no more than 100 signs that a"
                f" file's name may have, got {name!r} from {what}; rename it"
            )
        masks[name] = mask


def _classes(data: Dataset) -> dict[str, Tensor]:
    """A group of each class that the data has."""
    if not data.classes:
        kind = "several" if not isinstance(data.targets, Tensor) else list(data.targets.shape)
        raise ValueError(
            f"expected targets that are classes (whole numbers [N]) with --per-class, got {kind};"
            " name groups with --subset"
        )
    return {name.replace("/", "-"): mask for name, mask in members_of(data, "classes").items()}


def _masks(name: str, found: Any, samples: int, limit: int | None, given: str) -> dict[str, Tensor]:
    """The groups that a user's value stands for, by name."""
    if isinstance(found, Mapping):
        if not found:
            raise ValueError(f"expected groups from --subset {given!r}, got none; leave it out")
        masks: dict[str, Tensor] = {}
        for key, part in found.items():
            _join(masks, _masks(str(key), part, samples, limit, given), f"--subset {given!r}")
        return masks
    values = _values(name, found, given)
    if limit is not None and values.ndim and len(values) > samples:
        values = values[:samples]
    kind = str(values.dtype).removeprefix("torch.")
    if values.dtype.is_floating_point or values.dtype.is_complex or values.shape != (samples,):
        raise ValueError(
            f"expected {samples} true or false, or whole numbers, one for each sample, as group"
            f" {name!r} of --subset {given!r}, got {kind} {list(values.shape)}; compare, such as"
            " labels == 3"
        )
    if values.dtype == torch.bool:
        groups = {name: values}
    else:
        values = values.long()
        numbers = torch.unique(values).tolist()
        if len(numbers) > _MOST or len(numbers) == samples > 1:
            raise ValueError(
                f"expected at most {_MOST} groups of several samples from --subset {given!r}, got"
                f" {len(numbers)} different numbers; return a mask, true for the samples that are"
                " in"
            )
        groups = {f"{name}_{number}": values == number for number in numbers}
    if not all(mask.any() for mask in groups.values()):
        raise ValueError(
            f"expected samples in group {name!r} of --subset {given!r}, got none of {samples};"
            " leave it out"
        )
    return groups


def _values(name: str, found: Any, given: str) -> Tensor:
    """One value per sample as a tensor, whatever it came in."""
    try:
        return torch.as_tensor(found if isinstance(found, Tensor) else np.asarray(found)).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"expected a mask, whole numbers or a mapping of names to these from --subset"
            f" {given!r}, got {type(found).__name__} as {name!r}; return one value per sample"
        ) from None


@dataclass(frozen=True)
class _Metric:
    """A user's metric, whose own failures are told in one line.

    Attributes:
        function: The user's.
        given: How it was named.
    """

    function: Callable[[Any, Any], Any]
    given: str

    def __call__(self, outputs: Any, targets: Any) -> Any:
        try:
            result = self.function(outputs, targets)
        except Exception as error:
            text = " ".join(str(error).split())
            raise ValueError(
                f"expected --metric {self.given!r} to take outputs and targets, got"
                f" {type(error).__name__} from it ({text}); check shapes and types"
            ) from error
        samples = len(next(_tensors(targets), ()))
        pair = isinstance(result, tuple) and len(result) == 2
        for part in result if pair else (result,):
            if not isinstance(part, Tensor) or part.shape != (samples,):
                got = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise ValueError(
                    f"expected --metric {self.given!r} to return one value per sample, a tensor"
                    f" [{samples}] of a batch of {samples}, got {got}; do not take the mean"
                )
        return result


def _tensors(nested: Any) -> Iterator[Tensor]:
    """The tensors in targets of any form."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping | list | tuple):
        for part in nested.values() if isinstance(nested, Mapping) else nested:
            yield from _tensors(part)


def _metrics(given: Sequence[str]) -> dict[str, _Metric]:
    """The user's metrics by name."""
    functions: dict[str, _Metric] = {}
    for each in given:
        name = _last(each)
        if name in functions:
            raise ValueError(
                f"expected metrics with names that differ, got {name!r} twice; rename a function"
            )
        # Of such names results keep only those of groups, where targets are no classes.
        if _TAKEN.fullmatch(name) or name.startswith(("loss_", "accuracy_", "__")):
            raise ValueError(
                f"expected names of metrics that results do not have anyhow, got {name!r} from"
                f" --metric {each!r}; rename the function"
            )
        with watched(each):
            function = load_object(each, "--metric")
        if not callable(function):
            raise ValueError(
                f"expected --metric {each!r} as a function (outputs, targets) -> [N], got"
                f" {type(function).__name__}; name a function"
            )
        functions[name] = _Metric(function, each)
    return functions


def _digest(mask: Tensor) -> str:
    """The sha256 of which samples are in a group."""
    return hashlib.sha256(mask.cpu().numpy().tobytes()).hexdigest()
