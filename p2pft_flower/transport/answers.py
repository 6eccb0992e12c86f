"""A host's answers to the calls that it has let in: Deliver, HandOver, Hello, Stop, Gossip, Fetch."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from p2pft_flower.errors import cause_of, printable
from p2pft_flower.transport.admission import Caller
from p2pft_flower.transport.bodies import Body
from p2pft_flower.transport.endpoint import Incoming
from p2pft_flower.transport.segments import Segments
from p2pft_flower.transport.stops import has_key
from p2pft_flower.transport.views import View, Views
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import Refused, ViewChangeError, cause_from
from p2pft_flower.transport.wire.header import HEADER_KEY, Terms, decode_header, fetched

__all__ = ["Answers"]

M = TypeVar("M", pb.HandOver, pb.Hello, pb.Stop, pb.Gossip, pb.Fetch)
T = TypeVar("T")

_LONG = 2**20
"""Bytes of a hand-over from which on its payloads are copied in a thread, so that nothing is held up."""

_KEPT = 1.0
"""Seconds that a payload or a fetch of a later view is kept before it is answered LATER."""


@dataclass(frozen=True)
class Answers:
    """Answers calls whose callers were let in; each method raises `Refused` if it refuses.

    Attributes
    ----------
    views : Views
        The present view.
    local, members : frozenset of int
        This host's peers, and those of the run.
    on_hello, on_stop, on_gossip, on_look : callable or None
        The runtime's callbacks; see `PeerServer`.
    stop_digest, look_digest : str
        Digests of the keys by which the coordinator may stop the run, and look at it.
    timeout, longest : float
        Longest wait of a payload for room, and longest time that its body may take, in seconds.
    gossip_limit : int
        Bytes of the largest gossip that is read.
    pool : ThreadPoolExecutor
        The threads in which the runtime's callbacks run.
    segments : Segments
        Segments of other hosts of this machine.
    """

    views: Views
    local: frozenset[int]
    members: frozenset[int]
    on_hello: Callable[[pb.Hello], pb.Reply | None] | None
    on_stop: Callable[[pb.Stop], None] | None
    on_gossip: Callable[[pb.Gossip], pb.Gossip] | None
    on_look: Callable[[pb.Gossip], pb.Gossip] | None
    stop_digest: str
    look_digest: str
    timeout: float
    longest: float
    gossip_limit: int
    pool: ThreadPoolExecutor
    segments: Segments

    def knows(self, peer: int | None) -> bool:
        """Return whether a remote peer is a neighbour, or may become one in a later view."""
        return peer in self.members or any(peer == remote for remote, _ in self.views.now.neighbours)

    def shows_key(self, call: Incoming, method: str = "Stop") -> bool:
        """Return whether a call of ``method``, Stop or Look, shows the run's key for it."""
        look = method == "Look"
        return has_key(call.metadata, self.look_digest if look else self.stop_digest, look=look)

    async def deliver(self, call: Incoming, caller: Caller) -> pb.Reply:
        """Take a payload in, or answer with the reason; wait for room and, for a moment, for its view."""
        header = call.metadata.get(HEADER_KEY)
        if not header:
            raise Refused(pb.BAD_HEADER, f"metadata key {HEADER_KEY} is missing")
        peer = None if caller.who is None else caller.who.peer
        payload = await call.read(min(self.longest, call.left()))
        (reply,) = await self._take_in(call, [(header, Body(payload))], peer)
        return reply

    async def hand_over(self, call: Incoming, caller: Caller) -> pb.HandedOver | pb.Reply:
        """Take payloads in, each as `deliver` does, that a host of this machine has laid in its segment."""
        if not caller.local:
            raise Refused(pb.UNSHARED, "a hand-over that did not come through a Unix socket")
        handed = await self._message(call, pb.HandOver, "a hand-over", caller)
        if len(handed.payloads) > self.segments.most:
            reason = f"a hand-over of {len(handed.payloads)} payloads, at most {self.segments.most} come here"
            raise Refused(pb.WRONG_LENGTH, reason)
        terms = self.views.now.mailbox.terms
        if sum(laid.size for laid in handed.payloads) < _LONG:
            messages = self._copies(handed, terms)
        else:
            messages = await asyncio.to_thread(self._copies, handed, terms)
        replies = await self._take_in(call, messages, None)
        failed = [k for k, reply in enumerate(replies) if reply.status not in (pb.ACCEPTED, pb.DUPLICATE)]
        return pb.HandedOver(
            status=pb.ACCEPTED,
            failed=failed,
            replies=[replies[k] for k in failed],
            peers=sorted(self.local),
        )

    def _copies(self, handed: pb.HandOver, terms: Terms) -> list[tuple[bytes, Body]]:
        """Return header and bytes of each payload, copied: so the bytes that are checked are those used."""
        memory = self.segments.open(handed.segment, terms.largest)
        copies: dict[tuple[int, int], Body] = {}
        for laid in handed.payloads:
            place = (laid.offset, laid.size)
            # Of a payload of a wrong size the mailbox need not see more than that.
            end = laid.offset + min(laid.size, terms.largest + 1)
            if end > len(memory):
                reason = f"a payload of {laid.size} bytes at {laid.offset} in a segment of {len(memory)}"
                raise Refused(pb.WRONG_LENGTH, reason)
            if place not in copies:
                # Of a table, of another type, only the mailbox says whether its numbers are finite.
                plain = laid.size == terms.payload_bytes != 8 * terms.table and not terms.codec
                dtype = terms.numpy_dtype if plain else None
                copies[place] = self.segments.copy(memory, laid.offset, end - laid.offset, dtype)
        return [(laid.header, copies[laid.offset, laid.size]) for laid in handed.payloads]

    async def _take_in(
        self, call: Incoming, messages: Sequence[tuple[bytes, Body]], peer: int | None
    ) -> list[pb.Reply]:
        """Return the mailbox's answer to each payload; payloads of a later view are kept for a moment."""
        left = call.left()
        # The sender hears BUSY before its own deadline: so it knows that the link is not to blame.
        end = time.monotonic() + min(left - min(1.0, left / 10) if left < math.inf else left, self.timeout)
        kept_until = min(end, time.monotonic() + _KEPT)
        replies: dict[int, pb.Reply] = {}
        left_over = list(range(len(messages)))
        while True:
            mailbox = self.views.now.mailbox
            try:
                answers = await mailbox.deliver(
                    [messages[k] for k in left_over], max(0.0, end - time.monotonic()), peer
                )
            except ViewChangeError as error:  # the sender is no stranger to the run: it will hear of it too
                answers = [pb.Reply(status=pb.WRONG_VIEW, reason=str(error))] * len(left_over)
            except Exception as error:  # the error with which the runtime failed the mailbox is the answer
                answers = [_stopped(error)] * len(left_over)
            replies |= zip(left_over, answers, strict=True)
            # If no later view can have the sender, its payload is not kept.
            left_over = [
                k
                for k in left_over
                if replies[k].status == pb.LATER and self.knows(decode_header(messages[k][0]).sender)
            ]

            def installed(view: View, old: object = mailbox) -> bool:
                return view.mailbox is not old

            if left_over:
                await self.views.until(installed, kept_until - time.monotonic())
            if not left_over or self.views.now.mailbox is mailbox:
                return [replies[k] for k in range(len(messages))]

    async def hello(self, call: Incoming, caller: Caller) -> pb.Reply:
        """Agree to the terms of a neighbour, or answer with the differences."""
        hello = await self._message(call, pb.Hello, "a hello", caller)
        self._refuse_other_terms(hello)
        if self.on_hello is not None:
            answer = await self._in_pool(self.on_hello, hello)
            if answer is not None:
                if answer.status != pb.PREPARING:
                    raise Refused(answer.status, answer.reason)
                return answer
        if (error := self.views.now.mailbox.error) is not None:
            return _stopped(error)
        return pb.Reply(status=pb.ACCEPTED)

    async def stop(self, call: Incoming, caller: Caller) -> pb.Reply:
        """Take a stop: a peer gives up, or the coordinator ends the run."""
        # With certificates a peer is a peer, even if it shows the key.
        keyed = (caller.who is None or caller.who.peer is None) and self.shows_key(call)
        stop = await self._message(call, pb.Stop, "a stop", caller, any_sender=keyed)
        # Between two views not all have the same neighbours yet.
        if not keyed and not self.knows(stop.sender):
            raise Refused(
                pb.NOT_NEIGHBOUR, f"a stop from peer {stop.sender}, which shares no edge with this host"
            )
        if cause_from(stop.cause) is None:
            raise Refused(pb.BAD_HEADER, "a stop that does not say its cause: is it of another version?")
        stop.reason = printable(stop.reason[:4096])
        if self.on_stop is not None:
            await self._in_pool(self.on_stop, stop)
        return pb.Reply(status=pb.ACCEPTED)

    async def gossip(self, call: Incoming, caller: Caller) -> pb.Gossip:
        """Take a member's gossip, and return this host's gossip."""
        if self.on_gossip is None:
            raise Refused(pb.MISMATCH, "this host takes no gossip in this run")
        gossip = await self._message(call, pb.Gossip, "a gossip", caller, most=self.gossip_limit)
        if gossip.receiver not in self.local:
            raise Refused(pb.NOT_NEIGHBOUR, f"a gossip for peer {gossip.receiver}, which is not on this host")
        if not self.knows(gossip.sender):
            raise Refused(
                pb.NOT_NEIGHBOUR, f"a gossip from peer {gossip.sender}, which is no member of this run"
            )
        answer = await self._in_pool(self.on_gossip, gossip)
        answer.run, answer.sender, answer.receiver = gossip.run, gossip.receiver, gossip.sender
        answer.status = pb.ACCEPTED
        return answer

    async def look(self, call: Incoming, caller: Caller) -> pb.Gossip:
        """Tell the coordinator what is new to it of the run's standings, scores and changes of view."""
        if self.on_look is None or not self.shows_key(call, "Look"):
            raise Refused(
                pb.NOT_AUTHENTIC, f"a look by {caller.name} that does not show the run's key for it"
            )
        known = await self._message(
            call, pb.Gossip, "a look", caller, any_sender=True, most=self.gossip_limit
        )
        try:
            answer = await self._in_pool(self.on_look, known)
        except ValueError as error:
            raise Refused(pb.BAD_HEADER, f"a look that cannot be answered: {error}") from error
        answer.run, answer.sender, answer.receiver = known.run, known.receiver, known.receiver
        answer.status = pb.ACCEPTED
        return answer

    async def fetch(self, call: Incoming, caller: Caller) -> pb.Fetched | pb.Reply:
        """Give a peer of the view the θ with which this host's peer began the view."""
        asked = await self._message(call, pb.Fetch, "a fetch", caller)
        if asked.receiver not in self.local:
            raise Refused(pb.NOT_NEIGHBOUR, f"a fetch from peer {asked.receiver}, which is not on this host")
        if asked.sender not in self.members:
            raise Refused(pb.NOT_NEIGHBOUR, f"a fetch by peer {asked.sender}, which is no member of this run")

        def decided(view: View) -> bool:
            there = view.mailbox.terms.view
            return there > asked.view or (there == asked.view and view.offer is not None)

        await self.views.until(decided, min(_KEPT, call.left()))
        view = self.views.now
        terms = view.mailbox.terms
        if terms.view > asked.view:
            return pb.Reply(
                status=pb.WRONG_VIEW, reason=f"view {asked.view} was followed by view {terms.view}"
            )
        if terms.view < asked.view or view.offer is None:
            return pb.Reply(
                status=pb.LATER,
                reason=f"it has no vector of view {asked.view} to give: it is in {terms.view}",
            )
        if asked.sender not in view.offer.to:
            raise Refused(
                pb.NOT_NEIGHBOUR, f"a fetch by peer {asked.sender}, which is not in view {terms.view}"
            )
        edge = (asked.receiver, asked.sender)
        theta = view.offer.thetas[asked.receiver]
        return await asyncio.to_thread(fetched, terms, edge, view.offer.iteration, theta)

    async def _message(
        self,
        call: Incoming,
        kind: type[M],
        what: str,
        caller: Caller,
        *,
        any_sender: bool = False,
        most: float = math.inf,
    ) -> M:
        """Return the call's message; raise `Refused` if its kind, run or sender is not the right one."""
        message = await call.message(kind, what, most)
        who = caller.who
        if who is not None and message.sender != who.peer and not any_sender:
            link = "by" if kind is pb.Fetch else "from"
            raise Refused(pb.NOT_AUTHENTIC, f"{what} {link} peer {message.sender} by {who.name}")
        if message.run != self.views.now.mailbox.terms.run:
            raise Refused(pb.WRONG_RUN, f"{what} of run {message.run[:64]!r}, which is not this one")
        return message

    def _refuse_other_terms(self, hello: pb.Hello) -> None:
        view = self.views.now
        terms = view.mailbox.terms
        # After the run, the peers: a stranger learns nothing about the terms.
        if (hello.sender, hello.receiver) not in view.neighbours:
            raise Refused(pb.NOT_NEIGHBOUR, f"peers {hello.sender} and {hello.receiver} share no edge here")
        checks = (
            (pb.WRONG_VIEW, "view", hello.view, terms.view),
            (pb.WRONG_LENGTH, "number of trainable parameters", hello.length, terms.length),
            (pb.WRONG_DTYPE, "dtype number", hello.dtype, terms.wire_dtype),
            (pb.MISMATCH, "number of phases", hello.phases, terms.phases),
            (pb.MISMATCH, "configuration digest", hello.config, terms.config),
        )
        for status, what, theirs, ours in checks:
            if theirs != ours:
                told = theirs[:200] if isinstance(theirs, str) else theirs
                raise Refused(
                    status, f"peer {hello.sender} has {what} {told!r}, peer {hello.receiver} has {ours!r}"
                )

    async def _in_pool(self, callback: Callable[[M], T], message: M) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, callback, message)


def _stopped(error: Exception) -> pb.Reply:
    """Return the answer that this host has stopped, with the cause of ``error``."""
    return pb.Reply(status=pb.STOPPED, reason=str(error), cause=cause_of(error).name)
