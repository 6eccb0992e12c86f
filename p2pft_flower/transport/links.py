"""The way out of a host: payloads, greetings, gossip, stops and fetches to remote peers.

The runtime calls this module alone, and each method describes its parameters and errors: so it is longer than
500 lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import Cause
from p2pft_flower.transport.bodies import Body
from p2pft_flower.transport.calls import Channels
from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.edges import Edges
from p2pft_flower.transport.fetching import fetch
from p2pft_flower.transport.gossiping import gossip, gossip_all, stop_all
from p2pft_flower.transport.handing import HandOvers, Outcome, Rest
from p2pft_flower.transport.mailbox import Edge, Patience, first_error
from p2pft_flower.transport.meeting import MEET_REMEDY, Meeting
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.payloads import Carrier, Deadlines, Payload
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import (
    ExchangeError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    ViewChangeError,
)
from p2pft_flower.transport.wire.header import Terms, encode_headers

__all__ = ["Links"]

T = TypeVar("T")
_ASK = 0.1
"""Seconds between two calls of ``check`` by a thread that waits."""

_STUCK = 5.0
"""Seconds beyond its deadline after which a call that has not ended counts as failed."""


class Links(Closing):
    """Sends the payloads, hellos, stops and gossip of one host's peers; a context manager.

    One thread sends and installs; all other methods may be called from any thread but the network's. Channels
    are opened when first used; do not fork afterwards. ``_lock`` guards ``_error``, ``_edges``, and the
    futures under way or waited for.

    Payloads to peers at Unix sockets lie in memory that their hosts share with this one (`HandOvers`); if
    there is none, they are sent like all others, and the log says so once.

    Parameters
    ----------
    terms : Terms
        The terms that every payload has and every neighbour must agree on.
    addresses : mapping of int to str
        Remote peer to address; must cover every remote end of the edges, of later views too, and all members
        to gossip with.
    out_edges, in_edges : iterable of (int, int)
        (sender, receiver) of the edges that leave this host and that enter it. Only the first carry
        payloads; hellos and stops go to both.
    timeout : float
        Deadline of one call in seconds. For a payload without ``patience`` it runs from handing it over until
        it is taken in; with ``patience`` it is that of the first call. Default 600.
    longest : float, optional
        With ``patience``: longest deadline of a call that carries a vector, in seconds. If a call's deadline
        passes while its receiver speaks, the next call has twice the deadline, up to this one, and the edge
        keeps it. After twice this time without a call that got through, the payload's error is an
        `EdgeBrokenError`. Default, and at least: ``timeout``.
    speaks : callable, optional
        Whether a remote peer was heard of lately, so that a call without an answer is the link's fault;
        returns at once. Default: all do.
    views_change : bool
        Whether peers may go on in another view: then a receiver that stops, and a call that failed in no
        known way, fail no payload, which is sent again after a moment. Default False.
    credentials : Credentials, optional
        For TLS over TCP: our own certificate, and the authorities that we trust. A process that answers at a
        neighbour's address must have that neighbour's certificate.
    insecure : bool
        Whether plain text may leave this machine; default False.
    on_failure : callable, optional
        Gets the error of a payload as soon as it is known, in another thread, so that a host that waits for
        its neighbours meanwhile can be woken (``mailbox.fail``). The next `send` or `flush` raises the same.
    patience : callable, optional
        Called with the receiver of a payload that is not taken in yet, several times a second; returns at
        once. If it returns None, a payload whose call timed out, found no connection, or was answered that
        the receiver is busy or in another view is sent again, the same bytes (a payload that had come after
        all is answered DUPLICATE). If it returns an error, that is the payload's error. Default: such a
        payload fails at once. One that arrived altered is sent again either way, a few times; then, with
        patience, it has broken its edge.

    Attributes
    ----------
    bytes_sent : dict of int to int
        Local sender to the payload bytes it has handed over, all receivers together, retries not counted.

    Raises
    ------
    ValueError
        When a remote neighbour has no address.
    """

    def __init__(
        self,
        terms: Terms,
        addresses: Mapping[int, str],
        out_edges: Iterable[Edge],
        in_edges: Iterable[Edge] = (),
        *,
        timeout: float = 600.0,
        credentials: Credentials | None = None,
        insecure: bool = False,
        on_failure: Callable[[Exception], None] | None = None,
        patience: Patience | None = None,
        longest: float | None = None,
        speaks: Callable[[int], bool] = lambda _: True,
        views_change: bool = False,
    ) -> None:
        self._timeout = timeout
        self._on_failure = on_failure
        self._credentials, self._insecure = credentials, insecure
        self._addresses = dict(addresses)
        self._channels = Channels(addresses, credentials, insecure)
        self._gossip_channels = Channels(addresses, credentials, insecure, gossip=True)
        longest = longest or 0.0
        self._fetches = Deadlines(timeout, longest)
        self._carrier = Carrier(self._channels, Deadlines(timeout, longest), patience, speaks, views_change)
        self._awaited: set[int] = set()
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._under_way: dict[Edge, tuple[Future[Rest | None], Payload]] = {}
        """The payload of each edge, and what is to come of it: of a hand-over, what is left to do."""
        self._waited_for: set[Future[Any]] = set()
        self._alone: set[Future[None]] = set()
        """Those of payloads that were handed over in vain."""
        self._hand_overs = HandOvers(terms.run, self._addresses, self._go_on)
        self._gathered: list[Payload] | None = None
        self._edges = Edges.of(terms, out_edges, in_edges, self._addresses)
        self.bytes_sent = dict.fromkeys(self._edges.receivers, 0)
        self._tasks = Tasks()

    @property
    def error(self) -> Exception | None:
        """The first error that `fail` was called with; None if it was not called."""
        with self._lock:
            return self._error

    @property
    def edges(self) -> Edges:
        """The edges of the present view."""
        with self._lock:
            return self._edges

    @property
    def neighbours(self) -> dict[int, int]:
        """Each remote neighbour of the present view, ascending, and the local peer that speaks to it."""
        return self.edges.neighbours

    def address_of(self, remote: int) -> str:
        """Return the address of a remote peer."""
        return self._addresses[remote]

    def no_tls_with(self, remote: int) -> str | None:
        """Return why there is no TLS with a remote peer; None if there is. It may take some seconds."""
        own = self._credentials
        return None if own is None else own.diagnose(self.address_of(remote), remote)

    def install(
        self,
        terms: Terms,
        out_edges: Iterable[Edge],
        in_edges: Iterable[Edge],
        returned: Iterable[int] = (),
    ) -> None:
        """Go on to another view: its terms and its edges. Connections that are open stay open.

        Payloads under way of the old view are cancelled and forgotten. This ends the effect of `fail` with a
        `ViewChangeError`; after any other failure nothing is sent any more, in no view.

        Parameters
        ----------
        terms : Terms
            The terms of the new view.
        out_edges, in_edges : iterable of (int, int)
            (sender, receiver) of the edges that leave this host and that enter it.
        returned : iterable of int
            Remote peers that were gone: their payloads get connections anew. Default none.

        Raises
        ------
        ValueError
            When a remote neighbour has no address.
        Exception
            The error that `fail` was called with, unless it was a `ViewChangeError`.
        """
        self._cancel()
        self._hand_overs.close()
        self._tasks.run(self._channels.renew, list(returned))
        with self._lock:
            if self._error is not None and not isinstance(self._error, ViewChangeError):
                raise self._error
            self._edges = Edges.of(terms, out_edges, in_edges, self._addresses)
            self._under_way.clear()
            self._error = None
        self.bytes_sent = dict.fromkeys(self._edges.receivers, 0) | self.bytes_sent

    def meet(self, timeout: float, remedy: str = MEET_REMEDY, *, stage: int = 0) -> None:
        """Say hello to every remote neighbour and wait until all have agreed to the terms.

        A neighbour that answers that it is still preparing is asked again, as long as it makes progress.

        Parameters
        ----------
        timeout : float
            Seconds that a neighbour may be silent, or prepare without progress, before it is given up.
        remedy : str
            The error's advice if a neighbour is missing.
        stage : int
            The question: 0, are you prepared; s > 0, did all your neighbours agree to your stage s - 1.

        Raises
        ------
        PeerUnreachableError
            When a neighbour is given up; names edge, address and deadline.
        ExchangeRefusedError
            When a neighbour has other terms, or the two ends do not accept each other's certificates; names
            the difference. Raised at once.
        Exception
            The error that `fail` was called with.
        """
        edges = self.edges
        meeting = Meeting(self._channels, self._credentials, edges.terms, edges.pairs, self._awaited)
        self._wait(meeting.run, timeout, remedy, stage)

    def send(
        self,
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
        sender : int
            A local peer. Nothing happens when all its out-neighbours are local too.
        iteration, phase : int
            The place in the run.
        vector : numpy.ndarray or bytes
            (q,), of the terms' dtype; or what the terms' codec made of it.
        shares : mapping of int to float, optional
            The remote out-neighbours that it goes to, each with b_ij of a column exchange. Default: all of
            them, with 1.

        Raises
        ------
        ExchangeTimeoutError, PeerUnreachableError, ExchangeRefusedError, ExchangeStoppedError
            When the *previous* payload of an edge was not taken in; says which one and why.
        PeerLostError
            Or any other error that ``patience`` returned for its receiver.
        ValueError
            When ``vector`` or ``shares`` do not fit: the caller's mistake.
        Exception
            The error that `fail` was called with.
        """
        edges = self.edges
        terms, receivers = edges.terms, edges.receivers.get(sender, ())
        if not receivers:
            return
        plain = self._plain(sender, vector, terms)
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
                self._start([new], self._carry, new)
        size = len(plain) if isinstance(plain, bytes) else plain.nbytes
        self.bytes_sent[sender] += len(receivers) * size
        if self._gathered is None:
            self._hand_over(to_hand_over)
        else:
            self._gathered += to_hand_over

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Keep what is sent in this block to hosts of this machine, and hand it over at the block's end.

        Each edge may be sent along once in it. So a host is told of all payloads in one call.
        """
        self._gathered = []
        try:
            yield
        finally:
            gathered, self._gathered = self._gathered, None
            self._hand_over(gathered)

    def _hand_over(self, payloads: list[Payload]) -> None:
        for segment, own in self._hand_overs.calls(payloads):
            self._start(own, self._see_over, segment, own)

    def _start(
        self, payloads: Iterable[Payload], work: Callable[..., Awaitable[Rest | None]], *arguments: Any
    ) -> None:
        """Start what brings payloads to their receivers."""
        with self._lock:
            if self._error is not None:
                raise self._error
            future = self._tasks.start(work, *arguments)
            self._under_way |= {payload.edge: (future, payload) for payload in payloads}

    async def _see_over(self, segment: pb.Segment, payloads: list[Payload]) -> Rest:
        try:
            return await self._hand_overs.hand_over(self._carrier, segment, payloads)
        except Exception as error:
            await self._tell_failure(error)
            raise

    def _go_on(self, payload: Payload, first: Outcome) -> Future[None]:
        """Begin to send a payload that was handed over in vain in calls of its own."""
        future = self._tasks.start(self._carry, payload, first)
        with self._lock:
            self._alone.add(future)
            stopped = self._error is not None
        future.add_done_callback(self._forget)
        if stopped:
            future.cancel()
        return future

    def _forget(self, future: Future[None]) -> None:
        with self._lock:
            self._alone.discard(future)

    @staticmethod
    def _plain(
        sender: int, vector: npt.NDArray[np.floating] | bytes, terms: Terms
    ) -> npt.NDArray[np.floating] | bytes:
        """Return the vector as its bytes are sent, after a check that it fits."""
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

    def flush(self, timeout: float) -> None:
        """Wait until every payload has been taken in.

        Parameters
        ----------
        timeout : float
            The deadline in seconds from now; may be infinite with patience.

        Raises
        ------
        ExchangeTimeoutError
            When one has not within ``timeout`` seconds.
        ExchangeError
            As in `send`.
        """
        self._settle(sorted(self._under_way), timeout, time.monotonic() + timeout)

    def stop(self, origin: int, iteration: int, reason: str, cause: Cause, timeout: float = 2.0) -> int:
        """Send a stop to every remote neighbour, in both directions: ``origin`` gives up. Never raises.

        Parameters
        ----------
        origin : int
            The peer that gave up first, local or not.
        iteration : int
            The iteration it was in.
        reason : str
            The reason, in words for a person.
        cause : Cause
            The cause, as others see it.
        timeout : float
            Seconds to wait for answers.

        Returns
        -------
        int
            Number of neighbours that have taken it.
        """
        edges = self.edges
        stops = {
            remote: pb.Stop(
                run=edges.terms.run,
                sender=local,
                origin=origin,
                iteration=iteration,
                reason=reason[:4096],
                cause=cause.name,
            )
            for remote, local in edges.neighbours.items()
        }
        try:
            return len(stops) - len(self._tasks.run(stop_all, self._gossip_channels, stops, timeout))
        except (ExchangeStoppedError, CancelledError):  # the links were closed
            return 0

    def gossip_all(
        self, messages: Mapping[int, pb.Gossip], timeout: float
    ) -> dict[int, pb.Gossip | ExchangeError]:
        """Gossip with several members at once, neighbours or not.

        Parameters
        ----------
        messages : mapping of int to Gossip
            The gossip for each remote member; ``sender`` must be a local peer.
        timeout : float
            Seconds that all of it may take.

        Returns
        -------
        dict of int to Gossip or ExchangeError
            Each one's answer, or the error: it was not reached in time, or refused (which does not stop this
            host). The error of `fail` is never raised here: a host that gives up may still gossip.

        Raises
        ------
        ConfigError
            When plain text would leave this machine.
        """
        try:
            return self._tasks.run(gossip_all, self._gossip_channels, self.edges.terms.run, messages, timeout)
        except (ExchangeStoppedError, CancelledError):
            closed = ExchangeStoppedError("this host has closed its links")
            return dict.fromkeys(messages, closed)

    def start_gossip(
        self, remote: int, message: pb.Gossip, timeout: float
    ) -> Future[pb.Gossip | ExchangeError]:
        """Start to gossip with one member; return the future of its answer, or of the error instead.

        Raises
        ------
        ExchangeStoppedError
            When the links are closed.
        """
        return self._tasks.start(
            gossip, self._gossip_channels, self.edges.terms.run, remote, message, timeout
        )

    def fetch(self, local: int, donor: int, check: Callable[[], None]) -> npt.NDArray[np.floating]:
        """Ask another peer of the present view for its θ at the view's beginning.

        The deadline is ``timeout``; after a fetch that ran into its deadline, the next one's is twice as
        long, from any donor.

        Parameters
        ----------
        local : int
            The peer that asks.
        donor : int
            The remote peer that is asked; it need not be a neighbour.
        check : callable
            Called several times a second; may raise.

        Returns
        -------
        numpy.ndarray
            (q,), of the terms' dtype, finite; its own memory.

        Raises
        ------
        OtherViewError
            When the donor has not come to this view yet, has no θ itself yet, or has left the view.
        ExchangeTimeoutError, PeerUnreachableError
            When there is no answer.
        ExchangeRefusedError
            When the donor refuses, or its answer is another one than asked for; says which.
        Exception
            The error that `fail` was called with, or that ``check`` raised.
        """
        return self._wait(
            fetch,
            self.edges.terms,
            (donor, local),
            self.address_of(donor),
            self._fetches,
            self._credentials,
            self._insecure,
            check=check,
        )

    def fail(self, error: Exception) -> None:
        """Wake a waiting `send`, `flush` or `meet` with ``error``; later ones raise it.

        Stops and gossip go on. The first error stays, but for a `ViewChangeError`, which gives way to any
        other, and to `install`.
        """
        with self._lock:
            self._error = first_error(self._error, error)
        self._cancel()

    def close(self) -> None:
        """Cancel all calls and close all channels."""
        self.fail(ExchangeStoppedError("this host has closed its links"))
        with contextlib.suppress(ExchangeStoppedError):  # closed before
            self._tasks.run(self._close_channels)
        self._tasks.close()
        self._hand_overs.close()

    async def _close_channels(self) -> None:
        await self._channels.close()
        await self._gossip_channels.close()

    async def _carry(self, payload: Payload, first: Outcome = None) -> None:
        try:
            await self._carrier.carry(payload, first)
        except Exception as error:
            await self._tell_failure(error)
            raise

    async def _tell_failure(self, error: Exception) -> None:
        if self._on_failure is not None:
            await asyncio.to_thread(self._on_failure, error)  # it may wait for locks of the runtime

    def _wait(
        self,
        work: Callable[..., Awaitable[T]],
        *arguments: Any,
        check: Callable[[], None] = lambda: None,
    ) -> T:
        """Return the result of work that `fail` ends; ``check``, called several times a second, may raise."""
        with self._lock:
            if self._error is not None:
                raise self._error
            future = self._tasks.start(work, *arguments)
            self._waited_for.add(future)
        try:
            while not wait({future}, _ASK).done:
                check()
            return self._result(future)
        finally:
            future.cancel()
            with self._lock:
                self._waited_for.discard(future)

    def _result(self, future: Future[T], timeout: float | None = None) -> T:
        """Return a future's result; raise the error that `fail` was called with, if that ended it."""
        try:
            return future.result(timeout)
        except CancelledError:
            raise self.error or ExchangeStoppedError("this host has closed its links") from None

    def _give_up(self) -> float:
        """Return the time at which a payload of now is given up by who waits for it."""
        return math.inf if self._carrier.patience else time.monotonic() + self._timeout + _STUCK

    def _settle(self, edges: Iterable[Edge], deadline: float, end: float) -> None:
        """Wait until the payloads under way on some edges are taken in and forget them; raise their errors.

        Parameters
        ----------
        edges : iterable of (int, int)
            Sender and receiver of each.
        deadline, end : float
            Seconds that an error names, and the time at which they are given up.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            waited_for = {edge: self._under_way[edge] for edge in edges if edge in self._under_way}
        for edge, (future, payload) in waited_for.items():
            try:
                rest = self._result(future, _left(end))
                if rest and edge in rest:
                    self._result(rest[edge], _left(end))
            except TimeoutError:
                where = f"peer {edge[1]} at {self.address_of(edge[1])}"
                problem = f"{where} has not taken the payload in"
                raise ExchangeTimeoutError(problem, **payload.place).at(deadline=deadline) from None
        with self._lock:
            if self._error is not None:
                raise self._error
            for edge in waited_for:
                self._under_way.pop(edge, None)

    def _cancel(self) -> None:
        """End all payloads, and all futures that are waited for."""
        with self._lock:
            under_way = (future for future, _ in self._under_way.values())
            futures = {*under_way, *self._waited_for, *self._alone}
        for future in futures:
            future.cancel()


def _left(end: float) -> float | None:
    """Return the seconds until a time; None if it never comes."""
    return None if end == math.inf else max(0.0, end - time.monotonic())
