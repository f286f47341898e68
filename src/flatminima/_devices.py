"""Which devices this machine has."""


def check_device(name: str) -> None:
    """Raise `ValueError` for a device that torch does not know or this machine does not have."""
    if name == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"expected a device of this machine (cpu, cuda or mps), got {name!r} ({reason}); choose"
            " another with --device"
        ) from None


def device_name(name: str) -> str | None:
    """What the maker calls an accelerator; nothing for a processor, or where none is seen."""
    if not name.startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(name) if torch.cuda.is_available() else None


def visible_gpus() -> int:
    """How many NVIDIA GPUs this process may use; `CUDA_VISIBLE_DEVICES` is respected."""
    import torch

    return torch.cuda.device_count()
