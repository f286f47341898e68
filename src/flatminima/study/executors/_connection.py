"""This process as a driver of a Ray cluster, and how Ray is kept quiet and to the point."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

_ATTEMPTS = 6  # a second apart, to join a cluster whose head answers
_PATIENCE = 2.0  # seconds until a head that is there has taken a connection
_STARTING = 20.0  # seconds until a node of this machine runs that was started beside this process
# A host that is cut off closes no connection: without these Ray waits for it for seven minutes.
_IMPATIENT = {
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
}


@contextlib.contextmanager
def connected(address: str) -> Iterator[str]:
    """This process as a driver of the cluster at `address`; yields where its head is.

    Raises:
        ValueError: There is none, it refuses, or this machine is no node of it; or Ray is not
            installed.
    """
    ray = import_ray()
    _quieten(ray)
    if address != "auto" and not answers(address):
        raise ValueError(
            f"expected a Ray cluster at {address}, got no answer; start one with 'ray start"
            " --head', or leave out --address for one of its own"
        )
    if address != "auto" and not _has_a_node(ray):
        raise ValueError(
            f"expected a node of the Ray cluster at {address} on this machine, got none; start one"
            f" with 'ray start --address {address}', and '--num-cpus 0 --num-gpus 0' if it is to do"
            " no work"
        )
    try:
        with _constants(ray, address), environment(**(_IMPATIENT | dict(os.environ))):
            reread_settings(ray)
            ray.init(address, log_to_driver=False, configure_logging=False, namespace="flatminima")
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        words = " ".join(str(error).split())[:300]
        raise ValueError(
            f"expected a Ray cluster at {address}, got: {words}; see 'ray status', or leave out"
            " --address for one of its own"
        ) from error
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def answers(address: str) -> bool:
    """Whether anybody listens at a host and port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def _has_a_node(ray: Any) -> bool:
    """Whether a node of any cluster runs here, or is about to: Ray waits a minute for one."""
    find = getattr(ray._private.services, "find_node_ids", lambda: {"unknown"})
    deadline = time.monotonic() + _STARTING
    while not find():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def reread_settings(ray: Any) -> None:
    """Let Ray read its settings and token from the environment again: it did so when imported."""
    with contextlib.suppress(AttributeError):
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _constants(ray: Any, address: str) -> Iterator[None]:
    """Set what Ray reads from the environment only when it is first imported.

    A loopback address stands for itself, where Ray takes it for the host's address to others; and
    a head that refuses is asked again for some seconds, not for twenty.
    """
    constants = ray._private.ray_constants
    wanted = {"NUM_REDIS_GET_RETRIES": _ATTEMPTS}
    if address.startswith("127.0.0.1:"):
        wanted["ENABLE_RAY_CLUSTER"] = False
    before = {name: getattr(constants, name) for name in wanted if hasattr(constants, name)}
    for name in before:
        setattr(constants, name, wanted[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)


def _quieten(ray: Any) -> None:
    """Let Ray print nothing: what happens to nodes and workers is told in our own words."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    # It prints the last words of a node that ended whatever its logging is set to.
    if hasattr(ray._private.worker, "print_to_stdstream"):
        ray._private.worker.print_to_stdstream = lambda *arguments, **options: None


def import_ray() -> Any:
    """Ray, or a line that says how to get it."""
    try:
        import ray
    except ImportError:
        raise ValueError(
            "expected Ray for executor 'ray', got none installed; install flatminima[ray]"
        ) from None
    return ray


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables of the environment, set for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
