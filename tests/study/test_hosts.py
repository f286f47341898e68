"""Studies on Ray, on hosts that share nothing but a network, whose cables can be pulled."""

import contextlib
import re
import secrets
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster_nodes import share_a_token
from flatminima.data.sources import cache_folder
from flatminima.store import Store
from flatminima.study import run_study
from network_hosts import Host, Network, why_not

pytest.importorskip("ray", reason="Ray is an extra: make extras installs it")

pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and files of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

_BIN = Path(sys.executable).parent
_JOBS = 81
_STUDY = """
name = "small"
data = { dataset = "digits", limit = 400 }
groups = [{ name = "natural" }, { name = "random", noise = 0.5, noise_seed = 1 }]

[model]
name = "mlp"
settings = { sizes = [64, 64, 10] }

[training]
epochs = 24
batch_size = 16
learning_rate = 0.05
segment_epochs = 6
match_loss = 0.5

[surface]
resolution = 12
tile = 12

[radius]
directions = 4
block = 2
protocols = ["crossing"]
checkpoints = ["end"]

[resources]
training = { memory = 0.1 }
surfaces = { memory = 0.1 }
radii = { memory = 0.1 }
"""


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


class Run:
    """`flatminima run` of the study on a host, everything but the report."""

    def __init__(self, stack: contextlib.ExitStack, host: Host, out: Path, *more: str) -> None:
        """Begin; what it says is kept beside its store."""
        file = out.with_suffix(".toml")
        file.write_text(_STUDY)
        self._said, self._complained = out.with_suffix(".out"), out.with_suffix(".err")
        words = ("run", str(file), "--out", str(out), "--only", "surfaces", "--only", "radii")
        with self._said.open("w") as said, self._complained.open("w") as complained:
            self.process = host.begin(
                str(_BIN / "flatminima"),
                *words,
                *("--executor", "ray", *more),
                stdout=said.fileno(),
                stderr=complained.fileno(),
            )
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)

    def finished(self) -> int:
        """How many jobs it has finished."""
        return len(re.findall(r"^\[\d+/\d+\] .*: \d", self._said.read_text(), re.MULTILINE))

    def wait_for(self, count: int) -> None:
        """Wait until it has finished so many jobs."""
        wait_until(lambda: self.ended or self.finished() >= count, f"{count} jobs")
        assert not self.ended, self.complaint

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.process.poll() is not None

    @property
    def complaint(self) -> str:
        """What it complained of."""
        return self._complained.read_text()

    def ends(self, code: int, seconds: float = 90.0) -> float:
        """Wait until it ends with this exit code; how many seconds that took."""
        began = time.monotonic()
        wait_until(lambda: self.ended, f"the end of {self._said.read_text()[-500:]}", seconds)
        assert self.process.returncode == code, self.complaint
        return time.monotonic() - began


class Hosts:
    """A driver and a head, which do no work, and two workers: each on a host of its own."""

    def __init__(self, stack: contextlib.ExitStack, hidden: Path) -> None:
        """Begin with all of them started, as docs/clusters.md says."""
        self._stack = stack
        self.network = Network(stack, [hidden, cache_folder()])
        self.driver = self.network.add("driver", shares_files=True)
        self.head = self.network.add("head")
        self.workers = [self.network.add(name) for name in ("one", "two")]
        self.address = f"{self.head.address}:6379"
        port = ("--port", "6379", "--include-dashboard", "false")
        self.head.call(*self._ray(0), "--head", "--node-ip-address", self.head.address, *port)
        self.join()

    @staticmethod
    def _ray(cores: int) -> tuple[str, ...]:
        small = ("--disable-usage-stats", "--object-store-memory", "200000000")
        offer = ("--num-cpus", str(cores), "--num-gpus", "0")
        return (str(_BIN / "ray"), "start", *offer, *small)

    def join(self) -> None:
        """Make nodes of the driver's host and the workers, all at once."""
        starting = [
            host.begin(*self._ray(cores), "--address", self.address, stdout=subprocess.DEVNULL)
            for host, cores in ((self.driver, 0), *((worker, 1) for worker in self.workers))
        ]
        assert [process.wait(timeout=120) for process in starting] == [0, 0, 0]

    def run(self, out: Path) -> Run:
        """The study, on this cluster."""
        return Run(self._stack, self.driver, out, "--address", self.address)

    def nodes(self) -> dict[str, set[int]]:
        """The processes of the cluster's nodes, by the names of their hosts."""
        return {host.name: nodes_on(host) for host in (self.driver, self.head, *self.workers)}


def nodes_on(host: Host) -> set[int]:
    """The processes of Ray's nodes on a host."""
    return {pid for pid, words in host.processes().items() if "/raylet/raylet " in words}


def payloads(folder: Path) -> dict[str, bytes]:
    """Every file of every result, by its place in the store."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "jobs").glob("*/payload/**/*"))
        if path.is_file()
    }


def places(folder: Path) -> Counter[str]:
    """How many jobs were done on which host, by their logs."""
    logs = [path.read_text() for path in (folder / "logs").iterdir()]
    return Counter(name for log in logs for name in re.findall(r" on (\S+), process \d+", log))


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    words = why_not()
    if words:
        pytest.skip(words)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the study yields in this process, one job after the other."""
    out = tmp_path_factory.mktemp("serial") / "runs"
    run_study(tomllib.loads(_STUDY), out=out)
    assert len(list((out / "jobs").iterdir())) == _JOBS
    return payloads(out)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A cluster with the settings that Ray has, which tests leave as they find it."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield Hosts(stack, tmp_path_factory.getbasetemp())


@pytest.fixture
def quick(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosts]:
    """A cluster that gives hosts up in four seconds, not in a minute."""
    share_a_token(monkeypatch)
    with contextlib.ExitStack() as stack:
        yield Hosts(stack, tmp_path_factory.getbasetemp())


def test_hosts_without_common_files_make_what_one_process_makes(
    lasting: Hosts, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "runs"
    lasting.run(out).ends(0)
    assert payloads(out) == undisturbed
    assert set(places(out)) == {"one", "two"}
    for host in (lasting.head, *lasting.workers):
        assert not host.call("find", str(tmp_path.parent), "-mindepth", "1")


def test_cables_that_are_out_for_seconds_cost_nothing(
    lasting: Hosts, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    before = lasting.nodes()
    run = lasting.run(tmp_path / "runs")
    out = (lasting.workers, [lasting.driver], [lasting.head, *lasting.workers])
    for number, hosts in enumerate(out):
        run.wait_for(3 + 12 * number)
        with lasting.network.without(*hosts):
            time.sleep(4)
            assert not run.ended, run.complaint
            assert run.finished() < _JOBS
    run.ends(0)
    assert payloads(tmp_path / "runs") == undisturbed
    assert lasting.nodes() == before


def test_a_driver_on_no_node_is_told_how_to_make_it_one(lasting: Hosts, tmp_path: Path) -> None:
    stranger = lasting.network.add("stranger", shares_files=True)
    with contextlib.ExitStack() as stack:
        run = Run(stack, stranger, tmp_path / "runs", "--address", lasting.address)
        run.ends(2, 50.0)  # Ray itself waits for a minute
    assert run.complaint == (
        f"flatminima: expected a node of the Ray cluster at {lasting.address} on this machine, got"
        f" none; start one with 'ray start --address {lasting.address}', and '--num-cpus 0"
        " --num-gpus 0' if it is to do no work\n"
    )


def test_a_worker_without_its_cable_is_done_without(
    quick: Hosts, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "runs"
    victim = quick.workers[0]
    run = quick.run(out)
    run.wait_for(3)

    def at_work() -> list[int]:
        return [pid for pid, words in victim.processes().items() if words.startswith("ray::_run")]

    wait_until(lambda: bool(at_work()), f"work on {victim.name}")
    victim.call("kill", "-STOP", *map(str, at_work()))  # lest it is done before
    quick.network.unplug(victim)
    left = _JOBS - run.finished()
    assert run.ends(0) < 60.0
    assert payloads(out) == undisturbed
    assert left > 30
    assert places(out)["two"] >= left


def test_a_head_without_its_cable_is_one_line_and_its_nodes_can_join_again(
    quick: Hosts, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "runs"
    idle = quick.driver.processes()
    run = quick.run(out)
    run.wait_for(3)
    with quick.network.without(quick.head):
        assert run.ends(1) < 45.0
        assert re.fullmatch(
            r"flatminima: the Ray cluster at 10\.77\.0\.2:6379 is gone \(.+\); finished work is"
            r" kept: run the same command again once it is back\n",
            run.complaint,
        )
        assert quick.driver.processes().items() <= idle.items()
        assert not Store(out).verify()[1]
        kept = len(list((out / "jobs").iterdir()))
        assert 3 <= kept < _JOBS
    # Nodes that the head has given up end when they hear of it.
    for host in (quick.driver, *quick.workers):
        wait_until(lambda host=host: not nodes_on(host), f"the end of the node on {host.name}")
    quick.join()
    run = quick.run(out)
    run.ends(0)
    assert payloads(out) == undisturbed
    assert run.finished() == _JOBS - kept


def test_nobody_in_the_network_can_reach_a_cluster_of_ones_own(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "runs"
    seen: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        host = Network(stack).add("alone")
        run = Run(stack, host, out, "--workers", "1")
        while not run.ended:
            for place in host.listening():
                seen.setdefault(place, []).append(time.monotonic())
        run.ends(0)
        assert not host.processes()
    assert payloads(out) == undisturbed
    # Ray looks for the address of its machine by asking a server outside; who waits for datagrams
    # does so for longer than that takes.
    reached = {place for place, when in seen.items() if place[0] == "tcp" or when[-1] - when[0] > 1}
    assert len(reached) >= 4  # the head, the node, the worker, the driver
    loopback = {"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"}
    assert {place.rpartition(":")[0] for _, place in reached} <= loopback
