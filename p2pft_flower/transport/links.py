"""The way out of a host: one channel a remote neighbour, at most one payload under way on each edge."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import numpy.typing as npt
import xxhash

from p2pft_flower.errors import Cause, P2PFTError
from p2pft_flower.transport.calls import Call, Channels
from p2pft_flower.transport.mailbox import ASK_EVERY, Edge, Patience, first_error
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import (
    CorruptedError,
    EdgeBrokenError,
    ExchangeError,
    ExchangeRefusedError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    OtherViewError,
    PeerPreparingError,
    PeerUnreachableError,
    UnansweredError,
    ViewChangeError,
)
from p2pft_flower.transport.wire.header import HEADER_KEY, Terms, encode_header, wrong_vector

__all__ = ["Links"]

log = logging.getLogger(__name__)

_MEET_REMEDY = "is its host running, is the address right and reachable from here? Otherwise allow more time"

_AGAIN = 0.5
"""Seconds until a neighbour that was not there is greeted again."""

_ASK = 0.1
"""Seconds between two looks whether what is waited for is still wanted."""

_PAUSE = 0.1
"""Seconds until a payload that was not taken in is sent again."""

_LONG_PAUSE = 0.5
"""Seconds until a payload is sent again whose receiver is stopping, or whose call failed in no known way."""

_NOT_YET = (ExchangeTimeoutError, PeerUnreachableError, OtherViewError)
"""What may pass: a payload is sent again as long as there is patience with its receiver."""

_CORRUPTED = 10
"""How often one payload may arrive altered before its link is given up: then it is no accident."""

_NO_HANDSHAKE = ("Tls handshake failed", "Verification Check failed", "CERTIFICATE_VERIFY_FAILED")
"""What gRPC says when TLS fails on this side."""


@dataclass
class _Payload:
    """One payload on its way to one receiver, however many calls that takes; guarded by the links' lock."""

    edge: Edge
    body: bytes
    header: bytes
    at: tuple[int, int]
    call: Call
    settled: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    again: threading.Timer | None = None
    corrupted: int = 0
    through: float = field(default_factory=time.monotonic)
    """When one of its calls last got through, be it to be told to come again; at first when it was made."""


class Links:
    """Sends the payloads, hellos, stops and gossip of one host's peers; a context manager.

    One thread sends and installs; all else may be called from any. Channels are opened when first
    used; do not fork afterwards.

    Parameters
    ----------
    terms : Terms
        What every payload has and every neighbour must agree on.
    addresses : mapping of int to str
        Remote peer to address; must cover every remote end of the edges, of later views too, and whoever
        is to be gossiped with.
    out_edges, in_edges : iterable of (int, int)
        (sender, receiver) of the edges that leave this host and that enter it. Only the first carry
        payloads; hellos and stops go to both.
    timeout : float
        Deadline of one call in seconds; of a payload, from being handed over to being taken in, where there
        is no ``patience``, else of its first call. Default 600.
    longest : float, optional
        Where there is ``patience``: longest deadline of a call that carries a vector, in seconds. One whose
        deadline passed while its receiver speaks is followed by one with twice as long, up to this, and the
        edge keeps what it needed. After twice as long as this without a call that got through, the payload's
        error is an `EdgeBrokenError`. Default, and at least: ``timeout``.
    speaks : callable, optional
        Whether a remote peer was heard of lately, so that a call without an answer is the link's fault.
        Default: all do.
    views_change : bool
        Whether peers may go on in another view: then a receiver that stops, and a call that failed in no
        known way, fail no payload, which is sent again after a moment. Default False.
    credentials : Credentials, optional
        For TLS over TCP: what proves who we are, and whom we trust. Whoever answers at a neighbour's address
        must have that neighbour's certificate.
    insecure : bool
        Whether plain text may leave this machine; default False.
    on_failure : callable, optional
        Gets the error of a payload as soon as it is known, in another thread, so that a host that waits for
        its neighbours meanwhile can be woken (``mailbox.fail``). The next `send` or `flush` raises the same.
    patience : callable, optional
        Asked about the receiver of a payload that is not taken in: where its call timed out, found no
        connection, or was answered that the receiver is busy or in another view, and several times a second
        while `send` or `flush` wait. None: it is sent again, the same bytes (a payload that had come after
        all is answered DUPLICATE); else what is returned is the payload's error. Default: such a payload
        fails at once. One that arrived altered is sent again either way, a few times;
        then, where there is patience, it has broken its edge.

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
        self.timeout = timeout
        self._longest = max(timeout, longest or 0.0)
        self._speaks, self._views_change = speaks, views_change
        self._deadlines: dict[Edge, float] = {}
        """Of each edge that needed more than `timeout`: the deadline of its calls."""
        self._fetch_deadline = timeout
        self._told: set[tuple[Edge, str]] = set()
        self._on_failure = on_failure
        self._patience = patience
        self._credentials, self._insecure = credentials, insecure
        self._channels = Channels(addresses, credentials, insecure)
        self._gossip_channels = Channels(addresses, credentials, insecure, gossip=True)
        self.bytes_sent: dict[int, int] = {}
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._payloads: dict[Edge, _Payload] = {}
        self._hellos: dict[Edge, Call] = {}
        self._awaited: set[int] = set()
        self._go_to(terms, out_edges, in_edges)

    @property
    def error(self) -> Exception | None:
        """What `fail` was called with first, if it was."""
        return self._error

    @property
    def neighbours(self) -> dict[int, int]:
        """Each remote neighbour of the present view, ascending, and the local peer that speaks to it."""
        # A host says things once to each remote peer, however many of its own peers share an edge with it.
        speakers = {remote: local for local, remote in sorted(self._pairs, reverse=True)}
        return dict(sorted(speakers.items()))

    def edge_with(self, remote: int) -> Edge:
        """Return the edge that stands for a remote neighbour and the local peer that speaks to it.

        Raises
        ------
        ValueError
            When it is no neighbour in the present view.
        """
        pairs = self._pairs
        speakers = [local for local, other in pairs if other == remote]
        if not speakers:
            raise ValueError(f"peer {remote} shares no edge with this host in view {self.terms.view}")
        return pairs[min(speakers), remote]

    def address_of(self, remote: int) -> str:
        """Return where a remote peer listens."""
        return self._channels.addresses[remote]

    def install(
        self,
        terms: Terms,
        out_edges: Iterable[Edge],
        in_edges: Iterable[Edge],
        returned: Iterable[int] = (),
    ) -> None:
        """Go on to another view: its terms and its edges. Connections that are open stay open.

        What is still under way of the old view is cancelled and forgotten. `fail` with a `ViewChangeError`
        is over thereby; after any other failure nothing is sent any more, in no view.

        Parameters
        ----------
        terms : Terms
            Of the new view.
        out_edges, in_edges : iterable of (int, int)
            (sender, receiver) of the edges that leave this host and that enter it.
        returned : iterable of int
            Remote peers that were gone: their payloads get connections anew. Default none.

        Raises
        ------
        ValueError
            When a remote neighbour has no address.
        Exception
            What `fail` was called with, where that was no `ViewChangeError`.
        """
        self._cancel()
        self._channels.renew(returned)
        with self._lock:
            if self._error is not None and not isinstance(self._error, ViewChangeError):
                raise self._error
            self._go_to(terms, out_edges, in_edges)
            self._payloads.clear()
            self._error = None

    def _go_to(self, terms: Terms, out_edges: Iterable[Edge], in_edges: Iterable[Edge]) -> None:
        out, into = sorted(set(out_edges)), sorted(set(in_edges))
        # (local, remote) to the edge that stands for the pair in messages.
        pairs: dict[Edge, Edge] = {edge: edge for edge in out}
        pairs |= {(receiver, sender): (sender, receiver) for sender, receiver in into}
        missing = sorted({remote for _, remote in pairs} - self._channels.addresses.keys())
        if missing:
            raise ValueError(f"no address for the neighbours {missing}")
        self.terms = terms
        self._pairs = pairs
        self._receivers: dict[int, list[int]] = {}
        for sender, receiver in out:
            self._receivers.setdefault(sender, []).append(receiver)
        self.bytes_sent = dict.fromkeys(self._receivers, 0) | self.bytes_sent

    def meet(self, timeout: float, remedy: str = _MEET_REMEDY, *, stage: int = 0) -> None:
        """Say hello to every remote neighbour and wait until all have agreed to the terms.

        A neighbour that answers that it is still preparing is asked again, as long as it makes progress.

        Parameters
        ----------
        timeout : float
            Seconds that a neighbour may be silent, or prepare without progress, before it is given up.
        remedy : str
            What the error advises when a neighbour is missing.
        stage : int
            What is asked: 0, are you prepared; s > 0, did all your neighbours agree to your stage s - 1.

        Raises
        ------
        PeerUnreachableError
            When a neighbour is given up; names edge, address and deadline.
        ExchangeRefusedError
            When a neighbour has other terms, or the two ends do not accept each other's certificates; says
            which. Raised at once.
        Exception
            What `fail` was called with.
        """
        ends = dict.fromkeys(self._pairs, time.monotonic() + timeout)  # when to give a neighbour up
        progress: dict[Edge, int] = {}
        answered: queue.SimpleQueue[tuple[Edge, Call]] = queue.SimpleQueue()
        due = dict.fromkeys(self._pairs, 0.0)  # who is to be greeted, and when
        unmet: dict[Edge, ExchangeError | None] = dict.fromkeys(self._pairs)  # and what kept us apart
        try:
            while unmet and (now := time.monotonic()) < (end := min(ends[pair] for pair in unmet)):
                for pair in [pair for pair, when in due.items() if when <= now]:
                    del due[pair]
                    self._greet(pair, stage, ends[pair] - now, answered)
                try:
                    pair, call = answered.get(timeout=min([end, *due.values()]) - now)
                except queue.Empty:
                    continue
                error = self._absence(replace(call, deadline=timeout))
                if error is None:
                    del unmet[pair]
                    continue
                due[pair] = time.monotonic() + _AGAIN
                # A last call that had only what was left of the time knows less than the one before it.
                short = isinstance(error, ExchangeTimeoutError) and call.deadline < timeout / 2
                if not short or unmet[pair] is None:
                    unmet[pair] = error
                if isinstance(error, PeerPreparingError):
                    self._tell_of_waiting(call)
                    due[pair] = 0.0  # it was kept there
                    if error.progress != progress.get(pair):
                        progress[pair], ends[pair] = error.progress, time.monotonic() + timeout
        finally:
            with self._lock:
                calls, self._hellos = self._hellos, {}
            for call in calls.values():
                call.future.cancel()
        if self._error is not None:
            raise self._error
        if unmet:
            lost = {pair: error for pair, error in unmet.items() if ends[pair] <= time.monotonic()}
            (local, remote), first = min(lost.items(), key=lambda item: self._pairs[item[0]])
            others = f" (and {len(lost) - 1} more edges)" if len(lost) > 1 else ""
            problem = f"no answer from peer {remote} at {self._channels.addresses[remote]}"
            raise PeerUnreachableError(
                f"could not meet{others}: {first.problem if first else problem}; {remedy}",
                peer=local,
                edge=self._pairs[local, remote],
                deadline=timeout,
            ) from first

    def send(
        self,
        sender: int,
        iteration: int,
        phase: int,
        vector: npt.NDArray[np.floating],
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
            Where in the run this is.
        vector : numpy.ndarray
            (q,), of the terms' dtype.
        shares : mapping of int to float, optional
            Receiver to b_ij, for a column exchange; must cover the remote receivers. Default 1 each.

        Raises
        ------
        ExchangeTimeoutError, PeerUnreachableError, ExchangeRefusedError, ExchangeStoppedError
            When the *previous* payload of an edge was not taken in; says which one and why.
        PeerLostError
            Or whatever else the patience with its receiver ended with.
        ValueError
            When ``vector`` or ``shares`` do not fit: the caller's mistake.
        Exception
            What `fail` was called with.
        """
        terms = self.terms
        receivers = self._receivers.get(sender, [])
        if not receivers:
            return
        if vector.shape != (terms.length,) or vector.dtype.newbyteorder("<") != terms.numpy_dtype:
            raise ValueError(
                f"peer {sender} sends {vector.shape} {vector.dtype}, "
                f"expected ({terms.length},) {terms.numpy_dtype}"
            )
        if shares is not None and not shares.keys() >= set(receivers):
            raise ValueError(f"peer {sender} has no share for {sorted(set(receivers) - shares.keys())}")
        # The one copy on this side besides gRPC's own; every receiver gets the same bytes.
        payload = vector.astype(terms.numpy_dtype, copy=False).tobytes()
        payload_hash = xxhash.xxh3_64_intdigest(payload)
        for receiver in receivers:
            edge = (sender, receiver)
            # The previous call ends by its own deadline; the margin only covers a stuck event loop.
            patient = self._patience is not None
            self._settle(edge, self.timeout, math.inf if patient else time.monotonic() + self.timeout + 5.0)
            share = 1.0 if shares is None else float(shares[receiver])
            header = encode_header(terms, edge, iteration, phase, share=share, payload_hash=payload_hash)
            at = (iteration, phase)
            new = _Payload(edge, payload, header, at, self._deliver(edge, payload, header, at))
            with self._lock:
                self._payloads[edge] = new
            self.bytes_sent[sender] += len(payload)
            self._follow(new)
            if self._error is not None:  # it came before this call was listed
                self._cancel()
                raise self._error

    def flush(self, timeout: float) -> None:
        """Wait until every payload has been taken in.

        Parameters
        ----------
        timeout : float
            The deadline in seconds from now; may be infinite where there is patience.

        Raises
        ------
        ExchangeTimeoutError
            When one has not within ``timeout`` seconds.
        ExchangeError
            As in `send`.
        """
        end = time.monotonic() + timeout
        for edge in sorted(self._payloads):
            self._settle(edge, timeout, end)

    def stop(self, origin: int, iteration: int, reason: str, cause: Cause, timeout: float = 2.0) -> int:
        """Tell every remote neighbour, in both directions, that ``origin`` gives up; never raises.

        Parameters
        ----------
        origin : int
            The peer that gave up first, local or not.
        iteration : int
            The iteration it was in.
        reason : str
            Why, in words for a person.
        cause : Cause
            Why, as far as others are concerned.
        timeout : float
            How long to wait for answers, in seconds.

        Returns
        -------
        int
            How many neighbours heard it.
        """
        calls = []
        for remote, local in self.neighbours.items():
            try:
                edge = self.edge_with(remote)
            except ValueError:  # another view was installed meanwhile
                continue
            stop = pb.Stop(
                run=self.terms.run,
                sender=local,
                origin=origin,
                iteration=iteration,
                reason=reason[:4096],
                cause=cause.name,
            )
            try:
                # Not on the connection of payloads: it would wait behind one that takes minutes.
                call = self._gossip_channels.start(
                    "Stop", stop, timeout, edge=edge, remote=remote, wait_for_ready=False
                )
            except P2PFTError as error:  # closed meanwhile, or the address is refused
                log.debug("no stop to peer %d: %s", remote, error)
                continue
            calls.append(call)
        heard = 0
        end = time.monotonic() + timeout
        for call in calls:
            try:
                call.future.result(max(0.0, end - time.monotonic()))
                heard += 1
            except (grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError) as error:
                log.debug("a stop was not heard: %s", error)
        return heard

    def gossip(self, remote: int, message: pb.Gossip, timeout: float) -> pb.Gossip | ExchangeError:
        """Gossip with one member, a neighbour or not, and return its answer or why there is none."""
        return self.gossip_all({remote: message}, timeout)[remote]

    def gossip_all(
        self, messages: Mapping[int, pb.Gossip], timeout: float
    ) -> dict[int, pb.Gossip | ExchangeError]:
        """Gossip with several members at once.

        Parameters
        ----------
        messages : mapping of int to Gossip
            Remote member to what it is told; ``sender`` must be a local peer.
        timeout : float
            Seconds that all of it may take.

        Returns
        -------
        dict of int to Gossip or ExchangeError
            Each one's answer, or why there is none: it was not reached in time, or refused (which does not
            stop this host). Never raises what `fail` was called with: who gives up may still gossip.

        Raises
        ------
        ConfigError
            When plain text would leave this machine.
        """
        answers: dict[int, pb.Gossip | ExchangeError] = {}
        calls: dict[int, Call] = {}
        end = time.monotonic() + timeout
        for remote, message in messages.items():
            try:
                calls[remote] = self.start_gossip(remote, message, timeout)
            except ExchangeStoppedError as closed:
                answers[remote] = closed
        for remote, call in calls.items():
            try:
                call.future.exception(max(0.0, end - time.monotonic()) + 1.0)  # the call has its own deadline
            except grpc.FutureTimeoutError:
                answers[remote] = call.error(ExchangeTimeoutError, f"no answer from peer {remote}")
                continue
            except grpc.FutureCancelledError:  # the links were closed; told below
                pass
            answers[remote] = call.gossip()
        return {remote: answers[remote] for remote in messages}

    def start_gossip(self, remote: int, message: pb.Gossip, timeout: float) -> Call:
        """Start to gossip with one member; ``call.gossip()`` is its answer once ``call.future`` is done.

        Raises
        ------
        ExchangeStoppedError
            When the links are closed.
        ConfigError
            When plain text would leave this machine.
        """
        message.run, message.receiver = self.terms.run, remote
        # No edge stands for it: members gossip that share none.
        return self._gossip_channels.start(
            "Gossip", message, timeout, edge=(message.sender, remote), remote=remote, wait_for_ready=False
        )

    def fetch(self, local: int, donor: int, check: Callable[[], None]) -> npt.NDArray[np.floating]:
        """Ask another peer of the present view for its θ as of when the view began.

        Its deadline is ``timeout``, and after a fetch that ran into its deadline twice as long as that one's,
        whoever is asked.

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
            When the donor refuses, or its answer is not what was asked for; says which.
        Exception
            What `fail` was called with, or what ``check`` raised.
        """
        terms, edge, timeout = self.terms, (donor, local), self._fetch_deadline
        message = pb.Fetch(run=terms.run, view=terms.view, sender=local, receiver=donor)
        # Channels of its own: only here an answer is as long as a vector.
        channels = Channels(
            {donor: self.address_of(donor)}, self._credentials, self._insecure, largest=terms.nbytes
        )
        end = time.monotonic() + timeout
        try:
            call = channels.start("Fetch", message, timeout, edge=edge, remote=donor, wait_for_ready=False)
            while not call.future.done():
                if self._error is not None:
                    raise self._error
                check()
                if time.monotonic() > end + 5.0:  # the call has its own deadline: a stuck event loop
                    raise call.error(ExchangeTimeoutError, f"no answer from peer {donor}")
                with contextlib.suppress(grpc.FutureTimeoutError, grpc.FutureCancelledError, grpc.RpcError):
                    call.future.exception(_ASK)  # what it is, the outcome tells
            answer = call.fetched()
        finally:
            channels.close()
        if isinstance(answer, UnansweredError):
            self._fetch_deadline = self._more(edge, timeout, terms.nbytes)
        if isinstance(answer, ExchangeError):
            raise answer
        if (wrong := wrong_vector(terms, edge, answer)) is not None:
            raise call.error(ExchangeRefusedError, f"the vector from peer {donor} is not used: {wrong}")
        return np.frombuffer(answer.vector, dtype=terms.numpy_dtype).copy()

    def fail(self, error: Exception) -> None:
        """Wake a waiting `send`, `flush` or `meet` with ``error``; later ones raise it.

        Stops and gossip go on. The first error stays, but for a `ViewChangeError`, which gives way to any
        other, and to `install`.
        """
        with self._lock:
            self._error = first_error(self._error, error)
        self._cancel()

    def close(self) -> None:
        """Cancel what is under way and close all channels."""
        self.fail(ExchangeStoppedError("this host has closed its links"))
        self._channels.close()
        self._gossip_channels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _greet(
        self, pair: Edge, stage: int, timeout: float, answered: queue.SimpleQueue[tuple[Edge, Call]]
    ) -> None:
        """Say hello to a neighbour; the outcome goes to ``answered``."""
        # Not wait_for_ready: a call that waits for a connection never says why there is none.
        call = self._channels.start(
            "Hello",
            self._hello(*pair, stage),
            timeout,
            edge=self._pairs[pair],
            remote=pair[1],
            wait_for_ready=False,
        )
        with self._lock:
            self._hellos[pair] = call
        call.future.add_done_callback(lambda _: answered.put((pair, call)))
        if self._error is not None:  # it came before this hello was listed
            self._cancel()

    def _absence(self, call: Call) -> ExchangeError | None:
        """Return why a neighbour that may still come did not answer a hello, None where it did.

        Raises
        ------
        ExchangeError
            When trying again is of no use.
        """
        error = call.outcome()
        if self._error is not None:
            raise self._error
        if isinstance(error, (ExchangeTimeoutError, PeerPreparingError)) or error is None:
            return error
        if not isinstance(error, PeerUnreachableError):
            raise error
        if self._credentials is not None:
            # What is not accepted here, gRPC says; where the other end does not accept us, it only says
            # "Socket closed". A connection that is refused may come to be.
            ours = any(sign in error.problem for sign in _NO_HANDSHAKE)
            cause = None
            if ours or "Socket closed" in error.problem:
                cause = self._credentials.diagnose(call.address, call.remote)
            if ours or cause is not None:
                problem = f"no TLS with peer {call.remote} at {call.address}: {cause or error.problem}"
                raise call.error(ExchangeRefusedError, problem) from error
        return error

    def _tell_of_waiting(self, call: Call) -> None:
        if call.remote not in self._awaited:
            self._awaited.add(call.remote)
            log.info("waiting for peer %d at %s, which is not ready to train yet", call.remote, call.address)

    def _hello(self, local: int, remote: int, stage: int) -> pb.Hello:
        terms = self.terms
        return pb.Hello(
            run=terms.run,
            view=terms.view,
            sender=local,
            receiver=remote,
            config=terms.config,
            length=terms.length,
            dtype=terms.wire_dtype,
            phases=terms.phases,
            stage=stage,
        )

    def _deliver(self, edge: Edge, body: bytes, header: bytes, at: tuple[int, int]) -> Call:
        return self._channels.start(
            "Deliver",
            body,
            max(self.timeout, self._deadlines.get(edge, 0.0)),
            edge=edge,
            remote=edge[1],
            at=at,
            metadata=((HEADER_KEY, header),),
        )

    def _settle(self, edge: Edge, timeout: float, end: float) -> None:
        """Wait until the payload under way on ``edge`` is taken in and forget it; raise what went wrong.

        ``end`` is when to give up (time.monotonic), ``timeout`` the seconds to name then.
        """
        with self._lock:
            payload = self._payloads.get(edge)
        if self._error is not None:
            raise self._error
        if payload is None:
            return
        while not payload.settled.wait(self._slice(end)):
            if time.monotonic() >= end:
                late = replace(payload.call, deadline=timeout)
                problem = f"peer {edge[1]} at {late.address} has not taken the payload in"
                raise late.error(ExchangeTimeoutError, problem)
            if (lost := self._impatience(payload)) is not None:
                self._settled(payload, lost)
        if self._error is not None:
            raise self._error
        if payload.error is not None:
            raise payload.error
        with self._lock:
            self._payloads.pop(edge, None)

    def _slice(self, end: float) -> float:
        left = max(0.0, end - time.monotonic())
        return left if self._patience is None else min(left, ASK_EVERY)

    def _impatience(self, payload: _Payload) -> Exception | None:
        """Ask whether to wait on for the receiver of ``payload``; return what is to be raised if not."""
        if self._patience is None:
            return None
        lost = self._patience(payload.edge[1])
        if isinstance(lost, ExchangeError):
            iteration, phase = payload.at
            lost.at(peer=payload.edge[0], edge=payload.edge, iteration=iteration, phase=phase)
        return lost

    def _follow(self, payload: _Payload) -> None:
        """See to it that the outcome of the payload's call is looked at (in a thread of gRPC)."""
        call = payload.call
        call.future.add_done_callback(lambda _: self._ended(payload, call))

    def _ended(self, payload: _Payload, call: Call) -> None:
        """Settle a payload whose call has ended, or have it sent again after a pause."""
        error = call.outcome()
        altered = isinstance(error, CorruptedError)
        with self._lock:
            if payload.settled.is_set() or not self._waits_for(payload):
                payload.settled.set()
                return
            payload.corrupted += altered
            if call.answered and not altered:
                payload.through = time.monotonic()
            if (altered and payload.corrupted < _CORRUPTED) or self._may_pass(error):
                # A thread of its own: the patience may take a moment, which a thread of gRPC must not.
                pause = _PAUSE if altered or isinstance(error, _NOT_YET) else _LONG_PAUSE
                payload.again = threading.Timer(pause, self._send_again, (payload, error))
                payload.again.name, payload.again.daemon = "p2pft-again", True
                payload.again.start()
                return
        if altered and self._patience is not None:
            error = self._broken(
                payload,
                f"a payload arrived altered {payload.corrupted} times, which is no accident",
                "what alters bytes on the way there, a memory, a network card or somebody?",
            )
        self._settled(payload, error)
        if error is not None and self._on_failure is not None:
            self._on_failure(error)

    def _may_pass(self, error: ExchangeError | None) -> bool:
        """Return whether a payload whose call ended so is sent again as long as there is patience."""
        if error is None or self._patience is None:
            return False
        # Where views change, a receiver that ends need not end this host; and a stop comes as a Stop.
        return isinstance(error, _NOT_YET) or (
            self._views_change and not isinstance(error, ExchangeRefusedError)
        )

    def _look_at_link(self, payload: _Payload, error: ExchangeError | None) -> EdgeBrokenError | None:
        """Look at what a payload's last call says of its edge; return an error where that is to be given up.

        Else the next call may have more time.
        """
        edge, deadline = payload.edge, payload.call.deadline
        stuck = time.monotonic() - payload.through
        if self._patience is not None and stuck >= 2 * self._longest:
            return self._broken(
                payload,
                f"a payload of {_size(len(payload.body))} has not got through for {stuck:.0f} s, in calls of "
                f"up to {deadline:g} s; the last one: {error.problem if error else 'no answer'}",
                f"does the way there lose large packets (MTU, a proxy's limit), or carry less than "
                f"{_rate(len(payload.body), deadline)}? Mend it, or raise hang-timeout",
            )
        if isinstance(error, UnansweredError) and self._speaks(edge[1]):
            self._deadlines[edge] = self._more(edge, deadline, len(payload.body))
        elif error is not None and not isinstance(error, (*_NOT_YET, CorruptedError, ExchangeStoppedError)):
            self._tell_once(
                edge, "failed", "%s; it is sent again, for as long as the receiver is there", error
            )
        return None

    def _more(self, edge: Edge, deadline: float, size: int) -> float:
        """Return the next deadline for a vector that did not come through in time, and tell of it once."""
        longer = min(2 * deadline, self._longest)
        if self._patience is not None:
            self._tell_once(
                edge,
                "slow",
                "edge %d -> %d is slow: %s did not get through within %g s, so it carries less than %s, or "
                "loses large packets; from now on it has longer, up to %g s (hang-timeout)",
                *edge,
                _size(size),
                deadline,
                _rate(size, deadline),
                self._longest,
            )
        return max(longer, self.timeout)

    def _tell_once(self, edge: Edge, kind: str, text: str, *values: object) -> None:
        with self._lock:
            known = (edge, kind) in self._told
            self._told.add((edge, kind))
        if not known:
            log.warning(f"{text} (logged once an edge)", *values)

    def _broken(self, payload: _Payload, problem: str, remedy: str) -> EdgeBrokenError:
        return EdgeBrokenError(
            f"this edge is broken, though peer {payload.edge[1]} speaks: {problem}; {remedy}",
            peer=payload.edge[0],
            edge=payload.edge,
            iteration=payload.at[0],
            phase=payload.at[1],
            deadline=2 * self._longest,
        )

    def _send_again(self, payload: _Payload, error: ExchangeError | None) -> None:
        """Send a payload once more, if there still is patience with its receiver (in a thread of its own).

        ``error`` is what its last call came to.
        """
        with self._lock:
            body = payload.body
            if payload.settled.is_set():
                return
        try:
            lost = self._impatience(payload) or self._look_at_link(payload, error)
            if lost is None:
                payload.call = self._deliver(payload.edge, body, payload.header, payload.at)
        except Exception as failure:  # no place to raise it; `send` does
            lost = failure
        if lost is None:
            self._follow(payload)
            with self._lock:
                wanted = self._waits_for(payload)
            if not wanted:  # that came before this call was listed
                payload.call.future.cancel()
            return
        self._settled(payload, lost)
        if self._waits_for(payload) and self._on_failure is not None:
            self._on_failure(lost)

    def _waits_for(self, payload: _Payload) -> bool:
        """Return whether a payload still matters: not after a failure, nor in another view."""
        return self._error is None and self._payloads.get(payload.edge) is payload

    def _settled(self, payload: _Payload, error: Exception | None) -> None:
        """Settle a payload, unless it was before: with ``error``, or as taken in."""
        with self._lock:
            if not payload.settled.is_set():
                payload.error = error
                payload.settled.set()
            payload.body = b""  # not to be kept until the next one is sent

    def _cancel(self) -> None:
        """Settle all payloads, whose calls and those of hellos are ended."""
        with self._lock:
            payloads, calls = [*self._payloads.values()], [*self._hellos.values()]
            for payload in payloads:
                if payload.again is not None:
                    payload.again.cancel()
                payload.settled.set()
        for call in (*calls, *(payload.call for payload in payloads)):
            call.future.cancel()


def _size(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e6:.3g} MB" if count >= 100_000 else f"{count} bytes"


def _rate(count: int, seconds: float) -> str:
    """Return for people how fast a link is that carries so many bytes in so many seconds."""
    return f"{8e-6 * count / seconds:.3g} Mbit/s"
