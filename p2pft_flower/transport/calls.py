"""Calls to neighbours: the channels they go through, and what their outcome means."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from p2pft_flower.errors import printable
from p2pft_flower.transport.endpoint import EXCHANGE, open_channel
from p2pft_flower.transport.mailbox import Edge
from p2pft_flower.transport.trust.certificates import target_name
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import (
    CorruptedError,
    ExchangeError,
    ExchangeRefusedError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    OtherViewError,
    PeerPreparingError,
    PeerUnreachableError,
    UnansweredError,
    cause_from,
)

__all__ = ["Call", "Channels"]

Answer = TypeVar("Answer", pb.Reply, pb.Gossip, pb.Fetched)

_BY_CODE: dict[grpc.StatusCode, type[ExchangeError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: UnansweredError,
    grpc.StatusCode.UNAVAILABLE: PeerUnreachableError,
    grpc.StatusCode.CANCELLED: ExchangeStoppedError,
}
"""What gRPC says for want of an answer; what is not here is an ExchangeError and no more."""
_BY_STATUS: dict[int, type[ExchangeError]] = {
    pb.STOPPED: ExchangeStoppedError,
    pb.CORRUPT: CorruptedError,
    pb.THROTTLED: ExchangeTimeoutError,  # others at its address, or in its name, may be to blame
    pb.BUSY: ExchangeTimeoutError,
    pb.SUPERSEDED: ExchangeTimeoutError,  # by a copy that came late: asked again, it is there or taken in
    pb.PREPARING: PeerPreparingError,
    pb.LATER: OtherViewError,
    pb.WRONG_VIEW: OtherViewError,
}


@dataclass(frozen=True)
class Call:
    """A call under way; the future is kept because gRPC cancels a call whose future is dropped."""

    future: Any  # grpc.Future, grpc.Call
    address: str
    edge: Edge
    local: int
    remote: int
    deadline: float  # seconds
    iteration: int | None = None
    phase: int | None = None

    def error(self, kind: type[ExchangeError], problem: str) -> ExchangeError:
        """Return an error of this ``kind`` that names everything about the call."""
        return kind(
            problem,
            peer=self.local,
            edge=self.edge,
            iteration=self.iteration,
            phase=self.phase,
            deadline=self.deadline,
        )

    def outcome(self) -> ExchangeError | None:
        """Return what went wrong with this call, which has ended; None when the message was taken in."""
        reply = self._answer(pb.Reply.FromString)
        if isinstance(reply, ExchangeError):
            return reply
        if reply.status in (pb.ACCEPTED, pb.DUPLICATE):
            return None
        error = self._refusal(reply.status, reply.reason)
        if isinstance(error, PeerPreparingError):
            error.progress = reply.progress
        if isinstance(error, ExchangeStoppedError) and (cause := cause_from(reply.cause)) is not None:
            error.cause = cause.told
        return error

    @property
    def answered(self) -> bool:
        """Whether this call, which has ended, got through: the called peer has answered, whatever it said."""
        return bool(self.future.code() is grpc.StatusCode.OK)

    def gossip(self) -> pb.Gossip | ExchangeError:
        """Return what the called peer answered to a gossip, which has ended, or what went wrong."""
        answer = self._answer(pb.Gossip.FromString)
        if isinstance(answer, ExchangeError):
            return answer
        if answer.status != pb.ACCEPTED:
            return self._refusal(answer.status, answer.reason)
        if answer.sender != self.remote:
            return self.error(ExchangeError, f"{self._whom} answered for peer {answer.sender}")
        return answer

    def fetched(self) -> pb.Fetched | ExchangeError:
        """Return the called peer's answer to a fetch, which has ended, unchecked, or what went wrong."""
        answer = self._answer(pb.Fetched.FromString)
        if isinstance(answer, ExchangeError) or answer.status == pb.ACCEPTED:
            return answer
        return self._refusal(answer.status, answer.reason)

    @property
    def _whom(self) -> str:
        return f"peer {self.remote} at {self.address}"

    def _answer(self, parse: Callable[[bytes], Answer]) -> Answer | ExchangeError:
        try:
            return parse(self.future.result(0))
        except grpc.FutureCancelledError:
            problem = f"the call to {self._whom} was cancelled, this host stops"
            return self.error(ExchangeStoppedError, problem)
        except DecodeError:
            return self.error(ExchangeError, f"{self._whom} gave an answer that is none of a peer's")
        except grpc.RpcError as failure:
            code = self.future.code()
            problem = f"no answer from {self._whom} ({code.name}: {self.future.details()})"
            error = self.error(_BY_CODE.get(code, ExchangeError), problem)
            error.__cause__ = failure
            return error

    def _refusal(self, status: int, reason: str) -> ExchangeError:
        name = pb.Status.Name(status) if status in pb.Status.values() else str(status)
        kind = _BY_STATUS.get(status, ExchangeRefusedError)
        return self.error(kind, f"{self._whom} answered {name}: {printable(reason)}")


class Channels:
    """One channel a remote neighbour, opened when first used.

    Parameters
    ----------
    addresses : mapping of int to str
        Remote neighbour to address.
    credentials : Credentials or None
        For TLS over TCP: what proves who we are, and whom we trust.
    insecure : bool
        Whether plain text may leave this machine.
    gossip : bool
        Whether they are for gossip: connections of their own, and room for its answers; default False.
    largest : int
        Bytes of a vector that an answer may hold; default 0: none does.
    """

    def __init__(
        self,
        addresses: Mapping[int, str],
        credentials: Credentials | None,
        insecure: bool,
        *,
        gossip: bool = False,
        largest: int = 0,
    ) -> None:
        self.addresses = dict(addresses)
        self._credentials = credentials
        self._tls = None if credentials is None else credentials.channel()
        self._insecure = insecure
        self._gossip, self._largest = gossip, largest
        self._lock = threading.Lock()
        self._open: dict[int, grpc.Channel] = {}
        self._closed = False

    def start(
        self,
        method: str,
        request: bytes | Message,
        timeout: float,
        *,
        edge: Edge,
        remote: int,
        at: tuple[int, int] | None = None,
        wait_for_ready: bool = True,
        metadata: tuple[tuple[str, bytes], ...] = (),
    ) -> Call:
        """Start a call of the Exchange service.

        Parameters
        ----------
        method : str
            Deliver, Hello, Stop, Gossip or Fetch.
        request : bytes or Message
            The request's body.
        timeout : float
            The call's deadline in seconds.
        edge : (int, int)
            The edge it concerns, (sender, receiver).
        remote : int
            Whom to call: one end of ``edge``; the other end is the local peer.
        at : (int, int), optional
            Iteration and phase.
        wait_for_ready : bool
            Whether to wait for a neighbour that is not there yet, or to fail at once.
        metadata : tuple of (str, bytes)
            What travels beside the body.

        Raises
        ------
        ConfigError
            When plain text would leave this machine.
        ExchangeStoppedError
            When the channels have been closed.
        """
        local = edge[0] if remote == edge[1] else edge[1]
        with self._lock:
            if self._closed:
                raise ExchangeStoppedError("this host has closed its links", peer=local, edge=edge)
            channel = self._open.get(remote)
            if channel is None:
                own = self._credentials
                name = None if own is None else target_name(own.federation, remote)
                channel = open_channel(
                    self.addresses[remote],
                    self._tls,
                    self._insecure,
                    name,
                    gossip=self._gossip,
                    largest=self._largest,
                )
                self._open[remote] = channel
        body = request if isinstance(request, bytes) else request.SerializeToString()
        # No serialisers: bytes in, bytes out, no copy of a payload for protobuf's sake.
        future = channel.unary_unary(f"/{EXCHANGE}/{method}", None, None).future(
            body, timeout=timeout, metadata=metadata, wait_for_ready=wait_for_ready
        )
        iteration, phase = (None, None) if at is None else at
        return Call(future, self.addresses[remote], edge, local, remote, timeout, iteration, phase)

    def renew(self, remotes: Iterable[int]) -> None:
        """Close the channels to ``remotes``, which cancels their calls; the next call opens new ones.

        A channel to a peer that was gone may still wait for its next attempt to connect, or for answers on
        a connection that broke without a word.
        """
        with self._lock:
            old = [channel for remote in set(remotes) if (channel := self._open.pop(remote, None))]
        for channel in old:
            channel.close()

    def close(self) -> None:
        """Close every channel, which cancels its calls."""
        with self._lock:
            self._closed = True
            channels, self._open = self._open, {}
        for channel in channels.values():
            channel.close()
