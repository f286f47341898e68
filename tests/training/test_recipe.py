import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.training import Recipe


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


@settings(deadline=None)
@given(st.integers(1, 50), st.floats(1e-6, 10))
def test_the_rate_starts_as_given_and_follows_the_schedule(epochs, rate):
    constant = Recipe(epochs=epochs, learning_rate=rate)
    assert [constant.rate(epoch) for epoch in range(epochs)] == [rate] * epochs
    cosine = Recipe(epochs=epochs, learning_rate=rate, schedule="cosine")
    assert cosine.rate(0) == rate
    falling = [cosine.rate(epoch) for epoch in range(epochs + 1)]
    assert falling == sorted(falling, reverse=True)
    assert abs(falling[-1]) <= 1e-12
    step = Recipe(
        epochs=epochs, learning_rate=rate, schedule="step", step_epochs=3, step_factor=0.5
    )
    for epoch in range(epochs):
        assert step.rate(epoch) == pytest.approx(rate * 0.5 ** (epoch // 3))
