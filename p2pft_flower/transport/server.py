"""The gRPC server of a host: what neighbours call."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import DecodeError

from p2pft_flower.transport import p2pft_pb2 as pb
from p2pft_flower.transport.endpoint import EXCHANGE, Listener
from p2pft_flower.transport.errors import ExchangeStoppedError
from p2pft_flower.transport.header import HEADER_KEY
from p2pft_flower.transport.mailbox import Edge, Mailbox
from p2pft_flower.transport.stops import has_key

__all__ = ["PeerServer"]

log = logging.getLogger(__name__)


class PeerServer:
    """Serves the peers of one host, from construction to `close`; a context manager.

    Parameters
    ----------
    mailbox : Mailbox
        Where payloads go; its terms and in-edges are what neighbours are held to.
    addresses : mapping of int to str
        Local peer to the address it listens on; port 0 lets the system choose one.
    out_edges : iterable of (int, int)
        (local sender, remote receiver): these receivers are neighbours too and may say hello and stop.
    on_hello : callable, optional
        Gets a Hello that passed every check here; returns a reason to turn it down, or None.
    on_stop : callable, optional
        Gets a neighbour's Stop, or one that shows the run's key, in a thread of the server; must return soon.
    stop_digest : str
        SHA-256, hexadecimal, of the key by which who is no neighbour may stop the run (`stop_run`); default
        empty: nobody may.
    timeout : float
        Longest wait of a payload for room in the mailbox, in seconds, where the sender's deadline is later.
    credentials : grpc.ServerCredentials, optional
        For TLS over TCP.
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
        on_hello: Callable[[pb.Hello], str | None] | None = None,
        on_stop: Callable[[pb.Stop], None] | None = None,
        stop_digest: str = "",
        timeout: float = 600.0,
        credentials: Any = None,
        insecure: bool = False,
    ) -> None:
        self._mailbox = mailbox
        self._stop_digest = stop_digest
        self._on_hello = on_hello
        self._on_stop = on_stop
        self._timeout = timeout
        # (remote, local) of every pair of neighbours, whichever way the edge goes.
        self._neighbours = {*mailbox.edges, *((remote, local) for local, remote in out_edges)}
        # An in-edge may hold one worker (its payload waits for room) and, for a moment, a second (its retry).
        waiting = len(mailbox.edges)
        workers = waiting + min(len(self._neighbours), 8) + 2
        self._listener = Listener(
            EXCHANGE,
            {"Deliver": self._deliver, "Hello": self._hello, "Stop": self._stop},
            addresses,
            max_message=mailbox.terms.nbytes,
            workers=workers,
            max_calls=workers + waiting + len(self._neighbours),
            credentials=credentials,
            insecure=insecure,
        )
        self.bound_addresses = self._listener.bound_addresses

    def close(self, grace: float = 5.0) -> None:
        """Stop serving: fail the mailbox, let running answers leave, remove sockets and threads.

        Parameters
        ----------
        grace : float
            How long answers may take to leave, in seconds.
        """
        # Whoever still waits for room would hold a worker; nobody will make room any more.
        self._mailbox.fail(ExchangeStoppedError("this host has finished and takes no more payloads"))
        self._listener.close(grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deliver(self, payload: bytes, context: Any) -> bytes:
        header = b""
        for key, value in context.invocation_metadata():
            if key == HEADER_KEY:
                header = value
        if not header:
            return self._refuse(pb.BAD_HEADER, f"metadata key {HEADER_KEY} is missing")
        left = context.time_remaining()
        try:
            reply = self._mailbox.deliver(
                header, payload, min(math.inf if left is None else left, self._timeout)
            )
        except Exception as error:  # whatever the runtime failed the mailbox with is the answer
            reply = pb.Reply(status=pb.STOPPED, reason=str(error))
        return reply.SerializeToString()

    def _hello(self, request: bytes, _context: Any) -> bytes:
        try:
            hello = pb.Hello.FromString(request)
        except DecodeError:
            return self._refuse(pb.BAD_HEADER, "a hello that cannot be parsed")
        if (wrong := self._mismatch(hello)) is not None:
            return self._refuse(*wrong)
        objection = self._on_hello(hello) if self._on_hello is not None else None
        if objection is not None:
            return self._refuse(pb.MISMATCH, objection)
        if self._mailbox.error is not None:
            return pb.Reply(status=pb.STOPPED, reason=str(self._mailbox.error)).SerializeToString()
        return pb.Reply(status=pb.ACCEPTED).SerializeToString()

    def _mismatch(self, hello: pb.Hello) -> tuple[pb.Status, str] | None:
        terms = self._mailbox.terms
        # Who and what run first, and without our own: a stranger learns nothing about the terms.
        if hello.run != terms.run:
            return pb.WRONG_RUN, f"run {hello.run[:64]!r} is not this one"
        if (hello.sender, hello.receiver) not in self._neighbours:
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
                return (
                    status,
                    f"peer {hello.sender} has {what} {theirs!r}, peer {hello.receiver} has {ours!r}",
                )
        return None

    def _stop(self, request: bytes, context: Any) -> bytes:
        try:
            stop = pb.Stop.FromString(request)
        except DecodeError:
            return self._refuse(pb.BAD_HEADER, "a stop that cannot be parsed")
        if stop.run != self._mailbox.terms.run:
            return self._refuse(pb.WRONG_RUN, f"a stop of run {stop.run[:64]!r}")
        keyed = has_key(context.invocation_metadata(), self._stop_digest)
        if not keyed and all(stop.sender != remote for remote, _ in self._neighbours):
            return self._refuse(
                pb.NOT_NEIGHBOUR, f"a stop from peer {stop.sender}, which shares no edge with this host"
            )
        stop.reason = stop.reason[:4096]
        if self._on_stop is not None:
            try:
                self._on_stop(stop)
            except Exception:
                log.exception("the runtime failed on a stop from peer %d", stop.sender)
        return pb.Reply(status=pb.ACCEPTED).SerializeToString()

    def _refuse(self, status: pb.Status, reason: str) -> bytes:
        return self._mailbox.refuse(status, None, reason).SerializeToString()
