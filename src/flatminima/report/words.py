"""How numbers are worded in tables and captions."""

import math
from collections.abc import Sequence


def span(low: float, high: float, *, signed: bool = False) -> str:
    """From the least to the largest, three digits each."""
    ends = [f"{end:{'+' if signed else ''}.3g}" for end in (low, high)]
    ends = [f"\N{MINUS SIGN}{end[1:]}" if end.startswith("-") else end for end in ends]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def number(value: float, *, signed: bool = False) -> str:
    """Two decimals from 1 up, three digits below."""
    if math.isnan(value):
        return "-"
    text = f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return f"+{text}" if signed and value > 0 else text.replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """Whole percents, one decimal where that would say none or all of what is not."""
    text = f"{100 * share:.0f}"
    if (text == "0" and share > 0) or (text == "100" and share < 1):
        text = f"{100 * share:.1f}"
    return f"{text} %"


def series(parts: Sequence[str]) -> str:
    """Parts as an enumeration: "a, b and c"."""
    *start, last = parts
    return f"{', '.join(start)} and {last}" if start else last
