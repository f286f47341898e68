"""The steps of a training: done one by one, or recorded once and replayed.

On an accelerator the steps of small networks take as long as it takes to launch their kernels.

Recording leaves no trace: it is rehearsed on a copy of the network, and while it takes place
nothing is computed. So a resumed run, which records anew, takes the same steps as one that was
never cut.
"""

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatminima._recording import Recorder, Work, recorder_for
from flatminima.training._network import autocast, build_optimizer, outputs_of, state_tensors
from flatminima.training.recipe import Recipe


class EagerSteps:
    """Steps that are done as they are asked for; what defines a step."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.recipe, self.device = recipe, device

    def step(self, inputs: Any, targets: Tensor) -> None:
        """Move the weights down the gradient of the mean cross-entropy of one batch."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.recipe.precision):
            outputs = outputs_of(self.network, inputs)
        loss = functional.cross_entropy(outputs.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


class CapturedSteps:
    """Steps of full batches that are recorded once and replayed; of other batches, eager ones.

    A recording holds addresses. It writes to the very weights, buffers and momenta that the
    network and the optimiser hold, so nothing may put other tensors in their place; and its
    gradients are its own, so `.grad` may change freely between replays.

    A recording also holds numbers, the learning rate among them, and is made anew for others.

    Random numbers drawn on the device stay those of eager steps: torch's kernels read seed and
    offset of the default generator from memory that is filled before each replay, after which the
    offset moves on by what the steps drew (Note [CUDA Graph-safe RNG states] in torch's
    CUDAGeneratorImpl.h). Seeding a generator, and setting its state back as `fork_rng` does, keep
    the object from which a recording reads.

    A network that a recording cannot follow is trained by eager steps, always the same ones: one
    that waits for the device, draws on the host, counts its calls, or replaces a buffer.
    """

    def __init__(self, eager: EagerSteps, recorder: Recorder) -> None:
        self._eager, self._recorder = eager, recorder
        self._refused = False
        self._settings: list[dict[str, Any]] = []
        self._batch: tuple[Tensor, Tensor] | None = None
        self._replay: Work | None = None

    def step(self, inputs: Any, targets: Tensor) -> None:
        """Do what `EagerSteps.step` does."""
        full = isinstance(inputs, Tensor) and len(targets) == self._eager.recipe.batch_size
        if full and not self._refused and self._settings != _settings(self._eager.optimizer):
            self._prepare(inputs, targets)
        if not full or self._replay is None or self._batch is None:
            self._eager.step(inputs, targets)
            return
        for own, given in zip(self._batch, (inputs, targets), strict=True):
            own.copy_(given)
        self._replay()

    def _prepare(self, inputs: Tensor, targets: Tensor) -> None:
        """Make a recording for the optimiser's settings as of now, or find that there is none."""
        # The memory of the old recording is free for the new one.
        self._replay = None
        self._settings = _settings(self._eager.optimizer)
        self._eager.optimizer.zero_grad(set_to_none=True)
        devices = [self._eager.device] if self._eager.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                if self._batch is None:
                    self._batch = inputs.clone(), targets.clone()
                    self._refused = not self._rehearse(*self._batch)
                if not self._refused:
                    batch = self._batch
                    self._replay = self._recorder.record(lambda: self._eager.step(*batch))
        except Exception:
            # Whatever it is, if it concerns more than the recording then the eager step meets it.
            self._refused = True
        self._eager.optimizer.zero_grad(set_to_none=True)

    def _rehearse(self, inputs: Tensor, targets: Tensor) -> bool:
        """Take steps with a copy, and tell whether a recording can follow them.

        Momenta are created for the parameters that took part, because a recording of the first
        step, which creates them, would create them in every step.
        """
        eager = self._eager
        twin = copy.deepcopy(eager.network)
        optimizer = build_optimizer(twin, eager.recipe)
        steps = EagerSteps(twin, optimizer, eager.recipe, eager.device)
        before = _host_state(twin)
        self._recorder.rehearse(lambda: steps.step(inputs, targets))
        if not _alike(before, _host_state(twin)):
            return False
        for own, copied in zip(_trained(eager.optimizer), _trained(optimizer), strict=True):
            if "momentum_buffer" in optimizer.state.get(copied, {}):
                # Times the momentum and plus the gradient, this is the gradient itself, with which
                # torch begins. A positive zero would lose the sign of a gradient of -0.
                eager.optimizer.state[own].setdefault(
                    "momentum_buffer", torch.full_like(own, -0.0, requires_grad=False)
                )
        return True


Steps: TypeAlias = EagerSteps | CapturedSteps


def steps_for(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    device: torch.device,
    samples: int,
) -> Steps:
    """The quickest steps for a training on this device with so many samples an epoch.

    AdamW stays eager: torch's counts its steps on the host, where a recording would stop counting.
    """
    eager = EagerSteps(network, optimizer, recipe, device)
    worth_it = samples >= 2 * recipe.batch_size and isinstance(optimizer, torch.optim.SGD)
    recorder = recorder_for(device) if worth_it else None
    return eager if recorder is None else CapturedSteps(eager, recorder)


def _trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for group in optimizer.param_groups for value in group["params"]]


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The numbers that go into a step: rate, momentum, decay."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def _host_state(network: nn.Module) -> list[Any]:
    """What a step may change on the host, where a recording cannot follow.

    Torch's generator, plain attributes of the modules, and which tensors hold the network's state.
    Not the generators of Python and NumPy: nothing seeds them, so a network that draws from them
    takes other steps each time anyway.
    """
    tensors = state_tensors(network)
    return [
        torch.get_rng_state().tolist(),
        [
            (key, value)
            for module in network.modules()
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str)
        ],
        [(name, value.data_ptr()) for name, value in tensors.items()],
        # Last, and compared by identity: kept here, no other tensor can take its place in memory.
        list(tensors.values()),
    ]


def _alike(first: list[Any], second: list[Any]) -> bool:
    """Whether two states of the host are one."""
    return first[:-1] == second[:-1] and all(
        one is other for one, other in zip(first[-1], second[-1], strict=True)
    )
