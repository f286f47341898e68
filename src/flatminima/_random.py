"""Torch's global generators, used and given back as they were."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def forked(seed: int, device: torch.device) -> Iterator[None]:
    """Within, torch's global generators run from `seed`; afterwards they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed, which would seed every accelerator, forked or not.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
