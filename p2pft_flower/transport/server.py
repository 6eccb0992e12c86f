"""The gRPC server of a host: what neighbours call."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from p2pft_flower.errors import Cause, cause_of, printable
from p2pft_flower.transport.endpoint import EXCHANGE, Listener, gossip_limit
from p2pft_flower.transport.mailbox import Edge, Mailbox
from p2pft_flower.transport.stops import has_key
from p2pft_flower.transport.trust.certificates import Identity
from p2pft_flower.transport.trust.tls import Credentials, NotAuthenticError
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import (
    ExchangeStoppedError,
    ViewChangeError,
    cause_from,
)
from p2pft_flower.transport.wire.header import HEADER_KEY, decode_header, fetched

__all__ = ["PeerServer"]

log = logging.getLogger(__name__)


_KEPT = 1.0
"""Seconds that a payload or a fetch of a later view is kept before it is answered LATER."""

_Answer = pb.Reply | pb.Gossip | pb.Fetched
_Answerer = Callable[[bytes, Any, Identity | None], _Answer]


class _Offer(NamedTuple):
    """What peers without a θ may fetch."""

    iteration: int
    thetas: Mapping[int, npt.NDArray[np.floating]]
    to: frozenset[int]


class _View(NamedTuple):
    """What a view lets in and gives out; replaced as a whole."""

    mailbox: Mailbox
    neighbours: frozenset[Edge]
    """(remote, local) of every pair of neighbours, whichever way the edge goes."""
    offer: _Offer | None = None

    @classmethod
    def of(cls, mailbox: Mailbox, out_edges: Iterable[Edge]) -> Self:
        return cls(mailbox, frozenset({*mailbox.edges, *((remote, local) for local, remote in out_edges)}))


class PeerServer:
    """Serves the peers of one host, from construction to `close`; a context manager.

    Parameters
    ----------
    mailbox : Mailbox
        Where payloads go; its terms and in-edges are what neighbours are held to, until `install`.
    addresses : mapping of int to str
        Local peer to the address it listens on; port 0 lets the system choose one.
    out_edges : iterable of (int, int)
        (local sender, remote receiver): these receivers are neighbours too and may say hello and stop.
    on_hello : callable, optional
        Gets a Hello that passed every check here; returns None to agree, else the answer. PREPARING has the
        neighbour ask again at once: keep it a moment before.
    on_stop : callable, optional
        Gets a neighbour's Stop, or one that shows the run's key, in a thread of the server; must return soon.
    on_gossip : callable, optional
        Gets a Gossip that passed every check here, in a thread of the server, and returns the answer's pulse
        and records; must return soon. Default None: gossip is refused.
    members : frozenset of int
        The peers of the run, local ones too: any of them may gossip, and may be a neighbour in a later view.
        Default empty: the neighbours only.
    stop_digest : str
        SHA-256, hexadecimal, of the key by which the coordinator may stop the run (`stop_run`); default
        empty: it may not. Where there are no certificates, whoever shows the key is the coordinator.
    timeout : float
        Longest wait of a payload for room in the mailbox, in seconds, where the sender's deadline is later.
    credentials : Credentials, optional
        For TLS over TCP: every caller must then have a certificate of the federation, speak TLS 1.3, be a
        neighbour, and be the sender that its messages name; or be the coordinator, for a Stop with the key.
    insecure : bool
        Whether to listen in plain text beyond this machine; default False.

    Attributes
    ----------
    bound_addresses : dict of int to str
        Local peer to address, with the real port.

    Raises
    ------
    BindError
        When an address cannot be served on; names peer, address and remedy.
    ConfigError
        When an address cannot be parsed, or plain text would leave this machine.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        addresses: Mapping[int, str],
        *,
        out_edges: Iterable[Edge] = (),
        on_hello: Callable[[pb.Hello], pb.Reply | None] | None = None,
        on_stop: Callable[[pb.Stop], None] | None = None,
        on_gossip: Callable[[pb.Gossip], pb.Gossip] | None = None,
        members: frozenset[int] = frozenset(),
        stop_digest: str = "",
        timeout: float = 600.0,
        credentials: Credentials | None = None,
        insecure: bool = False,
    ) -> None:
        self._view = _View.of(mailbox, out_edges)
        self._installed = threading.Condition()
        self._closed = False
        self._members = members
        self._local = frozenset(addresses)
        self._stop_digest = stop_digest
        self._on_hello = on_hello
        self._on_stop = on_stop
        self._on_gossip = on_gossip
        self._timeout = timeout
        self._credentials = credentials
        self._throttle = Throttle()
        answers: dict[str, _Answerer] = {
            "Deliver": self._deliver,
            "Hello": self._hello,
            "Stop": self._stop,
            "Gossip": self._gossip,
            "Fetch": self._fetch,
        }
        # Room for the view with the most edges into this host: each member's to each local peer. (Threads
        # are started when they are needed.)
        callers = max(len(self._view.neighbours), len(members))
        self._gossip_limit = gossip_limit(callers)
        # An in-edge may hold one worker (its payload waits for room) and, for a moment, a second (its retry).
        waiting = max(len(mailbox.edges), len(members) * len(addresses))
        workers = waiting + min(callers, 8) + 2
        self._listener = Listener(
            EXCHANGE,
            {name: partial(self._answer, answer) for name, answer in answers.items()},
            addresses,
            max_message=max(mailbox.terms.nbytes, self._gossip_limit),
            workers=workers,
            max_calls=workers + waiting + callers,
            # Two from each caller (payloads, gossip), two that take their place when they broke, and some
            # room for preflights.
            max_connections=4 * callers + 8,
            credentials=None if credentials is None else credentials.server(),
            insecure=insecure,
        )
        self.bound_addresses = self._listener.bound_addresses

    def install(self, mailbox: Mailbox, out_edges: Iterable[Edge]) -> None:
        """Go on to another view, at once and as a whole: payloads that were kept for it are taken in.

        Fail the old mailbox with a `ViewChangeError` before: its senders, which may not have heard of the new
        view, are then told WRONG_VIEW, and not that this host has stopped.

        Parameters
        ----------
        mailbox : Mailbox
            The new view's; of payloads no longer than the old one's.
        out_edges : iterable of (int, int)
            (local sender, remote receiver) of the new view.

        Raises
        ------
        ValueError
            When its payloads are longer, or it is of another run: the server was not made for it.
        """
        terms = self._view.mailbox.terms
        if (mailbox.terms.run, mailbox.terms.nbytes) != (terms.run, terms.nbytes):
            raise ValueError(
                f"a server of run {terms.run!r} with payloads of {terms.nbytes} bytes cannot go on with run "
                f"{mailbox.terms.run!r} and {mailbox.terms.nbytes} bytes"
            )
        with self._installed:
            self._view = _View.of(mailbox, out_edges)
            self._installed.notify_all()

    def offer(
        self, iteration: int, thetas: Mapping[int, npt.NDArray[np.floating]], to: Iterable[int]
    ) -> None:
        """Let other peers of the present view fetch θ of this host's peers, until `install` or `withdraw`.

        Parameters
        ----------
        iteration : int
            The one that the view begins with.
        thetas : mapping of int to numpy.ndarray
            Local peer to its θ when the view began, (q,), of the terms' dtype; must not be changed.
        to : iterable of int
            The peers of the view.
        """
        with self._installed:
            self._view = self._view._replace(offer=_Offer(iteration, dict(thetas), frozenset(to)))
            self._installed.notify_all()

    def withdraw(self) -> None:
        """Take back what `offer` offered."""
        with self._installed:
            self._view = self._view._replace(offer=None)

    def close(self, grace: float = 5.0) -> None:
        """Stop serving: fail the mailbox, let running answers leave, remove sockets and threads.

        Parameters
        ----------
        grace : float
            How long answers may take to leave, in seconds.
        """
        # Whoever still waits for room would hold a worker; nobody will make room any more.
        ended = "this host has finished and takes no more payloads"
        self._view.mailbox.fail(ExchangeStoppedError.by(Cause.OWN, ended))
        with self._installed:
            self._closed = True
            self._installed.notify_all()
        self._listener.close(grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self,
        answer: _Answerer,
        request: bytes,
        context: Any,
    ) -> bytes:
        """Find out who calls and whether to listen, answer, and remember what had to be refused."""
        who, caller = None, context.peer()
        # Only this user gets at a Unix socket: a Unix socket needs neither certificates nor patience.
        trusted = caller.startswith("unix:")
        reply: _Answer
        try:
            if self._credentials is not None and not trusted:
                who = self._credentials.identify(context)
                caller = who.name
        except NotAuthenticError as error:
            reply = self._refuse(pb.NOT_AUTHENTIC, str(error))
        else:
            if not trusted and self._throttle.is_closed(caller):
                reply = self._refuse(
                    pb.THROTTLED, f"too much from {caller} was refused: nothing is looked at"
                )
            elif who is not None and who.peer is None:
                # It trains nothing, so it may do no more than end what it has started.
                if answer == self._stop and self._has_key(context):
                    reply = self._stop(request, context, who)
                else:
                    reply = self._refuse(
                        pb.NOT_NEIGHBOUR,
                        f"{who.name} is heard for a stop with the run's key, and for no more",
                    )
            elif who is not None and not self._knows(who.peer):
                reply = self._refuse(pb.NOT_NEIGHBOUR, f"{who.name} shares no edge with this host")
            else:
                reply = answer(request, context, who)
        # What is not looked at costs nothing, so it does not count: a peer that sends again and again what is
        # right would else be kept out for ever.
        if reply.status not in _NO_FAULT and reply.status != pb.THROTTLED:
            self._throttle.refused(caller)
        if answer == self._gossip and isinstance(reply, pb.Reply):
            reply = pb.Gossip(status=reply.status, reason=reply.reason)
        if answer == self._fetch and isinstance(reply, pb.Reply):
            reply = pb.Fetched(status=reply.status, reason=reply.reason)
        return reply.SerializeToString()

    def _knows(self, peer: int | None) -> bool:
        """Return whether a remote peer is a neighbour, or may become one in a later view."""
        return peer in self._members or any(peer == remote for remote, _ in self._view.neighbours)

    def _has_key(self, context: Any) -> bool:
        return has_key(context.invocation_metadata(), self._stop_digest)

    def _deliver(self, payload: bytes, context: Any, who: Identity | None) -> pb.Reply:
        header = b""
        for key, value in context.invocation_metadata():
            if key == HEADER_KEY:
                header = value
        if not header:
            return self._refuse(pb.BAD_HEADER, f"metadata key {HEADER_KEY} is missing")
        left = context.time_remaining()
        # The sender hears BUSY before its own deadline: so it knows that the link is not to blame.
        left = math.inf if left is None else left - min(1.0, left / 10)
        end = time.monotonic() + min(left, self._timeout)
        kept_until = min(end, time.monotonic() + _KEPT)
        while True:
            mailbox = self._view.mailbox
            timeout = max(0.0, end - time.monotonic())
            try:
                reply = mailbox.deliver(header, payload, timeout, None if who is None else who.peer)
            except ViewChangeError as error:  # the sender is no stranger to the run: it will hear of it too
                return pb.Reply(status=pb.WRONG_VIEW, reason=str(error))
            except Exception as error:  # whatever the runtime failed the mailbox with is the answer
                return _stopped(error)
            if reply.status != pb.LATER or not self._is_installed_after(mailbox, header, kept_until):
                return reply

    def _is_installed_after(self, mailbox: Mailbox, header: bytes, end: float) -> bool:
        """Wait until another view than that of ``mailbox`` is installed; False if it is not by ``end``."""
        # Whom the later view will not have either is not waited for: it would hold a worker.
        if not self._knows(decode_header(header).sender):
            return False
        with self._installed:
            self._installed.wait_for(
                lambda: self._closed or self._view.mailbox is not mailbox, end - time.monotonic()
            )
        return self._view.mailbox is not mailbox

    def _hello(self, request: bytes, _context: Any, who: Identity | None) -> pb.Reply:
        try:
            hello = pb.Hello.FromString(request)
        except DecodeError:
            return self._refuse(pb.BAD_HEADER, "a hello that cannot be parsed")
        if who is not None and hello.sender != who.peer:
            return self._refuse(pb.NOT_AUTHENTIC, f"a hello from peer {hello.sender} by {who.name}")
        if (wrong := self._mismatch(hello)) is not None:
            return self._refuse(*wrong)
        answer = self._on_hello(hello) if self._on_hello is not None else None
        if answer is not None:
            return answer if answer.status == pb.PREPARING else self._refuse(answer.status, answer.reason)
        if (error := self._view.mailbox.error) is not None:
            return _stopped(error)
        return pb.Reply(status=pb.ACCEPTED)

    def _mismatch(self, hello: pb.Hello) -> tuple[pb.Status, str] | None:
        view = self._view
        terms = view.mailbox.terms
        # Who and what run first, and without our own: a stranger learns nothing about the terms.
        if hello.run != terms.run:
            return pb.WRONG_RUN, f"run {hello.run[:64]!r} is not this one"
        if (hello.sender, hello.receiver) not in view.neighbours:
            return pb.NOT_NEIGHBOUR, f"peers {hello.sender} and {hello.receiver} share no edge here"
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
                return status, f"peer {hello.sender} has {what} {told!r}, peer {hello.receiver} has {ours!r}"
        return None

    def _stop(self, request: bytes, context: Any, who: Identity | None) -> pb.Reply:
        try:
            stop = pb.Stop.FromString(request)
        except DecodeError:
            return self._refuse(pb.BAD_HEADER, "a stop that cannot be parsed")
        # Where certificates say who calls, a peer is a peer, whatever key it shows.
        keyed = (who is None or who.peer is None) and self._has_key(context)
        if who is not None and stop.sender != who.peer and not keyed:
            return self._refuse(pb.NOT_AUTHENTIC, f"a stop from peer {stop.sender} by {who.name}")
        if stop.run != self._view.mailbox.terms.run:
            return self._refuse(pb.WRONG_RUN, f"a stop of run {stop.run[:64]!r}")
        # Between two views not all have the same neighbours yet.
        if not keyed and not self._knows(stop.sender):
            return self._refuse(
                pb.NOT_NEIGHBOUR, f"a stop from peer {stop.sender}, which shares no edge with this host"
            )
        if cause_from(stop.cause) is None:
            return self._refuse(
                pb.BAD_HEADER, "a stop that does not say its cause: is it of another version?"
            )
        stop.reason = printable(stop.reason[:4096])
        if self._on_stop is not None:
            try:
                self._on_stop(stop)
            except Exception:
                log.exception("the runtime failed on a stop from peer %d", stop.sender)
        return pb.Reply(status=pb.ACCEPTED)

    def _gossip(self, request: bytes, _context: Any, who: Identity | None) -> pb.Reply | pb.Gossip:
        if self._on_gossip is None:
            return self._refuse(pb.MISMATCH, "this host takes no gossip in this run")
        if len(request) > self._gossip_limit:
            return self._refuse(
                pb.WRONG_LENGTH, f"a gossip of {len(request)} bytes: at most {self._gossip_limit} are read"
            )
        try:
            gossip = pb.Gossip.FromString(request)
        except DecodeError:
            return self._refuse(pb.BAD_HEADER, "a gossip that cannot be parsed")
        if (wrong := self._wrong_gossip(gossip, who)) is not None:
            return self._refuse(*wrong)
        try:
            answer = self._on_gossip(gossip)
        except Exception as error:
            log.exception("the runtime failed on a gossip from peer %d", gossip.sender)
            return pb.Reply(status=pb.STOPPED, reason=f"this host failed on it: {type(error).__name__}")
        answer.run, answer.sender, answer.receiver = gossip.run, gossip.receiver, gossip.sender
        answer.status = pb.ACCEPTED
        return answer

    def _fetch(self, request: bytes, context: Any, who: Identity | None) -> pb.Reply | pb.Fetched:
        try:
            asked = pb.Fetch.FromString(request)
        except DecodeError:
            return self._refuse(pb.BAD_HEADER, "a fetch that cannot be parsed")
        if (wrong := self._wrong_fetch(asked, who)) is not None:
            return self._refuse(*wrong)
        left = context.time_remaining()
        kept = _KEPT if left is None else min(_KEPT, left)

        def decided() -> bool:
            view = self._view
            there = view.mailbox.terms.view
            return self._closed or there > asked.view or (there == asked.view and view.offer is not None)

        with self._installed:
            self._installed.wait_for(decided, kept)
            view = self._view
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
            return self._refuse(
                pb.NOT_NEIGHBOUR, f"a fetch by peer {asked.sender}, which is not in view {terms.view}"
            )
        edge = (asked.receiver, asked.sender)
        return fetched(terms, edge, view.offer.iteration, view.offer.thetas[asked.receiver])

    def _wrong_fetch(self, asked: pb.Fetch, who: Identity | None) -> tuple[pb.Status, str] | None:
        if who is not None and asked.sender != who.peer:
            return pb.NOT_AUTHENTIC, f"a fetch by peer {asked.sender} by {who.name}"
        if asked.run != self._view.mailbox.terms.run:
            return pb.WRONG_RUN, f"a fetch of run {asked.run[:64]!r}"
        if asked.receiver not in self._local:
            return pb.NOT_NEIGHBOUR, f"a fetch from peer {asked.receiver}, which is not on this host"
        if asked.sender not in self._members:
            return pb.NOT_NEIGHBOUR, f"a fetch by peer {asked.sender}, which is no member of this run"
        return None

    def _wrong_gossip(self, gossip: pb.Gossip, who: Identity | None) -> tuple[pb.Status, str] | None:
        if who is not None and gossip.sender != who.peer:
            return pb.NOT_AUTHENTIC, f"a gossip from peer {gossip.sender} by {who.name}"
        if gossip.run != self._view.mailbox.terms.run:
            return pb.WRONG_RUN, f"a gossip of run {gossip.run[:64]!r}"
        if gossip.receiver not in self._local:
            return pb.NOT_NEIGHBOUR, f"a gossip for peer {gossip.receiver}, which is not on this host"
        if not self._knows(gossip.sender):
            return pb.NOT_NEIGHBOUR, f"a gossip from peer {gossip.sender}, which is no member of this run"
        return None

    def _refuse(self, status: pb.Status, reason: str) -> pb.Reply:
        return self._view.mailbox.refuse(status, None, reason)


def _stopped(error: Exception) -> pb.Reply:
    """Answer that this host has stopped, with the same cause as its own error."""
    return pb.Reply(status=pb.STOPPED, reason=str(error), cause=cause_of(error).name)


class Throttle:
    """Who had so much refused lately that nothing of theirs is looked at for a while (a leaky bucket).

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
        """Return whether ``caller`` is not to be listened to now."""
        with self._lock:
            return self._level(caller) >= self._burst

    def refused(self, caller: str) -> None:
        """Note that something of ``caller``'s was refused."""
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


_CALLERS = 1024
"""Callers a throttle remembers: strangers cannot make it grow."""

_NO_FAULT = frozenset(
    {
        pb.ACCEPTED,
        pb.DUPLICATE,
        pb.SUPERSEDED,
        pb.BUSY,
        pb.STOPPED,
        pb.PREPARING,
        pb.LATER,
        pb.WRONG_VIEW,  # who has not heard of a view yet is no attacker
    }
)
"""What a caller is answered that did nothing wrong."""
