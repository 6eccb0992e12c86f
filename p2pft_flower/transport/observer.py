"""Progress reports: peers tell whoever listens, and nobody waits for it."""

from __future__ import annotations

import logging
import threading
import time
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
    """Sends reports and forgets them; a context manager.

    Parameters
    ----------
    address : str
        Where an `ObserverServer` may listen.
    max_outstanding : int
        Reports that may be under way; more are dropped. Default 64.
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
        self._outstanding: set[Any] = set()
        self._closed = False
        self._channel = open_channel(address, credentials, insecure)
        self._call = self._channel.unary_unary(f"/{OBSERVER}/Report", None, None)

    def report(self, report: pb.PeerReport) -> None:
        """Start sending ``report``; returns at once, and never raises because of who listens or does not."""
        with self._changed:
            if self._closed or len(self._outstanding) >= self._max_outstanding:
                self.dropped += 1
                return
            future = self._call.future(report.SerializeToString(), timeout=self._timeout, wait_for_ready=True)
            self._outstanding.add(future)
        future.add_done_callback(self._done)

    def close(self, timeout: float = 1.0) -> None:
        """Give reports under way up to ``timeout`` seconds to leave, then drop them."""
        end = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._outstanding, max(0.0, end - time.monotonic()))
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _done(self, future: Any) -> None:
        with self._changed:
            self._outstanding.discard(future)
            if future.cancelled() or future.code() is not grpc.StatusCode.OK:
                self.dropped += 1
            self._changed.notify_all()
