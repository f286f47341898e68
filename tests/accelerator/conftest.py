"""On an accelerator everything is as on the processor.

`FLATMINIMA_TEST_DEVICE` names the device; "cpu" runs the same tests without one.
"""

from pathlib import Path

import pytest
import torch

from accelerator.problems import DEVICE, ON_CUDA

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is here where the device is missing.

    Other versions of torch warn of other things; one test alone says that there is nothing to warn
    of, so that a warning does not fail all of them.
    """
    missing = ON_CUDA and not torch.cuda.is_available()
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.filterwarnings("default"))
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"there is no {DEVICE} here"))


@pytest.fixture(autouse=True)
def _everywhere(halves: None) -> None:
    """Half precision is tried on any processor, too."""


@pytest.fixture
def world():
    """What a call must leave as it was: settings, and the random states of all devices."""
    return _world


def _world() -> dict[str, object]:
    found: dict[str, object] = {
        "matmul precision": torch.get_float32_matmul_precision(),
        "matmul tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
        "cudnn deterministic": torch.backends.cudnn.deterministic,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "autocast": torch.is_autocast_enabled(DEVICE),
        "autocast dtype": torch.get_autocast_dtype(DEVICE),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().numpy().tobytes(),
    }
    if ON_CUDA:
        found["random there"] = torch.cuda.get_rng_state().numpy().tobytes()
        found["stream"] = torch.cuda.current_stream().cuda_stream
    return found
