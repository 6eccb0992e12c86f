"""The exchange of one host: its peers' payloads mixed with each other's and with those of other hosts.

Neighbours on this host are read in memory, neighbours elsewhere through the transport; the sums run in
ascending peer order either way, so a run's θ does not depend on which host runs which peer (invariant 2 of
docs/architecture.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np

from p2pft_flower.algorithms.compression import Compression, Memory, wide
from p2pft_flower.algorithms.seam import Both, Columns, Mix, Rows, Vector, combine
from p2pft_flower.errors import P2PFTError
from p2pft_flower.host.session import Session
from p2pft_flower.host.wires import Wires

__all__ = ["DivergedError", "HostExchange"]


class DivergedError(P2PFTError):
    """A peer's own numbers are not finite, or its neighbours cannot follow them: its training diverged."""

    def __init__(self, peer: int, where: str, problem: str, remedy: str) -> None:
        self.peer = peer
        super().__init__(f"peer {peer}, {where}: {problem}, so its training diverged; {remedy}")

    @classmethod
    def not_finite(cls, peer: int, where: str, what: str) -> DivergedError:
        """Return the error of ``what`` that holds a NaN or an infinity."""
        return cls(peer, where, f"its {what} holds NaN or infinity", "lower learning-rate (or momentum)")


class HostExchange:
    """Mixes the payloads of one host's peers.

    Parameters
    ----------
    peers : iterable of int
        The peers of this host.
    wires : Wires or None
        The way to peers elsewhere; None if every neighbour is on this host.
    itemsize : int
        Bytes of one number of a vector.

    Attributes
    ----------
    memories : dict of (int, int) to Memory
        The memories of a view's codec, by peer and phase; empty without one.
    bytes_sent : dict of int to int
        Payload bytes that each peer has sent along its out-edges, in memory or not: the method's cost.
    seconds : float
        Seconds spent in exchanges so far.
    """

    def __init__(self, peers: Iterable[int], wires: Wires | None, itemsize: int) -> None:
        self._wires = wires
        self._itemsize = itemsize
        self.memories: dict[tuple[int, int], Memory] = {}
        self._largest: dict[tuple[int, int], float] = {}
        self.bytes_sent = dict.fromkeys(peers, 0)
        self.seconds = 0.0

    def withdraw(self) -> None:
        """End the offer of θ to peers that have come back: none of them can lack it any more."""
        if self._wires is not None:
            self._wires.server.withdraw()

    def mix(
        self, session: Session, iteration: int, phase: int, outbox: Mapping[int, Mix]
    ) -> dict[int, Vector]:
        """Exchange one phase among the peers of a view: the local peers' requests ↦ their mixed vectors.

        Raises
        ------
        DivergedError
            When a local payload holds a NaN or an infinity; nothing of it is sent.
        ExchangeError
            When a neighbour elsewhere cannot be sent to, or sends nothing before the deadline.
        """
        begin = time.perf_counter()
        kind = type(next(iter(outbox.values())))
        vectors = {peer: mix.vector for peer, mix in outbox.items()}
        place = f"iteration {iteration}, phase {session.phases[phase]}"
        for peer, vector in vectors.items():
            if not np.isfinite(vector).all():
                raise DivergedError.not_finite(peer, place, "payload")
        if session.compression is None:
            for peer, vector in vectors.items():
                self._send(session, peer, iteration, phase, kind, vector)
            mixed = self._sums(session, iteration, phase, kind, vectors)
        else:
            before = {p: self.memories.get((p, phase)) or Memory.blank(x) for p, x in vectors.items()}
            mixed = self._mix_differences(
                session, session.compression, iteration, phase, kind, vectors, before
            )
            for peer, mix in outbox.items():
                if not isinstance(mix, Columns):
                    size = float(np.linalg.norm(mix.vector if isinstance(mix, Rows) else mix.rows))
                    size = self._largest[peer, phase] = max(size, self._largest.get((peer, phase), 0.0))
                    _require_known(peer, place, mix, self.memories[peer, phase], size)
        self.seconds += time.perf_counter() - begin
        return mixed

    def _mix_differences(
        self,
        session: Session,
        compression: Compression,
        iteration: int,
        phase: int,
        kind: type[Mix],
        vectors: Mapping[int, Vector],
        before: Mapping[int, Memory],
    ) -> dict[int, Vector]:
        """Send each vector's difference from its receivers' knowledge of it, encoded."""
        encoded = {p: compression.encode(x, before[p]) for p, x in vectors.items()}
        for peer, one in encoded.items():
            self._send(session, peer, iteration, phase, kind, one.payload)
        sums = self._sums(session, iteration, phase, kind, {p: one.vector for p, one in encoded.items()})
        mixed = {}
        for peer, x in vectors.items():
            mixed[peer], self.memories[peer, phase] = compression.mix(
                x, before[peer], encoded[peer].vector, sums[peer]
            )
        return mixed

    def _send(
        self,
        session: Session,
        peer: int,
        iteration: int,
        phase: int,
        kind: type[Mix],
        payload: Vector | bytes,
    ) -> None:
        place = session.places[peer]
        size = len(payload) if isinstance(payload, bytes) else payload.size * self._itemsize
        self.bytes_sent[peer] += len(place.out_neighbours) * size
        if self._wires is not None and (remote := session.receivers[peer]):
            shares = {i: 1.0 if kind is Rows else place.column[i] for i in remote}
            self._wires.links.send(peer, iteration, phase, payload, shares)

    def _sums(
        self, session: Session, iteration: int, phase: int, kind: type[Mix], vectors: Mapping[int, Vector]
    ) -> dict[int, Vector]:
        return {p: combine(kind, self._terms(session, p, iteration, phase, vectors)) for p in vectors}

    def _terms(
        self, session: Session, peer: int, iteration: int, phase: int, vectors: Mapping[int, Vector]
    ) -> list[tuple[float, float, Vector]]:
        place, terms = session.places[peer], []
        for j in sorted(place.row):
            if self._wires is not None and (j, peer) in session.entering:
                vector, share = self._wires.take(session, peer, j, iteration, phase)
                if session.compression is not None:
                    vector = wide(vector)
            else:
                vector, share = vectors[j], session.places[j].column[peer]
            terms.append((place.row[j], share, vector))
        return terms


def _require_known(peer: int, where: str, mix: Rows | Both, memory: Memory, size: float) -> None:
    """Refuse a memory that is further from θ than the largest θ so far, of norm ``size``, is from zero.

    With a codec that works none ever is. The present θ would be too strict: it may go through zero.
    """
    vector = mix.vector if isinstance(mix, Rows) else mix.rows
    lost = float(np.linalg.norm(vector - memory.known[: vector.size]))
    if lost > size:
        raise DivergedError(
            peer,
            where,
            f"what its neighbours know of its vector is {lost:.3g} off, more than the vector itself "
            f"has ever been, {size:.3g}",
            "lower codec-step (0 chooses one) or learning-rate, or take a codec that loses less",
        )
