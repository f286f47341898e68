"""What is made of a weight before it is used, made once instead of with every batch."""

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from torch import Tensor

Made = TypeVar("Made")


class Packed:
    """Weights that many batches meet, and what was made of them.

    Args:
        weights: Those worth it; they must stay as they are, and are kept alive.
    """

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self._weights = {id(weight): weight for weight in weights}
        self._made: dict[tuple[int, Hashable], Any] = {}
        self._turn = threading.Lock()  # threads that meet a weight at once would each make it

    def __contains__(self, weight: Tensor) -> bool:
        return id(weight) in self._weights

    def made(self, weight: Tensor, way: Hashable, make: Callable[[Tensor], Made]) -> Made:
        """`make(weight)`; of the weights that were named it is kept, under the name of the way."""
        if weight not in self:
            return make(weight)
        key = (id(weight), way)
        with self._turn:
            if key not in self._made:
                self._made[key] = make(weight)
            found: Made = self._made[key]
        return found
