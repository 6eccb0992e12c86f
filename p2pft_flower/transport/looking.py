"""The coordinator's looks at a run: it asks peers how the run gets on, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from p2pft_flower.errors import P2PFTError
from p2pft_flower.transport.calls import Call, Channels
from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.stops import LOOK_KEY
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import ExchangeError

__all__ = ["Looker"]


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
        Seconds that a look may take; default 5.
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
        asked = list(peers)

        async def ask_all() -> list[pb.Gossip | P2PFTError]:
            return await asyncio.gather(*(self._ask(peer, known) for peer in asked))

        return dict(zip(asked, self._tasks.run(ask_all), strict=True))

    async def _ask(self, peer: int, known: pb.Gossip) -> pb.Gossip | P2PFTError:
        request = pb.Gossip(run=self._run, sender=peer, receiver=peer)
        request.MergeFrom(known)
        call = Call((peer, peer), peer, self._channels.addresses[peer], self._timeout)
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
