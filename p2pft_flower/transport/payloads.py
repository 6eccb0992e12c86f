"""Payloads on their way: one task an edge, which sends its payload until it is taken in or given up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pft_flower.transport.calls import Call, Channels
from p2pft_flower.transport.mailbox import ASK_EVERY, Edge, Patience
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import (
    CorruptedError,
    EdgeBrokenError,
    ExchangeError,
    ExchangeRefusedError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    OtherViewError,
    PeerUnreachableError,
    Place,
    UnansweredError,
)
from p2pft_flower.transport.wire.header import HEADER_KEY

__all__ = ["Carrier", "Deadlines", "Payload"]

log = logging.getLogger(__name__)

_PAUSE = 0.1
"""Seconds until a payload that was not taken in is sent again."""

_LONG_PAUSE = 0.5
"""Seconds until a payload is sent again whose receiver is stopping, or whose call failed in no known way."""

_NOT_YET = (ExchangeTimeoutError, PeerUnreachableError, OtherViewError)
"""Errors that may pass: a payload is sent again as long as there is patience with its receiver."""

_CORRUPTED = 10
"""Number of times that one payload may arrive altered before its link is given up: then it is no accident."""


@dataclass(frozen=True)
class Payload:
    """One payload to one receiver, in as many calls as it needs.

    Attributes
    ----------
    edge : (int, int)
        Sender and receiver.
    header : bytes
        The bytes of the header.
    body : bytes or memoryview
        The payload's bytes; a view of the segment if they lie in one.
    iteration : int
        The iteration.
    phase : str
        The exchange's name.
    offset : int, optional
        The place, in bytes, at which the body begins in this host's segment; default None: in no segment.
    begun : float
        The time, by time.monotonic, at which its sending begins; default: now.
    """

    edge: Edge
    header: bytes
    body: bytes | memoryview
    iteration: int
    phase: str
    offset: int | None = None
    begun: float = field(default_factory=time.monotonic, compare=False)

    @property
    def place(self) -> Place:
        """The payload's place in the run, for errors."""
        return Place(peer=self.edge[0], edge=self.edge, iteration=self.iteration, phase=self.phase)


class Deadlines:
    """Deadlines of calls that carry a vector: longer on edges that have needed more time.

    Only the network's thread uses it.

    Parameters
    ----------
    timeout, longest : float
        The least and the longest deadline, in seconds; the longest counts as ``timeout`` if it is less.
    """

    def __init__(self, timeout: float, longest: float) -> None:
        self.least, self.longest = timeout, max(timeout, longest)
        self._needed: dict[Edge, float] = {}
        self._logged: set[tuple[Edge, str]] = set()

    def of(self, edge: Edge) -> float:
        """Return the deadline of the next call along an edge, in seconds."""
        return max(self.least, self._needed.get(edge, 0.0))

    def most(self) -> float:
        """Return the deadline of the edge that has needed the longest one, in seconds."""
        return max([self.least, *self._needed.values()])

    def lengthen(self, edge: Edge, deadline: float, size: int) -> None:
        """Note that ``size`` bytes did not get through in ``deadline`` seconds; the next gets twice that."""
        self._needed[edge] = min(2 * deadline, self.longest)
        self.log_once(
            edge,
            "slow",
            f"edge {edge[0]} -> {edge[1]} is slow: {_size(size)} did not get through within "
            f"{deadline:g} s, so it carries less than {_rate(size, deadline)}, or loses large packets; "
            f"from now on it has longer, up to {self.longest:g} s (hang-timeout)",
        )

    def log_once(self, edge: Edge, kind: str, text: str) -> None:
        """Log ``text`` as a warning, once for each edge and kind."""
        if (edge, kind) not in self._logged:
            self._logged.add((edge, kind))
            log.warning("%s (logged once an edge)", text)


@dataclass(frozen=True)
class Carrier:
    """Carries payloads, in the network's thread.

    Attributes
    ----------
    channels : Channels
        The way to the receivers.
    deadlines : Deadlines
        The deadlines of the calls.
    patience, speaks, views_change
        As for `Links`.
    """

    channels: Channels
    deadlines: Deadlines
    patience: Patience | None
    speaks: Callable[[int], bool]
    views_change: bool

    async def carry(self, payload: Payload, first: bytes | ExchangeError | None = None) -> None:
        """Send a payload until it is taken in.

        Parameters
        ----------
        payload : Payload
            The payload.
        first : bytes or ExchangeError, optional
            The outcome of a first try that was made elsewhere: the answer, or the error of the call.

        Raises
        ------
        ExchangeError
            When the payload is refused; without patience, when a call failed.
        EdgeBrokenError
            When the payload does not get through though its receiver speaks.
        Exception
            The error that ``patience`` returned.
        """
        stuck = 0.0  # seconds of trying since a call last got through, even if answered "later"
        corrupted = 0
        while True:
            call, begun = self.call(payload), time.monotonic()
            raw = None
            try:
                if isinstance(first, ExchangeError):
                    raise first
                raw = await self._once(payload, call) if first is None else first
                call.read(raw, pb.Reply)
            except ExchangeError as error:
                failure, first = error, None
            else:
                return
            altered = isinstance(failure, CorruptedError)
            corrupted += altered
            if not altered and not self._may_pass(failure):
                raise failure
            if corrupted >= _CORRUPTED:
                if self.patience is None:
                    raise failure
                raise self._broken(
                    payload,
                    f"a payload arrived altered {corrupted} times, which is no accident",
                    "what alters bytes on the way there, a memory, a network card or somebody?",
                )
            pause = _PAUSE if altered or isinstance(failure, _NOT_YET) else _LONG_PAUSE
            await asyncio.sleep(pause)
            self.ask(payload)
            # No try is longer than this; a process that was stopped meanwhile (SIGSTOP) did not try.
            tried = min(time.monotonic() - begun, call.deadline + pause)
            stuck = 0.0 if raw is not None and not altered else stuck + tried
            self._look_at_link(payload, call, failure, stuck)

    async def deliver(self, payload: Payload, call: Call) -> bytes:
        """Send a payload once, and return the answer's bytes."""
        header = ((HEADER_KEY, payload.header),)
        return await self.channels.ask("Deliver", bytes(payload.body), call, metadata=header)

    def call(self, payload: Payload) -> Call:
        """Return the next call that carries a payload."""
        edge, remote = payload.edge, payload.edge[1]
        address, deadline = self.channels.addresses[remote], self.deadlines.of(edge)
        return Call(edge, remote, address, deadline, payload.iteration, payload.phase)

    async def _once(self, payload: Payload, call: Call) -> bytes:
        """Return the answer to one call with a payload; raise an error of ``patience`` meanwhile."""
        sending = asyncio.ensure_future(self.deliver(payload, call))
        try:
            while not (await asyncio.wait({sending}, timeout=ASK_EVERY))[0]:
                self.ask(payload)
            return sending.result()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def ask(self, payload: Payload) -> None:
        """Raise the error that ``patience`` returns for the receiver, if it returns one."""
        lost = None if self.patience is None else self.patience(payload.edge[1])
        if isinstance(lost, ExchangeError):
            lost.at(**payload.place)
        if lost is not None:
            raise lost

    def _may_pass(self, error: ExchangeError) -> bool:
        """Return whether a payload whose call ended with ``error`` is sent again while there is patience."""
        if self.patience is None:
            return False
        # If views change, a receiver that ends need not end this host; and a stop comes as a Stop.
        return isinstance(error, _NOT_YET) or (
            self.views_change and not isinstance(error, ExchangeRefusedError)
        )

    def _look_at_link(self, payload: Payload, call: Call, error: ExchangeError, stuck: float) -> None:
        """Judge a payload's edge by its last call: give it up, or give the next call more time.

        Raises
        ------
        EdgeBrokenError
            When nothing has got through in ``stuck`` seconds of trying, and that is too long.
        """
        size = len(payload.body)
        if self.patience is not None and stuck >= 2 * self.deadlines.longest:
            raise self._broken(
                payload,
                f"a payload of {_size(size)} has not got through for {stuck:.0f} s, in calls of "
                f"up to {call.deadline:g} s; the last one: {error.problem}",
                f"does the way there lose large packets (MTU, a proxy's limit), or carry less than "
                f"{_rate(size, call.deadline)}? Mend it, or raise hang-timeout",
            )
        if isinstance(error, UnansweredError) and self.speaks(payload.edge[1]):
            self.deadlines.lengthen(payload.edge, call.deadline, size)
        elif not isinstance(error, (*_NOT_YET, CorruptedError, ExchangeStoppedError)):
            again = f"{error}; it is sent again, for as long as the receiver is there"
            self.deadlines.log_once(payload.edge, "failed", again)

    def _broken(self, payload: Payload, problem: str, remedy: str) -> EdgeBrokenError:
        told = f"this edge is broken, though peer {payload.edge[1]} speaks: {problem}; {remedy}"
        return EdgeBrokenError(told, **payload.place).at(deadline=2 * self.deadlines.longest)


def _size(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e6:.3g} MB" if count >= 100_000 else f"{count} bytes"


def _rate(count: int, seconds: float) -> str:
    """Return the rate of ``count`` bytes in ``seconds``, for people."""
    return f"{8e-6 * count / seconds:.3g} Mbit/s"
