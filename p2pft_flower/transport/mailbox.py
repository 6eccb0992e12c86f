r"""The bounded inbox of a host: the checks before a payload is used, and why no two hosts wait for ever.

Why bounded inboxes cannot deadlock, even with room for a single payload an edge
--------------------------------------------------------------------------------
Number the exchanges of a run by their position p = iteration · phases + phase. Each edge *carries* some of
them: all, or, where weights change with the iteration, those of the iterations in which its weight is not
zero; and tables only in iterations that have some. Sender and receiver know which ones from the graph and the
plan. A *node* (a peer, or a host that steps several peers
in lock-step) does for p = 0, 1, 2, …:

    put(p)    put its payload of position p on every out-edge that carries p, in any order, one edge after
              the other or all at once; a put waits while the edge's queue is full;
    take(p)   take the payload of position p from every in-edge that carries p, in any order; a take waits
              for it;
    compute   for a finite time.

A put may also stay open while the node goes on to take(p), as long as it has been accepted before the next
put of the same edge begins (`Links` does this). Each queue has room for c ≥ 1 payloads, in the order of the
positions that its edge carries. Nor does it matter if a put waits until other puts of its node, of lesser
positions, have been accepted, or is answered together with others of its position (`HandOvers`): by (a) none
of these waits at the least position.

Claim: as long as some node has not finished, some node can move. Proof: let p be the least position of all
unfinished nodes, and let i be any node at p.

(a) No put of i at position p waits. Were the queue of i → m full when i offers p there, it would hold c ≥ 1
    payloads of positions < p (i has put nothing later), so m would not yet have taken some position r < p
    that the edge carries. But m has finished or is at a position ≥ p, because p is the least, and before it
    came there it took every position < p that its in-edges carry. So the queue is empty and the put is
    accepted.
(b) No take of i at position p waits for ever. It waits only on edges j → i that carry p, and j has finished
    or is at a position ≥ p. If j has finished or is beyond p, its put of p has been accepted, or has been
    offered and is accepted by (a)'s argument: i has taken everything before p, so the queue is empty. If j is
    at p, its puts of p do not wait, by (a) applied to j, which is also at the least position. Either way it
    arrives.

Hence i moves on, and as there are finitely many nodes and positions, all finish. No edge need carry anything
in a given iteration, the graph need not even be strongly connected, the order of puts and takes does not
matter, and edges between peers of one host, which never wait, only help. What does matter: both ends of an
edge have the same positions for it (the graph's digest, which neighbours compare before they train, has
them); a node offers *all* of position p before it waits for any payload of position p; and nothing else keeps
a put out: one that waits holds no thread, each edge has its own place to wait, and of two calls on one edge
the older gives way. ∎
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from p2pft_flower.algorithms.codecs import Codec
from p2pft_flower.transport.bodies import Body
from p2pft_flower.transport.inboxes import Carried, Edge, Inbox, Received, Waiting
from p2pft_flower.transport.network import all_on_the_loop
from p2pft_flower.transport.refusals import Refusals
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import ExchangeError, ExchangeTimeoutError, Refused, ViewChangeError
from p2pft_flower.transport.wire.header import Terms, all_finite, checksum, decode_header

__all__ = ["ASK_EVERY", "Edge", "Mailbox", "Patience", "Received", "first_error"]

Patience = Callable[[int], Exception | None]
"""Given the remote peer that is waited for, returns None to go on waiting, or an error. Returns at once."""

ASK_EVERY = 0.2
"""Seconds between two calls of a waiting caller's ``patience``."""

_LONG = 2**20
"""Bytes, or encoded numbers, from which on payloads are checked in a thread: nothing else is held up."""


def first_error(held: Exception | None, new: Exception) -> Exception:
    """Return the error that counts: ``held``, unless it is None, or ends a view only and ``new`` does not."""
    ends_view = isinstance(held, ViewChangeError) and not isinstance(new, ViewChangeError)
    return new if held is None or ends_view else held


class Mailbox:
    """Takes payloads in from other hosts, checks them, and hands them out in order.

    ``_lock`` guards ``duplicates``, ``_error`` and all that the inboxes hold; the rest never changes.

    Parameters
    ----------
    terms : Terms
        Run, view, length, dtype and phases that every payload must have.
    edges : iterable of (int, int)
        (sender, receiver) of every edge from another host to a peer of this one.
    first_iteration : int
        The iteration the run starts from (after a checkpoint); default 0.
    codec : Codec, optional
        Decodes payloads, if the terms name a codec.
    turns : sequence of collections of (int, int), optional
        The edges that carry payloads in iteration 0, 1, …, after the last the first again; each edge is in
        one of them at least. Default: all in every iteration.
    tables : callable, optional
        Tells whether an iteration has tables, which all edges carry in the first phases of the iteration, as
        many as the terms have rounds. Default: none has.
    once : int
        Number of these phases, the first ones, that only ``first_iteration`` has. Default 0.
    capacity : int
        Payloads that may wait on an edge; default 1. With the one that waits for room, an edge holds at
        most ``(capacity + 1) * terms.largest`` bytes.

    Attributes
    ----------
    duplicates : int
        Number of payloads that came again because an answer was lost, which is no fault.

    Raises
    ------
    ValueError
        When ``capacity`` or ``first_iteration`` is too small, or an edge is in none of the ``turns``.
    """

    def __init__(
        self,
        terms: Terms,
        edges: Iterable[Edge],
        first_iteration: int = 0,
        capacity: int = 1,
        codec: Codec | None = None,
        turns: Sequence[Collection[Edge]] = (),
        tables: Callable[[int], bool] = lambda _: False,
        once: int = 0,
    ) -> None:
        if capacity < 1 or first_iteration < 0:
            raise ValueError(f"capacity = {capacity} must be >= 1, first_iteration = {first_iteration} >= 0")
        self.terms = terms
        self.duplicates = 0
        self._refusals = Refusals()
        self._capacity, self._codec = capacity, codec
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._inboxes: dict[Edge, Inbox] = {}
        for edge in sorted((int(j), int(i)) for j, i in edges):
            carries = tuple(edge in turn for turn in turns) or (True,)
            carried = Carried(carries, terms.phases, terms.rounds, tables, once, first_iteration)
            if not any(carried.turns):
                raise ValueError(f"edge {edge[0]} -> {edge[1]} carries nothing in any turn")
            first = carried.first(first_iteration * terms.phases)
            self._inboxes[edge] = Inbox(threading.Condition(self._lock), carried, first, first)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """(sender, receiver) of every edge that is served, in ascending order."""
        return tuple(self._inboxes)

    @property
    def refused(self) -> Counter[str]:
        """Number of refused messages, by the name of the status (``"CORRUPT"``, …)."""
        return self._refusals.by_cause

    @property
    def error(self) -> Exception | None:
        """The first error that `fail` was called with; None if it was not called."""
        with self._lock:
            return self._error

    def pending(self, edge: Edge) -> int:
        """Return the number of payloads that wait to be taken on ``edge``."""
        with self._lock:
            return len(self._inboxes[edge].queue)

    async def deliver(
        self, messages: Sequence[tuple[bytes, Body]], timeout: float, authenticated: int | None = None
    ) -> list[pb.Reply]:
        """Check payloads and put each in its edge's queue; wait until all that are right have found room.

        A caller that is gone (the task is cancelled) gives its places up.

        Parameters
        ----------
        messages : sequence of (bytes, Body)
            The serialised PayloadHeader and the bytes (little-endian numbers, or the codec's) of each
            payload; the bytes are kept, not copied.
        timeout : float
            Longest wait for room, in seconds.
        authenticated : int, optional
            The peer whose certificate the connection has; only this peer may be the sender. Default None:
            a connection without certificates.

        Returns
        -------
        list of Reply
            The answer to each payload, in their order: ACCEPTED; DUPLICATE for the payload that its edge
            accepted last; SUPERSEDED if a newer call came meanwhile; LATER for a payload of a view that this
            mailbox does not know of yet, which is no fault; otherwise a refusal with its reason (BUSY if the
            queue stayed full), which is counted and leaves everything else as it was.

        Raises
        ------
        Exception
            The error that `fail` was called with.
        """
        examine = partial(self._examine, authenticated=authenticated)
        numbers = self.terms.numbers if self.terms.codec else 0
        bodies = {id(body): body for _, body in messages}.values()
        if sum(max(len(body), numbers) for body in bodies if not body.finite) < _LONG:
            checked = [examine(*message) for message in messages]
        else:
            checked = await asyncio.to_thread(lambda: [examine(*message) for message in messages])
        places = self._enter(checked)
        waiting = [place for place in places if isinstance(place, Waiting)]
        try:
            await all_on_the_loop([place.answer for place in waiting], timeout)
        finally:  # also when the caller is gone
            self._give_up(waiting)
        full = f"the inbox stayed full for {round(timeout, 1):g} s: the receiver is slow, or waits itself"
        return [
            place
            if isinstance(place, pb.Reply)
            else place.answer.result()
            if place.answer.done()
            else self.refuse(pb.BUSY, place.edge, full)
            for place in places
        ]

    def take(
        self,
        receiver: int,
        sender: int,
        iteration: int,
        phase: int,
        timeout: float,
        patience: Patience | None = None,
    ) -> Received:
        """Return the payload of ``sender`` for ``receiver`` in this iteration and phase; wait for it.

        Parameters
        ----------
        receiver, sender : int
            The edge ``sender -> receiver``.
        iteration, phase : int
            Must be the next ones on the edge.
        timeout : float
            The deadline in seconds from now; may be infinite if ``patience`` sets one.
        patience : callable, optional
            Called with ``sender`` several times a second while nothing comes: returns None to go on waiting,
            or the error to raise, to which the place is added.

        Raises
        ------
        ExchangeTimeoutError
            When nothing has come by the deadline.
        ValueError
            When there is no such edge, or iteration and phase are not the next ones: the caller's mistake.
        Exception
            The error that `fail` was called with, or that ``patience`` returned.
        """
        position = iteration * self.terms.phases + phase
        inbox = self._inboxes.get((sender, receiver))
        if inbox is None:
            raise ValueError(f"edge {sender} -> {receiver} does not come from another host")
        deadline = time.monotonic() + timeout
        lost: Exception | None = None
        while True:
            with self._lock:
                if position != inbox.next_out:
                    raise ValueError(
                        f"{self._place(position)} asked for, but {self._place(inbox.next_out)} is next"
                    )
                left = max(0.0, deadline - time.monotonic())
                # If it is lost, the wait is over: only a payload that has come meanwhile counts.
                if lost is None and not inbox.queue and self._error is None:
                    inbox.changed.wait_for(
                        lambda: inbox.queue or self._error is not None,
                        left if patience is None else min(left, ASK_EVERY),
                    )
                if self._error is not None:
                    raise self._error
                if inbox.queue:
                    inbox.next_out = inbox.carried.first(position + 1)
                    received = inbox.queue.popleft()
                    if (waiting := inbox.waiting) is not None:  # there is room for it now
                        inbox.put(waiting.received, waiting.checksum)
                        inbox.answer(pb.Reply(status=pb.ACCEPTED))
                    return received
                refused = "".join(
                    f"; refused on this edge: {n} x {cause}" for cause, n in inbox.refused.items()
                )
            if lost is not None:
                raise lost
            if time.monotonic() >= deadline:
                problem = f"no payload came from peer {sender}; it is slow, stopped or cut off{refused}"
                raise self._at(ExchangeTimeoutError(problem, deadline=timeout), (sender, receiver), position)
            if patience is not None and (lost := patience(sender)) is not None:
                self._at(lost, (sender, receiver), position)

    def _at(self, error: Exception, edge: Edge, position: int) -> Exception:
        """Return ``error``; an `ExchangeError` then names the payload that was waited for."""
        if isinstance(error, ExchangeError):
            iteration, phase = divmod(position, self.terms.phases)
            error.at(peer=edge[1], edge=edge, iteration=iteration, phase=self.terms.phase_name(phase))
        return error

    def fail(self, error: Exception) -> None:
        """Wake every waiter with ``error`` and raise it from now on.

        The first error stays, but for a `ViewChangeError`, which gives way to any other.
        """
        with self._lock:
            self._error = first_error(self._error, error)
            for inbox in self._inboxes.values():
                if inbox.waiting is not None:
                    inbox.waiting.answer.set_exception(self._error)
                    inbox.waiting = None
                inbox.changed.notify_all()

    def refuse(self, status: pb.Status, edge: Edge | None, reason: str, sender: str = "") -> pb.Reply:
        """Count and log a refused message (`Refusals`), and return the answer to it.

        Parameters
        ----------
        status : Status
            The status of the answer.
        edge : (int, int) or None
            The edge that the message came along, if there is one.
        reason : str
            The reason.
        sender : str
            The message's origin, as ``from peer 3``, if it came along none of the edges here.
        """
        inbox = self._inboxes.get(edge) if edge is not None else None
        if inbox is not None and edge is not None:
            with self._lock:
                inbox.refused[pb.Status.Name(status)] += 1
            sender = f"on edge {edge[0]} -> {edge[1]}"
        self._refusals.note(sender or "on an unknown edge", status, reason)
        return pb.Reply(status=status, reason=reason)

    def _place(self, position: int) -> str:
        iteration, phase = divmod(position, self.terms.phases)
        return f"iteration {iteration}, phase {self.terms.phase_name(phase)}"

    def _examine(
        self, header: bytes, payload: Body, authenticated: int | None
    ) -> pb.Reply | tuple[pb.PayloadHeader, Received]:
        """Return header and payload if they pass all checks but that of the position, else the answer."""
        edge: Edge | None = None
        try:
            try:
                parsed = decode_header(header)
            except ValueError as error:
                raise Refused(pb.BAD_HEADER, str(error)) from error
            if (parsed.sender, parsed.receiver) in self._inboxes:
                edge = (parsed.sender, parsed.receiver)
            return parsed, self._check(parsed, payload, authenticated)
        except Refused as refusal:
            if refusal.status == pb.LATER:  # no fault: it comes again, and then it may fit
                return pb.Reply(status=refusal.status, reason=refusal.reason)
            return self.refuse(refusal.status, edge, refusal.reason)

    def _check(self, header: pb.PayloadHeader, payload: Body, authenticated: int | None) -> Received:
        """Return the payload after all checks that need no earlier payload; raise `Refused` if one fails."""
        terms = self.terms
        if authenticated is not None and header.sender != authenticated:
            raise Refused(
                pb.NOT_AUTHENTIC,
                f"the certificate is peer {authenticated}'s, the header says peer {header.sender}",
            )
        # Before the costly checks, so that a wrong size costs nothing to refuse. Which of its exchanges have
        # tables is the view's affair, and the payload may be of another view.
        if not (terms.fits(len(payload)) or (terms.table and terms.tables.fits(len(payload)))):
            raise Refused(pb.WRONG_LENGTH, _wrong_size(payload, terms))
        # The checksum comes before the header's content: a flipped bit is called that, in any field.
        if header.checksum != checksum(header, payload.hash):
            raise Refused(pb.CORRUPT, "the checksum does not fit header and payload")
        terms = self._terms_at(header)
        if not terms.fits(len(payload)):
            raise Refused(pb.WRONG_LENGTH, _wrong_size(payload, terms))
        if header.dtype != terms.wire_dtype:
            raise Refused(
                pb.WRONG_DTYPE, f"dtype number {header.dtype}, expected {pb.Dtype.Name(terms.wire_dtype)}"
            )
        if header.length != terms.numbers:
            raise Refused(
                pb.WRONG_LENGTH, f"the header tells {header.length} numbers, expected {terms.numbers}"
            )
        if not 0.0 <= header.share <= 1.0:  # also false for NaN
            raise Refused(pb.BAD_SHARE, f"share {header.share}, expected 0 to 1")
        if header.codec != terms.codec:
            raise Refused(pb.WRONG_DTYPE, f"codec {header.codec[:64]!r}, expected {terms.codec!r}")
        if header.step != terms.step:  # Σ x of the view would no more be preserved
            raise Refused(
                pb.MISMATCH,
                f"codec-step {header.step:g} in view {terms.view}, here it is {terms.step:g}: each host "
                "computes it from the graph, so the two have other builds or libraries; set codec-step",
            )
        return Received(self._vector(payload, terms), header.share)

    def _terms_at(self, header: pb.PayloadHeader) -> Terms:
        """Return the terms of a payload of this view with this header; raise `Refused` if it is of none."""
        terms = self.terms
        if header.run != terms.run:
            raise Refused(pb.WRONG_RUN, f"run {header.run[:64]!r} is not this one")
        if header.view != terms.view:
            status = pb.LATER if header.view > terms.view else pb.WRONG_VIEW
            raise Refused(status, f"view {header.view}, here it is {terms.view}")
        if (header.sender, header.receiver) not in self._inboxes:
            raise Refused(pb.NOT_NEIGHBOUR, f"no edge {header.sender} -> {header.receiver} into this host")
        if header.phase >= terms.phases:
            raise Refused(pb.FAR_OFF, f"phase number {header.phase} of {terms.phases} phases")
        return terms.at(header.phase)

    def _vector(self, payload: Body, terms: Terms) -> npt.NDArray[np.floating]:
        if payload.vector is None:
            vector = self._decoded(payload.data, terms)
            if not (payload.finite or all_finite(vector)):
                raise Refused(pb.NOT_FINITE, "the payload holds a NaN or an infinity")
            vector.flags.writeable = False
            payload.vector = vector
        return payload.vector

    def _decoded(self, payload: bytes | memoryview, terms: Terms) -> npt.NDArray[np.floating]:
        if self._codec is None or not terms.codec:
            return np.frombuffer(payload, terms.numpy_dtype)
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused afterwards
                vector = self._codec.decode(bytes(payload), terms.numbers, terms.numpy_dtype)
        except ValueError as error:
            raise Refused(pb.WRONG_LENGTH, f"no payload of codec {terms.codec!r}: {error}") from error
        if vector.shape != (terms.numbers,) or vector.dtype != terms.numpy_dtype:
            raise Refused(
                pb.WRONG_LENGTH,
                f"codec {terms.codec!r} made {vector.shape} {vector.dtype} of it, "
                f"expected ({terms.numbers},) {terms.numpy_dtype}",
            )
        return vector

    def _enter(
        self, checked: Iterable[pb.Reply | tuple[pb.PayloadHeader, Received]]
    ) -> list[pb.Reply | Waiting]:
        """Return the answer to each payload that can be given at once, or its place to wait for room."""
        places: list[pb.Reply | Waiting | tuple[Edge, Refused]] = []
        with self._lock:
            for one in checked:
                if isinstance(one, pb.Reply):
                    places.append(one)
                    continue
                edge = (one[0].sender, one[0].receiver)
                try:
                    places.append(self._queued_or_waiting(*one, self._inboxes[edge]))
                except Refused as refusal:
                    places.append((edge, refusal))
        return [
            self.refuse(place[1].status, place[0], place[1].reason) if isinstance(place, tuple) else place
            for place in places
        ]

    def _give_up(self, waiting: Iterable[Waiting]) -> None:
        """Give up the places that were not answered: no other thread answers them from now on."""
        with self._lock:
            for place in waiting:
                inbox = self._inboxes[place.edge]
                if inbox.waiting is place:
                    inbox.waiting = None

    def _queued_or_waiting(
        self, header: pb.PayloadHeader, received: Received, inbox: Inbox
    ) -> pb.Reply | Waiting:
        """Queue one payload and return the answer, or return its place to wait for room.

        Raises
        ------
        Refused
            When the position is wrong.
        Exception
            The error that `fail` was called with.
        """
        position = header.iteration * self.terms.phases + header.phase
        if self._error is not None:
            raise self._error
        if position == inbox.last_in:
            if header.checksum != inbox.last_checksum:
                raise Refused(pb.CONFLICT, f"{self._place(position)} came before with other content")
            self.duplicates += 1
            return pb.Reply(status=pb.DUPLICATE)
        if position != inbox.next_in:
            raise Refused(pb.FAR_OFF, f"{self._place(position)}, but {self._place(inbox.next_in)} is next")
        if len(inbox.queue) < self._capacity:
            inbox.put(received, header.checksum)
            return pb.Reply(status=pb.ACCEPTED)
        if inbox.waiting is not None:
            self.duplicates += 1
            inbox.answer(pb.Reply(status=pb.SUPERSEDED, reason="a newer call brings the same payload"))
        inbox.waiting = Waiting(received, header.checksum, (header.sender, header.receiver))
        return inbox.waiting


def _wrong_size(payload: Body, terms: Terms) -> str:
    expected = f"at most {terms.payload_bytes}" if terms.codec else terms.payload_bytes
    return f"the payload has {len(payload)} bytes, expected {expected}"
