"""Gossip and stops: short messages on connections apart from those of payloads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from p2pft_flower.errors import P2PFTError
from p2pft_flower.transport.calls import Call, Channels
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import ExchangeError

__all__ = ["gossip", "gossip_all", "stop_all"]

log = logging.getLogger(__name__)


async def gossip(
    channels: Channels, run: str, remote: int, message: pb.Gossip, timeout: float
) -> pb.Gossip | ExchangeError:
    """Gossip with one member; return the answer, or the error if there is none.

    Raises
    ------
    ConfigError
        When the address cannot be parsed, or plain text would leave this machine.
    """
    message.run, message.receiver = run, remote
    # The pair is no edge of the graph if the two members share none.
    call = Call((message.sender, remote), remote, channels.addresses[remote], timeout)
    try:
        answer = call.read(await channels.ask("Gossip", message, call, wait_for_ready=False), pb.Gossip)
    except ExchangeError as error:
        return error
    if answer.sender != remote:
        whom = f"peer {remote} at {call.address}"
        return call.error(ExchangeError, f"{whom} answered for peer {answer.sender}")
    return answer


async def gossip_all(
    channels: Channels, run: str, messages: Mapping[int, pb.Gossip], timeout: float
) -> dict[int, pb.Gossip | ExchangeError]:
    """Gossip with several members at once; see `Links.gossip_all`."""
    answers = await asyncio.gather(
        *(gossip(channels, run, remote, message, timeout) for remote, message in messages.items())
    )
    return dict(zip(messages, answers, strict=True))


async def stop_all(
    channels: Channels,
    stops: Mapping[int, pb.Stop],
    timeout: float,
    *,
    metadata: tuple[tuple[str, bytes], ...] = (),
    wait_for_ready: bool = False,
) -> dict[int, str]:
    """Send stops to remote peers, because a run or a peer ends; never raises.

    Parameters
    ----------
    channels : Channels
        The channels of gossip: on those of payloads, a stop would wait behind a payload that takes minutes.
    stops : mapping of int to Stop
        The stop for each remote peer.
    timeout : float
        Seconds that all calls together may take.
    metadata, wait_for_ready
        As for :meth:`Channels.ask`.

    Returns
    -------
    dict of int to str
        The reason why a stop did not reach a peer, by peer; empty if every peer has its stop.
    """

    async def tell(remote: int, stop: pb.Stop) -> str | None:
        call = Call((stop.sender, remote), remote, channels.addresses[remote], timeout)
        try:
            raw = await channels.ask("Stop", stop, call, metadata=metadata, wait_for_ready=wait_for_ready)
            call.read(raw, pb.Reply)
        except P2PFTError as error:  # not there any more, or the address is refused
            log.debug("a stop to peer %d was not heard: %s", remote, error)
            return str(error)
        return None

    answers = await asyncio.gather(*(tell(*told) for told in stops.items()))
    return {peer: why for peer, why in zip(stops, answers, strict=True) if why is not None}
