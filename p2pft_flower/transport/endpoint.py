"""gRPC channels and servers, opened and closed: options, credentials, binding."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.trust.certificates import Holder
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.addresses import SOCKET_FOLDER_PREFIX, Address, parse_address
from p2pft_flower.transport.wire.errors import BindError, Refused

__all__ = [
    "EXCHANGE",
    "MAX_MEMBERS",
    "OBSERVER",
    "PROBE",
    "Incoming",
    "Listener",
    "NoMessageError",
    "gossip_limit",
    "open_channel",
    "tls_name",
]

M = TypeVar("M", bound=Message)

EXCHANGE = "p2pft.v2.Exchange"
"""The service's name; the version in it changes with the messages, so that versions refuse each other."""
OBSERVER = "p2pft.v1.Observer"
PROBE = "p2pft.v1.Probe"

_SMALL_MESSAGE = 2**16  # bytes; room for Hello, Stop, Reply and PeerReport with any q

SMALL_BODY = 20.0
"""Seconds that the body of a message other than a payload may take after its headers."""

_SCORES = 2**19
"""Bytes of a gossip for the scores of all peers."""

_STANDINGS = 2**16
"""Bytes of a gossip for the edges of the standings of few members that each have many."""

MAX_MEMBERS = 1024
"""Most members of a run in which a record of each member fits into one gossip."""

_RETRY = {
    "methodConfig": [
        {
            # Not Hello: `Links.meet` tries again by itself, and needs TLS's refusals at once.
            "name": [{"service": EXCHANGE, "method": name} for name in ("Deliver", "HandOver", "Stop")],
            # A connection that broke is tried again until the call's deadline: a payload that
            # arrives twice is answered DUPLICATE, so it does no harm. gRPC allows at most 5 attempts.
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

_CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # peers talk to each other without http_proxy
    ("grpc.service_config", json.dumps(_RETRY)),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),  # else a large payload cannot be sent again
    # Peers start at different times: look for them often, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A call may stay open while the receiver computes: ping, so that a machine that vanished is noticed.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

_SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port would each get some of the messages
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_metadata_size", 2**14),
    ("grpc.server_handshake_timeout_ms", 20_000),  # a connection that says nothing is cut off
    # A machine that vanished leaves calls behind that would hold its share: ping, as the channels do.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

UNTAKEN = 366 * 24 * 60 * 60
"""Seconds that a call may wait for a busy loop, or in a stopped process: its own deadline comes first.

After 30, unless it is told, gRPC would end such calls with CANCELLED, as if their caller had.
"""

_GOSSIP_OPTIONS: tuple[tuple[str, str | int], ...] = (
    # Not the connection that payloads go through: a gossip must not wait behind hundreds of megabytes.
    ("grpc.use_local_subchannel_pool", 1),
    # A link that was cut is found again soon: an attempt to connect may take that long, not gRPC's 20 s.
    ("grpc.min_reconnect_backoff_ms", 5_000),
)


def gossip_limit(members: int) -> int:
    """Return the most bytes of a gossip in a run of ``members`` members.

    Room for a signed record of each, with a reason of 1 KiB, its two views naming all members (20 bytes a
    member: its number, a 64-bit incarnation, whether it joined and from whom), all others suspected and
    reached, and two broken edges for each member; for the age of each record that the sender has; for
    eleven decided views with a signed vote of each member; for four certificates of each; for a signed
    standing and signed scores of each, with their ages; for 2,048 edges in all standings together, or 32 in
    each; and for the scores of 4,096 peers, or of 64 with their sketches.
    """
    each = 2080 + 80 * members + 11 * 128 + 4 * 1024 + 512 + 32 * 32
    return _SMALL_MESSAGE + _SCORES + _STANDINGS + members * each


def _plain_text_allowed(address: Address, insecure: bool) -> None:
    if not (insecure or address.is_local):
        raise ConfigError(
            f"address {address} is not on this machine and TLS is missing: "
            "give certificates, or say insecure = true to send in plain text"
        )


def tls_name(text: str, holder: Holder, credentials: Credentials | None) -> str | None:
    """Return the name that the certificate at an address must have now; None without TLS.

    It changes when a certificate of the holder is revoked: channels of the old name must be replaced.
    """
    local = credentials is None or parse_address(text).path is not None
    return None if credentials is None or local else credentials.target(holder)


def open_channel(
    text: str,
    holder: Holder,
    credentials: Credentials | None,
    insecure: bool,
    *,
    gossip: bool = False,
    largest: int = 0,
) -> grpc.aio.Channel:
    """Open a channel, in the network's thread; nothing connects before the first call.

    Parameters
    ----------
    text : str
        The address, see `parse_address`.
    holder : int or str
        The holder of the certificate that must answer there: a peer, or the coordinator.
    credentials : Credentials or None
        For TLS over TCP. A Unix socket never needs TLS: its folder's mode restricts it to this user.
    insecure : bool
        Whether plain text may leave this machine.
    gossip : bool
        Whether the channel is for gossip: a connection of its own, and room for answers with every member's
        record.
    largest : int
        Most bytes of a vector in an answer; default 0: no answer holds one.

    Raises
    ------
    ConfigError
        When the address cannot be parsed, or plain text would leave this machine.
    """
    address = parse_address(text)
    name = tls_name(text, holder, credentials)
    answers = gossip_limit(MAX_MEMBERS) if gossip else _SMALL_MESSAGE + largest
    options = (*_CHANNEL_OPTIONS, ("grpc.max_receive_message_length", answers))
    if gossip:
        options = (*options, *_GOSSIP_OPTIONS)
    if name is not None and credentials is not None:
        options = (*options, ("grpc.ssl_target_name_override", name))
        return grpc.aio.secure_channel(address.target, credentials.channel(), options=options)
    _plain_text_allowed(address, insecure)
    return grpc.aio.insecure_channel(address.target, options=options)


class NoMessageError(Exception):
    """A call has ended without a message."""


class Incoming:
    """A call that has come in: its headers, and its one message, which is not read before it is asked for.

    Parameters
    ----------
    context : grpc.aio.ServicerContext
        gRPC's own object of the call.

    Attributes
    ----------
    peer : str
        The other end of the connection, in gRPC's notation.
    metadata : dict of str to str or bytes
        Pairs of key and value that travel beside the message.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self.peer: str = context.peer()
        self.metadata: dict[str, Any] = dict(context.invocation_metadata() or ())

    @property
    def local(self) -> bool:
        """Whether the call came through a Unix socket, which only this user can reach."""
        return self.peer.startswith("unix:")

    def auth_context(self) -> Mapping[str, Any]:
        """Return the properties of the connection that TLS proved."""
        found: Mapping[str, Any] = self._context.auth_context()
        return found

    def left(self) -> float:
        """Return the seconds until the caller's deadline; infinite if it has none."""
        seconds: float | None = self._context.time_remaining()
        return math.inf if seconds is None else max(0.0, seconds)

    async def read(self, within: float) -> bytes:
        """Return the message's body.

        Parameters
        ----------
        within : float
            Seconds within which the body must come.

        Raises
        ------
        Refused
            When the body has not come in time.
        NoMessageError
            When the call ended without a message: the connection broke, or the caller sent none.
        """
        try:
            async with asyncio.timeout(within):
                body = await self._context.read()
        except TimeoutError as error:
            reason = f"the message's body has not come within {within:g} s of its headers"
            raise Refused(pb.THROTTLED, reason) from error
        if not isinstance(body, bytes):
            raise NoMessageError
        return body

    async def message(self, kind: type[M], what: str, most: float = math.inf) -> M:
        """Return the message, other than a payload, that a call brings.

        Parameters
        ----------
        kind : type
            The type that the message must have.
        what : str
            The kind of message in words, as ``a hello``, for errors.
        most : float
            Most bytes of the message.

        Raises
        ------
        Refused
            When the message is too long, too late or not of ``kind``.
        NoMessageError
            When :meth:`read` raises it.
        """
        raw = await self.read(SMALL_BODY)
        if len(raw) > most:
            raise Refused(pb.WRONG_LENGTH, f"{what} of {len(raw)} bytes: at most {most} are read")
        try:
            return kind.FromString(raw)
        except DecodeError as error:
            raise Refused(pb.BAD_HEADER, f"{what} that cannot be parsed") from error


Answer = Callable[[Incoming], Awaitable[bytes]]


class Listener:
    """One gRPC server on several addresses, from construction to `close`.

    A method is called as soon as a call's headers are there, and reads the body itself: so a call that is
    answered by its headers alone, or that waits, holds no thread.

    Parameters
    ----------
    tasks : Tasks
        The owner's tasks, in whose thread the server runs; `close` closes them.
    service : str
        The service's full name.
    methods : mapping of str to callable
        Method name to a coroutine function that takes an `Incoming` and returns the answer's bytes; must not
        raise.
    addresses : mapping of int to str
        Peer to address; port 0 lets the system choose one.
    also : str
        A further address at which all of these peers are reached; default empty: there is none.
    max_message : int
        Bytes of the largest request; a larger one is refused before it is received.
    max_calls : int
        Calls at once on one connection; further calls wait at the client.
    max_connections : int
        Connections at once on each address; more are closed at once.
    credentials : Credentials or None
        For TLS over TCP.
    insecure : bool
        Whether to listen in plain text beyond this machine.

    Attributes
    ----------
    bound_addresses : dict of int to str
        Like ``addresses``, with the real ports.

    Raises
    ------
    BindError
        When an address cannot be served on.
    ConfigError
        When an address cannot be parsed, or plain text would leave this machine.
    """

    def __init__(
        self,
        tasks: Tasks,
        service: str,
        methods: Mapping[str, Answer],
        addresses: Mapping[int, str],
        *,
        also: str = "",
        max_message: int = 0,
        max_calls: int,
        max_connections: int,
        credentials: Credentials | None = None,
        insecure: bool = False,
    ) -> None:
        self.bound_addresses: dict[int, str] = {}
        self._tasks = tasks
        self._sockets: list[Path] = []
        self._options = (
            *_SERVER_OPTIONS,
            ("grpc.max_receive_message_length", max(max_message, _SMALL_MESSAGE)),
            ("grpc.max_concurrent_streams", max_calls),
            # Of more calls that wait for the loop gRPC would end some at random, with CANCELLED.
            ("grpc.server.max_pending_requests", max(1000, max_calls)),
            ("grpc.server.max_pending_requests_hard_limit", max(3000, max_calls)),
            ("grpc.server_max_unrequested_time_in_server", UNTAKEN),
            ("grpc.max_allowed_incoming_connections", max_connections),
        )
        # On the wire they are unary; gRPC reads the body of what it calls unary before it calls the method.
        self._handlers = grpc.method_handlers_generic_handler(
            service,
            {name: grpc.stream_unary_rpc_method_handler(_headers_first(m)) for name, m in methods.items()},
        )
        self._server: grpc.aio.Server | None = None
        try:
            tasks.run(self._open, addresses, also, credentials, insecure)
        except BaseException:
            self.close(0)
            raise

    async def _open(
        self, addresses: Mapping[int, str], also: str, credentials: Credentials | None, insecure: bool
    ) -> None:
        self._server = server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers((self._handlers,))

        def bind(peer: int, text: str) -> str:
            address = parse_address(text)
            if credentials is None:
                _plain_text_allowed(address, insecure)
            return self._bind(server, peer, address, None if address.path is not None else credentials)

        self.bound_addresses |= {peer: bind(peer, text) for peer, text in sorted(addresses.items())}
        if also:
            bind(min(addresses), also)
        await self._server.start()

    def _bind(
        self, server: grpc.aio.Server, peer: int, address: Address, credentials: Credentials | None
    ) -> str:
        if address.path is not None:
            _prepare_socket(peer, address.path)
        try:
            if credentials is None:
                port = server.add_insecure_port(address.target)
            else:
                port = server.add_secure_port(address.target, credentials.server())
        except RuntimeError as error:
            remedy = (
                "is its folder there and writable?"
                if address.path is not None
                else "is the port taken, or the host not one of this machine's? Port 0 takes any free port"
            )
            raise BindError(f"cannot listen on {address}: {remedy}", peer=peer) from error
        if address.path is not None:
            self._sockets.append(address.path)
            address.path.chmod(0o600)  # nothing is answered before start()
            return address.target
        return Address(None, address.host, port).target

    def close(self, grace: float) -> None:
        """Take no new calls, give running ones ``grace`` seconds; remove sockets and folders, close tasks."""
        if self._server is not None:
            self._tasks.run(self._server.stop, grace)
            self._server = None
        for path in self._sockets:
            path.unlink(missing_ok=True)
            if path.parent.name.startswith(SOCKET_FOLDER_PREFIX):
                try:
                    path.parent.rmdir()
                except OSError:  # another host of the run still has sockets there; the last one removes it
                    continue
        self._sockets.clear()
        self._tasks.close()


def _headers_first(answer: Answer) -> Callable[[Any, Any], Awaitable[bytes]]:
    async def handle(_messages: Any, context: Any) -> bytes:
        return await answer(Incoming(context))

    return handle


def _prepare_socket(peer: int, path: Path) -> None:
    """Make the socket's folder and remove the socket of a process that died.

    Raises
    ------
    BindError
        When others can reach the folder, something else has the name, or a live process listens there.
    """
    ours = path.parent.name.startswith(SOCKET_FOLDER_PREFIX)
    try:
        if ours:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The name is known in advance: in a shared folder someone else could have made it first.
        found = path.parent.lstat()
    except OSError as error:
        raise BindError(
            f"cannot listen on unix:{path}: no folder for it ({error.strerror})", peer=peer
        ) from error
    if ours and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077):
        raise BindError(
            f"cannot listen on unix:{path}: {path.parent} belongs to or is open to others; "
            "remove it, or set TMPDIR to a private folder",
            peer=peer,
        )
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise BindError(f"cannot listen on unix:{path}: a file has that name; remove it", peer=peer)
    # gRPC would take over the name even from a process that lives.
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise BindError(f"cannot listen on unix:{path}: {error.strerror or error}", peer=peer) from error
    raise BindError(
        f"cannot listen on unix:{path}: another process does; stop it, or choose another run or folder",
        peer=peer,
    )
