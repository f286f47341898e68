"""Ray clusters of several hosts on one machine, for tests."""

import contextlib
import os
import secrets
import subprocess
from pathlib import Path

import pytest

from flatminima.study.executors._connection import import_ray, reread_settings
from flatminima.study.executors._nodes import free_port, keep_node

_TESTS = Path(__file__).parent


def find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import what the tests import."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(_TESTS), str(_TESTS.parent / "src")]))


def share_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are started from here on know each other, and are quick to give each other up."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # A node that does not answer is given up on after four seconds instead of forty.
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "1000")
    monkeypatch.setenv("RAY_grpc_client_keepalive_time_ms", "2000")
    monkeypatch.setenv("RAY_grpc_client_keepalive_timeout_ms", "2000")
    reread_settings(import_ray())


class Nodes:
    """A cluster of several hosts on this machine, each with an address of its own."""

    def __init__(self, stack: contextlib.ExitStack, cores: int = 1) -> None:
        """Begin with a head node."""
        self._stack = stack
        self._hosts = (f"127.0.0.{number}" for number in range(2, 250))
        port = free_port()
        host = next(self._hosts)
        self.address = f"{host}:{port}"
        self.head = self._start(
            host, "--head", "--port", str(port), "--num-cpus", str(cores), "--num-gpus", "0"
        )

    def _start(self, host: str, *arguments: str) -> "subprocess.Popen[str]":
        small = ("--object-store-memory", "200000000")
        return self._stack.enter_context(keep_node(host, *arguments, *small))

    def add(self, cores: int = 1, gpus: int = 0) -> "subprocess.Popen[str]":
        """One more node; Ray takes our word for its GPUs."""
        words = ("--address", self.address, "--num-cpus", str(cores), "--num-gpus", str(gpus))
        return self._start(next(self._hosts), *words)

    @staticmethod
    def cut_power(node: "subprocess.Popen[str]") -> None:
        """End every process of a node at once."""
        assert node.stdin is not None
        node.stdin.close()
        node.wait()
