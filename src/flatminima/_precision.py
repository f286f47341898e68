"""Products of float32 numbers that are float32 throughout, whatever has been switched on."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within, float32 is computed in float32 and in the same way every time, without autocast.

    Torch has two sets of switches for TF32 and the like, an older and a newer, and complains where
    one is asked after the other was used. Operations go by the newer ones; these are set, and put
    back as they were, and the older ones are neither asked nor changed.
    """
    on_cpu: Any = torch.backends.mkldnn
    cudnn: Any = torch.backends.cudnn
    places = (
        torch.backends.cuda.matmul,
        cudnn.conv,
        cudnn.rnn,
        on_cpu.matmul,
        on_cpu.conv,
        on_cpu.rnn,
    )
    found = [place.fp32_precision for place in places]
    rough = [pair for pair in zip(places, found, strict=True) if pair[1] in ("tf32", "bf16")]
    way = cudnn.benchmark, cudnn.deterministic
    for place, _ in rough:
        place.fp32_precision = "ieee"
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = way
        for place, value in rough:
            place.fp32_precision = value
