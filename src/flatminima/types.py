"""Tensor types with shapes, shared by every room.

The shapes are checked whenever the tests run (jaxtyping and beartype); at run time they are
documentation.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

Parameters: TypeAlias = Mapping[str, Tensor]
"""What geometry acts on: every `named_parameters()` entry, tied weights once."""

Buffers: TypeAlias = Mapping[str, Tensor]
"""What it does not act on: running statistics, counters, position ids."""

Real: TypeAlias = float | int
"""A real number. Whole ones may be ints, which are no floats to a check at run time."""

Images: TypeAlias = Float[Tensor, "samples channels height width"]
Labels: TypeAlias = Int64[Tensor, " samples"]
Mask: TypeAlias = Bool[Tensor, " samples"]
Coordinates: TypeAlias = Float64[np.ndarray, "points dimensions"]
PerPoint: TypeAlias = Float64[np.ndarray, " points"]

Nested: TypeAlias = Any
"""A tensor, or a dict, tuple or list of nested tensors that share their leading length."""
