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

from p2pft_flower.transport import p2pft_pb2 as pb
from p2pft_flower.transport.endpoint import OBSERVER, Listener, open_channel

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
    credentials : grpc.ServerCredentials, optional
        For TLS over TCP.
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
        credentials: Any = None,
        insecure: bool = False,
    ) -> None:
        self._on_report = on_report
        self._listener = Listener(
            OBSERVER,
            {"Report": self._report},
            {0: address},
            workers=1,
            max_calls=4096,
            max_connections=4096,
            credentials=credentials,
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

    def _report(self, request: bytes, _context: Any) -> bytes:
        try:
            self._on_report(pb.PeerReport.FromString(request))
        except DecodeError:
            return pb.Reply(status=pb.BAD_HEADER).SerializeToString()
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
    credentials : grpc.ChannelCredentials, optional
        For TLS over TCP.
    insecure : bool
        Whether plain text may leave this machine; default False.

    Attributes
    ----------
    dropped : int
        Reports that nobody took.

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
        credentials: Any = None,
        insecure: bool = False,
    ) -> None:
        self.dropped = 0
        self._max_outstanding = max_outstanding
        self._timeout = timeout
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._under_way: Any = None
        self._closed = False
        self._channel = open_channel(address, credentials, insecure)
        self._call = self._channel.unary_unary(f"/{OBSERVER}/Report", None, None)

    def report(self, report: pb.PeerReport) -> None:
        """Start sending ``report``; returns at once, and never raises because of who listens or does not."""
        with self._changed:
            under_way = len(self._waiting) + (self._under_way is not None)
            if self._closed or under_way >= self._max_outstanding:
                self.dropped += 1
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
            if future.cancelled() or future.code() is not grpc.StatusCode.OK:
                self.dropped += 1
            self._send_next()
            self._changed.notify_all()
