"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

try:
    import ray
except ModuleNotFoundError as error:
    if error.name != "ray":
        raise
    raise ModuleNotFoundError("sb3_dapo.distributed needs Ray: pip install 'sb3-dapo[ray]'", name="ray") from error

# Seconds in which an address must answer, and in which CPUs that were just given back must be free
PATIENCE = 5.0


class Cluster:
    """
    A connection of this process to Ray. A process has one, so several of these share it, and the last to close ends
    it, unless it was there before them. A cluster that was started here ends with it.

    :param address: ``HOST:PORT`` of a cluster that this machine belongs to, or ``"auto"`` for the one that runs on
        this machine. None: the connection that this process has, else a new cluster of this machine only
    :param num_cpus: that a new cluster offers to actors. None: those of this machine
    :param object_store_memory: of a new cluster, in bytes. None: Ray's choice
    :raises ConnectionError: nothing answers at the address
    :raises ValueError: the address is none that can be joined
    """

    _users: ClassVar[int] = 0
    _ours: ClassVar[bool] = False

    def __init__(
        self, address: str | None = None, num_cpus: int | None = None, object_store_memory: int | None = None
    ) -> None:
        if ray.is_initialized():
            present = ray.get_runtime_context().gcs_address
            if address not in (None, "auto", present):
                raise ValueError(f"address is {address!r}, but this process is connected to Ray at {present!r} already")
        else:
            if address is None:
                _start(num_cpus, object_store_memory)
            else:
                _join(address)
            Cluster._users, Cluster._ours = 0, True
        Cluster._users += 1
        self._closed = False

    def close(self) -> None:
        """Ends the connection if nobody else uses it. It can be called twice."""
        if self._closed:
            return
        self._closed = True
        Cluster._users -= 1
        if Cluster._users == 0 and Cluster._ours:
            Cluster._ours = False
            ray.shutdown()
            _print_messages_of_ray(True)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_room(n_actors: int, cpus_per_actor: float) -> None:
    """
    :param n_actors: number of actors to be started
    :param cpus_per_actor: CPUs that each of them gets; a part of one, or a whole number
    :raises ValueError: there are too few CPUs, or others use them; Ray itself would wait for more without a word
    """
    if n_actors < 1:
        raise ValueError(f"n_actors must be at least 1, got {n_actors}")
    if cpus_per_actor <= 0 or (cpus_per_actor > 1 and cpus_per_actor != int(cpus_per_actor)):
        raise ValueError(f"cpus_per_actor must be a part of 1, or a whole number, got {cpus_per_actor}")
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    # An actor must fit into one node. (0.3 // 0.1 is 2: rounded after the division)
    room = sum(int(round(cpus / cpus_per_actor, 6)) for cpus in nodes)
    asked = f"n_actors={n_actors} with cpus_per_actor={cpus_per_actor:g}"
    have = f"{sum(nodes):g} CPUs on {len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    if room < n_actors:
        raise ValueError(f"{asked} is too much for the Ray cluster: it has {have}, room for {room} such actors")
    deadline = time.monotonic() + PATIENCE
    while (free := ray.available_resources().get("CPU", 0.0)) < n_actors * cpus_per_actor - 1e-6:
        if time.monotonic() > deadline:
            raise ValueError(
                f"{asked} is too much for the Ray cluster now: it has {have}, of which {free:g} are not in use"
            )
        time.sleep(0.1)


def _start(num_cpus: int | None, object_store_memory: int | None) -> None:
    # "local", because without an address Ray may join a cluster that happens to run here
    _set_token()
    _init("local", num_cpus=num_cpus, object_store_memory=object_store_memory, include_dashboard=False)


def _set_token() -> None:
    """A new cluster asks for a token: one for this process if there is none, or Ray writes it to the home folder."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if (
        not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
        and not Path.home().joinpath(".ray/auth_token").exists()
    ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    if address != "auto":
        if "/" in address or not host or not port.isdigit():
            raise ValueError(
                f"address must be HOST:PORT or 'auto', got {address!r}"
                " (Ray Client, ray://, is not supported: the learner runs on a machine of the cluster)"
            )
        # Ray itself goes on trying for a quarter of an hour
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error
    _init(address)


def _init(address: str, **options: Any) -> None:
    with _signal_handlers():
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    _print_messages_of_ray(False)


@contextmanager
def _signal_handlers() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM (only in the main thread can there be one)."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _print_messages_of_ray(on: bool) -> None:
    """Whether Ray prints pages about every process that dies; the pool says it in a line."""
    # Ray has this switch for its debugger; without it there are only more words on the screen
    worker = ray._private.worker
    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = on
