"""What the times of `speed.py` are made of: rates of products, shares of a pass, memory."""

import argparse
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _speed_timing import now
from _speed_ways import trained

import flatminima as fm
from flatminima._linear import product
from flatminima._processor import multiplies_halves

# A product of square matrices that keeps a GPU busy, and rows of one of the network's.
_LARGE, _ROWS = 8192, 10_000
_CALLS = 20


def rates() -> dict[str, float]:
    """Products per second of the network's second layer, in GFLOP, each way of computing them."""
    inputs, weight, bias = torch.randn(500, 800), torch.randn(320, 800), torch.randn(320)
    half = [value.bfloat16() for value in (inputs, weight, bias)]
    ways: dict[str, Callable[[], Any]] = {
        "float32 product, oneDNN": lambda: product(inputs, weight, bias),
        "float32 product, as torch chooses": lambda: F.linear(inputs, weight, bias),
        "bfloat16 product": lambda: F.linear(*half),
    }
    if multiplies_halves("cpu"):  # elsewhere it would be three products of float32
        ways["float32 product, of three in bfloat16"] = split_product(inputs, weight, bias)
    result = {}
    for name, way in ways.items():
        seconds = []
        for _ in range(50):
            start = now("cpu")
            way()
            seconds.append(now("cpu") - start)
        result[name] = round(2 * 500 * 800 * 320 / statistics.median(seconds) / 1e9)
    return result


def split_product(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> Callable[[], Any]:
    """A product of float32 by three of bfloat16: `x w = x1 w1 + x1 w2 + x2 w1`, nearly.

    `x1` is `x` rounded to bfloat16, and `x2` what is left. oneDNN is told to round what it is given
    and to return float32. Weights are split and brought into order once, and both products with
    `x1` are one.
    """
    columns = len(weight)
    setting = torch.backends.mkldnn.matmul
    rounded = torch.empty_like(inputs, dtype=torch.bfloat16)
    rest = torch.empty_like(inputs)
    both = torch.cat([weight, weight - weight.bfloat16()])
    biases = torch.cat([bias, torch.zeros_like(bias)])

    def way() -> torch.Tensor:
        before, setting.fp32_precision = setting.fp32_precision, "bf16"
        try:
            rounded.copy_(inputs)
            torch.sub(inputs, rounded, out=rest)
            found = product(inputs, packed, biases)
            return product(rest, first).add_(found[:, :columns]).add_(found[:, columns:])
        finally:
            setting.fp32_precision = before

    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    try:
        packed, first = (
            torch.ops.mkldnn._reorder_linear_weight(value, len(inputs)) for value in (both, weight)
        )
    finally:
        setting.fp32_precision = before
    return way


def gpu_rates(device: str) -> dict[str, float]:
    """Products per second on the GPU, in GFLOP, and GB copied per second, read and written."""
    result: dict[str, float] = {}
    shapes = {
        f"{_LARGE}^3": (_LARGE, _LARGE, _LARGE),
        f"second layer, {_ROWS} images": (_ROWS, 800, 320),
    }
    before = torch.get_float32_matmul_precision()
    for what, (rows, inner, columns) in shapes.items():
        inputs = torch.randn(rows, inner, device=device)
        weight, bias = torch.randn(columns, inner, device=device), torch.zeros(columns).to(device)
        for name, dtype, precision in (
            ("float32", torch.float32, "highest"),
            ("TF32", torch.float32, "high"),
            ("bfloat16", torch.bfloat16, "highest"),
        ):
            given = [value.to(dtype) for value in (inputs, weight, bias)]
            torch.set_float32_matmul_precision(precision)
            try:
                seconds = _seconds(lambda given=given: F.linear(*given), device)
            finally:
                torch.set_float32_matmul_precision(before)
            result[f"{name} product, {what}"] = round(2 * rows * inner * columns / seconds / 1e9)
    source = torch.zeros(2**28, device=device)  # a GiB
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    result["copy, GB/s"] = round(2 * source.nbytes / seconds / 1e9)
    return result


def _seconds(way: Callable[[], Any], device: str) -> float:
    """Seconds of a call among many, which a GPU is handed before it has done the first."""
    with torch.no_grad():
        for _ in range(3):
            way()
        tries = []
        for _ in range(5):
            start = now(device)
            for _ in range(_CALLS):
                way()
            tries.append((now(device) - start) / _CALLS)
    return statistics.median(tries)


_PARTS = {
    "products": ("mkldnn::_linear_pointwise", "aten::addmm"),
    "activations": ("aten::clamp_min", "aten::clamp_min_"),
    "adding directions": ("aten::add", "aten::add_"),
    "losses": ("aten::_log_softmax", "aten::argmax", "aten::sum", "aten::gather", "aten::dot"),
    "copies and casts": ("aten::copy_", "aten::cat"),
}
# What kernels' names contain, in small letters; the first part that fits has a kernel.
_KERNELS = {
    "products": ("gemm", "gemv", "cutlass", "xmma", "nvjet", "cublas", "splitk"),
    "copies and casts": ("memcpy", "memset", "copy_kernel", "catarray"),
    "activations": ("relu", "clamp"),
    "adding directions": ("functor_add", "functoronself_add", "addfunctor"),
    "losses": ("softmax", "nll_loss", "reduce", "gather", "dot_kernel", "argmax"),
}


def profiled(options: argparse.Namespace) -> dict[str, Any]:
    """Shares of the time of a plane of the MLP, by what is computed: on one thread, or a GPU."""
    torch.set_num_threads(1)
    data = fm.load_dataset("mnist").to(options.device)
    plane = fm.Subspace.through(*trained("natural"))
    points = np.random.default_rng(0).normal(size=(100, 2))
    result: dict[str, Any] = {"threads": 1, "points": len(points)}
    shares = _cpu_shares if options.device == "cpu" else _gpu_shares
    for precision in ("exact", "fast"):
        scape = fm.Landscape(
            fm.build_model("mlp"), data, precision=precision, device=options.device
        )
        scape.losses(plane, points[:1])
        result[precision] = shares(lambda scape=scape: scape.losses(plane, points))
    return result


def _cpu_shares(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds, and of them the share of each part."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    events = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
    whole = sum(events.values())
    shares = {
        part: round(sum(events.get(name, 0.0) for name in names) / whole, 3)
        for part, names in _PARTS.items()
    }
    return {"seconds": round(whole, 1), **shares, "rest": round(1 - sum(shares.values()), 3)}


def _gpu_shares(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds without the profiler, the share of them that the GPU idles, and shares of the rest.

    Only what the GPU does is recorded: Python's side would be slowed by it, and not tell more.
    """
    work()
    tries = []
    for _ in range(3):
        start = now("cuda")
        work()
        tries.append(now("cuda") - start)
    kernels, launched = _recorded(work)
    seconds, busy = statistics.median(tries), sum(kernels.values())
    result: dict[str, Any] = {"seconds": round(seconds, 4), "busy": round(busy, 4)}
    if not busy:
        return {**result, "note": "the profiler recorded no kernel"}
    parts: Counter[str] = Counter()
    for name, value in kernels.items():
        parts[_part(name)] += value
    result |= {"kernels": launched, "idle": round(1 - busy / seconds, 3)}
    result |= {part: round(parts[part] / busy, 3) for part in (*_KERNELS, "rest")}
    most = {name[:120]: round(value / busy, 3) for name, value in kernels.most_common(12)}
    return {**result, "most": most}


def _recorded(work: Callable[[], Any]) -> tuple[Counter[str], int]:
    """Seconds by kernel, and how many were launched; nothing where they cannot be recorded."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kernels: Counter[str] = Counter()
    launched = 0
    for activities in ([ProfilerActivity.CUDA], [ProfilerActivity.CPU, ProfilerActivity.CUDA]):
        try:
            with profile(activities=activities):
                torch.zeros(1, device="cuda").add_(1)  # what the profiler does only once
                torch.cuda.synchronize()
            with profile(activities=activities) as found:
                work()
                torch.cuda.synchronize()
            for event in found.key_averages():
                # The calls that start kernels are events of the processor.
                if event.device_type == DeviceType.CUDA:
                    kernels[event.key] += event.self_device_time_total / 1e6
                    launched += event.count
        except (AssertionError, RuntimeError) as error:
            print(f"the profiler failed: {error!r}", file=sys.stderr)
        if kernels:
            break
    return kernels, launched


def _part(kernel: str) -> str:
    """What a kernel computes, by its name."""
    name = kernel.lower()
    for part, words in _KERNELS.items():
        if any(word in name for word in words):
            return part
    return "rest"


_MEMORY = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np, torch, flatminima as fm
from _speed_ways import trained
torch.set_num_threads(int(sys.argv[2]))
device = sys.argv[4]
data, plane = fm.load_dataset("mnist").to(device), fm.Subspace.through(*trained("natural"))
scape = fm.Landscape(fm.build_model("mlp"), data, device=device)
if device == "cuda":
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    peak = lambda: torch.cuda.max_memory_allocated() // 2**10
else:
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is forgotten
    status = Path("/proc/self/status")
    peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]
before = peak()
points = np.random.default_rng(0).normal(size=(int(sys.argv[3]), 2))
scape.losses(plane, points)
print(before, peak())
"""


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a plane over all images, in fresh processes, for few and for many points."""
    result: dict[str, Any] = {}
    for points in (25, 250, 750):
        command = [sys.executable, "-c", _MEMORY, str(Path(__file__).parent)]
        command += [str(options.threads), str(points), options.device]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"expected the peak of {points} points, got: {done.stderr[-2000:]}")
        before, peak = (int(value) / 2**20 for value in done.stdout.split())
        result[f"{points} points"] = {
            "GiB_before": round(before, 2),
            "GiB_above": round(peak - before, 2),
        }
    return result
