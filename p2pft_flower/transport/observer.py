"""Progress reports: peers tell whoever listens, and nobody waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError

from p2pft_flower.errors import printable
from p2pft_flower.transport.endpoint import OBSERVER, Listener, open_channel
from p2pft_flower.transport.trust.certificates import target_name
from p2pft_flower.transport.trust.tls import Credentials, NotAuthenticError
from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = ["ObserverClient", "ObserverServer"]

log = logging.getLogger(__name__)


class ObserverServer:
    """Listens for reports, from construction to `close`; a context manager.

    Parameters
    ----------
    address : str
        Where to listen; port 0 lets the system choose one.
    on_report : callable
        Gets each PeerReport, in a thread of the server, one at a time.
    credentials : Credentials, optional
        The coordinator's, for TLS over TCP; default plain text. Then a report must come from the peer that it
        names.
    insecure : bool
        Whether to listen in plain text beyond this machine; default False.

    Attributes
    ----------
    address : str
        The address, with the real port.

    Raises
    ------
    BindError, ConfigError
        As `PeerServer`.
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
        self._listener = Listener(
            OBSERVER,
            {"Report": self._report},
            {0: address},
            workers=1,
            max_calls=4096,
            max_connections=4096,
            credentials=None if credentials is None else credentials.server(),
            insecure=insecure,
        )
        self.address = self._listener.bound_addresses[0]

    def close(self, grace: float = 1.0) -> None:
        """Stop listening; reports that have arrived are still handed on, for ``grace`` seconds at most."""
        self._listener.close(grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _report(self, request: bytes, context: Any) -> bytes:
        try:
            report = pb.PeerReport.FromString(request)
            if self._credentials is not None and not context.peer().startswith("unix:"):
                who = self._credentials.identify(context)
                if who.peer != report.peer:
                    return _refusal(f"a report of peer {report.peer} by {who.name}")
            self._on_report(report)
        except DecodeError:
            return pb.Reply(status=pb.BAD_HEADER, reason="no report that can be read").SerializeToString()
        except NotAuthenticError as error:
            return _refusal(str(error))
        except Exception:  # a fault of whoever shows the reports must not reach the peers
            log.exception("a report could not be handled")
        return pb.Reply(status=pb.ACCEPTED).SerializeToString()


class ObserverClient:
    """Sends reports one after the other and forgets them; a context manager.

    Parameters
    ----------
    address : str
        Where an `ObserverServer` may listen.
    max_outstanding : int
        Reports that may be under way or wait for their turn; more are dropped. Default 64.
    timeout : float
        How long a report may be under way, in seconds; then it is dropped. Default 10.
    credentials : Credentials, optional
        A peer's, for TLS over TCP with the coordinator of its federation; default plain text.
    insecure : bool
        Whether plain text may leave this machine; default False.

    Attributes
    ----------
    dropped : int
        Reports that nobody took. The log says so of the first, and why.

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
        self._told = False
        self._max_outstanding = max_outstanding
        self._timeout = timeout
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._under_way: Any = None
        self._closed = False
        tls = None if credentials is None else credentials.channel()
        name = None if credentials is None else target_name(credentials.federation, "coordinator")
        self._channel = open_channel(address, tls, insecure, name)
        self._call = self._channel.unary_unary(f"/{OBSERVER}/Report", None, None)

    def report(self, report: pb.PeerReport) -> None:
        """Start sending ``report``; returns at once, and never raises because of who listens or does not."""
        with self._changed:
            under_way = len(self._waiting) + (self._under_way is not None)
            if self._closed or under_way >= self._max_outstanding:
                self.dropped += 1  # of what is under way the log will tell
                return
            self._waiting.append(report.SerializeToString())
            self._send_next()

    def close(self, timeout: float = 1.0) -> None:
        """Give reports under way up to ``timeout`` seconds to leave, then drop them."""
        end = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._under_way is None, max(0.0, end - time.monotonic()))
            self.dropped += len(self._waiting)
            self._waiting.clear()
            if self._under_way is not None:
                self._tell("the run ended before they were taken")
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send_next(self) -> None:
        """Start the next report, where none is under way: side by side they could overtake each other."""
        if self._under_way is None and self._waiting:
            self._under_way = self._call.future(
                self._waiting.popleft(), timeout=self._timeout, wait_for_ready=True
            )
            self._under_way.add_done_callback(self._done)

    def _done(self, future: Any) -> None:
        with self._changed:
            self._under_way = None
            if (problem := _problem(future)) is not None:
                self.dropped += 1
                self._tell(problem)
            self._send_next()
            self._changed.notify_all()

    def _tell(self, problem: str) -> None:
        """Say once that reports do not arrive: nothing waits for them, and nothing else is lost."""
        if not self._told:
            self._told = True
            log.warning(
                "progress does not reach the coordinator at %s, which shows none (%s); training goes on",
                self._address,
                problem,
            )


def _refusal(reason: str) -> bytes:
    return pb.Reply(status=pb.NOT_AUTHENTIC, reason=reason).SerializeToString()


def _problem(future: Any) -> str | None:
    """Return why a report, whose call has ended, was not taken in; None when it was."""
    if future.cancelled():
        return "cancelled"
    if future.code() is not grpc.StatusCode.OK:
        return f"{future.code().name}: {printable(future.details() or '')}"
    try:
        reply = pb.Reply.FromString(future.result())
    except DecodeError:
        return "what answers there is no coordinator"
    if reply.status == pb.ACCEPTED:
        return None
    name = pb.Status.Name(reply.status) if reply.status in pb.Status.values() else str(reply.status)
    return f"{name}: {printable(reply.reason)}"
