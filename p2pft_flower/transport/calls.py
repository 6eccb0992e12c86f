"""Calls to remote peers: the channels that they go through, and the meaning of their outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from p2pft_flower.errors import printable
from p2pft_flower.transport.endpoint import EXCHANGE, open_channel, tls_name
from p2pft_flower.transport.mailbox import Edge
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import (
    CorruptedError,
    ExchangeError,
    ExchangeRefusedError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    OtherRunError,
    OtherViewError,
    PeerPreparingError,
    PeerUnreachableError,
    RevokedError,
    UnansweredError,
    UnsharedError,
    cause_from,
)

__all__ = ["Call", "Channels"]

M = TypeVar("M", bound=Message)

_BY_CODE: dict[grpc.StatusCode, type[ExchangeError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: UnansweredError,
    grpc.StatusCode.UNAVAILABLE: PeerUnreachableError,
    grpc.StatusCode.CANCELLED: ExchangeStoppedError,
}
"""Errors for gRPC's codes of a call without an answer; any other code is a plain ExchangeError."""
_BY_STATUS: dict[int, type[ExchangeError]] = {
    pb.STOPPED: ExchangeStoppedError,
    pb.CORRUPT: CorruptedError,
    pb.THROTTLED: ExchangeTimeoutError,  # others at its address, or in its name, may be to blame
    pb.BUSY: ExchangeTimeoutError,
    pb.SUPERSEDED: ExchangeTimeoutError,  # by a copy that came late: asked again, it is there or taken in
    pb.PREPARING: PeerPreparingError,
    pb.WRONG_RUN: OtherRunError,
    pb.LATER: OtherViewError,
    pb.WRONG_VIEW: OtherViewError,
    pb.UNSHARED: UnsharedError,
    pb.REVOKED: RevokedError,
}


OTHER_NAME = "Hostname Verification Check failed"
"""Part of gRPC's message if the certificate at an address lacks the name that was asked for."""


@dataclass(frozen=True)
class Call:
    """The subject of a call, for its errors.

    Attributes
    ----------
    edge : (int, int)
        The edge that the call concerns, (sender, receiver).
    remote : int
        The called peer: one end of ``edge``; the other end is the local peer.
    address : str
        The address of the called peer.
    deadline : float
        The call's deadline, in seconds.
    iteration, phase : int or str, optional
        The place in the run.
    """

    edge: Edge
    remote: int
    address: str
    deadline: float
    iteration: int | None = None
    phase: str | None = None

    @property
    def local(self) -> int:
        """The local peer."""
        return self.edge[0] if self.remote == self.edge[1] else self.edge[1]

    def error(self, kind: type[ExchangeError], problem: str) -> ExchangeError:
        """Return an error of this ``kind`` that names the call's local peer, edge, place and deadline."""
        return kind(
            problem,
            peer=self.local,
            edge=self.edge,
            iteration=self.iteration,
            phase=self.phase,
            deadline=self.deadline,
        )

    def read(self, raw: bytes, kind: type[M]) -> M:
        """Return ``raw``, the bytes of the called peer's answer, as a message of ``kind``.

        Raises
        ------
        ExchangeError
            When the peer refused, or the bytes are no answer of a peer.
        """
        whom = f"peer {self.remote} at {self.address}"
        try:
            answer = kind.FromString(raw)
        except DecodeError as error:
            raise self.error(ExchangeError, f"{whom} gave an answer that is none of a peer's") from error
        status: int = getattr(answer, "status")  # noqa: B009 - all kinds have one, their base has none
        if status in (pb.ACCEPTED, pb.DUPLICATE):
            return answer
        name = pb.Status.Name(status) if status in pb.Status.values() else str(status)
        reason = printable(str(getattr(answer, "reason")))  # noqa: B009
        refusal = self.error(
            _BY_STATUS.get(status, ExchangeRefusedError), f"{whom} answered {name}: {reason}"
        )
        if isinstance(refusal, PeerPreparingError) and isinstance(answer, pb.Reply):
            refusal.progress = answer.progress
        if isinstance(refusal, ExchangeStoppedError) and isinstance(answer, pb.Reply):
            cause = cause_from(answer.cause)
            refusal.cause = refusal.cause if cause is None else cause.told
        raise refusal


class Channels:
    """A channel to each remote peer, opened when first used; closed by `close` or at the end of a block.

    Only the network's thread uses it.

    Parameters
    ----------
    addresses : mapping of int to str
        Remote peer to address.
    credentials : Credentials or None
        For TLS over TCP: this host's certificate, and the authorities that it trusts.
    insecure : bool
        Whether plain text may leave this machine.
    gossip : bool
        Whether the channels are for gossip: connections of their own, and room for the answers; default
        False.
    largest : int
        Most bytes of a vector in an answer; default 0: no answer holds one.
    service : str
        Name of the service that is called; default the peers' exchange.
    """

    def __init__(
        self,
        addresses: Mapping[int, str],
        credentials: Credentials | None,
        insecure: bool,
        *,
        gossip: bool = False,
        largest: int = 0,
        service: str = EXCHANGE,
    ) -> None:
        self.addresses = dict(addresses)
        self._credentials = credentials
        self._insecure = insecure
        self._gossip, self._largest, self._service = gossip, largest, service
        self._open: dict[int, tuple[grpc.aio.Channel, str | None]] = {}
        """The channel to each peer, and the name that TLS has asked for there."""

    async def ask(
        self,
        method: str,
        request: bytes | Message,
        call: Call,
        *,
        within: float | None = None,
        wait_for_ready: bool = True,
        metadata: tuple[tuple[str, bytes], ...] = (),
    ) -> bytes:
        """Call a method of the service, and return the answer's bytes, which `Call.read` reads.

        Parameters
        ----------
        method : str
            The method's name: Deliver, HandOver, Hello, Stop, Gossip or Fetch; Echo of a probe's service.
        request : bytes or Message
            The request's body.
        call : Call
            The called peer, and the deadline.
        within : float, optional
            Seconds that this call may take, if fewer than the deadline; default: the deadline.
        wait_for_ready : bool
            Whether to wait for a peer that is not there yet; else the call fails at once.
        metadata : tuple of (str, bytes)
            Pairs of key and value that travel beside the body.

        Raises
        ------
        ConfigError
            When the address cannot be parsed, or plain text would leave this machine.
        ExchangeError
            When there is no answer, or the peer's certificate was revoked meanwhile.
        """
        body = request if isinstance(request, bytes) else request.SerializeToString()
        # No serialisers: bytes in, bytes out, no copy of a payload for protobuf's sake.
        channel, name = await self._channel(call.remote)
        unary: Callable[..., grpc.aio.UnaryUnaryCall] = channel.unary_unary(
            f"/{self._service}/{method}", None, None
        )
        try:
            answer: bytes = await unary(
                body,
                timeout=call.deadline if within is None else within,
                metadata=metadata,
                # A peer that was revoked meanwhile may never be reached: then the reason is known at once.
                wait_for_ready=wait_for_ready and not self._revoked_lately(call.remote),
            )
        except grpc.RpcError as failure:
            code = failure.code()
            problem = (
                f"no answer from peer {call.remote} at {call.address} ({code.name}: {failure.details()})"
            )
            if code is grpc.StatusCode.UNIMPLEMENTED:
                problem += (
                    f": its host speaks another version of the peers' protocol than {self._service}; install "
                    "the same version of p2pft-flower on both"
                )
            if self._credentials is not None and (expired := self._credentials.expired()) is not None:
                problem += f"; {expired}"
            elif (revoked := self._revoked(call.remote)) and OTHER_NAME in problem:
                problem += f"; {revoked}"
            raise call.error(_BY_CODE.get(code, ExchangeError), problem) from failure
        except asyncio.CancelledError:
            # The channel was replaced for a revocation, or whoever wants this answer gave it up.
            task = asyncio.current_task()
            if (task is not None and task.cancelling()) or name == self._name(call.remote):
                raise
            problem = (
                f"the call to peer {call.remote} at {call.address} was cut: {self._revoked(call.remote)}"
            )
            raise call.error(PeerUnreachableError, problem) from None
        if name != self._name(call.remote):
            problem = (
                f"the answer of peer {call.remote} at {call.address} is void: {self._revoked(call.remote)}"
            )
            raise call.error(PeerUnreachableError, problem)
        return answer

    def _name(self, remote: int) -> str | None:
        return tls_name(self.addresses[remote], remote, self._credentials)

    def _revoked_lately(self, remote: int) -> bool:
        return self._credentials is not None and self._credentials.revoked_since(remote) is not None

    def _revoked(self, remote: int) -> str | None:
        return None if self._credentials is None else self._credentials.revoked(remote)

    async def _channel(self, remote: int) -> tuple[grpc.aio.Channel, str | None]:
        if remote in self._open and self._open[remote][1] != self._name(remote):
            await self.renew([remote])  # it was opened before the peer's certificate was revoked
        if remote not in self._open:
            name = self._name(remote)
            channel = open_channel(
                self.addresses[remote],
                remote,
                self._credentials,
                self._insecure,
                gossip=self._gossip,
                largest=self._largest,
            )
            self._open[remote] = channel, name
        return self._open[remote]

    async def renew(self, remotes: Iterable[int]) -> None:
        """Close the channels to ``remotes``, which cancels their calls; the next call opens new ones.

        A channel to a peer that was gone may still wait for its next attempt to connect, or for answers on
        a connection that broke without a word.
        """
        old = [found for remote in set(remotes) if (found := self._open.pop(remote, None))]
        await asyncio.gather(*(channel.close() for channel, _ in old))

    async def close(self) -> None:
        """Close every channel, which cancels its calls."""
        await self.renew(list(self._open))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
