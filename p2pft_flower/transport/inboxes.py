"""The inbox of one edge: payloads that were checked, in the order of the positions that the edge carries."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = ["Carried", "Edge", "Inbox", "Received", "Waiting"]

Edge = tuple[int, int]


def _never(_: int) -> bool:
    return False


class Received(NamedTuple):
    """One payload.

    Attributes
    ----------
    vector : numpy.ndarray
        The payload's numbers, 1-D, of the terms' dtype; read-only: they may lie in the bytes that came off
        the wire, or belong to several payloads.
    share : float
        The sender's share for this receiver in an exchange by B; 1 in an exchange by A.
    """

    vector: npt.NDArray[np.floating]
    share: float


@dataclass
class Waiting:
    """A payload that was checked and has no room yet; its answer is set by the thread that makes room."""

    received: Received
    checksum: int
    edge: Edge
    answer: Future[pb.Reply] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.answer.set_running_or_notify_cancel()  # a caller that is gone must not cancel it


@dataclass(frozen=True)
class Carried:
    """The positions that an edge carries.

    These are all phases with vectors of some iterations, the same ones in every period; and before them, in
    each iteration that has tables, every phase with one. The first ``once`` of these phases are carried in
    iteration ``begin`` alone.
    """

    turns: tuple[bool, ...]  # whether the edge carries iteration k, by k modulo the number of turns
    phases: int
    rounds: int = 0  # the first phases, which carry tables
    tables: Callable[[int], bool] = _never  # whether an iteration has tables
    once: int = 0
    begin: int = 0

    def first(self, position: int) -> int:
        """Return the first position, from ``position`` on, that the edge carries."""
        iteration, phase = divmod(position, self.phases)
        while True:
            table = phase if iteration == self.begin else max(phase, self.once)
            if table < self.rounds and self.tables(iteration):
                return iteration * self.phases + table
            if self.turns[iteration % len(self.turns)]:
                return iteration * self.phases + max(phase, self.rounds)
            iteration, phase = iteration + 1, 0


@dataclass
class Inbox:
    """The payloads of one edge; guarded by the mailbox's lock, which `changed` shares."""

    changed: threading.Condition
    carried: Carried
    next_in: int  # position that must be delivered next
    next_out: int  # position that must be taken next
    last_in: int = -1  # position that was delivered last
    queue: deque[Received] = field(default_factory=deque)
    last_checksum: int | None = None
    waiting: Waiting | None = None
    refused: Counter[str] = field(default_factory=Counter)

    def put(self, received: Received, checksum: int) -> None:
        """Queue the payload of the next position, and wake the threads that wait for it."""
        self.queue.append(received)
        self.last_in, self.next_in = self.next_in, self.carried.first(self.next_in + 1)
        self.last_checksum = checksum
        self.changed.notify_all()

    def answer(self, reply: pb.Reply) -> None:
        """Answer the payload that waits for room, if one does."""
        if self.waiting is not None:
            self.waiting.answer.set_result(reply)
            self.waiting = None
