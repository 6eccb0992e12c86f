"""The coordinator's looks at a run: it asks peers how the run gets on, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

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

    def look(self, peer: int, known: pb.Gossip) -> pb.Gossip | P2PFTError:
        """Ask a peer for what is new to one who knows ``known``.

        Parameters
        ----------
        peer : int
            The peer.
        known : Gossip
            How new the standings and scores are that are known: ``known_standings`` and ``known_scores``.

        Returns
        -------
        Gossip or P2PFTError
            The answer, or the reason why there is none.
        """
        request = pb.Gossip(run=self._run, sender=peer, receiver=peer)
        request.MergeFrom(known)
        call = Call((peer, peer), peer, self._channels.addresses[peer], self._timeout)

        async def ask() -> pb.Gossip:
            metadata = ((LOOK_KEY, self._key),)
            raw = await self._channels.ask("Look", request, call, metadata=metadata, wait_for_ready=False)
            answer = call.read(raw, pb.Gossip)
            if answer.sender != peer:
                raise call.error(ExchangeError, f"peer {answer.sender} answered for peer {peer}")
            return answer

        try:
            return self._tasks.run(ask)
        except P2PFTError as error:
            return error

    def close(self) -> None:
        """Close the channels."""
        self._tasks.run(self._channels.close)
        self._tasks.close()
