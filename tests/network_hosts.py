"""Hosts that share nothing but a network, on one machine, for tests of clusters.

A host is a set of namespaces: it has interfaces, a name, processes, shared memory and mounts of its
own. One process keeps them and ends with this one, however that ends; what is in them is gone with
it. The machine's own network is left as it is.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

_PATIENCE = 120.0  # seconds for any command
_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")

# What making a network takes, tried in namespaces that end at once.
_NEEDED = """
ip link add name bridge0 type bridge
ip link add name here type veth peer name there
mount -t tmpfs tmpfs /mnt
"""

# The first process of a host: it says who it is outside, and lives until its input ends.
_FIRST = """
import os, signal, sys

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are this one's, and leave nothing behind
print(os.readlink("/proc/self"), flush=True)
sys.stdin.read()
"""


def why_not() -> str:
    """What keeps this machine from having hosts, in a line; empty if nothing does."""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    try:
        tried = subprocess.run(
            ["unshare", *_NAMESPACES, "--fork", "sh", "-ec", _NEEDED],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"needs unshare: {error}"
    words = " ".join(tried.stderr.split())[:200]
    return f"needs namespaces, bridges and mounts: {words}" if tried.returncode else ""


class Host:
    """A machine of its own, as far as its processes can tell."""

    def __init__(self, stack: contextlib.ExitStack, name: str, folder: Path) -> None:
        """Begin with a loopback interface, and with `folder` empty and of its own.

        Args:
            stack: Ends it.
            name: What it is called.
            folder: For the sockets and files of what runs here.
        """
        self.name = name
        self.address = ""
        self._folder = folder
        self._first = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", sys.executable, "-I", "-S", "-c", _FIRST],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests to handle
        )
        stack.callback(self.end)
        assert self._first.stdout is not None
        self.pid = int(self._first.stdout.readline())
        self.call("mount", "-t", "proc", "proc", "/proc")
        for own in ("/dev/shm", str(folder)):
            self.call("mount", "-t", "tmpfs", "tmpfs", own)
        self.call("hostname", name)
        self.call("ip", "link", "set", "dev", "lo", "up")

    def hide(self, folder: Path) -> None:
        """Let a folder be empty here, and stay so."""
        self.call("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder))

    def begin(self, *command: str, **streams: int) -> "subprocess.Popen[str]":
        """A command, on its way on this host."""
        own = {"RAY_TMPDIR": str(self._folder), "TMPDIR": str(self._folder)}
        return subprocess.Popen(
            ["nsenter", "--target", str(self.pid), *_NAMESPACES, "--", *command],
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **own},
            **streams,
        )

    def call(self, *command: str) -> str:
        """What a command prints, which ends and succeeds on this host."""
        with self.begin(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                said, _ = process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                self.end()  # or leaving would wait for it
                raise
        assert process.returncode == 0, f"{' '.join(command)} on {self.name}: {said[-2000:]}"
        return said

    def processes(self) -> dict[int, str]:
        """What runs here besides the first process and who asks, by its number here."""
        table = self.call("ps", "-A", "-o", "pid=,stat=,args=").splitlines()
        rows = [line.split(None, 2) for line in table]
        return {
            int(pid): words
            for pid, state, words in rows
            if pid != "1" and not state.startswith("Z") and not words.startswith("ps -A")
        }

    def listening(self) -> set[tuple[str, str]]:
        """Where anything here can be reached: "tcp" or "udp", and address and port.

        A datagram socket is among them also where its owner only asks: it is bound to every address
        from its first word until it hears back, or is closed.
        """
        lines = self.call("ss", "-H", "-ltun").splitlines()
        return {(kind, place) for kind, _, _, _, place, *_ in map(str.split, lines)}

    def end(self) -> None:
        """Be gone, with every process, interface and mount."""
        assert self._first.stdin is not None
        assert self._first.stdout is not None
        self._first.stdin.close()
        self._first.wait()
        self._first.stdout.close()


class Network:
    """Hosts at one switch, and no way out."""

    def __init__(self, stack: contextlib.ExitStack, hidden: Iterable[Path] = ()) -> None:
        """Begin with the switch.

        Args:
            stack: Ends all of it.
            hidden: Folders that hosts do not share with this process.
        """
        self._stack = stack
        self._hidden = [folder for folder in hidden if folder.is_dir()]
        # Paths of sockets have a limit: this one is short. On every host it is another folder.
        self._folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
        stack.callback(self._folder.rmdir)
        self._switch = Host(stack, "switch", self._folder)
        self._switch.call("ip", "link", "add", "name", "bridge0", "type", "bridge")
        self._switch.call("ip", "link", "set", "dev", "bridge0", "up")
        self._addresses = (f"10.77.0.{number}" for number in range(1, 255))

    def add(self, name: str, *, shares_files: bool = False) -> Host:
        """One more host, with a cable to the switch.

        Args:
            name: Of the host, in at most fifteen letters.
            shares_files: Whether it sees the hidden folders after all.
        """
        host = Host(self._stack, name, self._folder)
        host.address = next(self._addresses)
        # From outside of its processes, where the other host's number means something.
        enter = ["nsenter", "--target", str(self._switch.pid), "--net", "--", "ip", "link"]
        cable = ["type", "veth", "peer", "name", "eth0", "netns", str(host.pid)]
        subprocess.run([*enter, "add", "name", name, *cable], check=True, timeout=_PATIENCE)
        self._switch.call("ip", "link", "set", "dev", name, "master", "bridge0")
        host.call("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.call("ip", "link", "set", "dev", "eth0", "up")
        self.plug(host)
        for folder in () if shares_files else self._hidden:
            host.hide(folder)
        return host

    def unplug(self, host: Host) -> None:
        """Pull a host's cable: nothing is said to either side."""
        self._switch.call("ip", "link", "set", "dev", host.name, "down")

    def plug(self, host: Host) -> None:
        """Put a host's cable in."""
        self._switch.call("ip", "link", "set", "dev", host.name, "up")

    @contextlib.contextmanager
    def without(self, *hosts: Host) -> Iterator[None]:
        """The network while the cables of some hosts are out."""
        for host in hosts:
            self.unplug(host)
        try:
            yield
        finally:
            for host in hosts:
                self.plug(host)
