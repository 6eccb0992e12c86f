"""The coordinator's looks at a run: it asks peers how the run gets on, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial

from p2pft_flower.errors import P2PFTError
from p2pft_flower.transport.calls import Call, Channels
from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.stops import LOOK_KEY
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import ExchangeError

__all__ = ["Looker"]

_OTHERS = 2.0
"""Seconds that a look waits for others once one peer has answered: a suspended one must not make it late."""


class Looker(Closing):
    """Asks peers for standings, scores and changes of view; a context manager. For one thread at a time.

    Parameters
    ----------
    run : str
        The run's identifier.
    key : bytes
        The run's key for looks, from `new_key`.
    addresses : mapping of int to str
        The peers' addresses.
    credentials : Credentials, optional
        The coordinator's certificates, if the peers have some; default: plain text.
    timeout : float
        Seconds that a look may take until a peer answers; the others have 2 s more then. Default 5.
    """

    def __init__(
        self,
        run: str,
        key: bytes,
        addresses: Mapping[int, str],
        credentials: Credentials | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._run, self._key, self._timeout = run, key, timeout
        self._tasks = Tasks()
        self._channels = Channels(addresses, credentials, credentials is None, gossip=True)

    def look(self, peers: Iterable[int], known: pb.Gossip) -> dict[int, pb.Gossip | P2PFTError]:
        """Ask peers, all at once, for what is new to one who knows ``known``.

        Parameters
        ----------
        peers : iterable of int
            The peers.
        known : Gossip
            How new the standings and scores are that are known: ``known_standings`` and ``known_scores``.

        Returns
        -------
        dict of int to (Gossip or P2PFTError)
            Each peer's answer, or the reason why there is none.
        """
        return self._tasks.run(partial(self._ask_all, list(peers), known))

    async def _ask_all(self, peers: list[int], known: pb.Gossip) -> dict[int, pb.Gossip | P2PFTError]:
        asks = {peer: asyncio.ensure_future(self._ask(peer, known)) for peer in peers}
        waiting = set(asks.values())
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if any(isinstance(one.result(), pb.Gossip) for one in done):
                break
        if waiting:
            await asyncio.wait(waiting, timeout=_OTHERS)
        late = {peer for peer, one in asks.items() if not one.done()}
        for peer in late:
            asks[peer].cancel()
        await asyncio.gather(*asks.values(), return_exceptions=True)
        return {peer: self._late(peer) if peer in late else one.result() for peer, one in asks.items()}

    def _call(self, peer: int) -> Call:
        return Call((peer, peer), peer, self._channels.addresses[peer], self._timeout)

    def _late(self, peer: int) -> P2PFTError:
        return self._call(peer).error(
            ExchangeError, f"no answer within {_OTHERS:g} s after another peer had answered"
        )

    async def _ask(self, peer: int, known: pb.Gossip) -> pb.Gossip | P2PFTError:
        request = pb.Gossip(run=self._run, sender=peer, receiver=peer)
        request.MergeFrom(known)
        call = self._call(peer)
        metadata = ((LOOK_KEY, self._key),)
        try:
            raw = await self._channels.ask("Look", request, call, metadata=metadata, wait_for_ready=False)
            answer = call.read(raw, pb.Gossip)
        except P2PFTError as error:
            return error
        if answer.sender != peer:
            return call.error(ExchangeError, f"peer {answer.sender} answered for peer {peer}")
        return answer

    def close(self) -> None:
        """Close the channels."""
        self._tasks.run(self._channels.close)
        self._tasks.close()
