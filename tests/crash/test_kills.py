from pathlib import Path

import pytest

from crash.kills import killed_so_often
from crash.stores import Reference

KILLS = 5
SEED = 140  # with which all that can be killed is killed, within a minute


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "number"), [("serial", 0), ("processes", 1)])
def test_studies_that_are_killed_at_random_moments_end_with_the_same_bytes(
    peaceful: tuple[Reference, Path], executor: str, number: int
) -> None:
    reference, folder = peaceful
    faults = killed_so_often(
        reference, folder, kills=KILLS, number=number, seed=SEED, executor=executor
    )
    assert faults == []
