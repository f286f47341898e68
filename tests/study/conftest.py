from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

Settings = dict[str, Any]

_SMALLEST = {
    "name": "smallest",
    "data": {"dataset": "digits", "limit": 40},
    "groups": [{"name": "natural"}, {"name": "random", "noise": 0.5, "noise_seed": 1}],
    "model": {"name": "mlp", "settings": {"sizes": [64, 6, 10]}},
    "training": {
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 0.2,
        "segment_epochs": 2,
        "match_loss": 1.9,
    },
    "surface": {"resolution": 3, "tile": 5},
    "radius": {"directions": 3, "block": 3},
}


def smallest_settings(**tables: Any) -> Settings:
    """Settings of a study that runs in seconds; tables given are merged into them."""
    made: Settings = deepcopy(_SMALLEST)
    for name, value in tables.items():
        if isinstance(value, dict) and isinstance(made.get(name), dict):
            made[name] |= value
        elif value is None:
            del made[name]
        else:
            made[name] = value
    return made


@pytest.fixture(scope="session")
def smallest() -> Callable[..., Settings]:
    """The function `smallest_settings`."""
    return smallest_settings
