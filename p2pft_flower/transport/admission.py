"""Admission of callers, and the share of this host that each may hold: decided by headers, before a body."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from p2pft_flower.transport.endpoint import Incoming
from p2pft_flower.transport.trust.certificates import Identity
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import Refused

__all__ = ["Caller", "Shares", "Throttle", "recognise"]

_CALLERS = 1024
"""Most callers that a throttle remembers, so that strangers cannot make it grow."""


@dataclass(frozen=True)
class Caller:
    """The caller of a call, by the call's headers.

    Attributes
    ----------
    name : str
        The name under which the caller is counted: the holder of the certificate, else the connection.
    who : Identity or None
        The holder of the certificate; None if the connection needs none.
    local : bool
        Whether the call came through a Unix socket, which only this user can reach: no certificate is needed.
    """

    name: str
    who: Identity | None = None
    local: bool = False

    @property
    def place(self) -> str:
        """The caller's name in the log; without certificates, one name for all connections from a machine."""
        return self.name if self.who is not None or self.local else self.name.rpartition(":")[0]


def recognise(call: Incoming, credentials: Credentials | None) -> Caller:
    """Return the caller of a call.

    Raises
    ------
    Refused
        When ``credentials`` are given, and a connection over TCP does not prove the caller's identity.
    """
    if credentials is None or call.local:
        return Caller(call.peer, None, call.local)
    who = credentials.identify(call.auth_context())
    return Caller(who.name, who)


class Shares:
    """The calls that each caller holds; if a caller has too many of one method, the oldest one is ended.

    Only the network's thread uses it.

    Parameters
    ----------
    most : callable
        Given a method's name, returns the number of its calls that one caller may hold.
    """

    def __init__(self, most: Callable[[str], int]) -> None:
        self._most = most
        self._held: defaultdict[tuple[str, str], deque[asyncio.Task[Any]]] = defaultdict(deque)
        self._displaced: set[asyncio.Task[Any]] = set()

    async def hold(self, caller: Caller, method: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do ``work()`` as one of the caller's calls, and return its result.

        Raises
        ------
        Refused
            When newer calls of the caller took its place.
        """
        key = (caller.name, method)
        held = self._held[key]
        while len(held) >= self._most(method):
            oldest = held.popleft()
            self._displaced.add(oldest)
            oldest.cancel()
        task = asyncio.ensure_future(work())
        held.append(task)
        try:
            return await task
        except asyncio.CancelledError:
            if task not in self._displaced:
                raise
            raise Refused(
                pb.THROTTLED, f"newer calls of {caller.name} took this one's place: it may hold no more"
            ) from None
        finally:
            self._displaced.discard(task)
            if task in held:
                held.remove(task)
            if not held:
                self._held.pop(key, None)


class Throttle:
    """Leaky-bucket limiter of callers whose messages keep being refused.

    ``_lock`` guards ``_levels``.

    Parameters
    ----------
    burst : int
        Refusals that may come at once.
    rate : float
        Refusals a second that may go on for ever.
    clock : callable
        The time in seconds; default time.monotonic.
    """

    def __init__(
        self, burst: int = 32, rate: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._rate, self._clock = burst, rate, clock
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller: refusals, when

    def is_closed(self, caller: str) -> bool:
        """Return whether calls of ``caller`` are refused now."""
        with self._lock:
            return self._level(caller) >= self._burst

    def refused(self, caller: str) -> None:
        """Note that a message of ``caller`` was refused."""
        with self._lock:
            # Up to a bound: however many calls were under way at once, the caller is heard again soon.
            self._levels[caller] = (
                min(self._level(caller) + 1, self._burst + 10 * self._rate),
                self._clock(),
            )
            self._levels.move_to_end(caller)
            while len(self._levels) > _CALLERS:
                self._levels.popitem(last=False)

    def _level(self, caller: str) -> float:
        level, when = self._levels.get(caller, (0.0, 0.0))
        return max(0.0, level - self._rate * (self._clock() - when))
