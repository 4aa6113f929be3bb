"""All ranks meet before they form a process group. The wait is limited, and reported early."""

import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch import distributed

from accel_restore.errors import UserError
from accel_restore.utils.launch import Launch

DEFAULT_SECONDS = 1800.0  # as torch's own limit
_PATIENCE_SECONDS = 10.0  # before the first line
_REPEAT_SECONDS = 60.0
_RESOLVE_SECONDS = 30.0  # for a host name, which exists before its process
_ANSWER_SECONDS = 15.0  # for the store, which answers while rank 0 is busy
_POLL_SECONDS = 0.1
_SHOWN = 8  # missing ranks in a message


def meet(launch: Launch, seconds: float, limit: str) -> Any:
    """Wait until all ranks are there, and return the store through which they met; None without a launcher.

    `limit` names, for messages, what sets `seconds`. While the store exists, rank 0 keeps its port.

    Raises: UserError if a rank does not come, or the address cannot be used.
    """
    if launch.world_size == 1:
        return None
    waiting = _Waiting(launch, seconds, limit)
    serves = launch.rank == 0 and not launch.has_agent
    if serves:
        _check_port(launch)
    _resolve(launch, waiting)
    store = _open_store(launch, waiting, serves)
    _gather(launch, waiting, store)
    return store


class _Waiting:
    """Reports what this rank waits for, and gives up at the deadline."""

    def __init__(self, launch: Launch, seconds: float, limit: str):
        self.launch, self.seconds = launch, seconds
        self.limit = limit
        self.started = time.monotonic()
        self.next_report = min(_PATIENCE_SECONDS, seconds / 4)
        # Rank 0 reports for all. If it is missing, rank 1 and one rank of each other host do.
        self.reports = launch.rank <= 1 or not launch.local_rank

    @property
    def waited(self) -> float:
        """Seconds since this rank arrived."""
        return time.monotonic() - self.started

    def pause(self, missing: Callable[[], str], until: float = math.inf) -> None:
        """Wait a moment for what `missing` names. Raises: UserError at the deadline, or at `until` if that is earlier.

        If the name is empty, another rank prints the report.
        """
        waited = self.waited
        limit = f"{self.seconds:g} s ({self.limit})" if self.seconds < until else f"{until:g} s"
        if waited > min(self.seconds, until):
            raise self.error(f"has waited {waited:.0f} s for {missing() or 'the others'}")
        if self.reports and waited > self.next_report:
            self.next_report += _REPEAT_SECONDS
            if name := missing():
                self._print(f"{self._rank} waits for {name}, at most {limit}; {self._reasons}")
        time.sleep(_POLL_SECONDS)

    def error(self, what: str) -> UserError:
        """Return an error of this rank."""
        error = UserError(f"{self._rank} {what}; {self._reasons}")
        error.is_reporter = self.reports
        return error

    @property
    def _rank(self) -> str:
        return f"rank {self.launch.rank} of {self.launch.world_size}"

    @property
    def _reasons(self) -> str:
        return f"the environment sets {', '.join(self.launch.variables)}; {self.launch.hint}"

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # no standard error
            print(f"accel-restore: {text}", file=sys.stderr, flush=True)


def _check_port(launch: Launch) -> None:
    """Raise `UserError` if rank 0 cannot listen on its port; torch would report it in C++."""
    both = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if both:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("", launch.port))
        except OSError as error:
            raise UserError(
                f"MASTER_PORT={launch.port}: rank 0 cannot listen there ({error.strerror}); set another port for all "
                f"ranks, or, {launch.hint}"
            ) from error


def _resolve(launch: Launch, waiting: _Waiting) -> None:
    """Wait until the name of rank 0's host is known."""
    while True:
        try:
            socket.getaddrinfo(launch.address, launch.port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError):  # UnicodeError: no host name at all
            waiting.pause(lambda: f"the host name MASTER_ADDR={launch.address}, which is unknown", _RESOLVE_SECONDS)


def _open_store(launch: Launch, waiting: _Waiting, serves: bool) -> Any:
    """Return the store of rank 0, or of its torchrun."""
    place = f"{'the torchrun of rank 0' if launch.has_agent else 'rank 0'} at {launch.address}:{launch.port}"
    while not serves:
        try:
            socket.create_connection((launch.address, launch.port), timeout=_ANSWER_SECONDS).close()
            break
        except OSError:
            waiting.pause(lambda: place)
    opened: list[Any] = []

    def open_store() -> None:
        limit = timedelta(seconds=_ANSWER_SECONDS)
        with suppress(RuntimeError):
            store = distributed.TCPStore(
                launch.address, launch.port, is_master=serves, timeout=limit, wait_for_workers=False, multi_tenant=True
            )
            opened.append(store)

    # In a thread: torch waits without a limit for a service that accepts a connection and never answers.
    thread = threading.Thread(target=open_store, name="accel-restore-rendezvous", daemon=True)
    thread.start()
    deadline = waiting.waited + 2 * _ANSWER_SECONDS
    while thread.is_alive() and waiting.waited < deadline:
        waiting.pause(lambda: f"an answer from {place}")
    if not opened and serves:
        raise waiting.error(
            f"cannot reach itself at {launch.address}:{launch.port}; set MASTER_ADDR to the address of its machine"
        )
    if not opened:
        raise waiting.error(f"has no answer from {place}; if another service uses the port, set another MASTER_PORT")
    opened[0].set_timeout(timedelta(seconds=waiting.seconds))
    return opened[0]


def _gather(launch: Launch, waiting: _Waiting, store: Any) -> None:
    """Wait until every rank has been here. Rank 0 reads the keys of all, the others only its own."""
    keys = {rank: f"accel-restore/{launch.attempt}/{rank}" for rank in range(launch.world_size)}
    complete = f"accel-restore/{launch.attempt}/complete"
    expected = list(keys) if launch.rank == 0 else [0]

    def missing() -> str:
        absent = [rank for rank in expected if not store.check([keys[rank]])]
        ranks = ", ".join(map(str, absent[:_SHOWN])) + " ..." * (len(absent) > _SHOWN)
        return f"rank{'s' * (len(absent) > 1)} {ranks} at {launch.address}:{launch.port}" if absent else ""

    try:
        store.set(keys[launch.rank], "")
        while not store.check([complete]):
            if launch.rank == 0 and store.check(list(keys.values())):
                store.set(complete, "")
            else:
                waiting.pause(missing)
    except RuntimeError as error:
        raise waiting.error("has lost the connection to rank 0") from error
