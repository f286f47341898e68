import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatminima.training import Recipe
from flatminima.training._network import build_optimizer, build_schedule


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "expected epochs of at least 1, got 0; change the recipe"),
        ({"batch_size": 0}, "expected a batch_size of at least 1, got 0"),
        ({"optimizer": "adam"}, "expected an optimizer 'sgd' or 'adamw', got 'adam'"),
        ({"learning_rate": 0.0}, "expected a positive learning_rate, got 0"),
        ({"learning_rate": math.nan}, "expected a positive learning_rate, got nan"),
        ({"momentum": 1.0}, "expected a momentum from 0 to below 1, got 1"),
        ({"momentum": 0.9, "optimizer": "adamw"}, "expected momentum 0 with 'adamw'"),
        ({"weight_decay": -1.0}, "expected a weight_decay of 0 or above, got -1"),
        ({"schedule": "linear"}, "got 'linear'"),
        ({"schedule": "step"}, "expected step_epochs of at least 1 for the schedule 'step'"),
        ({"step_factor": 0.0}, "expected a positive step_factor, got 0"),
        ({"stop_at_loss": 0.0}, "expected a positive stop_at_loss, or None, got 0"),
    ],
)
def test_refuses_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


@given(st.integers(1, 50), st.floats(1e-6, 10))
def test_the_rate_follows_the_schedule(epochs, rate):
    named = {"epochs": epochs, "learning_rate": rate}
    np.testing.assert_array_equal(rates(Recipe(**named)), [rate] * epochs)
    cosine = rates(Recipe(**named, schedule="cosine"))
    want = rate * (1 + np.cos(np.pi * np.arange(epochs) / epochs)) / 2
    np.testing.assert_allclose(cosine, want, rtol=1e-9)
    step = rates(Recipe(**named, schedule="step", step_epochs=3, step_factor=0.5))
    np.testing.assert_allclose(step, rate * 0.5 ** (np.arange(epochs) // 3), rtol=1e-12)


def rates(recipe):
    """The learning rate in each epoch."""
    optimizer = build_optimizer(torch.nn.Linear(2, 2), recipe)
    schedule = build_schedule(optimizer, recipe)
    found = []
    for _ in range(recipe.epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found
