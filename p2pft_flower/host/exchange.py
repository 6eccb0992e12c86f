"""The exchange of one host: its peers' payloads mixed with each other's and with those of other hosts.

Neighbours on this host are read in memory, neighbours elsewhere through the transport; the sums run in
ascending peer order either way, so a run's θ does not depend on which host runs which peer (invariant 2 of
docs/architecture.md).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

import numpy as np

from p2pft_flower.algorithms.compression import Compression, EdgeMemory, Memory, wide
from p2pft_flower.algorithms.seam import Both, Columns, Mix, Rows, Vector, combine
from p2pft_flower.errors import DataError, P2PFTError
from p2pft_flower.host.session import Session
from p2pft_flower.host.wires import Wires

__all__ = ["DivergedError", "HostExchange"]

M = TypeVar("M", Memory, EdgeMemory)


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
    memories : dict of (int, int) to Memory or EdgeMemory
        The memories of a view's codec, by peer and phase; empty without one.
    bytes_sent : dict of int to int
        Payload bytes that each peer has sent along its out-edges, in memory or not: the method's cost.
    seconds : float
        Seconds spent in exchanges so far.
    """

    def __init__(self, peers: Iterable[int], wires: Wires | None, itemsize: int) -> None:
        self._wires = wires
        self._itemsize = itemsize
        self.memories: dict[tuple[int, int], Memory | EdgeMemory] = {}
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
            by_edge = session.period > 1
            mix_differences = self._mix_by_edge if by_edge else self._mix_differences
            mixed = mix_differences(session, session.compression, iteration, phase, kind, vectors)
            for peer, mix in outbox.items():
                if not isinstance(mix, Columns):
                    size = float(np.linalg.norm(mix.vector if isinstance(mix, Rows) else mix.rows))
                    size = self._largest[peer, phase] = max(size, self._largest.get((peer, phase), 0.0))
                    memory, receivers = self.memories[peer, phase], session.places[peer].at(iteration)
                    for known in _knowledge(memory, receivers.out_neighbours):
                        _require_known(peer, place, mix, known, size)
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
    ) -> dict[int, Vector]:
        """Send each vector's difference from its receivers' knowledge of it, encoded."""
        before = {p: self._memory(p, phase, Memory) or Memory.blank(x) for p, x in vectors.items()}
        encoded = {p: compression.encode(x, before[p].known) for p, x in vectors.items()}
        for peer, one in encoded.items():
            self._send(session, peer, iteration, phase, kind, one.payload)
        sums = self._sums(session, iteration, phase, kind, {p: one.vector for p, one in encoded.items()})
        mixed = {}
        for peer, x in vectors.items():
            mixed[peer], self.memories[peer, phase] = compression.mix(
                x, before[peer], encoded[peer].vector, sums[peer]
            )
        return mixed

    def _mix_by_edge(
        self,
        session: Session,
        compression: Compression,
        iteration: int,
        phase: int,
        kind: type[Mix],
        vectors: Mapping[int, Vector],
    ) -> dict[int, Vector]:
        """Do that where weights change: each receiver of the iteration gets a difference of its own."""
        before = {p: self._memory(p, phase, EdgeMemory) or EdgeMemory.blank() for p in vectors}
        places = {p: session.places[p].at(iteration) for p in vectors}
        gone: dict[int, dict[int, tuple[float, Vector]]] = {}
        for peer, x in vectors.items():
            gone[peer] = {}
            for receiver in places[peer].out_neighbours:
                one = compression.encode(x, before[peer].known(receiver, x))
                self._send(session, peer, iteration, phase, kind, one.payload, [receiver])
                gone[peer][receiver] = places[peer].column[receiver], one.vector
        mixed = {}
        for peer, x in vectors.items():
            come: dict[int, tuple[float, float, Vector]] = {}
            for j in places[peer].in_neighbours:
                if (j, peer) in session.entering:
                    share, d = self._taken(session, peer, j, iteration, phase)
                else:
                    share, d = gone[j][peer]
                come[j] = places[peer].row[j], share, d
            mixed[peer], self.memories[peer, phase] = compression.mix_by_edge(
                kind, x, before[peer], gone[peer], come
            )
        return mixed

    def _memory(self, peer: int, phase: int, kind: type[M]) -> M | None:
        memory = self.memories.get((peer, phase))
        if memory is not None and not isinstance(memory, kind):
            raise DataError(
                f"peer {peer}: its checkpoint has a codec's memory of another schedule-graph; resume with "
                "the settings that it was written with"
            )
        return memory

    def _send(
        self,
        session: Session,
        peer: int,
        iteration: int,
        phase: int,
        kind: type[Mix],
        payload: Vector | bytes,
        receivers: Collection[int] = (),
    ) -> None:
        """Send to ``receivers``, by default to all of this iteration."""
        place = session.places[peer].at(iteration)
        size = len(payload) if isinstance(payload, bytes) else payload.size * self._itemsize
        receivers = receivers or place.out_neighbours
        self.bytes_sent[peer] += len(receivers) * size
        remote = [i for i in session.receivers[peer] if i in receivers]
        if self._wires is not None and remote:
            shares = {i: 1.0 if kind is Rows else place.column[i] for i in remote}
            self._wires.links.send(peer, iteration, phase, payload, shares)

    def _sums(
        self, session: Session, iteration: int, phase: int, kind: type[Mix], vectors: Mapping[int, Vector]
    ) -> dict[int, Vector]:
        return {p: combine(kind, self._terms(session, p, iteration, phase, vectors)) for p in vectors}

    def _terms(
        self, session: Session, peer: int, iteration: int, phase: int, vectors: Mapping[int, Vector]
    ) -> list[tuple[float, float, Vector]]:
        place, terms = session.places[peer].at(iteration), []
        for j in sorted(place.row):
            if self._wires is not None and (j, peer) in session.entering:
                share, vector = self._taken(session, peer, j, iteration, phase)
            else:
                vector, share = vectors[j], session.places[j].at(iteration).column[peer]
            terms.append((place.row[j], share, vector))
        return terms

    def _taken(
        self, session: Session, peer: int, sender: int, iteration: int, phase: int
    ) -> tuple[float, Vector]:
        """Wait for the payload of ``sender`` on another host; return its share and what it decodes to."""
        if self._wires is None:
            raise RuntimeError(f"peer {peer} awaits peer {sender} on another host, and this one has no wires")
        vector, share = self._wires.take(session, peer, sender, iteration, phase)
        return share, vector if session.compression is None else wide(vector)


def _knowledge(memory: Memory | EdgeMemory, receivers: Collection[int]) -> list[Vector]:
    """Return what ``receivers`` know of a peer's vector; one vector where all know the same."""
    return [memory.known] if isinstance(memory, Memory) else [memory.sent[i] for i in receivers]


def _require_known(peer: int, where: str, mix: Rows | Both, known: Vector, size: float) -> None:
    """Refuse a memory that is further from θ than the largest θ so far, of norm ``size``, is from zero.

    With a codec that works none ever is. The present θ would be too strict: it may go through zero.
    """
    vector = mix.vector if isinstance(mix, Rows) else mix.rows
    lost = float(np.linalg.norm(vector - known[: vector.size]))
    if lost > size:
        raise DivergedError(
            peer,
            where,
            f"what its neighbours know of its vector is {lost:.3g} off, more than the vector itself "
            f"has ever been, {size:.3g}",
            "lower codec-step (0 chooses one) or learning-rate, or take a codec that loses less",
        )
