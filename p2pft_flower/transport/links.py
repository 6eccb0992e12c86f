"""The way out of a host: payloads, greetings, gossip, stops and fetches to remote peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, suppress

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import Cause
from p2pft_flower.transport.calls import Channels
from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.edges import Edges
from p2pft_flower.transport.fetching import fetch
from p2pft_flower.transport.gossiping import gossip, gossip_all, stop_all
from p2pft_flower.transport.mailbox import Edge, Patience
from p2pft_flower.transport.meeting import MEET_REMEDY, Meeting
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.payloads import Carrier, Deadlines
from p2pft_flower.transport.sending import Sending
from p2pft_flower.transport.traffic import Carried
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.addresses import parse_address
from p2pft_flower.transport.wire.errors import ExchangeError, ExchangeStoppedError
from p2pft_flower.transport.wire.header import Terms
from p2pft_flower.transport.work import Work

__all__ = ["Links"]


class Links(Closing):
    """Sends the payloads, hellos, stops and gossip of one host's peers; a context manager.

    One thread sends and installs; all other methods may be called from any thread but the network's. Channels
    are opened when first used; do not fork afterwards. ``_edges`` is replaced by that one thread.

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
        Deadline of one call in seconds. A payload without ``patience`` must be taken in within this time from
        `send` on; with ``patience`` this is the deadline of the payload's first call. Default 600.
    longest : float, optional
        With ``patience``: longest deadline of a call that carries a vector, in seconds. If a call's deadline
        passes while its receiver speaks, the next call has twice the deadline, up to ``longest``, and the
        edge keeps that deadline. After twice ``longest`` without a call that got through, the payload's error
        is an `EdgeBrokenError`. Default, and at least: ``timeout``.
    speaks : callable, optional
        Given a remote peer, returns at once whether the peer was heard of lately, so that a call without an
        answer is the link's fault. Default: True for all peers.
    views_change : bool
        Whether peers may go on in another view: then a receiver that stops, and a call that failed in no
        known way, fail no payload, which is sent again after a moment. Default False.
    credentials : Credentials, optional
        For TLS over TCP: this host's certificate, and the authorities that it trusts. A process that answers
        at a neighbour's address must have that neighbour's certificate.
    insecure : bool
        Whether plain text may leave this machine; default False.
    on_failure : callable, optional
        Gets the error of a payload as soon as it is known, in another thread, so that a host that waits for
        its neighbours meanwhile can be woken (``mailbox.fail``). The next `send` or `flush` raises the error.
    patience : callable, optional
        Called with the receiver of a payload that is not taken in yet, several times a second; returns at
        once. If it returns None, a payload whose call timed out, found no connection, or was answered that
        the receiver is busy or in another view is sent again, the same bytes (a payload that had come after
        all is answered DUPLICATE). If it returns an error, that is the payload's error. Default: such a
        payload fails at once. A payload that arrived altered is sent again, with ``patience`` or without, a
        few times; then it fails, with ``patience`` by an `EdgeBrokenError`.

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
        self._credentials, self._insecure = credentials, insecure
        self._addresses = dict(addresses)
        self._channels = Channels(addresses, credentials, insecure)
        self._gossip_channels = Channels(addresses, credentials, insecure, gossip=True)
        longest = longest or 0.0
        self._fetches = Deadlines(timeout, longest)
        carrier = Carrier(self._channels, Deadlines(timeout, longest), patience, speaks, views_change)
        self._awaited: set[int] = set()
        self._edges = Edges.of(terms, out_edges, in_edges, self._addresses)
        self._tasks = Tasks()
        self._work = Work(self._tasks)
        self._sending = Sending(terms.run, self._addresses, carrier, self._work, timeout, on_failure)
        self._sending.install(self._edges)

    @property
    def error(self) -> Exception | None:
        """The first error that `fail` was called with; None if it was not called."""
        return self._work.error

    @property
    def edges(self) -> Edges:
        """The edges of the present view."""
        return self._edges

    @property
    def bytes_sent(self) -> dict[int, int]:
        """Local sender to the bytes of all payloads that were sent, to all receivers, without retries."""
        return self._sending.bytes_sent

    def carried(self) -> dict[Edge, Carried]:
        """Return what has been carried along each edge of this host so far; see `Traffic`."""
        return self._sending.traffic.carried()

    @property
    def neighbours(self) -> dict[int, int]:
        """Each remote neighbour, ascending, to the local peer in whose name this host sends it messages."""
        return self.edges.neighbours

    def address_of(self, remote: int) -> str:
        """Return the address of a remote peer."""
        return self._addresses[remote]

    def no_tls_with(self, remote: int) -> str | None:
        """Return the reason why a remote peer's TLS fails; None if it does not, or nobody is there.

        None also without credentials. This may take some seconds; see `Credentials.diagnose`.
        """
        own = self._credentials
        return None if own is None else own.diagnose(self.address_of(remote), remote)

    def revoked(self, remote: int) -> tuple[float, str] | None:
        """Return when a revocation of a remote peer came into force here, and a sentence on it.

        None if there was none since the start, also without credentials, and for a Unix socket.
        """
        own = self._credentials
        if own is None or parse_address(self.address_of(remote)).path is not None:
            return None
        since, told = own.revoked_since(remote), own.revoked(remote)
        return None if since is None or told is None else (since, told)

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
        self._work.cancel()
        self._sending.close()
        self._tasks.run(self._channels.renew, list(returned))
        self._work.renew()
        self._edges = Edges.of(terms, out_edges, in_edges, self._addresses)
        self._sending.install(self._edges)

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
            The question that neighbours are asked: in stage 0, whether they are prepared; in stage s > 0,
            whether all neighbours of theirs have agreed to their stage s - 1.

        Raises
        ------
        PeerUnreachableError
            When a neighbour is given up; the message names edge, address and deadline.
        ExchangeRefusedError
            When a neighbour has other terms, or the two ends do not accept each other's certificates; it is
            raised at once, and the message names the difference.
        Exception
            The error that `fail` was called with.
        """
        edges = self.edges
        meeting = Meeting(self._channels, self._credentials, edges.terms, edges.pairs, self._awaited)
        self._work.wait(meeting.run, timeout, remedy, stage)

    def send(
        self,
        sender: int,
        iteration: int,
        phase: int,
        vector: npt.NDArray[np.floating] | bytes,
        shares: Mapping[int, float] | None = None,
    ) -> None:
        """Start sending ``vector`` to every remote out-neighbour of ``sender``; see `Sending.send`."""
        self._sending.send(self.edges, sender, iteration, phase, vector, shares)

    def together(self) -> AbstractContextManager[None]:
        """Return a context manager that gathers payloads to hosts of this machine; see `Sending.together`."""
        return self._sending.together()

    @property
    def awaited(self) -> tuple[int, float] | None:
        """The peer that has not taken a payload in and is waited for, and since when; None: there is none."""
        return self._sending.awaited

    def flush(self, timeout: float) -> None:
        """Wait until every payload has been taken in; see `Sending.flush`."""
        self._sending.flush(timeout)

    def stop(self, origin: int, iteration: int, reason: str, cause: Cause, timeout: float = 2.0) -> list[int]:
        """Tell every remote neighbour, in both directions of edges, that ``origin`` gives up. Never raises.

        Parameters
        ----------
        origin : int
            The peer that gave up first, local or not.
        iteration : int
            The iteration in which ``origin`` was.
        reason : str
            The reason, in words for a person.
        cause : Cause
            The cause, as others see it.
        timeout : float
            Seconds to wait for answers.

        Returns
        -------
        list of int
            The neighbours that have taken the stop, ascending.
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
            missed = self._tasks.run(stop_all, self._gossip_channels, stops, timeout)
        except (ExchangeStoppedError, CancelledError):  # the links were closed
            return []
        return sorted(stops.keys() - missed.keys())

    def gossip_all(
        self, messages: Mapping[int, pb.Gossip], timeout: float
    ) -> dict[int, pb.Gossip | ExchangeError]:
        """Gossip with several members at once, neighbours or not.

        Parameters
        ----------
        messages : mapping of int to Gossip
            The gossip for each remote member; ``sender`` must be a local peer.
        timeout : float
            Seconds that all gossip together may take.

        Returns
        -------
        dict of int to Gossip or ExchangeError
            Each member's answer, or the error: the member was not reached in time, or refused (which does not
            stop this host). The error of `fail` is never raised here: a host that gives up may still gossip.

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

        The deadline is ``timeout``; after a fetch that ran into its deadline, the next fetch, from any donor,
        has twice the time, up to ``longest``.

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
            θ, (q,), of the terms' dtype, finite, in memory of its own.

        Raises
        ------
        OtherViewError
            When the donor has not come to this view yet, has no θ to give in it, or has left the view.
        ExchangeTimeoutError, PeerUnreachableError
            When there is no answer.
        ExchangeRefusedError
            When the donor refuses, or its answer is not the one that was asked for; the message says why.
        Exception
            The error that `fail` was called with, or that ``check`` raised.
        """
        return self._work.wait(
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
        self._work.fail(error)

    def close(self) -> None:
        """Cancel all calls and close all channels."""
        self.fail(ExchangeStoppedError("this host has closed its links"))
        with suppress(ExchangeStoppedError):  # closed before
            self._tasks.run(self._close_channels)
        self._tasks.close()
        self._sending.close()

    async def _close_channels(self) -> None:
        await self._channels.close()
        await self._gossip_channels.close()
