"""The exchange of one host: its peers' payloads mixed with each other's and with those of other hosts.

Neighbours on this host are read in memory, neighbours elsewhere through the transport; the sums run in
ascending peer order either way, so a run's θ does not depend on who lives where (invariant 2 of
docs/architecture.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from p2pft_flower.algorithms.seam import Mix, Rows, Vector, weighted_sum
from p2pft_flower.errors import P2PFTError
from p2pft_flower.host.wires import Wires
from p2pft_flower.plan import Neighbourhood

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
    peers : sequence of Neighbourhood
        The peers of this host, their rows of A and columns of B.
    wires : Wires or None
        The way to peers elsewhere; None where every neighbour is on this host.
    itemsize : int
        Bytes of one number of a payload.
    phases : tuple of str
        What the method calls its exchanges.

    Attributes
    ----------
    bytes_sent : dict of int to int
        Payload bytes each peer has sent along its out-edges, in memory or not: what the method costs.
    seconds : float
        Seconds spent in exchanges so far.
    """

    def __init__(
        self, peers: Sequence[Neighbourhood], wires: Wires | None, itemsize: int, phases: tuple[str, ...]
    ) -> None:
        self._peers = {p.peer: p for p in peers}
        self._wires = wires
        self._itemsize = itemsize
        self._phases = phases
        self.bytes_sent = dict.fromkeys(self._peers, 0)
        self.seconds = 0.0

    def install(self, peers: Sequence[Neighbourhood]) -> None:
        """Go on with other rows and columns: those of another view."""
        self._peers = {p.peer: p for p in peers}

    def mix(self, iteration: int, phase: int, outbox: Mapping[int, Mix]) -> dict[int, Vector]:
        """Exchange one phase: what each local peer yielded ↦ what each is sent.

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
                raise DivergedError(peer, f"iteration {iteration}, phase {self._phases[phase]}", "payload")
        for peer, mix in outbox.items():
            self._send(peer, iteration, phase, mix)
        mixed = {peer: weighted_sum(self._terms(peer, iteration, phase, outbox)) for peer in outbox}
        self.seconds += time.perf_counter() - begin
        return mixed

    def _send(self, peer: int, iteration: int, phase: int, mix: Mix) -> None:
        place = self._peers[peer]
        self.bytes_sent[peer] += len(place.out_neighbours) * mix.vector.size * self._itemsize
        if self._wires is not None:
            remote = self._wires.receivers(peer)
            if remote:
                shares = {i: 1.0 if isinstance(mix, Rows) else place.column[i] for i in remote}
                self._wires.links.send(peer, iteration, phase, mix.vector, shares)

    def _terms(
        self, peer: int, iteration: int, phase: int, outbox: Mapping[int, Mix]
    ) -> list[tuple[float, Vector]]:
        place, rows = self._peers[peer], isinstance(outbox[peer], Rows)
        terms = []
        for j in sorted(place.row):
            if self._wires is not None and (j, peer) in self._wires.edges:
                vector, share = self._wires.take(peer, j, iteration, phase)
            else:
                vector, share = outbox[j].vector, self._peers[j].column[peer]
            terms.append((place.row[j] if rows else share, vector))
        return terms
