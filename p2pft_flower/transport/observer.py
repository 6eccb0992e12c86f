"""Progress reports: peers send them to a listener, if there is one, and nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import grpc
from google.protobuf.message import DecodeError

from p2pft_flower.errors import printable
from p2pft_flower.transport.admission import recognise
from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.endpoint import (
    OBSERVER,
    Incoming,
    Listener,
    NoMessageError,
    open_channel,
    tls_name,
)
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import ExchangeStoppedError, Refused

__all__ = ["ObserverClient", "ObserverServer"]

log = logging.getLogger(__name__)


class ObserverServer(Closing):
    """Listens for reports, from construction to `close`; a context manager.

    Parameters
    ----------
    address : str
        The address to listen at; port 0 lets the system choose one.
    on_report : callable
        Gets each PeerReport, in a thread of the server, one at a time.
    credentials : Credentials, optional
        The coordinator's certificates, for TLS over TCP, with which a report must come from the peer that it
        names; default plain text.
    insecure : bool
        Whether to listen in plain text beyond this machine; default False.

    Attributes
    ----------
    address : str
        The address, with the real port.

    Raises
    ------
    BindError, ConfigError
        When the address cannot be served on, as for `PeerServer`.
    """

    def __init__(
        self,
        address: str,
        on_report: Callable[[pb.PeerReport], None],
        *,
        credentials: Credentials | None = None,
        insecure: bool = False,
    ) -> None:
        self._on_report = on_report
        self._credentials = credentials
        self._one = ThreadPoolExecutor(1, thread_name_prefix="p2pft-observer")
        self._listener = Listener(
            Tasks(),
            OBSERVER,
            {"Report": self._report},
            {0: address},
            max_calls=4096,
            max_connections=4096,
            credentials=credentials,
            insecure=insecure,
        )
        self.address = self._listener.bound_addresses[0]

    def close(self, grace: float = 1.0) -> None:
        """Stop listening; reports that have arrived are still handed on, for ``grace`` seconds at most.

        A call of ``on_report`` that has begun is waited for.
        """
        self._listener.close(grace)
        self._one.shutdown(wait=True)

    async def _report(self, call: Incoming) -> bytes:
        try:
            who = recognise(call, self._credentials).who
            report = await call.message(pb.PeerReport, "a report")
        except NoMessageError:
            return pb.Reply(status=pb.BAD_HEADER, reason="a call without a report").SerializeToString()
        except Refused as refused:
            return pb.Reply(status=refused.status, reason=refused.reason).SerializeToString()
        if who is not None and who.peer != report.peer:
            reason = f"a report of peer {report.peer} by {who.name}"
            return pb.Reply(status=pb.NOT_AUTHENTIC, reason=reason).SerializeToString()
        try:
            await asyncio.get_running_loop().run_in_executor(self._one, self._on_report, report)
        except Exception:  # a fault of the code that shows the reports must not reach the peers
            log.exception("a report could not be handled")
        return pb.Reply(status=pb.ACCEPTED).SerializeToString()


class ObserverClient(Closing):
    """Sends reports one after the other and forgets them; a context manager.

    ``_lock`` guards ``dropped``, ``_told``, ``_closed`` and ``_under_way``.

    Parameters
    ----------
    address : str
        The address at which an `ObserverServer` may listen.
    max_outstanding : int
        Reports that may be under way or wait for their turn; more are dropped. Default 64.
    timeout : float
        Seconds that the call with a report may take when the report's turn has come; then the report is
        dropped. Default 10.
    credentials : Credentials, optional
        A peer's certificates, for TLS over TCP with the coordinator of its federation; default plain text.
    insecure : bool
        Whether plain text may leave this machine; default False.

    Attributes
    ----------
    dropped : int
        Number of reports that were not taken. The log says of the first one why it was not.

    Raises
    ------
    ConfigError
        When the address cannot be parsed, or plain text would leave this machine.
    """

    def __init__(
        self,
        address: str,
        *,
        max_outstanding: int = 64,
        timeout: float = 10.0,
        credentials: Credentials | None = None,
        insecure: bool = False,
    ) -> None:
        self.dropped = 0
        self._address = address
        self._credentials, self._insecure = credentials, insecure
        self._max_outstanding = max_outstanding
        self._timeout = timeout
        self._lock = threading.Lock()
        self._told = self._closed = False
        self._under_way: set[Future[str | None]] = set()
        self._turn = asyncio.Lock()  # one after the other: side by side they could overtake each other
        self._tasks = Tasks()
        try:
            self._channel = self._tasks.run(self._open)
        except BaseException:
            self._tasks.close()
            raise

    def report(self, report: pb.PeerReport) -> None:
        """Start sending ``report``; returns at once, and never raises, whether or not anybody listens."""
        with self._lock:
            if self._closed or len(self._under_way) >= self._max_outstanding:
                self.dropped += 1  # the log will report those under way
                return
            future = self._tasks.start(self._send, report.SerializeToString())
            self._under_way.add(future)
        future.add_done_callback(self._note)

    def close(self, timeout: float = 1.0) -> None:
        """Give reports under way up to ``timeout`` seconds to leave, then drop them."""
        with self._lock:
            self._closed = True
            under_way = set(self._under_way)
        for late in wait(under_way, timeout).not_done:
            late.cancel()
        with contextlib.suppress(ExchangeStoppedError):  # closed before
            self._tasks.run(self._channel.close)
        self._tasks.close()

    async def _open(self) -> grpc.aio.Channel:
        self._name = tls_name(self._address, "coordinator", self._credentials)
        return open_channel(self._address, "coordinator", self._credentials, self._insecure)

    async def _present(self) -> grpc.aio.Channel:
        """Return the channel; a new one if the coordinator's certificate was revoked since it was opened."""
        if self._name != tls_name(self._address, "coordinator", self._credentials):
            await self._channel.close()
            self._channel = await self._open()
        return self._channel

    async def _send(self, report: bytes) -> str | None:
        """Send a report; return the reason why it was not taken in, None if it was."""
        try:
            async with self._turn:
                unary = (await self._present()).unary_unary(f"/{OBSERVER}/Report", None, None)
                reply = pb.Reply.FromString(await unary(report, timeout=self._timeout, wait_for_ready=True))
        except grpc.RpcError as error:
            return f"{error.code().name}: {printable(error.details() or '')}"
        except DecodeError:
            return "what answers there is no coordinator"
        if reply.status == pb.ACCEPTED:
            return None
        name = pb.Status.Name(reply.status) if reply.status in pb.Status.values() else str(reply.status)
        return f"{name}: {printable(reply.reason)}"

    def _note(self, future: Future[str | None]) -> None:
        """Note the outcome of a report; log once that one did not arrive: training goes on without it."""
        if future.cancelled():
            problem: str | None = "the run ended before it was taken"
        elif (error := future.exception()) is not None:
            problem = f"{type(error).__name__}: {error}"
        else:
            problem = future.result()
        with self._lock:
            self._under_way.discard(future)
            if problem is None:
                return
            self.dropped += 1
            told, self._told = self._told, True
        if not told:
            log.warning(
                "progress does not reach the coordinator at %s, which shows none (%s); nothing waits for it",
                self._address,
                problem,
            )
