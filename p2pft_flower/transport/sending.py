"""The payloads that leave a host: each edge's is under way until its receiver has taken it in."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from p2pft_flower.transport.bodies import Body
from p2pft_flower.transport.edges import Edges
from p2pft_flower.transport.handing import HandOvers, Outcome, Rest
from p2pft_flower.transport.mailbox import Edge
from p2pft_flower.transport.payloads import Carrier, Payload
from p2pft_flower.transport.traffic import Traffic
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import ExchangeTimeoutError
from p2pft_flower.transport.wire.header import Terms, encode_headers
from p2pft_flower.transport.work import Work

__all__ = ["Sending"]

_STUCK = 5.0
"""Seconds beyond its deadline after which a call that has not ended counts as failed."""


class Sending:
    """Sends the payloads of one host's peers: in shared memory where there is some, else in calls.

    One thread calls its methods; ``_under_way`` and ``_gathered`` are that thread's own.

    Parameters
    ----------
    run : str
        The run's id.
    addresses : mapping of int to str
        Remote peer to address.
    carrier : Carrier
        Sends a payload in calls of its own.
    work : Work
        The work that is under way, and the error that ends it.
    timeout : float
        Seconds after which a payload is given up, if the carrier has no patience.
    on_failure : callable or None
        Gets the error of a payload, in another thread.

    Attributes
    ----------
    bytes_sent : dict of int to int
        See `Links`.
    traffic : Traffic
        What each edge has carried.
    """

    def __init__(
        self,
        run: str,
        addresses: Mapping[int, str],
        carrier: Carrier,
        work: Work,
        timeout: float,
        on_failure: Callable[[Exception], None] | None,
    ) -> None:
        self._addresses, self._carrier, self._work = addresses, carrier, work
        self._timeout, self._on_failure = timeout, on_failure
        self._under_way: dict[Edge, tuple[Future[Rest | None], Payload]] = {}
        """The payload of each edge, and the future of its end: of a hand-over, with the payloads left."""
        self._hand_overs = HandOvers(run, addresses, lambda *tried: work.start_part(self._carry, *tried))
        self._gathered: list[Payload] | None = None
        self.bytes_sent: dict[int, int] = {}
        self.awaited: tuple[int, float] | None = None
        """The receiver that has not taken a payload in, and since when it is waited for (time.monotonic)."""
        self.traffic = Traffic()

    def install(self, edges: Edges) -> None:
        """Go on to another view: forget the payloads under way, all of which must have been cancelled."""
        self._under_way.clear()
        self.bytes_sent = dict.fromkeys(edges.receivers, 0) | self.bytes_sent

    def close(self) -> None:
        """Give shared memory up; the payloads under way in it must have been cancelled."""
        self._hand_overs.close()

    def send(
        self,
        edges: Edges,
        sender: int,
        iteration: int,
        phase: int,
        vector: npt.NDArray[np.floating] | bytes,
        shares: Mapping[int, float] | None = None,
    ) -> None:
        """Start sending ``vector`` to every remote out-neighbour of ``sender``.

        Waits until the previous payload of each edge has been taken in. On return the new one is under way,
        and ``vector`` may be changed.

        Parameters
        ----------
        edges : Edges
            The edges of the present view.
        sender : int
            A local peer. Nothing happens when all its out-neighbours are local too.
        iteration, phase : int
            The place in the run.
        vector : numpy.ndarray or bytes
            The payload's numbers, (``terms.numbers``,), of the terms' dtype; or the bytes that the terms'
            codec made of them. In the first phases, of tables: the table's numbers, float64.
        shares : mapping of int to float, optional
            The remote out-neighbours that receive the payload, each with b_ij of a column exchange. Default:
            all remote out-neighbours, with 1.

        Raises
        ------
        ExchangeTimeoutError, PeerUnreachableError, ExchangeRefusedError, ExchangeStoppedError
            When the *previous* payload of an edge was not taken in; the message names edge and reason.
        PeerLostError
            When ``patience`` returned this error, or another one, for a receiver.
        ValueError
            When ``vector`` or ``shares`` do not fit: the caller's mistake.
        Exception
            The error that `Links.fail` was called with.
        """
        terms, receivers = edges.terms, edges.receivers.get(sender, ())
        if not receivers:
            return
        plain = _plain(sender, vector, terms.at(phase))
        if shares is not None:
            if strangers := sorted(shares.keys() - set(receivers)):
                raise ValueError(f"peer {sender} sends nothing to {strangers} in this view")
            receivers = tuple(sorted(shares))
        near = self._hand_overs.near(receivers)
        before = {(sender, receiver) for receiver in receivers}
        if near:
            before.update(self._hand_overs.in_place_of(sender, near))
        self._settle(sorted(before), self._timeout, self._give_up())
        laid = self._hand_overs.lay(edges, sender, near, plain) if near else None
        if laid is not None and len(near) == len(receivers):
            sent = laid
        else:
            known = None if laid is None else laid.hash
            sent = Body(plain if isinstance(plain, bytes) else plain.tobytes(), known)
        shares = {i: 1.0 if shares is None else float(shares[i]) for i in receivers}
        headers = encode_headers(terms, sender, iteration, phase, shares, sent.hash)
        name, to_hand_over = terms.phase_name(phase), []
        for receiver, header in zip(receivers, headers, strict=True):
            if laid is not None and receiver in near:
                new = Payload((sender, receiver), header, laid.data, iteration, name, laid.offset)
                to_hand_over.append(new)
            else:
                new = Payload((sender, receiver), header, sent.data, iteration, name)
                self._under_way[new.edge] = self._work.start(self._carry, new), new
        size = len(plain) if isinstance(plain, bytes) else plain.nbytes
        self.bytes_sent[sender] += len(receivers) * size
        if self._gathered is None:
            self._hand_over(to_hand_over)
        else:
            self._gathered += to_hand_over

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Gather the payloads to hosts of this machine in a block, and hand them over at the block's end.

        So a host is told of all payloads in one call. In the block, each edge may be sent along once.
        """
        self._gathered = []
        try:
            yield
        finally:
            gathered, self._gathered = self._gathered, None
            self._hand_over(gathered)

    def flush(self, timeout: float) -> None:
        """Wait until every payload has been taken in.

        Parameters
        ----------
        timeout : float
            The deadline in seconds from now; may be infinite with patience.

        Raises
        ------
        ExchangeTimeoutError
            When a payload was not taken in within ``timeout`` seconds.
        Exception
            Any error that `send` raises on behalf of an earlier payload.
        """
        self._settle(sorted(self._under_way), timeout, time.monotonic() + timeout)

    def _hand_over(self, payloads: list[Payload]) -> None:
        for segment, own in self._hand_overs.calls(payloads):
            future = self._work.start(self._see_over, segment, own)
            self._under_way |= {payload.edge: (future, payload) for payload in own}

    async def _see_over(self, segment: pb.Segment, payloads: list[Payload]) -> Rest | None:
        try:
            rest = await self._hand_overs.hand_over(self._carrier, segment, payloads)
        except Exception as error:
            await self._tell_failure(error)
            raise
        for payload in payloads:
            if payload.edge not in rest:  # else its own calls note it
                self._note(payload)
        return rest

    async def _carry(self, payload: Payload, first: Outcome = None) -> None:
        try:
            await self._carrier.carry(payload, first)
        except Exception as error:
            await self._tell_failure(error)
            raise
        self._note(payload)

    def _note(self, payload: Payload) -> None:
        self.traffic.note(payload.edge, len(payload.body), time.monotonic() - payload.begun)

    async def _tell_failure(self, error: Exception) -> None:
        if self._on_failure is not None:
            await asyncio.to_thread(self._on_failure, error)  # it may wait for locks of the runtime

    def _give_up(self) -> float:
        """Return the time (time.monotonic) at which a wait that begins now is given up."""
        return math.inf if self._carrier.patience else time.monotonic() + self._timeout + _STUCK

    def _settle(self, edges: Iterable[Edge], deadline: float, end: float) -> None:
        """Wait until the payloads under way on ``edges`` are taken in, and forget them; raise their errors.

        Parameters
        ----------
        edges : iterable of (int, int)
            Sender and receiver of each edge.
        deadline, end : float
            The deadline that an error names, in seconds, and the time (time.monotonic) at which a payload is
            given up.
        """
        self._work.raise_if_failed()
        waited_for = {edge: self._under_way[edge] for edge in edges if edge in self._under_way}
        for edge, (future, payload) in waited_for.items():
            if not future.done():
                self.awaited = edge[1], time.monotonic()
            try:
                rest = self._work.result(future, _left(end))
                if rest and edge in rest:
                    self._work.result(rest[edge], _left(end))
            except TimeoutError:
                where = f"peer {edge[1]} at {self._addresses[edge[1]]}"
                problem = f"{where} has not taken the payload in"
                raise ExchangeTimeoutError(problem, **payload.place).at(deadline=deadline) from None
            finally:
                self.awaited = None
        self._work.raise_if_failed()
        for edge in waited_for:
            self._under_way.pop(edge, None)


def _plain(
    sender: int, vector: npt.NDArray[np.floating] | bytes, terms: Terms
) -> npt.NDArray[np.floating] | bytes:
    """Return ``vector`` as it is sent, bytes or a little-endian array; raise ValueError if it is wrong."""
    if isinstance(vector, bytes):
        if not terms.codec or not terms.fits(len(vector)):
            raise ValueError(
                f"peer {sender} sends {len(vector)} bytes of codec {terms.codec!r}, expected at most "
                f"{terms.payload_bytes}"
            )
        return vector
    if vector.shape != (terms.numbers,) or vector.dtype.newbyteorder("<") != terms.numpy_dtype:
        raise ValueError(
            f"peer {sender} sends {vector.shape} {vector.dtype}, "
            f"expected ({terms.numbers},) {terms.numpy_dtype}"
        )
    return np.ascontiguousarray(vector, terms.numpy_dtype)


def _left(end: float) -> float | None:
    """Return the seconds until ``end`` (time.monotonic); None if that is infinite."""
    return None if end == math.inf else max(0.0, end - time.monotonic())
