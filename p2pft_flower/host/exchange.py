"""The exchange of one host: its peers' payloads mixed with each other's and with those of other hosts.

Neighbours on this host are read in memory, neighbours elsewhere through the transport; the sums run in
ascending peer order either way, so a run's θ does not depend on who lives where (invariant 2 of
docs/architecture.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np

from p2pft_flower.algorithms.seam import Mix, Rows, Vector, weighted_sum
from p2pft_flower.errors import P2PFTError
from p2pft_flower.host.session import Session
from p2pft_flower.host.wires import Wires

__all__ = ["DivergedError", "HostExchange"]


class DivergedError(P2PFTError):
    """A peer's own numbers are not finite: its training diverged."""

    def __init__(self, peer: int, where: str, what: str) -> None:
        self.peer = peer
        super().__init__(
            f"peer {peer}, {where}: its {what} holds NaN or infinity, so its training diverged; "
            "lower learning-rate (or momentum)"
        )


class HostExchange:
    """Mixes the payloads of one host's peers.

    Parameters
    ----------
    peers : iterable of int
        The peers of this host.
    wires : Wires or None
        The way to peers elsewhere; None where every neighbour is on this host.
    itemsize : int
        Bytes of one number of a payload.

    Attributes
    ----------
    bytes_sent : dict of int to int
        Payload bytes each peer has sent along its out-edges, in memory or not: what the method costs.
    seconds : float
        Seconds spent in exchanges so far.
    """

    def __init__(self, peers: Iterable[int], wires: Wires | None, itemsize: int) -> None:
        self._wires = wires
        self._itemsize = itemsize
        self.bytes_sent = dict.fromkeys(peers, 0)
        self.seconds = 0.0

    def withdraw(self) -> None:
        """Offer θ no longer to peers that have come back: none of them can lack it any more."""
        if self._wires is not None:
            self._wires.server.withdraw()

    def mix(
        self, session: Session, iteration: int, phase: int, outbox: Mapping[int, Mix]
    ) -> dict[int, Vector]:
        """Exchange one phase among the peers of a view: what each local peer yielded ↦ what each is sent.

        Raises
        ------
        DivergedError
            When a local payload holds a NaN or an infinity; nothing of it is sent.
        ExchangeError
            When a neighbour elsewhere cannot be sent to, or sends nothing before the deadline.
        """
        begin = time.perf_counter()
        for peer, mix in outbox.items():
            if not np.isfinite(mix.vector).all():
                raise DivergedError(peer, f"iteration {iteration}, phase {session.phases[phase]}", "payload")
        for peer, mix in outbox.items():
            self._send(session, peer, iteration, phase, mix)
        mixed = {peer: weighted_sum(self._terms(session, peer, iteration, phase, outbox)) for peer in outbox}
        self.seconds += time.perf_counter() - begin
        return mixed

    def _send(self, session: Session, peer: int, iteration: int, phase: int, mix: Mix) -> None:
        place = session.places[peer]
        self.bytes_sent[peer] += len(place.out_neighbours) * mix.vector.size * self._itemsize
        if self._wires is not None and (remote := session.receivers[peer]):
            shares = {i: 1.0 if isinstance(mix, Rows) else place.column[i] for i in remote}
            self._wires.links.send(peer, iteration, phase, mix.vector, shares)

    def _terms(
        self, session: Session, peer: int, iteration: int, phase: int, outbox: Mapping[int, Mix]
    ) -> list[tuple[float, Vector]]:
        place, rows = session.places[peer], isinstance(outbox[peer], Rows)
        terms = []
        for j in sorted(place.row):
            if self._wires is not None and (j, peer) in session.entering:
                vector, share = self._wires.take(session, peer, j, iteration, phase)
            else:
                vector, share = outbox[j].vector, session.places[j].column[peer]
            terms.append((place.row[j] if rows else share, vector))
        return terms
