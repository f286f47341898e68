"""The loss that a network computes itself, as those of Hugging Face do when given labels."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flatminima.landscape._losses import PerSample

Weight: TypeAlias = Callable[[dict[str, Tensor]], Any]
"""How much the loss of a batch weighs: what the network's own mean was taken over."""

_IGNORED = -100


def model_loss(network: nn.Module, inputs: Any, weight: Weight | None) -> PerSample:
    """The sum and the weight of a batch's own loss; the batch stands for the targets.

    Args:
        network: Returns its loss as `loss`.
        inputs: Of the dataset.
        weight: Of a batch; by default the number of predicted tokens, for causal language models.

    Raises:
        ValueError: If the inputs are not named, or a weight is needed.
    """
    kind = type(network).__name__
    if not isinstance(inputs, dict):
        raise ValueError(
            f"expected inputs by name for loss='model', got {type(inputs).__name__}; give a dict"
            " such as {'input_ids': ..., 'labels': ...}"
        )
    if weight is None and not _is_causal(network):
        raise ValueError(
            f"expected weight=, a function from a batch to what {kind} takes the mean over, since"
            " its own mean is not that over predicted tokens; for a mean over samples give"
            " weight=lambda batch: len(batch['labels'])"
        )
    count = _predicted_tokens if weight is None else weight

    def summed(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        found = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise ValueError(
                f"expected outputs with one loss for loss='model', got {type(outputs).__name__}"
                f" of {kind} without; give it labels, or another loss"
            )
        own = found.reshape(1).double()
        weighs = torch.as_tensor(count(batch), dtype=torch.float64, device=own.device).reshape(-1)
        # Of a batch without anything to predict the mean is not a number.
        return torch.where(weighs > 0, own * weighs, 0.0), weighs

    return summed


def _predicted_tokens(batch: dict[str, Tensor]) -> Tensor:
    return (batch["labels"][:, 1:] != _IGNORED).sum()


def _is_causal(network: nn.Module) -> bool:
    """Whether the network, or one that it wraps, is a causal language model by its name."""
    names = [type(module).__name__ for module in network.modules()]
    return any("ForCausalLM" in name or name.endswith("LMHeadModel") for name in names)
