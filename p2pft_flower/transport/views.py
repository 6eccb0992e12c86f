"""The present view of a server: its mailbox and neighbours, the θ on offer, and the calls that wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from p2pft_flower.transport.mailbox import Edge, Mailbox
from p2pft_flower.transport.network import Tasks

__all__ = ["Offer", "View", "Views"]


class Offer(NamedTuple):
    """The θ of this host's peers at the view's beginning, which other peers of the view may fetch.

    Attributes
    ----------
    iteration : int
        The iteration with which the view begins.
    thetas : mapping of int to numpy.ndarray
        Local peer to θ, (q,), of the terms' dtype.
    to : frozenset of int
        The peers that may fetch.
    """

    iteration: int
    thetas: Mapping[int, npt.NDArray[np.floating]]
    to: frozenset[int]


class View(NamedTuple):
    """A view's mailbox, neighbours and offer; replaced as a whole."""

    mailbox: Mailbox
    neighbours: frozenset[Edge]
    """(remote, local) of every pair of neighbours, with an edge in either direction."""
    offer: Offer | None = None

    @classmethod
    def of(cls, mailbox: Mailbox, out_edges: Iterable[Edge]) -> Self:
        """Return the view of a mailbox and of the edges that leave this host."""
        return cls(mailbox, frozenset({*mailbox.edges, *((remote, local) for local, remote in out_edges)}))


class Views:
    """The present view; replaced from any thread, waited for in the network's.

    ``_lock`` guards ``_view`` and ``closed``; ``_waiters`` is the network's thread's alone.
    """

    def __init__(self, tasks: Tasks, view: View) -> None:
        self._tasks = tasks
        self._lock = threading.Lock()
        self._view = view
        self.closed = False
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def now(self) -> View:
        """The present view."""
        with self._lock:
            return self._view

    def replace(self, change: Callable[[View], View]) -> None:
        """Replace the view by the result of ``change``, and wake all that wait."""
        with self._lock:
            self._view = change(self._view)
        self._tasks.call(self._wake)

    def close(self) -> None:
        """Wake all that wait; from here on nothing waits."""
        with self._lock:
            self.closed = True
        self._tasks.call(self._wake)

    async def until(self, true: Callable[[View], bool], timeout: float) -> bool:
        """Wait until ``true`` returns True for the present view, or no view will come any more.

        Returns False if that takes longer than ``timeout`` seconds, else True.
        """
        end = time.monotonic() + timeout
        while not (self.closed or true(self.now)):
            left = end - time.monotonic()
            if left <= 0:
                return False
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait({waiter}, timeout=left)
            finally:
                self._waiters.discard(waiter)
        return True

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
