"""Hand-overs: payloads to hosts of this machine lie in a segment, and one call tells a host of all its own.

Hosts that reach each other over Unix sockets are processes of one user on one machine (the folder of the
sockets is open to nobody else). So bytes need not go through the socket: such a host is sent headers only.

A place in the segment is written again only when all receivers of the payload that lies there have taken it
in. A payload that a host did not take in at the hand-over is sent in calls of its own, as to any other host
(`Carrier`). So are all payloads to a host that cannot have the segment, which the log says once.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from p2pft_flower.transport.bodies import Body
from p2pft_flower.transport.calls import Call
from p2pft_flower.transport.edges import Edges
from p2pft_flower.transport.mailbox import ASK_EVERY, Edge
from p2pft_flower.transport.payloads import Carrier, Payload
from p2pft_flower.transport.segments import Segment
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import ExchangeError, UnsharedError

__all__ = ["HandOvers", "Outcome", "Rest"]

log = logging.getLogger(__name__)

_HEADERS = 2**15
"""Most bytes of headers in one call."""

Outcome = bytes | ExchangeError | None
"""The bytes of the answer to a payload's first try, or the error of that call; None: there was no try."""

Rest = Mapping[Edge, Future[None]]
"""Edge to the future of the calls, for each payload that a hand-over has not brought to its receiver."""


class HandOvers:
    """One host's payloads to other hosts of its machine.

    `in_place_of`, `lay` and `close` are the sending thread's; `hand_over` runs in the network's thread.
    ``_lock`` guards ``_hosts`` and ``_apart``.

    Parameters
    ----------
    run : str
        The run's identifier.
    addresses : mapping of int to str
        Remote peer to address.
    carry : callable
        Begins to send a payload in calls of its own, given the outcome of its first try, and returns the
        future of its end.
    """

    def __init__(
        self, run: str, addresses: Mapping[int, str], carry: Callable[[Payload, Outcome], Future[None]]
    ) -> None:
        self._run, self._carry = run, carry
        self._at_sockets = frozenset(p for p, address in addresses.items() if address.startswith("unix:"))
        self._lock = threading.Lock()
        self._hosts: Mapping[int, frozenset[int]] = MappingProxyType({})
        """Remote peer to all peers of its host, as that host told."""
        self._apart = frozenset[int]()
        """Peers whose hosts cannot have the segment."""
        self._segment: Segment | None = None
        self._no_memory = False
        self._lies_for: dict[Edge, tuple[Edge, ...]] = {}
        """Place in the segment to the edges along which the payload there goes."""

    def near(self, remotes: Iterable[int]) -> frozenset[int]:
        """Return those of the remote peers whose hosts share memory with this host, as far as it knows."""
        with self._lock:
            apart = self._apart
        return (self._at_sockets - apart).intersection(remotes)

    def in_place_of(self, sender: int, near: Collection[int]) -> tuple[Edge, ...]:
        """Return the edges of the payload that lies in the place of a payload from ``sender`` to ``near``.

        The place is that of the edge to the lowest receiver. Before another payload is laid there, the one
        that lies there must have been taken in along all its edges. Empty if none lies there.
        """
        return self._lies_for.get((sender, min(near)), ())

    def lay(
        self, edges: Edges, sender: int, near: Collection[int], payload: npt.NDArray[np.floating] | bytes
    ) -> Body | None:
        """Lay a payload in its place in the segment (`in_place_of`), and return its bytes there.

        Returns None if memory cannot be shared.

        Parameters
        ----------
        edges : Edges
            The edges of the present view: the first call since `close` makes a segment, with a place for each
            edge to a host of this machine.
        sender : int
            The local peer.
        near : collection of int
            The receivers, of hosts of this machine.
        payload : numpy.ndarray or bytes
            The payload, of no more bytes than the terms allow.
        """
        if self._no_memory:
            return None
        try:
            if self._segment is None:
                places = [(j, i) for j, receivers in edges.receivers.items() for i in self.near(receivers)]
                self._segment = Segment(places, edges.terms.largest)
            place = (sender, min(near))
            body = self._segment.lay(place, payload)
        except OSError as error:
            self._no_memory = True
            _say_sent(error)
            return None
        self._lies_for[place] = tuple((sender, receiver) for receiver in near)
        return body

    def close(self) -> None:
        """Give the segment up, if there is one; the payloads under way in it must have been cancelled."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        self._lies_for.clear()

    def calls(self, payloads: Iterable[Payload]) -> Iterator[tuple[pb.Segment, list[Payload]]]:
        """Yield the segment and the payloads of each call that is needed to hand ``payloads`` over."""
        if self._segment is None:
            return
        with self._lock:
            known = self._hosts
        hosts: defaultdict[frozenset[int], list[Payload]] = defaultdict(list)
        for payload in payloads:
            remote = payload.edge[1]
            hosts[known.get(remote) or frozenset({remote})].append(payload)
        for own in hosts.values():
            most = max(1, _HEADERS // (max(len(payload.header) for payload in own) + 32))
            for k in range(0, len(own), most):
                yield self._segment.described, own[k : k + most]

    async def hand_over(self, carrier: Carrier, segment: pb.Segment, payloads: list[Payload]) -> Rest:
        """Hand the payloads of one call over; return the payloads that were not taken in."""
        call = carrier.call(payloads[0])
        try:
            answer = await self._tell(carrier, segment, payloads, call)
        except UnsharedError as error:
            self._part(call.remote, error)
            return {p.edge: self._carry(p, None) for p in payloads}
        except ExchangeError as error:
            self._note({p.edge[1]: None for p in payloads})  # it may be another host by now
            return {p.edge: self._carry(p, copy.copy(error).at(**p.place)) for p in payloads}
        if answer is None or len(answer.failed) != len(answer.replies):
            return {p.edge: self._carry(p, None) for p in payloads}
        self._note(dict.fromkeys(answer.peers, frozenset(answer.peers)))
        # An answer that is none of these payloads' has each of them find its own.
        failed = {
            k: reply.SerializeToString() for k, reply in zip(answer.failed, answer.replies, strict=False)
        }
        return {p.edge: self._carry(p, failed[k]) for k, p in enumerate(payloads) if k in failed}

    async def _tell(
        self, carrier: Carrier, segment: pb.Segment, payloads: list[Payload], call: Call
    ) -> pb.HandedOver | None:
        """Make the call; return the answer, or None if patience with a receiver has ended."""
        request = pb.HandOver(run=self._run, sender=call.local, segment=segment)
        for payload in payloads:
            request.payloads.add(header=payload.header, offset=payload.offset, size=len(payload.body))
        calling = asyncio.ensure_future(carrier.channels.ask("HandOver", request, call))
        one_each = {payload.edge[1]: payload for payload in payloads}
        try:
            while not (await asyncio.wait({calling}, timeout=ASK_EVERY))[0]:
                try:
                    for payload in one_each.values():
                        carrier.ask(payload)
                except Exception:  # each payload's own call comes to it, and names its edge
                    return None
            return call.read(calling.result(), pb.HandedOver)
        finally:
            if not calling.done():
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)

    def _note(self, hosts: Mapping[int, frozenset[int] | None]) -> None:
        """Note, by remote peer, all peers of that peer's host; None: they are not known any more."""
        with self._lock:
            if all(self._hosts.get(remote) == peers for remote, peers in hosts.items()):
                return
            both = {**self._hosts, **hosts}
            self._hosts = {remote: peers for remote, peers in both.items() if peers}

    def _part(self, remote: int, error: UnsharedError) -> None:
        """Note that the host of ``remote`` cannot have the segment; log the first such ``error``."""
        with self._lock:
            first = not self._apart
            self._apart |= self._hosts.get(remote) or {remote}
        if first:
            _say_sent(error)


def _say_sent(error: Exception) -> None:
    told = str(error)  # not the error itself, which holds what was to be sent
    log.warning("payloads to hosts of this machine go through their sockets: no memory is shared (%s)", told)
