"""Every test runs with the shapes in the annotations checked (jaxtyping and beartype)."""

import hypothesis
import pytest
from jaxtyping import install_import_hook

install_import_hook("flatminima", "beartype.beartype")

# Examples are not timed: on a busy machine a deadline fails without a reason. Derandomised, so that
# a failure is found again.
hypothesis.settings.register_profile("here", deadline=None, derandomize=True)
hypothesis.settings.load_profile("here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    slow: dict[str, int] = {}
    for item in items:
        slow[item.location[0]] = slow.get(item.location[0], 0) + bool(
            item.get_closest_marker("slow")
        )
    items.sort(key=lambda item: -slow[item.location[0]])
