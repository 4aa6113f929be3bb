"""Signs of life of the ranks, through the process group's store: a rank that dies, hangs or is cut off is named.

The job then ends within `train.rank_timeout`, rather than wait for it.
"""

import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import distributed

from accel_restore.data.loader import TrainLoader
from accel_restore.errors import AuditError, DivergedError, RunAbortedError, UserError
from accel_restore.state import Callback, TrainState

_SHARE = 0.9  # of the timeout, after which a rank is given up; torch's own collectives fail at the whole
_EVIDENCE_SECONDS = 5.0  # how long to look for the rank that caused an error here
_LEAVE_SECONDS = 15.0  # for the main thread to notice that another rank has failed
_OF_ALL_RANKS = (
    UserError,
    DivergedError,
    RunAbortedError,
    AuditError,
)  # as a rule: nobody is to be told, and to wait for that
_TIMEOUT = ("Timed out", "Application timeout")  # gloo's words
_PHASES = ("logging or saving", "waiting for data", "computing", "exchanging gradients", "validating")
_SAVE, _DATA, _COMPUTE, _EXCHANGE, _BETWEEN = range(5)  # after the step before; of a step; after an epoch


@dataclass
class _Peer:
    """What is known of a rank, and when (by this rank's clock) it has last shown something new."""

    beat: int = -1
    place: tuple[int, int] = (0, 0)  # step, phase
    host: str = ""
    machine: str = ""
    pid: int = 0
    heard: float = 0.0
    moved: float = 0.0


class RankMonitor(Callback):
    """Threads that tell the others how far this rank is, and hear how far they are; only with several ranks.

    The main process hears all ranks, the others the main process, so that the traffic grows with the ranks and not
    with their square.
    """

    def __init__(self, accelerator: Accelerator, timeout: float, give_up: Callable[[str], None]):
        """`give_up` is called with the reason on the rank that tells it, before the process ends."""
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.interval, self.give_up = min(1.0, timeout / 20), give_up
        self.limit = min(_SHARE * timeout, timeout - 6 * self.interval)  # to hear, to judge, and to let others know
        self.place, self.training = (0, _BETWEEN), False
        self.peers = {rank: _Peer() for rank in range(self.world_size) if rank != self.rank}
        if self.rank != 0:
            self.peers = {0: self.peers[0]}
        self.failure: str | None = None  # what a rank has said before it ended
        self.failed_at = 0.0
        self.standing: tuple[dict, float] = ({}, 0.0)  # where all ranks are, and since when
        self.contact = time.monotonic()  # the last answer of the store
        self.ended = threading.Event()
        self.verdict: str | None = None  # why this rank ends the run, for the others
        self.wake, self.is_told = threading.Event(), threading.Event()
        self.store: Any = None  # with several ranks

    def start(self) -> None:
        if self.world_size == 1:
            return
        self.store = distributed.distributed_c10d._get_default_store().clone()  # a connection of its own
        processes = gather_object([(socket.gethostname(), _machine(), os.getpid())])
        now = time.monotonic()
        for rank, peer in self.peers.items():
            peer.host, peer.machine, peer.pid = processes[rank]
            peer.heard = peer.moved = now
        for work in (self._talk, self._watch):
            threading.Thread(target=work, name="accel-restore-watch", daemon=True).start()

    def close(self) -> None:
        """Stop watching: the run has ended."""
        self.ended.set()
        self.wake.set()

    @property
    def is_validating(self) -> bool:
        return self.training and self.place[1] == _BETWEEN

    def on_step(self, state: TrainState) -> None:
        self.place = (state.step, _SAVE)

    def on_validation(self, state: TrainState) -> None:
        self.place = (state.step, _BETWEEN)

    def on_epoch(self, state: TrainState, record: dict) -> None:
        self.place = (state.step, _SAVE)

    def observe(self, loader: TrainLoader, state: TrainState) -> None:
        """Note from now on whether this rank waits for data, computes, or has done its part of a step."""
        steps = loader.steps

        def noted(micro_batches: Iterator[dict]) -> Iterator[dict]:
            for batch in micro_batches:
                self.place = (state.step, _COMPUTE)
                yield batch

        def observed(*arguments: int) -> Iterator[Iterator[dict]]:
            self.place = (state.step, _DATA)
            for micro_batches in steps(*arguments):
                yield noted(micro_batches)
                self.place = (state.step, _DATA)
            self.place = (state.step, _BETWEEN)

        def ready(_: torch.Tensor) -> None:
            self.place = (state.step, _EXCHANGE)

        loader.steps = observed
        if self.world_size > 1:
            first = next(parameter for parameter in state.model.parameters() if parameter.requires_grad)
            first.register_post_accumulate_grad_hook(ready)  # of the layer next to the input, whose gradient is last
        self.training = True

    # In the threads --------------------------------------------------------------------------------------------------

    def _talk(self) -> None:
        """Exchange signs of life with the store; may hang with the host that holds it."""
        with suppress(distributed.DistError, RuntimeError):  # the store is gone, for good: judged by its silence
            for beat in itertools.count():
                self.wake.wait(self.interval)
                self.wake.clear()
                if self.ended.is_set():
                    return
                self._exchange(beat)
                self.contact = time.monotonic()

    def _watch(self) -> None:
        while not self.ended.wait(self.interval):
            if (reason := self._judge()) is not None and not self.ended.is_set():
                self._end(reason)

    def _exchange(self, beat: int) -> None:
        if self.verdict is not None and not self.is_told.is_set():
            self.store.compare_set("failure", "", self.verdict)
            self.is_told.set()
        self.store.set(f"life/{self.rank}", json.dumps({"beat": beat, "place": self.place}))
        now = time.monotonic()
        keys = [f"life/{rank}" for rank in self.peers]
        if self.store.check(keys):
            for peer, text in zip(self.peers.values(), self.store.multi_get(keys), strict=True):
                told = json.loads(text)
                if told["beat"] != peer.beat:
                    peer.beat, peer.heard = told["beat"], now
                if tuple(told["place"]) != peer.place:
                    peer.place, peer.moved = tuple(told["place"]), now
        if self.failure is None and self.store.check(["failure"]):
            self.failure, self.failed_at = self.store.get("failure").decode(), now

    def _judge(self) -> str | None:
        """Why the run must end, or None."""
        now = time.monotonic()
        if self.failure is not None and now - self.failed_at > _LEAVE_SECONDS:
            return self.failure
        rank, peer = min(self.peers.items(), key=lambda item: item[1].heard)
        silence = now - peer.heard  # no shorter than the store's, through which a rank is heard
        if silence > self.limit:
            if now - self.contact > 3 * self.interval:
                return f"rank 0, or the network to it, has been out of reach for {now - self.contact:.0f} s"
            return f"rank {rank} on {peer.host} has given no sign of life for {silence:.0f} s"
        if self.rank == 0 and self.training:
            return self._stuck(now)
        return None

    def _stuck(self, now: float) -> str | None:
        """The rank that the others wait for, where none has come further for too long."""
        places = {0: self.place, **{rank: peer.place for rank, peer in self.peers.items()}}
        if places != self.standing[0]:
            self.standing = (places, now)
        seconds = now - self.standing[1]
        if seconds <= self.limit or any(phase == _BETWEEN for _, phase in places.values()):
            return None
        return self._behind(seconds)

    def _behind(self, seconds: float) -> str:
        places, _ = self.standing
        last = min(places, key=places.get)
        step, phase = places[last]
        where = f"after step {step}" if phase == _SAVE else f"in step {step + 1}"
        return f"rank {last} has stood {where}, {_PHASES[phase]}, for {seconds:.0f} s"

    def _end(self, reason: str) -> None:
        """End this process from the thread: the main thread waits for a rank that will not come."""
        self.verdict = reason
        for rank, peer in self.peers.items():
            # A stopped process would not hear the launcher's SIGTERM, and hold up the end for another half a minute.
            if _is_about(rank, reason) and peer.machine == _machine():
                with suppress(OSError):
                    os.kill(peer.pid, signal.SIGKILL)
        self._publish(reason)
        try:
            self.give_up(reason)
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _publish(self, reason: str) -> None:
        """Let the other ranks know why this one ends; returns where the store does not answer, too."""
        self.verdict = reason
        self.wake.set()
        self.is_told.wait(2 * self.interval)
        if self.rank == 0:
            time.sleep(2 * self.interval)  # the store may end with this process; the others ask it once an interval

    # In the main thread, after an error -------------------------------------------------------------------------------

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks what has ended this one."""
        if self.store is not None and not (self.rank == 0 and isinstance(error, _OF_ALL_RANKS)):
            first = str(error).strip().splitlines()[:1]
            self._publish(f"rank {self.rank} failed: {type(error).__name__}: {''.join(first):.300}")

    def cause(self, error: BaseException) -> str | None:
        """What happened on another rank, where that is why `error` was raised on this one."""
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
            return "rank 0 has died, or the network to it is cut"
        gone = [rank for rank, peer in self.peers.items() if now - peer.heard > 3 * self.interval]
        if gone:
            return f"rank {', '.join(map(str, gone))} has died (killed, or out of memory), or is cut off"
        if self.rank == 0 and any(word in str(error) for word in _TIMEOUT) and self.standing[0]:
            return self._behind(now - self.standing[1])
        return f"rank {self.rank} has lost the connection to another rank"


def tells(rank: int, reason: str) -> bool:
    """Whether it is for this rank to tell the user a reason: the main process, or the next where it is about that."""
    return rank == (1 if _is_about(0, reason) else 0)


def _machine() -> str:
    """What two processes share only where one can signal the other; hosts and containers may have the same name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _is_about(rank: int, reason: str) -> bool:
    return re.match(rf"rank {rank}\b", reason) is not None


def is_communication(error: BaseException) -> bool:
    """Whether an error is one of the exchange between ranks, rather than of this rank's own work."""
    text = str(error)
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "NCCL", "Connection", *_TIMEOUT))
    )
