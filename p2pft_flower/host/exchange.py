"""The exchange of one host: its peers' payloads mixed with each other's and with those of other hosts.

Neighbours on this host are read in memory, neighbours elsewhere through the transport; the sums run in
ascending peer order either way, so a run's θ does not depend on which host runs which peer (invariant 2 of
docs/architecture.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from p2pft_flower.algorithms.compression import Memory, wide
from p2pft_flower.algorithms.seam import Both, Columns, Mix, Rows, Vector, combine, combine_all
from p2pft_flower.cores import cores
from p2pft_flower.errors import P2PFTError
from p2pft_flower.host.best import Table, merged
from p2pft_flower.host.class_counts import merged_counts
from p2pft_flower.host.problem import Device
from p2pft_flower.host.session import Session
from p2pft_flower.host.wires import Wires
from p2pft_flower.plan import Neighbourhood

__all__ = ["DivergedError", "HostExchange"]

MANY = 2**23
"""Numbers of all local peers' vectors together from which several threads mix them; sums are the same."""


class DivergedError(P2PFTError):
    """A peer's numbers are not finite, or its neighbours cannot follow them: the peer's training diverged."""

    def __init__(self, peer: int, where: str, problem: str, remedy: str) -> None:
        self.peer = peer
        super().__init__(f"peer {peer}, {where}: {problem}, so its training diverged; {remedy}")

    @classmethod
    def not_finite(cls, peer: int, where: str, what: str) -> DivergedError:
        """Return the error of a peer whose ``what`` ("payload", "gradient", "loss") is not finite."""
        return cls(peer, where, f"its {what} holds NaN or infinity", "lower learning-rate (or momentum)")


@dataclass(frozen=True)
class _Begun:
    """An exchange whose payloads are under way.

    Attributes
    ----------
    kind : type
        Rows, Columns or Both.
    outbox : mapping of int to Mix
        The request that each local peer yielded.
    vectors : mapping of int to Vector
        The vector of each local peer's request: (q,), or (2 q,) of Both.
    gone : dict of int to Vector
        The vector that the receivers of each local peer read; without a codec, that of ``vectors``.
    """

    kind: type[Mix]
    outbox: Mapping[int, Mix]
    vectors: Mapping[int, Vector]
    gone: dict[int, Vector]


class HostExchange:
    """Mixes the payloads of one host's peers.

    Parameters
    ----------
    peers : iterable of int
        The peers of this host.
    wires : Wires or None
        The way to peers elsewhere; None if every neighbour is on this host.
    itemsize : int
        Size of one number of a vector, in bytes.
    device : Device, optional
        Where the peers' vectors are, without a codec. Default: in the CPU's memory.

    Attributes
    ----------
    memories : dict of (int, int) to Memory
        The memories of the view's codec, by peer and number of the exchange in a period; empty if there is no
        codec.
    bytes_sent : dict of int to int
        Payload bytes that each peer has sent along its out-edges, in memory or not: the method's cost.
    seconds : float
        Seconds spent in exchanges so far.
    """

    def __init__(
        self, peers: Iterable[int], wires: Wires | None, itemsize: int, device: Device | None = None
    ) -> None:
        self._wires, self._device = wires, device
        self._itemsize, self._threads = itemsize, cores()
        self.memories: dict[tuple[int, int], Memory] = {}
        self._largest: dict[tuple[int, int], float] = {}
        self._begun = _Begun(Rows, {}, {}, {})
        self.bytes_sent = dict.fromkeys(peers, 0)
        self.seconds = 0.0

    def withdraw(self) -> None:
        """End the offer of θ to peers that have come back: none of them can lack θ any more."""
        if self._wires is not None:
            self._wires.server.withdraw()

    def send(self, session: Session, iteration: int, phase: int, outbox: Mapping[int, Mix]) -> None:
        """Begin an exchange among the peers of a view: send the payloads of the local peers' requests.

        Parameters
        ----------
        session : Session
            The view's session.
        iteration, phase : int
            The iteration, and the number of the exchange in it, from 0.
        outbox : mapping of int to Rows, Columns or Both
            By local peer, what its method asks for.

        Raises
        ------
        DivergedError
            If a local payload holds a NaN or an infinity; no payload is sent then.
        ExchangeError
            If a payload cannot be sent to a neighbour elsewhere.
        """
        begin = time.perf_counter()
        vectors = {peer: mix.vector for peer, mix in outbox.items()}
        for peer, finite in zip(vectors, self.finite(list(vectors.values())), strict=True):
            if not finite:
                raise DivergedError.not_finite(peer, _place(session, iteration, phase), "payload")
        self._begun = _Begun(type(next(iter(outbox.values()))), outbox, vectors, {})
        # A host of this machine is told of all that is sent here in one call.
        with nullcontext() if self._wires is None else self._wires.links.together():
            for peer, vector in vectors.items():
                self._encode(session, peer, iteration, phase, vector)
        self.seconds += time.perf_counter() - begin

    def take(self, session: Session, iteration: int, phase: int) -> dict[int, Vector]:
        """End the exchange that was begun: return the mixed vector of each local peer, (q,) or (2 q,).

        Raises
        ------
        DivergedError
            If, with a codec, the receivers' knowledge of a peer's vector is further from this vector than the
            largest such vector so far is from zero.
        ExchangeError
            If a neighbour elsewhere sends nothing before the deadline.
        """
        begin = time.perf_counter()
        mixed = self._mixed_all(session, iteration, phase)
        if session.compression is not None:
            self._require_followed(session, iteration, phase)
        self.seconds += time.perf_counter() - begin
        return mixed

    def share(
        self, session: Session, iteration: int, tables: Mapping[int, Table], most: int
    ) -> dict[int, Table]:
        """Return the local peers' tables of scores with the rows of all peers of the view.

        Each round sends every table along all edges of the view, and needs nobody but neighbours.

        Parameters
        ----------
        session : Session
            The session of the view.
        iteration : int
            Number of iterations that are done; no exchange of this iteration has begun.
        tables : mapping of int to Table
            The table of each local peer, with its own row.
        most : int
            Number of iterations of the run.

        Raises
        ------
        TableError
            If a table that comes is wrong.
        ExchangeError
            If a neighbour elsewhere sends nothing before the deadline, or takes nothing.
        """
        numbers = range(session.counting, session.rounds)
        merge = partial(merged, peers=session.peers, most=most)
        told = self._flooded(session, iteration, tables, numbers, merge)
        if numbers and any(table[list(session.peers), 0].min() < 1.0 for table in told.values()):
            raise RuntimeError(
                f"view {session.number}: {len(numbers)} rounds do not bring the scores of all peers "
                f"{list(session.peers)} to all: the plan's number of rounds is wrong"
            )
        return told

    def share_counts(self, session: Session, tables: Mapping[int, Table]) -> dict[int, Table]:
        """Return the local peers' tables of numbers of images with the rows that peers of the view know.

        The rounds come before the first iteration of the view; parameters and errors are as of :meth:`share`.

        Raises
        ------
        CountsError
            If a table that comes is wrong.
        ExchangeError
            If a neighbour elsewhere sends nothing before the deadline, or takes nothing.
        """
        told = self._flooded(session, session.first, tables, range(session.counting), merged_counts)
        if not all(table[:, 0].any() for table in told.values()):
            raise RuntimeError(f"view {session.number}: no peer knows how many images of a class there are")
        return told

    def _flooded(
        self,
        session: Session,
        iteration: int,
        tables: Mapping[int, Table],
        numbers: range,
        merge: Callable[[Table, Table, tuple[int, int]], Table],
    ) -> dict[int, Table]:
        """Return the tables after the rounds ``numbers``, in each of which all go along all edges."""
        begin = time.perf_counter()
        told = dict(tables)
        for number in numbers:
            self._send_tables(session, iteration, number, told)
            before = dict(told)
            for peer in before:
                for j in session.places[peer].in_neighbours:
                    come = self._table_of(session, peer, j, iteration, number, before)
                    told[peer] = merge(told[peer], come, (j, peer))
        self.seconds += time.perf_counter() - begin
        return told

    def _send_tables(
        self, session: Session, iteration: int, number: int, tables: Mapping[int, Table]
    ) -> None:
        with nullcontext() if self._wires is None else self._wires.links.together():
            for peer, table in tables.items():
                # Tables of scores and of numbers of images have the same width on the way: the wider one's.
                padded = np.pad(table, ((0, 0), (0, session.columns - table.shape[1])))
                self.bytes_sent[peer] += len(session.places[peer].out_neighbours) * padded.nbytes
                if self._wires is not None and session.receivers[peer]:
                    self._wires.links.send(peer, iteration, number, padded.reshape(-1))

    def _table_of(
        self,
        session: Session,
        peer: int,
        sender: int,
        iteration: int,
        number: int,
        local: Mapping[int, Table],
    ) -> Table:
        """Return the table that has come from ``sender`` in a round; wait if it is elsewhere."""
        if self._wires is None or (sender, peer) not in session.entering:
            return local[sender]
        come = np.asarray(self._wires.take(session, peer, sender, iteration, number).vector, np.float64)
        return come.reshape(-1, session.columns)[:, : local[peer].shape[1]]

    def _encode(self, session: Session, peer: int, iteration: int, phase: int, vector: Vector) -> None:
        """Send a local peer's vector to its receivers; with a codec, the difference from their knowledge."""
        place = session.places[peer].at(iteration)
        if session.compression is None:
            self._deliver(session, place, iteration, phase, vector, vector)
        else:
            memory = self._memory(peer, session.exchange(iteration, phase), vector)
            payload, d = session.compression.encode(vector, memory.known)
            self._deliver(session, place, iteration, phase, payload, d)

    def _deliver(
        self,
        session: Session,
        place: Neighbourhood,
        iteration: int,
        phase: int,
        payload: Vector | bytes,
        vector: Vector,
    ) -> None:
        """Send a payload, which stands for ``vector``, to the peer's receivers in the iteration."""
        peer, receivers = place.peer, place.out_neighbours
        size = len(payload) if isinstance(payload, bytes) else payload.size * self._itemsize
        self.bytes_sent[peer] += len(receivers) * size
        self._begun.gone[peer] = vector
        remote = [i for i in session.receivers[peer] if i in receivers]
        if self._wires is not None and remote:
            shares = {i: 1.0 if self._begun.kind is Rows else place.column[i] for i in remote}
            if not isinstance(payload, bytes):
                payload = np.asarray(payload)  # from a device, this one time
            self._wires.links.send(peer, iteration, session.rounds + phase, payload, shares)

    def _mixed_all(self, session: Session, iteration: int, phase: int) -> dict[int, Vector]:
        """Return the mixed vector of each local peer; in several threads if that is worth their start."""
        begun = self._begun
        if self._device is not None:
            terms = {peer: self._terms(session, peer, iteration, phase) for peer in begun.outbox}
            return dict(combine_all(begun.kind, terms, self._device.sums))
        mix = partial(self._mixed, session, iteration=iteration, phase=phase)
        numbers = sum(vector.size for vector in begun.vectors.values())
        if self._threads == 1 or session.entering or session.compression is not None or numbers < MANY:
            return {peer: mix(peer) for peer in begun.outbox}
        parts = [list(begun.outbox)[i :: self._threads] for i in range(self._threads)]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="p2pft-mix") as threads:
            found = list(threads.map(lambda peers: {peer: mix(peer) for peer in peers}, parts))
        return {peer: vector for part in found for peer, vector in part.items()}

    def _mixed(self, session: Session, peer: int, iteration: int, phase: int) -> Vector:
        """Return the mixed vector of one peer; with a codec, update the peer's memory."""
        x, gone, compression = self._begun.vectors[peer], self._begun.gone[peer], session.compression
        total = combine(self._begun.kind, self._terms(session, peer, iteration, phase))
        if compression is None:
            return total
        number = session.exchange(iteration, phase)
        memory = self._memory(peer, number, x)
        mixed, self.memories[peer, number] = compression.mix(x, memory, gone, total)
        return mixed

    def _terms(
        self, session: Session, peer: int, iteration: int, phase: int
    ) -> list[tuple[float, float, Vector]]:
        """Return a_ij, b_ij and the vector of each j that the peer i mixes, ascending in j, i among them."""
        place = session.places[peer].at(iteration)
        terms = {j: self._come(session, peer, j, iteration, phase) for j in place.in_neighbours}
        terms[peer] = place.row[peer], place.column[peer], self._begun.gone[peer]
        return [terms[j] for j in sorted(terms)]

    def _come(
        self, session: Session, peer: int, sender: int, iteration: int, phase: int
    ) -> tuple[float, float, Vector]:
        """Return a_ij, b_ij and the vector that has come from j, the ``sender``; wait if j is elsewhere."""
        weight = session.places[peer].at(iteration).row[sender]
        if self._wires is None or (sender, peer) not in session.entering:
            share = session.places[sender].at(iteration).column[peer]
            return weight, share, self._begun.gone[sender]
        vector, share = self._wires.take(session, peer, sender, iteration, session.rounds + phase)
        if self._device is not None:
            return weight, share, self._device.place(vector)
        return weight, share, vector if session.compression is None else wide(vector)

    def finite(self, vectors: Sequence[Vector]) -> Sequence[bool]:
        """Tell of each vector, (q,), whether all its numbers are finite; waits for a device once."""
        if self._device is not None:
            return self._device.finite(vectors)
        return [bool(np.isfinite(vector).all()) for vector in vectors]

    def _memory(self, peer: int, number: int, like: Vector) -> Memory:
        memory = self.memories.get((peer, number))
        return Memory.blank(like) if memory is None else memory

    def _require_followed(self, session: Session, iteration: int, phase: int) -> None:
        """Raise DivergedError if a local peer's memory does not follow θ (see :func:`_require_known`)."""
        for peer, mix in self._begun.outbox.items():
            if isinstance(mix, Columns):
                continue
            size = float(np.linalg.norm(mix.vector if isinstance(mix, Rows) else mix.rows))
            size = self._largest[peer, phase] = max(size, self._largest.get((peer, phase), 0.0))
            known = self.memories[peer, session.exchange(iteration, phase)].known
            _require_known(peer, _place(session, iteration, phase), mix, known, size)


def _place(session: Session, iteration: int, phase: int) -> str:
    return f"iteration {iteration}, phase {session.phases[phase]}"


def _require_known(peer: int, where: str, mix: Rows | Both, known: Vector, size: float) -> None:
    """Raise DivergedError if ``known`` is further from θ than ``size``, the norm of the largest θ so far.

    With a codec that works this never happens. The norm of the present θ would be too strict a bound, since θ
    may go through zero.
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
