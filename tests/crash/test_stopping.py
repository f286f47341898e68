import random
import signal
from pathlib import Path

import pytest

from crash.driver import command, started
from crash.stores import Trained, content, differences, finished, said_finished
from crash.study import HEAD, LOST

DRAW = random.Random(0)
# What `kill` and a terminal do, and what job schedulers do, to one process or to all.
STOPS = [
    ("driver", signal.SIGTERM),
    ("driver", signal.SIGINT),
    ("group", signal.SIGTERM),
    ("group", signal.SIGINT),
]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_run_that_is_told_to_stop_says_so_in_a_line_and_goes_on_later(
    trained: Trained, tmp_path: Path, executor: str
) -> None:
    out = tmp_path / "runs"
    words = [*command(trained.study, out, executor), "--only", "training"]
    kept: set[str] = set()
    for whom, number in STOPS:
        with started(words) as driver:
            assert driver.wait_for(HEAD + 3)
            driver.end(whom, number, DRAW)
            assert driver.finish() == 1
            (line,) = driver.errors()
            assert line.startswith(f"flatminima: stopped; finished work is kept in {out}, ")
            assert driver.wait_gone() is not None
            new = said_finished(driver.said)
        assert len(new) >= 3
        assert not kept & new  # nothing was done twice
        kept |= new
        assert kept <= finished(out)
    with started(words) as driver:
        assert (driver.finish(), driver.errors()) == (0, [])
        assert not kept & said_finished(driver.said)
    assert differences(content(out), trained.content) == []


@pytest.mark.slow
def test_a_run_goes_on_when_a_worker_is_killed_and_says_so_in_a_line(
    trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    words = [*command(trained.study, out, "processes"), "--only", "training"]
    with started(words) as driver:
        assert driver.wait_for(HEAD + 3)
        assert driver.end("worker", signal.SIGKILL, DRAW) == "worker"
        assert driver.finish() == 0
        errors = driver.errors()
        assert len(errors) <= 1  # none if it happened to have nothing to do
        assert all(map(LOST.fullmatch, errors))
        assert driver.wait_gone() is not None
        assert said_finished(driver.said) == finished(out)
    assert differences(content(out), trained.content) == []


def test_a_second_run_on_a_store_in_use_is_refused_and_disturbs_nothing(
    trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    words = [*command(trained.study, out, "serial"), "--only", "training"]
    with started(words) as first:
        assert first.wait_for(1)
        with started(words) as second:
            assert second.finish() == 2
            assert second.said == []
            (line,) = second.errors()
            assert line.startswith(f"flatminima: expected the store {out} to be free, got one that")
        assert (first.finish(), first.errors()) == (0, [])
    assert differences(content(out), trained.content) == []
