"""Independent random streams derived from one seed and a path of names.

A stream is a function of what it is for, never of what ran before it. That is why a resumed run
draws the same numbers as an uninterrupted one without storing any generator's state.
"""

import hashlib


def derive_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream `path` of `seed`, e.g. `derive_seed(0, "order", epoch)`.

    The parts are joined with their types, so `("a", 1)` and `("a", "1")` are different streams.

    Examples:
        >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
        True
        >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 2)
        False
    """
    text = repr((int(seed), *path)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
