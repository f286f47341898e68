"""Numbers as people read them."""


def size(count: float | int) -> str:
    """Bytes: `43 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float | int) -> str:
    """A span of time: `8 s`, `4 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def rate(per_second: float, unit: str) -> str:
    """`3.1 epochs/s`, or seconds for each where it is slow: `3.2 s/epoch`."""
    if per_second >= 1:
        return f"{per_second:.1f} {unit}/s"
    return f"{1 / per_second:.1f} s/{unit.removesuffix('s')}"
