"""Studies on Ray: several nodes on one machine, each of which can be ended as by a power cut."""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster_work
from cluster_nodes import Nodes, find_the_tests, share_a_token
from flatminima.store import Store
from flatminima.study import run_study
from flatminima.study.execute import StudyFailed, execute
from flatminima.study.executors import Executor, Takes, cluster, open_executor
from flatminima.study.job import Job

ray = pytest.importorskip("ray", reason="Ray is an extra: make extras installs it")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what runs"),
    # Ray leaves sockets and files of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

_TESTS = Path(__file__).parents[1]
_SETTINGS = {"data": {"dataset": "digits", "limit": 10}, "model": {"name": "mlp", "settings": {}}}
_TAKES = {"network": Takes(memory=100 << 20)}

# Long enough jobs to be caught at: about half a second each.
_STUDY: dict[str, Any] = {
    "name": "small",
    "data": {"dataset": "digits", "limit": 400},
    "groups": [{"name": "natural"}, {"name": "random", "noise": 0.5, "noise_seed": 1}],
    "model": {"name": "mlp", "settings": {"sizes": [64, 64, 10]}},
    "training": {
        "epochs": 24,
        "batch_size": 16,
        "learning_rate": 0.05,
        "segment_epochs": 6,
        "match_loss": 0.5,
    },
    "surface": {"resolution": 12, "tile": 12},
    "radius": {"directions": 4, "block": 2, "protocols": ["crossing"], "checkpoints": ["end"]},
    "resources": {part: {"memory": 0.1} for part in ("training", "surfaces", "radii")},
}


def _job(name: str, *needs: Job, **settings: Any) -> Job:
    return Job(
        "network",
        {**_SETTINGS, "name": name, **settings},
        dependencies=tuple(job.digest for job in needs),
        inputs=tuple((job.kind, ("",)) for job in needs),
        label=name,
    )


def payloads(store: Store) -> dict[str, bytes]:
    """Every file of every result, by its place in the store."""
    return {
        str(path.relative_to(store.root)): path.read_bytes()
        for path in sorted((store.root / "jobs").glob("*/payload/**/*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def _nodes_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    find_the_tests(monkeypatch)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the study yields in this process, one job after the other."""
    found = payloads(run_study(_STUDY, out=tmp_path_factory.mktemp("serial") / "runs"))
    assert len(found) > 100
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", create=True)


@pytest.fixture
def own(store: Store) -> Iterator[Executor]:
    """A cluster of one's own with two workers."""
    with open_executor("ray", 2, takes=_TAKES) as executor:
        yield executor


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[contextlib.ExitStack]:
    """What ends the nodes of a test."""
    share_a_token(monkeypatch)
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def nodes(stack: contextlib.ExitStack) -> Nodes:
    return Nodes(stack)


def _descendants(pid: int) -> set[int]:
    """Processes below one."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


# ------------------------------------------------------------------ a cluster of one's own


def test_a_job_gets_what_it_depends_on_and_leaves_its_log(own: Executor, store: Store) -> None:
    a, b = _job("a"), _job("b")
    c, d = _job("c", a, b), _job("d", a)
    execute([a, b, c, d], store, own, work=cluster_work.spell)
    assert store.read("network", c.digest) == {"name": b"c(a(),b())"}
    assert "finished after" in store.log_path("network", d.digest).read_text()
    assert store.record("network", c.digest)["provenance"]["versions"]["torch"]


def test_a_job_that_fails_is_not_tried_again_and_one_that_kills_its_worker_is(
    own: Executor, store: Store, tmp_path: Path
) -> None:
    notes = {"notes": str(tmp_path / "notes")}
    fail, die, fine = (_job(name, **notes) for name in ("fail", "die", "fine"))
    after = _job("after", die, **notes)
    with pytest.raises(StudyFailed) as caught:
        execute([fail, die, fine, after], store, own, work=cluster_work.misbehave)
    assert str(caught.value.errors["fail"]) == "boom"
    assert "its worker was lost 4 times" in str(caught.value.errors["die"])
    assert store.done("network", fine.digest)
    attempts = (tmp_path / "notes").read_text().split()
    assert attempts.count("fail") == 1
    assert attempts.count("die") == 4
    assert "after" not in attempts
    log = store.log_path("network", fail.digest).read_text()
    assert "about to fail" in log
    assert 'raise RuntimeError("boom")' in log


def test_nothing_listens_on_other_than_loopback(own: Executor) -> None:
    ours = _descendants(os.getpid())
    sockets = set()
    for pid in ours:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.update(re.findall(r"socket:\[(\d+)\]", os.readlink(handle)))
    listening = []
    for table, loopback in (("tcp", "0100007F"), ("tcp6", "0000000000000000FFFF00000100007F")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                listening.append(fields[1].partition(":")[0])
                assert listening[-1] in (loopback, "00000000000000000000000001000000"), fields[1]
    assert len(listening) >= 3  # the head, the node, this process


def test_a_study_is_bit_for_bit_what_one_process_makes_of_it(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    assert payloads(run_study(_STUDY, out=tmp_path / "a", executor="ray", workers=2)) == undisturbed
    found = run_study(_STUDY, out=tmp_path / "b", executor="processes", workers=2)
    assert payloads(found) == undisturbed


_DRIVER = """
import json, sys
from flatminima.study import run_study

if __name__ == "__main__":
    tell = lambda event, job, seconds: print(event, job.kind, flush=True)
    settings, out, address = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3] or None
    workers = None if address else 2
    run_study(settings, out=out, executor="ray", address=address, workers=workers, listener=tell)
"""


def _driver(out: Path, address: str = "", **tables: Any) -> "subprocess.Popen[str]":
    settings = json.dumps(_STUDY | tables)
    command = [sys.executable, "-c", _DRIVER, settings, str(out), address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(driver: "subprocess.Popen[str]", words: str) -> None:
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.strip() == words:
            return
    assert driver.stderr is not None
    raise AssertionError(f"the driver ended: {driver.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_cluster_whose_driver_is_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    endless = {"training": {"epochs": 10**6, "segment_epochs": 10**6, "networks": 3}}
    with _driver(tmp_path / "runs", **endless) as driver:
        _wait_for(driver, "started train")
        time.sleep(1)
        ours = _descendants(driver.pid) - {driver.pid}
        assert len(ours) > 5
        driver.send_signal(number)
        driver.communicate()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in ours):
        time.sleep(0.05)
    assert not [pid for pid in ours if Path(f"/proc/{pid}").exists()]


# ------------------------------------------------------------------------- several nodes


@pytest.mark.parametrize("kind", ["train", "tile", "radius"])
def test_a_node_lost_in_the_middle_changes_nothing(
    nodes: Nodes, tmp_path: Path, undisturbed: dict[str, bytes], kind: str
) -> None:
    victim = nodes.add()
    left: list[str] = []

    def cut(event: str, job: Job, seconds: float) -> None:
        if victim.poll() is not None:
            left.append(job.kind)
        elif (event, job.kind) == ("finished", kind):
            nodes.cut_power(victim)

    found = run_study(
        _STUDY, out=tmp_path / "runs", executor="ray", address=nodes.address, listener=cut
    )
    assert payloads(found) == undisturbed
    assert left.count(kind) > 2  # there was more of it to do


def test_a_node_that_stops_answering_is_given_up_on(
    nodes: Nodes, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    victim = nodes.add()
    frozen: set[int] = set()

    def freeze(event: str, job: Job, seconds: float) -> None:
        if (event, job.kind) == ("finished", "train") and not frozen:
            frozen.update(_descendants(victim.pid) - {victim.pid})
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)

    found = run_study(
        _STUDY, out=tmp_path / "runs", executor="ray", address=nodes.address, listener=freeze
    )
    assert payloads(found) == undisturbed
    assert len(frozen) > 2


def test_a_driver_that_was_killed_goes_on_where_it_was(
    nodes: Nodes, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    with _driver(tmp_path / "runs", nodes.address) as driver:
        _wait_for(driver, "finished train")
        driver.kill()
        driver.communicate()
    done = len(list((tmp_path / "runs/jobs").iterdir()))
    assert 0 < done < 20
    with _driver(tmp_path / "runs", nodes.address) as driver:
        said, _ = driver.communicate()
        assert driver.returncode == 0
    assert payloads(Store(tmp_path / "runs")) == undisturbed
    assert said.count("started train") <= 24 - 1


def test_a_cluster_that_vanishes_is_one_line_and_finished_work_stays(
    nodes: Nodes, tmp_path: Path
) -> None:
    def cut(event: str, job: Job, seconds: float) -> None:
        if event == "finished" and nodes.head.poll() is None:
            nodes.cut_power(nodes.head)

    with pytest.raises(RuntimeError, match=r"^the Ray cluster at 127\.0\.0\.2:\d+ is gone \("):
        run_study(
            _STUDY, out=tmp_path / "runs", executor="ray", address=nodes.address, listener=cut
        )
    count, faults = Store(tmp_path / "runs").verify()
    assert count > 0
    assert not faults


@pytest.mark.network
def test_a_node_without_the_data_gets_it_from_the_driver(
    stack: contextlib.ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes(stack, cores=0)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        elsewhere.setenv("FLATMINIMA_OFFLINE", "1")
        nodes.add()
    sizes = {"name": "mlp", "settings": {"sizes": [784, 10]}}
    study = {
        **_STUDY,
        "data": {"dataset": "mnist", "limit": 100, "test_limit": 100},
        "model": sizes,
        "training": {"epochs": 1, "networks": 1},
        "surface": None,
        "radius": None,
    }
    alone = run_study(study, out=tmp_path / "serial")
    found = run_study(study, out=tmp_path / "runs", executor="ray", address=nodes.address)
    assert payloads(found) == payloads(alone)
    sent = json.loads((tmp_path / "cache/flatminima/data/mnist/origins.json").read_text())
    assert set(sent.values()) == {"another machine"}


def test_a_node_of_another_version_is_named_in_one_line(
    nodes: Nodes, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_versions", lambda: {"torch": "0.4.1"})
    words = r"^expected .* to run flatminima as it is here, got: .*torch 0\.4\.1 is wanted, \S+ has"
    with (
        open_executor("ray", address=nodes.address, takes=_TAKES) as executor,
        pytest.raises(RuntimeError, match=words),
    ):
        execute([_job("a")], store, executor, work=cluster_work.spell)


def test_what_no_node_can_do_is_said_before_anything_starts(nodes: Nodes) -> None:
    words = r"^expected a node with 1 CPUs, 2 GPUs and 2 GiB of memory for each tile job, got none"
    asks = open_executor("ray", address=nodes.address, takes={"tile": Takes(gpus=2.0)})
    with pytest.raises(ValueError, match=words), asks:
        pass


def test_a_cluster_that_refuses_is_one_line(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    asks = open_executor("ray", address=nodes.address)
    with pytest.raises(ValueError, match=r"^expected a Ray cluster at .*, got: ") as caught, asks:
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"address": "127.0.0.1:1"},
            "^expected a Ray cluster at 127.0.0.1:1, got no answer; ",
        ),
        ({"address": "nonsense"}, "^expected a Ray cluster at nonsense, got no answer"),
        ({"address": "ray://127.0.0.1:10001"}, "^expected the address of a head node such as"),
        ({"address": "127.0.0.1:1", "workers": 2}, "^expected no number of workers for"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words), open_executor("ray", **options):
        pass
