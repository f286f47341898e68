"""The `Landscape`: a network, a dataset and a loss, as a function on weight space."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatminima._convolution import gains_by_tiles
from flatminima._processor import multiplies_halves
from flatminima.data import as_dataset
from flatminima.landscape import _batchnorm, _layers
from flatminima.landscape._arithmetic import (
    COMPARED,
    Arithmetic,
    check_precision,
    exact,
    fast,
    repeated_points,
)
from flatminima.landscape._batches import Batch, Batches, usual_size
from flatminima.landscape._importance import as_tensors, draw, losses_of_examples, weighted
from flatminima.landscape._losses import Losses, PerSample, check_classes, per_sample_loss
from flatminima.landscape._meter import Measures, Meter
from flatminima.landscape._model_loss import Weight, model_loss
from flatminima.landscape._passes import evaluate_point
from flatminima.landscape._paths import choose_path
from flatminima.landscape._problem import Path, Problem
from flatminima.landscape._reference import run
from flatminima.landscape._rows import in_rows
from flatminima.landscape._states import States
from flatminima.landscape._subsets import check_metrics, members_of
from flatminima.landscape._world import quiet
from flatminima.minimum import Minimum, State, as_minimum, split_state, unwrapped
from flatminima.subspace import Subspace, choose
from flatminima.types import Coordinates, Parameters, Real

# Products of weights and examples in a batch from which on threads gain by a batch each.
_ENOUGH = 10_000_000
# Rounding to bfloat16 moves weights by 0.0017 of their norm, about as far as a radius is long; a
# network stored so is evaluated in float32, where w + t u keeps its digits.
_HALF = (torch.bfloat16, torch.float16)


class Landscape:
    """The loss of a network over a dataset, at any point of weight space.

    The mean is over the whole dataset, sample by sample, summed in float64, in evaluation mode,
    without augmentation. The given model is never touched: a private copy is evaluated.

    Args:
        model: Any `nn.Module`. A tensor of inputs is passed as `model(x)`, a dict as `model(**x)`,
            a tuple as `model(*x)`.
        dataset: The data: a `Dataset`, or whatever `as_dataset` makes one of (tensors, a torch
            dataset or loader, a Hugging Face dataset).
        loss: "cross_entropy", "mse", "binary_cross_entropy" (of logits, one target for each),
            "next_token" (of logits `[N, length, tokens]`, -100 ignored), or a callable `(outputs,
            targets)` that returns per-sample losses `[N]`, or a pair of sums `[N]` and weights
            `[N]`. "model": the network is given the labels and returns its loss; there is no
            standard error then, since nothing is known of the samples. Named losses and accuracy
            are those of `logits` where the outputs hold them by that name.
        batchnorm: "auto", "recompute", "keep", "interpolate" or "batch"; see `docs/definitions.md`.
        precision: "exact": float32 stays float32 (TF32 and autocast off), and weights stored in
            half precision are evaluated in float32. "fast": products in bfloat16 with sums in
            float32; about a fiftieth of the points is computed exactly too, over at most 10,000
            examples, and the largest difference is part of the result. Losses of single states are
            exact, and so is everything where the device has no units for such products: it is
            quicker. Radii are bracketed exactly, and looked for over a sample of the examples.
        batch_size: Examples per forward pass; by default so many that activations fit the cache.
        device: Where to compute; by default where the model is.
        weight: What a batch's own loss is the mean over, with `loss="model"`: a function from the
            batch (a dict) to a number. Causal language models need none: it is the number of
            labels, without the first, that are not -100.
        metrics: Further quantities by name, like losses: callables `(outputs, targets)` that return
            `[N]`, or sums and weights. They are variables of a surface beside the loss.
        subsets: Groups of samples by name, as masks `[N]`, whose loss and accuracy are told apart
            (`loss_NAME`, `accuracy_NAME`): noisy and clean labels, say. "classes" makes one of each
            class.
        recompute_samples: How many examples `recompute` pools its statistics over, at most; they
            are spread evenly over the dataset, and those that fill no batch are left out.
        recompute_batch: In batches of how many examples `recompute` passes them through, whatever
            `batch_size` is: a batch size chosen for memory must not change a number.

    Attributes:
        recompute_samples: How many examples `recompute` really pools over.
        recompute_batch: In batches of how many.

    Raises:
        ValueError: For an unknown loss, policy or precision, a count below 1, an empty dataset,
            lazy layers that have not seen data yet, labels that the network has no outputs for, or
            metrics and subsets that cannot be told apart.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        *,
        loss: str | PerSample = "cross_entropy",
        batchnorm: str = "auto",
        precision: str = "exact",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        weight: Weight | None = None,
        metrics: Mapping[str, Any] | None = None,
        subsets: Mapping[str, Any] | str | None = None,
        recompute_samples: int = 2000,
        recompute_batch: int = 100,
    ) -> None:
        model = unwrapped(model)
        _batchnorm.check_policy(batchnorm)
        _layers.check_initialised(model)
        check_precision(precision, model)
        data = as_dataset(dataset)
        sizes = {"recompute_samples": recompute_samples, "recompute_batch": recompute_batch}
        for name, size in {**sizes, "batch_size": 1 if batch_size is None else batch_size}.items():
            if size < 1:
                raise ValueError(f"expected {name} of 1 or more, got {size}; or leave it out")
        self.loss_name = loss if isinstance(loss, str) else getattr(loss, "__name__", "custom")
        self.batchnorm = batchnorm
        self.precision = precision
        first = next(model.parameters(), None)
        self.device = torch.device(device or (first.device if first is not None else "cpu"))
        self.dataset = data.to(self.device)
        self._network = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        if any(value.dtype in _HALF for value in self._network.parameters()):
            self._network.float()
        self._trainable = tuple(n for n, p in model.named_parameters() if p.requires_grad)
        first = next(self._network.parameters(), None)
        own_loss = loss == "model"
        if weight is not None and not own_loss:
            raise ValueError(
                f"expected weight only with loss='model', got it with {self.loss_name!r}; let the"
                " loss return sums and weights"
            )
        groups = members_of(self.dataset, subsets)
        if groups and own_loss:
            raise ValueError(
                "expected no subsets with loss='model', which tells nothing of samples, got"
                f" {', '.join(groups)}; use 'next_token' or a loss of your own"
            )
        self._measures = Measures(
            model_loss(self._network, self.dataset.batch(slice(0, 1))[0], weight)
            if own_loss
            else per_sample_loss(loss),
            metrics=check_metrics(metrics or {}, groups),
            subsets=tuple(groups),
            whole_batches=own_loss,
        )
        batches = Batches(
            self.dataset,
            None if first is None else first.dtype,
            own_loss=own_loss,
            members=torch.stack(list(groups.values()), 1) if groups else None,
        )
        with quiet(self.device):
            last = _layers.takes_channels_last(self._network, batches.few[0])
            batches = replace(batches, channels_last=last)
            half = precision == "fast" and multiplies_halves(self.device.type)
            size = batch_size or usual_size(self._network, batches.first(1)[0], self.device, half)
            writes = _layers.writes_to_buffers(self._network, batches.few[0])
            if loss == "cross_entropy":
                outputs = _layers.trace(self._network, batches.few[0]).outputs
                check_classes(outputs, self.dataset.targets, len(self.dataset))
        self.batch_size = min(size, len(self.dataset))
        wanted = min(recompute_samples, len(self.dataset))
        self.recompute_batch = min(recompute_batch, wanted)
        self.recompute_samples = wanted - wanted % self.recompute_batch
        self._batches = replace(
            batches,
            size=self.batch_size,
            clean_samples=self.recompute_samples,
            clean_size=self.recompute_batch,
        )
        weights = sum(value.numel() for value in self._network.parameters())
        enough = weights * self.batch_size >= _ENOUGH
        self._threads = self.device.type == "cpu" and enough and not writes
        self._last: tuple[Subspace, Path] | None = None
        self._exact = exact(self._network, self.device, channels_last=batches.channels_last)
        self._rows = in_rows(self._network) if self._exact.tiled else None
        self._fast = fast(self._network, self.device, channels_last=batches.channels_last)

    def losses(
        self,
        subspace: Subspace,
        coordinates: Coordinates,
        *,
        precision: str | None = None,
        clip: Real | None = None,
    ) -> Losses:
        """The loss at K points of a subspace.

        Args:
            subspace: An origin and directions for this network.
            coordinates: One row per point, one column per direction.
            precision: "exact" or "fast", instead of the landscape's own.
            clip: Stop a point as soon as its loss is certain to be above, which the sum so far
                proves where losses are never negative.

        Returns:
            Loss, metrics and outcome per point, and the path and policy used.

        Raises:
            ValueError: If the subspace belongs to another network, or the coordinates to another
                subspace; with `clip`, if it is not positive, a loss is negative, or losses are
                weighted.
        """
        if clip is not None and not (np.isfinite(clip) and clip > 0):
            raise ValueError(f"expected a positive clip, got {clip}; or leave it out")
        coordinates = np.asarray(coordinates, dtype=np.float64)
        if coordinates.ndim != 2 or coordinates.shape[1] != subspace.dimensions:
            raise ValueError(
                f"expected coordinates [points, {subspace.dimensions}], got shape"
                f" {coordinates.shape}; give one row per point"
            )
        if not np.isfinite(coordinates).all():
            raise ValueError("expected finite coordinates, got NaN or infinity; check the grid")
        precision = self.precision if precision is None else precision
        check_precision(precision, self._network)
        with quiet(self.device):
            path = self._prepare(subspace)
            count = len(coordinates)
            # From stored inputs of the top layer a point costs next to nothing, and where products
            # in half precision are imitated it costs more than in full.
            quick = precision == "fast" and multiplies_halves(self.device.type)
            if not quick or path.name == "top" or not count:
                return self._evaluate(path, coordinates, path.problem.exact, clip)
            near = self._evaluate(path, coordinates, self._fast, clip)
            return self._compared(path, coordinates, near)

    def loss_at(self, state: State, *, batchnorm: str | None = None) -> Losses:
        """The loss of one state, as a `Losses` of one point, by the reference path.

        Args:
            state: A `Minimum`, a module or a state dict of this network.
            batchnorm: A policy for this call; `None` and "auto" mean `keep`: the state's own
                statistics.

        Raises:
            ValueError: If the state does not fit the network.
        """
        _batchnorm.check_policy(batchnorm or "auto")
        wanted = "keep" if batchnorm in (None, "auto", "interpolate") else str(batchnorm)
        policy = _batchnorm.resolve(wanted, self._network, 1)
        parameters, buffers = split_state(state, self._network)
        meter = Meter(self._measures, 1)
        with quiet(self.device):
            evaluate_point(
                self._network,
                (self._like(parameters), self._like(buffers)),
                policy,
                meter,
                0,
                replace(self._exact, tiled=False),
                clean=self._batches.clean(),
                batches=self._batches,
            )
        return meter.losses(len(self.dataset), path="reference", batchnorm=policy)

    def gradient_norm(self, state: State) -> float:
        """The norm of the gradient of the loss over the trainable parameters, at one state.

        With the state's own BatchNorm statistics, in evaluation mode.

        Raises:
            ValueError: If the state does not fit the network.
        """
        parameters, buffers = split_state(state, self._network)
        held = self._like(parameters)
        moving = {name: held[name].clone().requires_grad_() for name in self._trainable}
        weight = 0.0
        with quiet(self.device), torch.enable_grad(), self._exact.used():
            for inputs, targets in self._batches:
                outputs = run(self._network, held | moving, self._like(buffers), inputs)
                total, count = self._measures.total(outputs, targets)
                total.backward()  # type: ignore[no-untyped-call]
                weight += count
        squares = [
            float(value.grad.double().square().sum())
            for value in moving.values()
            if value.grad is not None
        ]
        return float(np.sqrt(sum(squares))) / weight

    def state(self, state: State) -> Minimum:
        """`state` as a `Minimum` whose parameters and buffers are those of this network.

        Raises:
            ValueError: If it does not fit the network; the message names the tensor.
        """
        return as_minimum(state, self._network)

    def parameter_names(self, parameters: str | Collection[str] = "all") -> tuple[str, ...]:
        """The names that "all", "top", a glob or a collection of names stands for in this network.

        "all" leaves out frozen parameters (`requires_grad=False`); a glob or a name does not.

        Raises:
            ValueError: If nothing is chosen; for "top" as `top_layer` does.
        """
        if parameters == "top":
            return _layers.own_parameters(self._network, self.top_layer())
        if parameters != "all":
            return choose([name for name, _ in self._network.named_parameters()], parameters)
        if not self._trainable:
            raise ValueError(
                "expected trainable parameters, got a network whose parameters are all frozen;"
                " pass parameters='*' to move them all the same"
            )
        return self._trainable

    def top_layer(self) -> str:
        """The name of the affine layer that the network calls last.

        Raises:
            ValueError: If there is no such layer, it is called more than once or shares its
                weights, or the network has several outputs.
        """
        with quiet(self.device):
            return _layers.top_layer(self._network, self._batches.few[0])

    @property
    def stores_statistics(self) -> bool:
        """Whether the network has BatchNorm layers that keep running statistics."""
        return bool(_batchnorm.batchnorm_layers(self._network))

    @property
    def convolves_in_parts(self) -> bool:
        """Whether processors take convolutions tile by tile, and images through them in parts."""
        return gains_by_tiles(self._network)

    def _sampled(self, state: Minimum, count: int) -> "Landscape | None":
        """The same over about so many examples, drawn by importance around a state.

        Without metrics and subsets, and for a policy that finds no statistics on the way. `None`
        where nothing is known of single examples, or their losses are no measure of importance.
        """
        if self._measures.whole_batches:
            return None
        tensors = (self._like(state.parameters), self._like(state.buffers))
        with quiet(self.device):
            losses = losses_of_examples(
                self._network, tensors, self._batches, self._measures.per_sample, self._exact
            )
        if not (np.isfinite(losses).all() and (losses >= 0.0).all()):
            return None
        batches = self._batches.only(*as_tensors(draw(losses, count), self.dataset.device))
        sampled = copy.copy(self)
        sampled._batches, sampled.dataset = batches, batches.dataset
        sampled.batch_size = batches.size
        sampled._measures = Measures(weighted(self._measures.per_sample))
        sampled._last = None
        return sampled

    def _prepare(self, subspace: Subspace) -> Path:
        """Bring a subspace here and choose a path; the last one is remembered."""
        if self._last is None or self._last[0] is not subspace:
            split_state(subspace.origin, self._network)
            formed = States(subspace.cast(dict(self._network.named_parameters())))
            policy = _batchnorm.resolve(self.batchnorm, self._network, len(subspace.anchors))
            problem = Problem(
                network=self._rows or self._network,
                defining=self._network,
                formed=formed,
                buffers=self._like(subspace.origin.buffers),
                policy=policy,
                batches=self._batches,
                measures=self._measures,
                exact=self._exact,
                threads=self._threads,
            )
            self._last = (subspace, choose_path(problem))
        return self._last[1]

    def _compared(self, path: Path, coordinates: Coordinates, near: Losses) -> Losses:
        """Losses in half precision with what is known of their distance from the exact ones."""
        again = repeated_points(len(coordinates))
        chosen, ours = coordinates[again], near.part(again)
        some = self._batches.spread(COMPARED)
        if some is not self._batches:
            found = self._evaluate(path, chosen, self._fast, None, some)
            ours = replace(found, clipped=ours.clipped)
        true = self._evaluate(path, chosen, path.problem.exact, None, some)
        gap = ours.difference_from(true)
        return replace(near, repeated=len(again), compared=ours.samples, difference=gap)

    def _evaluate(
        self,
        path: Path,
        coordinates: Coordinates,
        arithmetic: Arithmetic,
        clip: Real | None,
        batches: Sequence[Batch] | None = None,
    ) -> Losses:
        """The losses by the path that was chosen; over all batches, or over some."""
        height = None if clip is None else float(clip)
        samples = len(self.dataset) if batches is None else min(len(self.dataset), COMPARED)
        meter = Meter(self._measures, len(coordinates), height, samples)
        path.evaluate(coordinates, meter, arithmetic, self._batches if batches is None else batches)
        return meter.losses(samples, path=path.name, batchnorm=path.problem.policy)

    # States.

    def _like(self, tensors: Parameters) -> dict[str, Tensor]:
        """Tensors of a state on this device, in the network's own types."""
        own = dict(self._network.named_parameters()) | dict(self._network.named_buffers())
        return {name: value.to(own[name]) for name, value in tensors.items() if name in own}
