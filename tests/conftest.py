"""Every test runs with the shapes in the annotations checked (jaxtyping and beartype)."""

import hypothesis
import pytest
from jaxtyping import install_import_hook

install_import_hook("flatminima", "beartype.beartype")

# Examples are not timed: on a busy machine a deadline fails without a reason. Derandomised, so that
# a failure is found again.
hypothesis.settings.register_profile("here", deadline=None, derandomize=True)
hypothesis.settings.load_profile("here")


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in half precision are computed, if need be without units for them."""
    monkeypatch.setattr("flatminima._processor._processor_multiplies_halves", lambda: True)


@pytest.fixture
def no_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without units for products in half precision."""
    monkeypatch.setattr("flatminima._processor._processor_multiplies_halves", lambda: False)


_OUTAGES = (
    "tests/crash/",
    "tests/study/test_cluster.py",
    "tests/study/test_gpus.py",
    "tests/study/test_hosts.py",
    "tests/study/test_slurm.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of outages; files with slow tests come first.

    So no process is left alone with a slow file at the end.
    """
    slow: dict[str, int] = {}
    for item in items:
        file = item.location[0]
        if file.startswith(_OUTAGES):
            item.add_marker("outage")
        slow[file] = slow.get(file, 0) + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -slow[item.location[0]])
