"""`train`, and `TrainingRun`: the same thing in pieces that can be stored and resumed.

Nothing random is carried from one epoch to the next: the order of epoch e and what dropout draws
in it are functions of the seed and e. So a run that was cut and resumed takes exactly the steps of
one that was not, and the global random state is as before.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch
import xarray as xr
from torch import Tensor

from flatminima._precision import full_precision
from flatminima._random import forked
from flatminima._seeds import derive_seed
from flatminima.data.augment import augmentation, check_augmentation
from flatminima.data.dataset import Dataset
from flatminima.minimum import Minimum
from flatminima.training._network import (
    Model,
    all_finite,
    build_optimizer,
    build_schedule,
    check_fit,
    copied_to_cpu,
    description,
    entropy,
    evaluate,
    like_layout,
    own_network,
    quick_layout,
    state_tensors,
)
from flatminima.training._steps import steps_for
from flatminima.training.recipe import Recipe
from flatminima.types import Real

Progress: TypeAlias = Callable[[int, int, dict[str, float]], None]

_FORMAT = 1
_KEY = "flatminima"
# A network whose loss is within this share of the labels' entropy knows their frequencies only.
_CHANCE_MARGIN = 0.02


def train(
    model: Model,
    dataset: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    test: Dataset | None = None,
    match_loss: Real | None = None,
    progress: Progress | None = None,
) -> Minimum:
    """Train a network by cross-entropy to the end of the recipe.

    Training takes place on the device that holds `dataset`. The global random state and a network
    that is passed in are as before afterwards.

    Args:
        model: A name; `{"name": ..., "settings": {...}}`; or a function without arguments that
            builds a network, whose initialisation is drawn from `seed`; or an `nn.Module`, which
            is copied with its weights, so that `seed` only orders the batches.
        dataset: Inputs with class labels.
        recipe: How to train.
        seed: Seed of the initialisation, of the order of the batches, and of dropout.
        test: A second set whose loss and accuracy are recorded too.
        match_loss: Keep the state at the first epoch end with a train loss at or below this as
            `.matched` of the result.
        progress: Called after each epoch with its number, the recipe's epochs and that epoch's row
            of the history.

    Returns:
        The state at the end. Its `history` is an `xarray.Dataset` over `epoch` (0 is before
        training), with `train_loss`, `train_accuracy` and, with `test`, `test_loss` and
        `test_accuracy`, each over the whole set in evaluation mode. Its attribute `outcome` is
        `"fitted"`; `"chance"`, where the train loss is within 2 % of the entropy of the labels or
        above; or `"diverged"`, where the loss or a weight is not finite, which ends training.
        `matched_epoch` is the number of the matched epoch, or -1.

    Raises:
        ValueError: The network does not fit the data, its weights are not finite, or the targets
            are not class labels.
    """
    run = TrainingRun.start(model, dataset, recipe, seed=seed, test=test, match_loss=match_loss)
    run.advance(recipe.epochs, progress=progress)
    return run.minimum()


class TrainingRun:
    """A training that can be stopped after any epoch, stored, and resumed bit by bit.

    Made by `start` or `resume`. Arguments are those of `train`.

    Attributes:
        epoch: The number of finished epochs.
        matched: The state at the first epoch end with a train loss at or below `match_loss`, if it
            was reached in this piece of the run.
        matched_epoch: The number of that epoch, whichever piece it fell into; -1 if there is none.
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        recipe: Recipe,
        *,
        seed: int,
        test: Dataset | None,
        match_loss: Real | None,
    ) -> None:
        self.epoch = 0
        self.matched: Minimum | None = None
        self.matched_epoch = -1
        self._recipe, self._seed = recipe, seed
        self._match_loss = None if match_loss is None else float(match_loss)
        self._data = dataset
        self._test = None if test is None else test.to(dataset.device)
        self._rows: list[dict[str, float]] = []
        self._entropy = entropy(dataset)
        self._named = description(model)
        self._network = quick_layout(own_network(model, seed).to(dataset.device))
        self._optimizer = build_optimizer(self._network, recipe)
        self._schedule = build_schedule(self._optimizer, recipe)
        check_fit(self._network, dataset)
        check_augmentation(recipe.augment, dataset)
        self._steps = steps_for(
            self._network, self._optimizer, recipe, dataset.device, len(dataset)
        )

    @classmethod
    def start(
        cls,
        model: Model,
        dataset: Dataset,
        recipe: Recipe,
        *,
        seed: int,
        test: Dataset | None = None,
        match_loss: Real | None = None,
    ) -> "TrainingRun":
        """A run before its first epoch; the losses at initialisation are measured here.

        Raises:
            ValueError: As `train`.
        """
        run = cls(model, dataset, recipe, seed=seed, test=test, match_loss=match_loss)
        if not all_finite(run._network):
            raise ValueError(
                "expected a network with finite weights, got one with NaN or infinity; "
                "give other weights"
            )
        run._rows.append(run._measured())
        return run

    @classmethod
    def resume(
        cls,
        data: bytes,
        model: Model,
        dataset: Dataset,
        recipe: Recipe,
        *,
        seed: int,
        test: Dataset | None = None,
        match_loss: Real | None = None,
    ) -> "TrainingRun":
        """The run whose state `to_bytes` gave as `data`, given the same arguments as at its start.

        Raises:
            ValueError: The bytes are not such a state, or come from another run; as `train`.
        """
        about, tensors = _unpacked(data)
        run = cls(model, dataset, recipe, seed=seed, test=test, match_loss=match_loss)
        identity = json.loads(json.dumps(run._identity()))
        other = sorted(key for key in identity if identity[key] != about["identity"].get(key))
        if other:
            raise ValueError(
                f"expected the state of this very run, got one with another {', '.join(other)}; "
                "resume with the arguments of the start"
            )
        run.epoch, run.matched_epoch = about["epoch"], about["matched_epoch"]
        run._rows = about["rows"]
        run._restore(tensors, about["schedule"])
        return run

    @property
    def history(self) -> xr.Dataset:
        """Losses and accuracies so far, over `epoch`; see `train`."""
        names = list(self._rows[0])
        return xr.Dataset(
            {name: ("epoch", [row[name] for row in self._rows]) for name in names},
            coords={"epoch": list(range(len(self._rows)))},
            attrs={
                "outcome": self.outcome,
                "matched_epoch": self.matched_epoch,
                "match_loss": math.nan if self._match_loss is None else self._match_loss,
            },
        )

    @property
    def outcome(self) -> str:
        """`"fitted"`, `"chance"` or `"diverged"`, as of the last epoch; see `train`."""
        loss = self._rows[-1]["train_loss"]
        if not math.isfinite(loss) or not all_finite(self._network):
            return "diverged"
        at_chance = self._entropy > 0 and loss >= (1 - _CHANCE_MARGIN) * self._entropy
        return "chance" if at_chance else "fitted"

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to do: the recipe is done, stopped early, or has diverged."""
        stop = self._recipe.stop_at_loss
        stopped = stop is not None and self.epoch > 0 and self._rows[-1]["train_loss"] <= stop
        return self.epoch >= self._recipe.epochs or stopped or self.outcome == "diverged"

    def advance(self, epochs: int, *, progress: Progress | None = None) -> None:
        """Train for so many epochs more, or until the run is finished.

        A run that an exception leaves in the middle of an epoch is of no more use: resume it from
        its last `to_bytes`.
        """
        for _ in range(epochs):
            if self.finished:
                return
            self._train_epoch()
            self._schedule.step()
            self.epoch += 1
            row = self._measured()
            self._rows.append(row)
            if (
                self._match_loss is not None
                and self.matched_epoch < 0
                and row["train_loss"] <= self._match_loss
            ):
                self.matched_epoch = self.epoch
                self.matched = self._state()
            if progress is not None:
                progress(self.epoch, self._recipe.epochs, dict(row))

    def minimum(self) -> Minimum:
        """The state as of now; of a finished run, the result of training."""
        return self._state(self.matched)

    def to_bytes(self) -> bytes:
        """Everything `resume` needs, as a safetensors file: equal runs give equal bytes.

        It holds the weights and buffers (`network.*`), the optimiser's state (`optimizer.*`) and,
        as JSON in its header, the history and what identifies the run.
        """
        about = {
            "format": _FORMAT,
            "identity": self._identity(),
            "epoch": self.epoch,
            "matched_epoch": self.matched_epoch,
            "rows": self._rows,
            "schedule": self._schedule.state_dict(),
        }
        tensors = {f"network.{name}": value for name, value in state_tensors(self._network).items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
        copies = {name: copied_to_cpu(value) for name, value in tensors.items()}
        return safetensors.torch.save(copies, {_KEY: json.dumps(about, sort_keys=True)})

    def _train_epoch(self) -> None:
        """One pass through the data in the order that belongs to this epoch."""
        data = self._data
        order = torch.randperm(len(data), generator=self._stream("order")).to(data.device)
        self._network.train()
        change = augmentation(self._recipe.augment, self._stream("augment"))
        with (
            forked(derive_seed(self._seed, "noise", self.epoch), data.device),
            full_precision(data.device),
        ):
            for chosen in torch.split(order, self._recipe.batch_size):
                inputs, targets = data.batch(chosen, change=change)
                self._steps.step(inputs, targets)

    def _measured(self) -> dict[str, float]:
        """This epoch's row of the history."""
        row = {}
        # Forked, because a network may draw numbers even in evaluation mode.
        with (
            forked(derive_seed(self._seed, "evaluation", self.epoch), self._data.device),
            full_precision(self._data.device),
        ):
            row["train_loss"], row["train_accuracy"] = evaluate(self._network, self._data)
            if self._test is not None:
                row["test_loss"], row["test_accuracy"] = evaluate(self._network, self._test)
        return row

    def _state(self, matched: Minimum | None = None) -> Minimum:
        network = self._network
        return Minimum(
            {name: copied_to_cpu(value) for name, value in network.named_parameters()},
            {name: copied_to_cpu(value) for name, value in network.named_buffers()},
            history=self.history,
            recipe=self._recipe.settings(),
            seed=self._seed,
            model=self._named,
            epoch=self.epoch,
            matched=matched,
        )

    def _stream(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, purpose, self.epoch))

    def _identity(self) -> dict[str, Any]:
        """What must agree for a state to be resumed."""
        return {
            "recipe": self._recipe.settings(),
            "seed": self._seed,
            "model": self._named,
            "match_loss": self._match_loss,
            "dataset": self._data.digest,
            "test": None if self._test is None else self._test.digest,
        }

    def _restore(self, tensors: Mapping[str, Tensor], schedule: dict[str, Any]) -> None:
        """Put a stored state into the network, the optimiser and the schedule of its rate."""
        own = state_tensors(self._network)
        stored = {
            name.removeprefix("network."): value
            for name, value in tensors.items()
            if name.startswith("network.")
        }
        for name in sorted(own.keys() | stored.keys()):
            shapes = [tuple(t[name].shape) if name in t else "none" for t in (own, stored)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"expected {name} of shape {shapes[0]}, got {shapes[1]}; resume with the "
                    "network of the start"
                )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(stored[name])
        trained = [value for group in self._optimizer.param_groups for value in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = like_layout(value, trained[int(index)])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._schedule.load_state_dict(schedule)
        for group, rate in zip(
            self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True
        ):
            group["lr"] = rate


def _unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a stored run."""
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"][_KEY])
        known = about["format"] <= _FORMAT
        rows = about["rows"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected the state of a training run, got other bytes ({error}); start the run anew"
        ) from error
    if not known or not rows:
        raise ValueError(
            f"expected the state of a training run of format {_FORMAT} or older, got format "
            f"{about['format']}; install a newer flatminima"
        )
    return about, tensors
