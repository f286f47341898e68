"""What training does with a network: build or copy it, run it, measure it."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatminima._quick import quick_products
from flatminima._random import forked
from flatminima._seeds import derive_seed
from flatminima.data.dataset import Dataset
from flatminima.models import build_model
from flatminima.training.recipe import Recipe

Model: TypeAlias = str | Mapping[str, Any] | Callable[[], nn.Module] | nn.Module

# Rows per pass of an evaluation: activations of a few hundred samples stay in a core's cache.
_EVALUATION_BATCH = 500
_EVALUATION_BATCH_OF_IMAGES = 100  # through convolutions, whose activations are larger


def description(model: Model) -> dict[str, Any] | None:
    """The description of a network that can be built by name."""
    if isinstance(model, str):
        return {"name": model, "settings": {}}
    if isinstance(model, Mapping):
        if "name" not in model or not model.keys() <= {"name", "settings"}:
            raise ValueError(
                f"expected a model with 'name' and 'settings', got {sorted(model)}; "
                'give {"name": "mlp", "settings": {}}'
            )
        return {"name": model["name"], "settings": dict(model.get("settings", {}))}
    return None


def own_network(model: Model, seed: int) -> nn.Module:
    """A network of our own: built from `seed`, or copied."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    named = description(model)
    with forked(derive_seed(seed, "init"), torch.device("cpu")):
        if named is not None:
            return build_model(named["name"], **named["settings"])
        network = model() if callable(model) else model
    if not isinstance(network, nn.Module):
        raise ValueError(
            "expected a name, an nn.Module or a function that builds one, got "
            f"{type(network).__name__}; return the network"
        )
    return network


def quick_layout(network: nn.Module) -> nn.Module:
    """The network with the weights of its convolutions laid out channels last.

    Convolutions then hand their results on in that layout, in which they and what follows them run
    faster: VGG16's forward pass by a quarter on a CPU.
    """
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def like_layout(value: Tensor, parameter: Tensor) -> Tensor:
    """A stored tensor laid out like the parameter that it belongs to."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Within, a training step computes in the recipe's precision, whatever surrounds it."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )


def build_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over what is trainable."""
    trainable = [value for value in network.parameters() if value.requires_grad]
    if not trainable:
        raise ValueError(
            "expected a network with parameters to train, got none that requires a gradient; "
            "set requires_grad of some"
        )
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            trainable, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    return torch.optim.SGD(
        trainable,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe
) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's schedule of the learning rate, to be stepped after every epoch."""
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs)
    if recipe.schedule == "step":
        assert recipe.step_epochs is not None
        return torch.optim.lr_scheduler.StepLR(
            optimizer, step_size=recipe.step_epochs, gamma=recipe.step_factor
        )
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def check_fit(network: nn.Module, dataset: Dataset) -> None:
    """Refuse a network that does not take the inputs or has too few outputs."""
    inputs, _ = dataset.batch(slice(0, 1))
    try:
        with forked(0, dataset.device), torch.inference_mode():
            outputs = outputs_of(copy.deepcopy(network).eval(), inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"expected a network that takes the inputs of {dataset.name}, got an error from "
            f"{type(network).__name__}: {reason}; fit the network's sizes to the data"
        ) from error
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    classes = dataset.classes or 0
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < classes:
        raise ValueError(
            f"expected logits (1, {classes}) for one sample of {dataset.name}, got {shape}; "
            "let the network return one number per class"
        )


def outputs_of(network: nn.Module, inputs: Any) -> Any:
    """The network on inputs of any structure: a dict by name, a tuple or list by position."""
    with quick_products():
        if isinstance(inputs, dict):
            return network(**inputs)
        if isinstance(inputs, (tuple, list)):
            return network(*inputs)
        return network(inputs)


def evaluate(network: nn.Module, dataset: Dataset) -> tuple[float, float]:
    """Mean cross-entropy and share of right answers over a whole set, in evaluation mode."""
    network.eval()
    convolves = any(isinstance(module, nn.Conv2d) for module in network.modules())
    size = _EVALUATION_BATCH_OF_IMAGES if convolves else _EVALUATION_BATCH
    loss = torch.zeros((), dtype=torch.float64, device=dataset.device)
    right = torch.zeros((), dtype=torch.int64, device=dataset.device)
    with torch.inference_mode():
        for inputs, targets in dataset.batches(size):
            outputs = outputs_of(network, inputs)
            losses = functional.cross_entropy(outputs, targets, reduction="none")
            loss += losses.sum(dtype=torch.float64)
            right += (outputs.argmax(1) == targets).sum()
    return loss.item() / len(dataset), right.item() / len(dataset)


def entropy(dataset: Dataset) -> float:
    """Entropy of the label frequencies: the loss of the best constant answer."""
    share = dataset.labels.bincount().double() / len(dataset)
    return float(torch.special.entr(share).sum())


def state_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a network's state, each once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def all_finite(network: nn.Module) -> bool:
    """Whether weights and buffers are free of NaN and infinity."""
    return all(
        bool(value.isfinite().all())
        for value in state_tensors(network).values()
        if value.is_floating_point()
    )


def copied_to_cpu(value: Tensor) -> Tensor:
    """A copy of a tensor that nobody else writes to."""
    return value.detach().to("cpu", copy=True).contiguous()
