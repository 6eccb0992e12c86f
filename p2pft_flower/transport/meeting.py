"""Before training: greet every neighbour, again and again, until all have agreed to the terms."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from p2pft_flower.transport.calls import Call, Channels
from p2pft_flower.transport.mailbox import Edge
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import (
    ExchangeError,
    ExchangeRefusedError,
    ExchangeTimeoutError,
    PeerPreparingError,
    PeerUnreachableError,
)
from p2pft_flower.transport.wire.header import Terms

__all__ = ["MEET_REMEDY", "Meeting"]

log = logging.getLogger(__name__)

MEET_REMEDY = "is its host running, is the address right and reachable from here? Otherwise allow more time"

_AGAIN = 0.5
"""Seconds until a neighbour that was not there is greeted again."""

_AT_ONCE = 32
"""Greetings under way at once: a host that prepares keeps each of them a moment, in a few threads."""

_NO_HANDSHAKE = ("Tls handshake failed", "Verification Check failed", "CERTIFICATE_VERIFY_FAILED")
"""Parts of gRPC's messages if TLS fails on this side."""


@dataclass
class _Greeting:
    """The greeting of one neighbour so far."""

    edge: Edge
    local: int
    remote: int
    end: float = math.inf
    """Time at which the neighbour is given up (time.monotonic); not before its greeting has begun."""
    agreed: bool = False
    last: ExchangeError | None = None
    """The last error of greeting the neighbour."""


@dataclass(frozen=True)
class Meeting:
    """One round of greetings, in the network's thread; `Links.meet` describes the parameters of `run`.

    Attributes
    ----------
    channels : Channels
        The way to the neighbours.
    credentials : Credentials or None
        This host's certificate, and the authorities that it trusts.
    terms : Terms
        The terms to which every neighbour must agree.
    pairs : mapping of (int, int) to (int, int)
        (local, remote) of each pair of neighbours to the edge that names the pair in messages.
    awaited : set of int
        Neighbours of which the log has said that this host waits for them; `run` adds to them.
    """

    channels: Channels
    credentials: Credentials | None
    terms: Terms
    pairs: Mapping[Edge, Edge]
    awaited: set[int]

    async def run(self, timeout: float, remedy: str, stage: int) -> None:
        """Greet all neighbours, :data:`_AT_ONCE` at once, until all agree.

        Raises
        ------
        PeerUnreachableError
            When a neighbour is given up; `_greet` describes when.
        ExchangeError
            When trying again is of no use.
        """
        greetings = [_Greeting(edge, *pair) for pair, edge in self.pairs.items()]
        turns = asyncio.Semaphore(_AT_ONCE)
        tasks = [asyncio.ensure_future(self._greet_in_turn(turns, g, timeout, stage)) for g in greetings]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done() and not isinstance(task.exception(), _GivenUpError):
                    task.result()  # raises errors after which trying again is of no use
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        lost = sorted(
            (g for g in greetings if not g.agreed and g.end <= time.monotonic()), key=lambda g: g.edge
        )
        if not lost:
            return
        first = lost[0]
        others = f" (and {len(lost) - 1} more edges)" if len(lost) > 1 else ""
        address = self.channels.addresses[first.remote]
        problem = first.last.problem if first.last else f"no answer from peer {first.remote} at {address}"
        raise PeerUnreachableError(
            f"could not meet{others}: {problem}; {remedy}",
            peer=first.local,
            edge=first.edge,
            deadline=timeout,
        ) from first.last

    async def _greet_in_turn(
        self, turns: asyncio.Semaphore, greeting: _Greeting, timeout: float, stage: int
    ) -> None:
        async with turns:
            greeting.end = time.monotonic() + timeout
            await self._greet(greeting, timeout, stage)

    async def _greet(self, greeting: _Greeting, timeout: float, stage: int) -> None:
        """Greet one neighbour until it agrees.

        Raises
        ------
        _GivenUpError
            When the neighbour is silent, or prepares without progress, for too long.
        ExchangeError
            When trying again is of no use.
        """
        progress = None
        while (left := greeting.end - time.monotonic()) > 0:
            try:
                await self._hello(greeting, timeout, left, stage)
            except PeerPreparingError as error:
                greeting.last = error
                self._log_waiting(greeting.remote)
                if error.progress != progress:
                    progress, greeting.end = error.progress, time.monotonic() + timeout
                continue  # it kept the hello a moment
            except (ExchangeTimeoutError, PeerUnreachableError) as error:
                # A last call with little time left knows less than the one before it.
                short = isinstance(error, ExchangeTimeoutError) and left < timeout / 2
                if not short or greeting.last is None:
                    greeting.last = error
            else:
                greeting.agreed = True
                return
            await asyncio.sleep(max(0.0, min(_AGAIN, greeting.end - time.monotonic())))
        raise _GivenUpError

    async def _hello(self, greeting: _Greeting, timeout: float, left: float, stage: int) -> None:
        """Say hello once; raise an error unless the neighbour agrees."""
        terms, remote = self.terms, greeting.remote
        hello = pb.Hello(
            run=terms.run,
            view=terms.view,
            sender=greeting.local,
            receiver=remote,
            config=terms.config,
            length=terms.length,
            dtype=terms.wire_dtype,
            phases=terms.phases,
            stage=stage,
        )
        call = Call(greeting.edge, remote, self.channels.addresses[remote], timeout)
        try:
            # Not wait_for_ready: a call that waits for a connection never says why there is none.
            raw = await self.channels.ask("Hello", hello, call, within=left, wait_for_ready=False)
        except PeerUnreachableError as error:
            if (cause := await self._tls_cause(call, error)) is not None:
                problem = f"no TLS with peer {remote} at {call.address}: {cause}"
                raise call.error(ExchangeRefusedError, problem) from error
            raise
        call.read(raw, pb.Reply)

    async def _tls_cause(self, call: Call, error: ExchangeError) -> str | None:
        """Return the reason why there is no TLS with a neighbour; None if ``error`` has another cause."""
        if self.credentials is None:
            return None
        # gRPC says what is not accepted here. If the other end refuses this host, it says "Socket closed"
        # only. A connection that is refused may come to be.
        ours = any(sign in error.problem for sign in _NO_HANDSHAKE)
        if not ours and "Socket closed" not in error.problem:
            return None
        cause = await asyncio.to_thread(self.credentials.diagnose, call.address, call.remote)
        return cause or (error.problem if ours else None)

    def _log_waiting(self, remote: int) -> None:
        if remote not in self.awaited:
            self.awaited.add(remote)
            address = self.channels.addresses[remote]
            log.info("waiting for peer %d at %s, which is not ready to train yet", remote, address)


class _GivenUpError(Exception):
    """A neighbour is not waited for any longer."""
