"""What a device multiplies quickly: numbers in half precision, and by which library.

Asked of the device, never measured: the same machine always takes the same way.
"""

import functools
import platform
from pathlib import Path

_X86 = ("x86_64", "amd64")


def multiplies_halves(device: str) -> bool:
    """Whether a device has units for products in bfloat16.

    Elsewhere torch imitates them, at a small fraction of the speed of float32.

    Args:
        device: Of this machine ("cpu", "cuda", "mps"); of a GPU that is elsewhere it is assumed.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return _processor_multiplies_halves()
    if kind == "cuda":
        import torch

        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(False)
    return False


@functools.cache
def _processor_multiplies_halves() -> bool:
    x86 = platform.machine().lower() in _X86
    if x86 and (told := _cpuinfo()):  # at once: to load torch takes seconds
        return "avx512_bf16" in told
    import torch

    if x86:
        # oneDNN says yes wherever there is AVX-512, and imitates them by it.
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.backends.mkldnn.is_available() and bool(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def mkl_is_quick() -> bool:
    """Whether torch multiplies matrices by MKL on this processor, as quickly as that can."""
    return _has_mkl() and not mkl_is_slow()


@functools.cache
def mkl_is_slow() -> bool:
    """Whether MKL holds back on this processor, and oneDNN is at hand.

    It leaves AVX-512 unused on processors of AMD. Where these have AVX2 alone, it is the quicker.
    """
    import torch

    return (
        "AuthenticAMD" in _cpuinfo()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _has_mkl()
        and _onednn_at_hand()
    )


def packs_halves() -> bool:
    """Whether weights in bfloat16 that many batches meet may be brought into oneDNN's order.

    torch has it do that for every product.
    """
    import torch

    wide = bool(torch.cpu._is_avx512_supported())  # else oneDNN refuses
    return _processor_multiplies_halves() and wide and _onednn_at_hand()


@functools.cache
def has_narrow_vectors() -> bool:
    """Whether this is a processor with AVX2 and not AVX-512, as far as it tells."""
    told = _cpuinfo() if platform.machine().lower() in _X86 else ""
    return bool(told) and "avx512f" not in told


def _has_mkl() -> bool:
    import torch

    x86 = platform.machine().lower() in _X86
    return x86 and bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


@functools.cache
def _onednn_at_hand() -> bool:
    """Whether its products may be called for directly; asked on x86 only, where that was tried."""
    import torch

    return (
        platform.machine().lower() in _X86
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _cpuinfo() -> str:
    """What Linux says of the processor; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
