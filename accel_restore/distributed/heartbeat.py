"""Names a rank that dies, hangs in training or is cut off, and ends the job within `train.rank_timeout`.

Ranks publish heartbeats in the process group's store. A hang in validation is left to torch's timeout.
"""

import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import distributed

from accel_restore.errors import AuditError, CallbackError, DivergedError, RunAbortedError, UserError

_SHARE = 0.9  # of the timeout, after which a rank is given up; torch's own collectives fail at the full timeout
_EVIDENCE_SECONDS = 5.0  # how long to look for the rank that caused an error here
_LEAVE_SECONDS = 15.0  # for the main thread to notice that another rank has failed
# All ranks usually raise these together, so rank 0 publishes nothing.
_OF_ALL_RANKS = (UserError, DivergedError, RunAbortedError, AuditError)
_TIMEOUT = ("Timed out", "Application timeout")  # gloo's words


class Phase(IntEnum):
    """Where a rank is in the loop. A higher phase of the same step is further on."""

    SAVE = 0  # after the step before
    DATA = 1
    COMPUTE = 2
    EXCHANGE = 3
    VALIDATE = 4  # after the last step of an epoch

    @property
    def text(self) -> str:
        """The phase in words, for messages."""
        return _PHASES[self]


_PHASES = ("logging or saving", "waiting for data", "computing", "exchanging gradients", "validating")


@dataclass(frozen=True)
class Verdict:
    """Why the run must end: the ranks at fault, the kind of fault, and the sentence for the user."""

    ranks: tuple[int, ...]
    kind: str  # silent, unreachable, stuck, died, disconnected, failed, raised (in a user's callback)
    text: str

    @property
    def reporter(self) -> int:
        """The rank that reports it: the main process or, if it is at fault, the first rank that is not.

        The rank of a callback that has raised reports it itself, as all ranks may have raised the same.
        """
        if self.kind == "raised":
            return self.ranks[0]
        return next(rank for rank in itertools.count() if rank not in self.ranks)

    def to_json(self) -> str:
        """One line, as the ranks exchange it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Verdict":
        """The verdict of such a line."""
        stored = json.loads(line)
        return cls(tuple(stored["ranks"]), stored["kind"], stored["text"])


@dataclass
class _Peer:
    """What is known of a rank, and when, by this rank's clock, it last showed something new."""

    beat: int = -1
    place: tuple[int, int] = (0, 0)  # step, phase
    host: str = ""
    machine: str = ""
    pid: int = 0
    heard: float = 0.0


class RankMonitor:
    """Threads that publish how far this rank is and read how far the others are; idle with a single rank.

    The main process reads all ranks, the others only the main process, so traffic grows linearly with the ranks.
    """

    def __init__(self, accelerator: Accelerator, timeout: float, give_up: Callable[[Verdict], None]):
        """`give_up` is called with the verdict just before the monitor's thread ends this process."""
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.interval, self.give_up = min(1.0, timeout / 20), give_up
        self.limit = min(_SHARE * timeout, timeout - 6 * self.interval)  # time to hear, to judge, to inform others
        self.place: tuple[int, int] = (0, Phase.VALIDATE)
        self.is_training = False
        self.peers = {rank: _Peer() for rank in range(self.world_size) if rank != self.rank}
        if self.rank != 0:
            self.peers = {0: self.peers[0]}
        self.failure: Verdict | None = None  # what a rank published before it ended
        self.failed_at = 0.0
        self.standing: tuple[dict[int, tuple[int, int]], float] = ({}, 0.0)  # where all ranks are, and since when
        self.contact = time.monotonic()  # the last answer of the store
        self.ended = threading.Event()
        self.verdict: Verdict | None = None  # why this rank ends the run, for the others
        self.wake, self.is_published = threading.Event(), threading.Event()
        self.store: Any = None  # with several ranks
        self.exchange: threading.Thread | None = None  # uses the store

    def start(self) -> None:
        """Start the threads; every rank calls it."""
        if self.world_size == 1:
            return
        self.store = distributed.distributed_c10d._get_default_store().clone()  # a connection of its own
        processes = gather_object([(socket.gethostname(), _machine(), os.getpid())])
        now = time.monotonic()
        for rank, peer in self.peers.items():
            peer.host, peer.machine, peer.pid = processes[rank]
            peer.heard = now
        self.exchange, watch = (
            threading.Thread(target=work, name="accel-restore-heartbeat", daemon=True)
            for work in (self._exchange_heartbeats, self._watch)
        )
        self.exchange.start()
        watch.start()

    def close(self) -> None:
        """Stop watching: the run has ended.

        A thread that is in a call of the store when Python ends would abort the process (SIGABRT), so this waits for
        it; not for long, because a store whose host hangs does not answer.
        """
        self.ended.set()
        self.wake.set()
        if self.exchange is not None:
            self.exchange.join(2 * self.interval)

    @property
    def is_validating(self) -> bool:
        """Whether this rank is between two epochs of training."""
        return self.is_training and self.place[1] == Phase.VALIDATE

    # In the threads --------------------------------------------------------------------------------------------------

    def _exchange_heartbeats(self) -> None:
        """Exchange heartbeats. May block if the store's host hangs; `_watch` notices that."""
        with suppress(distributed.DistError, RuntimeError):  # the store is gone for good, and is judged by its silence
            for beat in itertools.count():
                self.wake.wait(self.interval)
                self.wake.clear()
                if self.ended.is_set():
                    return
                self._exchange(beat)
                self.contact = time.monotonic()

    def _watch(self) -> None:
        while not self.ended.wait(self.interval):
            if (verdict := self._judge()) is not None and not self.ended.is_set():
                self._end(verdict)

    def _exchange(self, beat: int) -> None:
        if self.verdict is not None and not self.is_published.is_set():
            first = self.store.compare_set("failure", "", self.verdict.to_json())
            self.failure, self.failed_at = Verdict.from_json(first.decode()), time.monotonic()
            self.is_published.set()
        self.store.set(f"heartbeat/{self.rank}", json.dumps({"beat": beat, "place": self.place}))
        now = time.monotonic()
        keys = [f"heartbeat/{rank}" for rank in self.peers]
        if self.store.check(keys):
            for peer, text in zip(self.peers.values(), self.store.multi_get(keys), strict=True):
                received = json.loads(text)
                if received["beat"] != peer.beat:
                    peer.beat, peer.heard = received["beat"], now
                peer.place = tuple(received["place"])
        if self.failure is None and self.store.check(["failure"]):
            self.failure, self.failed_at = Verdict.from_json(self.store.get("failure").decode()), now

    def _judge(self) -> Verdict | None:
        """Why the run must end, or None."""
        now = time.monotonic()
        if self.failure is not None and now - self.failed_at > _LEAVE_SECONDS:
            return self.failure
        rank, peer = min(self.peers.items(), key=lambda item: item[1].heard)
        silence = now - peer.heard  # at least the store's, through which every rank is heard
        if silence > self.limit:
            if now - self.contact > 3 * self.interval:
                text = f"rank 0, or the network to it, has been unreachable for {now - self.contact:.0f} s"
                return Verdict((0,), "unreachable", text)
            return Verdict((rank,), "silent", f"no heartbeat from rank {rank} ({peer.host}) for {silence:.0f} s")
        if self.rank == 0 and self.is_training:
            return self._judge_progress(now)
        return None

    def _judge_progress(self, now: float) -> Verdict | None:
        """A verdict on the rank that the others wait for, if none has made progress for too long."""
        places = {0: self.place, **{rank: peer.place for rank, peer in self.peers.items()}}
        if places != self.standing[0]:
            self.standing = (places, now)
        seconds = now - self.standing[1]
        if seconds <= self.limit or any(phase == Phase.VALIDATE for _, phase in places.values()):
            return None
        return self._last_rank(seconds)

    def _last_rank(self, seconds: float) -> Verdict:
        places, _ = self.standing
        last = min(places, key=lambda rank: places[rank])
        step, phase = places[last]
        where = f"after step {step}" if phase == Phase.SAVE else f"in step {step + 1}"
        doing = Phase(phase).text
        return Verdict((last,), "stuck", f"rank {last} has made no progress for {seconds:.0f} s: {doing}, {where}")

    def _end(self, verdict: Verdict) -> None:
        """End this process. The main thread cannot: it is waiting for the lost rank."""
        self.verdict = verdict
        for rank, peer in self.peers.items():
            # A suspended (SIGSTOP) process ignores SIGTERM; the launcher would wait 30 s for it.
            if rank in verdict.ranks and peer.machine == _machine():
                with suppress(OSError):
                    os.kill(peer.pid, signal.SIGKILL)
        self._publish(verdict)
        try:
            self.give_up(verdict)
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _publish(self, verdict: Verdict) -> None:
        """Inform the other ranks why this one ends. Returns even if the store does not answer."""
        self.verdict = verdict
        self.wake.set()
        self.is_published.wait(2 * self.interval)
        if self.rank == 0:
            time.sleep(2 * self.interval)  # the store may end with this process; the others read it once per interval

    # In the main thread, after an error -------------------------------------------------------------------------------

    def publish_error(self, error: BaseException) -> None:
        """Inform the other ranks of the error that has ended this one."""
        if self.store is not None and not (self.rank == 0 and isinstance(error, _OF_ALL_RANKS)):
            first = "".join(str(error).strip().splitlines()[:1])
            if isinstance(error, CallbackError):
                verdict = Verdict((self.rank,), "raised", first)
            else:
                text = f"rank {self.rank} failed: {type(error).__name__}: {first:.300}"
                verdict = Verdict((self.rank,), "failed", text)
            self._publish(verdict)

    def find_cause(self, error: BaseException) -> Verdict | None:
        """Return the verdict if `error` came from another rank or a lost connection; None if it is this rank's own."""
        if self.store is None or not is_communication(error):
            return None
        while self.verdict is not None:  # the thread knows, and ends this process
            time.sleep(self.interval)
        deadline = time.monotonic() + _EVIDENCE_SECONDS
        while self.failure is None and time.monotonic() < deadline:
            time.sleep(self.interval / 4)
        if self.failure is not None:
            return self.failure
        now = time.monotonic()
        if now - self.contact > 3 * self.interval:
            return Verdict((0,), "unreachable", "rank 0 has died, or the network to it is cut")
        gone = tuple(rank for rank, peer in self.peers.items() if now - peer.heard > 3 * self.interval)
        if gone:
            names = f"{'rank' if len(gone) == 1 else 'ranks'} {', '.join(map(str, gone))}"
            verb = "has" if len(gone) == 1 else "have"
            return Verdict(gone, "died", f"{names} {verb} died (killed, or out of memory), or the network is cut")
        if self.rank == 0 and any(word in str(error) for word in _TIMEOUT) and self.standing[0]:
            return self._last_rank(now - self.standing[1])
        first = "".join(str(error).strip().splitlines()[:1])
        text = f"rank {self.rank} has lost the connection to another rank ({first:.300})"
        return Verdict((self.rank,), "disconnected", text)


def _machine() -> str:
    """Identify the machine and PID namespace: equal only for processes that can signal each other.

    Host names may repeat in containers.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().hex() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def is_communication(error: BaseException) -> bool:
    """Whether an error comes from the exchange between ranks, not from this rank's own work."""
    text = str(error)
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "NCCL", "Connection", *_TIMEOUT))
    )
