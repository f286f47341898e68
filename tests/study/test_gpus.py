"""Which jobs get which GPUs of a cluster. Ray takes our word that there are some; none is used."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster_work
from cluster_nodes import Nodes, find_the_tests, share_a_token
from flatminima.store import Store
from flatminima.study import run
from flatminima.study.config import parse_study
from flatminima.study.execute import execute
from flatminima.study.executors import Takes, open_executor
from flatminima.study.job import Job

pytest.importorskip("ray", reason="Ray is an extra: make extras installs it")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="asks for several loopback addresses"),
    # Ray leaves sockets and files of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

_SETTINGS = {"data": {"dataset": "digits", "limit": 10}, "model": {"name": "mlp", "settings": {}}}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head without GPUs, where the driver is."""
    find_the_tests(monkeypatch)
    share_a_token(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with contextlib.ExitStack() as stack:
        yield Nodes(stack)


def placed(nodes: Nodes, folder: Path, count: int, share: float) -> list[dict[str, Any]]:
    """Where so many jobs ran that take a share of a GPU each."""
    store = Store(folder / f"runs-{share}", create=True)
    jobs = [Job("network", {**_SETTINGS, "number": n}, label=str(n)) for n in range(count)]
    takes = {"network": Takes(gpus=share, memory=100 << 20)}
    with open_executor("ray", address=nodes.address, takes=takes) as executor:
        execute(jobs, store, executor, work=cluster_work.place)
    return [json.loads(store.read("network", job.digest)["place"]) for job in jobs]


def together(places: list[dict[str, Any]]) -> int:
    """How many of some jobs ran at the same time, at most."""
    return max(
        sum(other["from"] <= one["from"] < other["to"] for other in places) for one in places
    )


def test_jobs_go_to_the_gpus_each_to_its_own(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(cores=4, gpus=2)
    places = placed(nodes, tmp_path, 6, share=1.0)
    assert len({place["node"] for place in places}) == 1  # not where the driver is
    assert {place["gpus"] for place in places} == {"0", "1"}
    for gpu in "01":
        assert together([place for place in places if place["gpus"] == gpu]) == 1
    assert together(places) == 2
    # Half a GPU each: two jobs share one.
    places = placed(nodes, tmp_path, 8, share=0.5)
    assert {place["gpus"] for place in places} == {"0", "1"}
    assert max(together([p for p in places if p["gpus"] == gpu]) for gpu in "01") == 2
    assert together(places) <= 4


def test_a_node_offers_the_gpus_that_it_is_allowed_to_see(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    nodes.add(cores=4, gpus=2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert {place["gpus"] for place in placed(nodes, tmp_path, 4, share=1.0)} == {"3", "5"}


def study(**resources: Any) -> run.Study:
    return parse_study(
        {
            "name": "placed",
            "data": {"dataset": "digits", "limit": 100},
            "groups": [{"name": "natural"}],
            "model": {"name": "mlp", "settings": {"sizes": [64, 10]}},
            "training": {"epochs": 1, "batch_size": 10, "learning_rate": 0.1},
            "radius": {"directions": 1},
            "run": {"device": "cuda", "batch_size": 100},
            "resources": resources,
        }
    )


def test_a_cluster_of_ones_own_has_as_many_workers_as_the_gpus_have_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "visible_gpus", lambda: 4)
    shared = {part: {"gpus": 0.5} for part in ("training", "surfaces", "radii")}
    assert run.default_workers(study(), "ray") == 4
    assert run.default_workers(study(**shared), "ray") == 8
    assert run.default_workers(study(training={"gpus": 0.25}), "ray") == 16
    assert run.default_workers(study(), "processes") == 1


def test_jobs_of_a_gpu_study_take_a_gpu_and_its_summary_takes_none() -> None:
    takes = run.job_takes(study(training={"gpus": 0.25}))
    assert {kind: own.gpus for kind, own in takes.items()} == {
        "train": 0.25, "network": 0.25, "tile": 1.0, "surface": 1.0, "radius": 1.0, "summary": 0.0,
    }  # fmt: skip
