from pathlib import Path

import pytest

from crash.kills import killed_study
from crash.stores import Reference

KILLS = 5
SEED = 140  # with which all that can be killed is killed, within a minute


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "number"), [("serial", 0), ("processes", 1)])
def test_studies_that_are_killed_at_random_moments_end_with_the_same_bytes(
    peaceful: tuple[Reference, Path], executor: str, number: int
) -> None:
    reference, folder = peaceful
    done = 0
    while done < KILLS:  # a run may be over before its moment comes
        result = killed_study(
            reference,
            folder,
            number=number,
            seed=SEED,
            executor=executor,
            kills=KILLS - done,
        )
        assert result["faults"] == []
        done += len(result["kills"])
        number += 10
