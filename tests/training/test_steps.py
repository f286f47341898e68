"""Recorded steps against eager ones, their twin: bit by bit.

On the CPU a stand-in for the CUDA graph proves what surrounds it. The last tests need CUDA.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from flatminima._precision import full_precision
from flatminima._recording import recorder_for
from flatminima.data import Dataset
from flatminima.training import Recipe, TrainingRun, _steps

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def rows(count=72, device="cpu"):
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    inputs = 3 * torch.eye(3, 4)[labels] + torch.randn(count, 4, generator=draws)
    return Dataset(inputs.to(device), labels.to(device))


def images(count=72, device="cpu"):
    draws = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=draws, dtype=torch.uint8)
    labels = torch.arange(count) % 4
    return Dataset(pixels.to(device), labels.to(device), mean=[0.5] * 3, std=[0.3] * 3)


def plain():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


def in_place():
    """Writes to its inputs, which must be given to each replay anew."""
    return nn.Sequential(nn.ReLU(inplace=True), plain())


def dropping():
    return nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.3), nn.ReLU(), nn.Linear(64, 3))


def convolving():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


class Partly(nn.Module):
    """A parameter without a gradient, which has no momentum, and one that is not trained."""

    def __init__(self):
        super().__init__()
        self.inner = plain()
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, inputs):
        return self.inner(inputs * self.frozen)


BASE = Recipe(epochs=4, batch_size=16, learning_rate=0.1)  # 72 samples: 4 full batches and 8 more
CASES = {
    "plain": (plain, rows, BASE),
    "decay": (plain, rows, replace(BASE, weight_decay=0.01)),
    "momentum": (plain, rows, replace(BASE, momentum=0.9, weight_decay=0.01)),
    "cosine": (plain, rows, replace(BASE, momentum=0.9, schedule="cosine")),
    "step": (plain, rows, replace(BASE, momentum=0.5, schedule="step", step_epochs=2)),
    "no short batch": (plain, rows, replace(BASE, momentum=0.9, batch_size=12)),
    "in place": (in_place, rows, replace(BASE, momentum=0.9)),
    "batchnorm": (convolving, images, replace(BASE, momentum=0.9)),
    "augmented": (convolving, images, replace(BASE, momentum=0.9, augment="crop_flip")),
    "bfloat16": (convolving, images, replace(BASE, momentum=0.9, precision="bfloat16")),
    "partly": (Partly, rows, replace(BASE, momentum=0.9)),
}


class StandIn:
    """A recording by other means: the work is done again, under the settings of its recording.

    Like a graph, it holds the numbers of its recording, computes nothing while it records, and
    cannot replace a tensor later.
    """

    def __init__(self):
        self.run = None
        self.recordings = self.replays = 0

    def rehearse(self, work):
        for _ in range(3):
            work()

    def record(self, work):
        optimizer, tensors = self.run._optimizer, self.tensors()
        assert all(value.grad is None for value in self.run._network.parameters())
        frozen = [{**group} for group in optimizer.param_groups]
        before = [value.clone() for value in tensors]
        work()
        assert [id(value) for value in self.tensors()] == [id(value) for value in tensors]
        with torch.no_grad():
            for value, old in zip(tensors, before, strict=True):
                value.copy_(old)
        self.recordings += 1

        def replay():
            self.replays += 1
            now = optimizer.param_groups
            optimizer.param_groups = frozen
            work()
            optimizer.param_groups = now
            # The gradients of a graph are its own: what is left here is of no use to anyone.
            for value in self.run._network.parameters():
                value.grad = None if value.grad is None else torch.full_like(value, torch.nan)

        return replay

    def tensors(self):
        state = [
            value
            for parameter in self.run._network.parameters()
            for value in self.run._optimizer.state.get(parameter, {}).values()
        ]
        return [*self.run._network.parameters(), *self.run._network.buffers(), *state]


class Unable(StandIn):
    """Cannot record, and finds out when it has begun."""

    def record(self, work):
        self.recordings += 1
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def recorder(monkeypatch):
    """Set it to a stand-in, to None for eager steps; runs made afterwards take it."""

    def use(chosen):
        monkeypatch.setattr(_steps, "recorder_for", lambda device: chosen)

    return use


def started(model, data, recipe, stand_in=None, state=None):
    if state is None:
        run = TrainingRun.start(model, data, recipe, seed=3)
    else:
        run = TrainingRun.resume(state, model, data, recipe, seed=3)
    if stand_in is not None:
        stand_in.run = run
    return run


def trained(model, data, recipe, stand_in=None):
    run = started(model, data, recipe, stand_in)
    run.advance(recipe.epochs)
    return run


@pytest.mark.parametrize("case", CASES)
def test_recorded_steps_are_the_eager_ones(case, recorder):
    model, make_data, recipe = CASES[case]
    eager = trained(model, make_data(), recipe)
    assert isinstance(eager._steps, _steps.EagerSteps)
    stand_in = StandIn()
    recorder(stand_in)
    recorded = trained(model, make_data(), recipe, stand_in)
    assert recorded.to_bytes() == eager.to_bytes()
    assert stand_in.replays == recipe.epochs * (72 // recipe.batch_size)
    rates = {"cosine": 4, "step": 2}.get(recipe.schedule, 1)
    assert stand_in.recordings == rates


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_records_anew_and_takes_the_same_steps(case, recorder):
    model, make_data, recipe = CASES[case]
    whole, state = trained(model, make_data(), recipe).to_bytes(), None
    for pieces in (0, 1, 2, 1):
        stand_in = StandIn()
        recorder(stand_in)
        run = started(model, make_data(), recipe, stand_in, state)
        run.advance(pieces)
        assert (stand_in.recordings > 0) == (pieces > 0)
        state = run.to_bytes()
    assert run.finished
    assert state == whole


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 0.0), (0.9, 0.1), (0.3, 0.0)])
def test_a_momentum_of_minus_zero_begins_as_torch_does(momentum, decay):
    gradients = torch.tensor([0.0, -0.0, 1.0, -1e-45, 1e30, -torch.inf, torch.inf])
    ends = []
    for begun in (False, True):
        weight = nn.Parameter(torch.tensor([0.0, -0.0, 0.1, 0.2, -1.0, 2.0, 3.0]))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum, weight_decay=decay)
        if begun:
            optimizer.state[weight]["momentum_buffer"] = torch.full_like(
                weight, -0.0, requires_grad=False
            )
        weight.grad = gradients.clone()
        optimizer.step()
        ends.append((weight.detach(), optimizer.state[weight]["momentum_buffer"]))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one.view(torch.int32), other.view(torch.int32), rtol=0, atol=0)


class Drawing(nn.Module):
    """Draws on the host in training."""

    def __init__(self):
        super().__init__()
        self.inner = plain()

    def forward(self, inputs):
        return self.inner(inputs) * (1 + (float(torch.rand(())) if self.training else 0))


class Counting(nn.Module):
    """Goes another way every second time."""

    def __init__(self):
        super().__init__()
        self.inner, self.count = plain(), 0

    def forward(self, inputs):
        self.count += 1
        return self.inner(inputs) * (1 + self.count % 2)


class Replacing(nn.Module):
    """Puts another tensor in the place of a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = plain()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, inputs):
        if self.training:
            self.scale = self.scale * 0.9
        return self.inner(inputs) * (1 + self.scale)


REFUSED = {
    "dropout on the host": dropping,
    "a draw": Drawing,
    "counting": Counting,
    "replacing": Replacing,
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_recording_cannot_follow_is_trained_eagerly(case, recorder):
    recipe = replace(BASE, momentum=0.9)
    eager = trained(REFUSED[case], rows(), recipe).to_bytes()
    stand_in = StandIn()
    recorder(stand_in)
    recorded = trained(REFUSED[case], rows(), recipe, stand_in)
    assert stand_in.recordings == 0
    assert recorded.to_bytes() == eager


@pytest.mark.parametrize("model", [plain, Partly])
def test_a_recording_that_fails_leaves_no_trace(model, recorder):
    recipe = replace(BASE, momentum=0.9, schedule="cosine")
    eager = trained(model, rows(), recipe).to_bytes()
    unable = Unable()
    recorder(unable)
    assert trained(model, rows(), recipe, unable).to_bytes() == eager
    assert unable.recordings == 1


def test_rehearsing_moves_no_generator_and_no_weight(recorder):
    stand_in = Unable()
    recorder(stand_in)
    run = started(Drawing, rows(), BASE, stand_in)
    weights = copy.deepcopy(run._network.state_dict())
    before = torch.get_rng_state()
    run._network.train()
    run._steps._prepare(*rows().batch(slice(0, 16)))
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    for name, value in run._network.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    assert all(value.grad is None for value in run._network.parameters())


def test_only_full_batches_of_one_tensor_under_sgd_are_recorded(recorder):
    stand_in = StandIn()
    recorder(stand_in)
    trained(plain, rows(), replace(BASE, optimizer="adamw"), stand_in)
    trained(plain, rows(), replace(BASE, batch_size=40), stand_in)
    pair = Dataset((rows().inputs,), rows().labels)
    trained(plain, pair, BASE, stand_in)
    assert stand_in.replays == 0
    trained(plain, rows(), replace(BASE, batch_size=36), stand_in)
    assert stand_in.replays == 8


def test_the_cpu_has_no_recorder():
    assert recorder_for(torch.device("cpu")) is None


def test_full_precision_holds_within_a_step_and_no_longer():
    """The settings exist without CUDA too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision(torch.device("cuda")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
            assert torch.backends.cudnn.deterministic
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# From here on, what needs CUDA. Warnings are no errors there: libraries speak up when they start.


def cuda(test):
    return needs_cuda(pytest.mark.filterwarnings("default")(test))


ON_CUDA = {
    name: CASES[name]
    for name in ("decay", "momentum", "cosine", "in place", "batchnorm", "augmented", "partly")
}
ON_CUDA |= {
    "bfloat16": CASES["bfloat16"],
    "bfloat16 rows": (plain, rows, replace(BASE, momentum=0.9, precision="bfloat16")),
    "dropout": (dropping, rows, replace(BASE, momentum=0.9, schedule="step", step_epochs=2)),
}


def is_recorded(run):
    return isinstance(run._steps, _steps.CapturedSteps) and run._steps._replay is not None


@cuda
@pytest.mark.parametrize("case", ON_CUDA)
def test_a_graph_takes_the_eager_steps(case, recorder):
    model, make_data, recipe = ON_CUDA[case]
    recorded = trained(model, make_data(device="cuda"), recipe)
    assert is_recorded(recorded)
    recorder(None)
    eager = trained(model, make_data(device="cuda"), recipe)
    assert not is_recorded(eager)
    whole = recipe.precision == "float32"
    losses = [torch.from_numpy(run.history.train_loss.values) for run in (recorded, eager)]
    torch.testing.assert_close(*losses, rtol=1e-5 if whole else 2e-2, atol=1e-6)
    ends = [run.minimum().state_dict() for run in (recorded, eager)]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if whole else {"rtol": 0.1, "atol": 0.02}
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], **tolerance)


@cuda
@pytest.mark.parametrize("case", ON_CUDA)
def test_a_resumed_run_of_graphs_is_an_uninterrupted_one(case):
    model, make_data, recipe = ON_CUDA[case]
    whole, state = trained(model, make_data(device="cuda"), recipe).to_bytes(), None
    for pieces in (1, 2, 1):
        torch.rand(3, device="cuda")  # what happens between two pieces must not matter
        run = started(model, make_data(device="cuda"), recipe, state=state)
        run.advance(pieces)
        assert is_recorded(run)
        state = run.to_bytes()
    assert run.finished
    assert state == whole


@cuda
def test_two_runs_at_once_keep_their_graphs_apart():
    recipe = replace(BASE, momentum=0.9, schedule="cosine")
    alone = trained(dropping, rows(device="cuda"), recipe).to_bytes()
    runs = [started(dropping, rows(device="cuda"), recipe) for _ in range(2)]
    for _ in range(recipe.epochs):
        for run in runs:
            run.advance(1)
    assert [run.to_bytes() for run in runs] == [alone, alone]


@cuda
def test_a_graph_leaves_the_global_random_state_as_it_was():
    before = torch.cuda.get_rng_state(), torch.get_rng_state()
    assert is_recorded(trained(dropping, rows(device="cuda"), BASE))
    for state, old in zip((torch.cuda.get_rng_state(), torch.get_rng_state()), before, strict=True):
        torch.testing.assert_close(state, old, rtol=0, atol=0)
    assert torch.cuda.get_sync_debug_mode() == 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


class Waiting(nn.Module):
    """Waits for the device in every step, as the rehearsal finds."""

    def __init__(self):
        super().__init__()
        self.inner = dropping()

    def forward(self, inputs):
        return self.inner(inputs / max(1.0, inputs.abs().max().item()))


class WaitingUnseen(Waiting):
    """Waits in a way that is not found before the recording."""

    def forward(self, inputs):
        torch.cuda.synchronize()
        return self.inner(inputs)


# Last: if torch does not get over a recording that fails, everything after it fails as well.
@cuda
@pytest.mark.parametrize("model", [Waiting, WaitingUnseen])
def test_a_network_that_waits_is_trained_eagerly_and_nothing_breaks(model, recorder):
    recipe = replace(BASE, momentum=0.9)
    run = trained(model, rows(device="cuda"), recipe)
    assert not is_recorded(run)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert is_recorded(trained(dropping, rows(device="cuda"), recipe))
    recorder(None)
    assert trained(model, rows(device="cuda"), recipe).to_bytes() == run.to_bytes()
    logits = dropping().cuda()(torch.ones(5, 4, device="cuda"))
    functional.cross_entropy(logits, torch.zeros(5, dtype=torch.int64, device="cuda")).backward()
    torch.cuda.synchronize()
