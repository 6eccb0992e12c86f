"""All that lives as long as a view does, in one object: made anew for each view, and thrown away with it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from p2pft_flower.algorithms.codecs import for_vectors, make_codec, source_digest
from p2pft_flower.algorithms.compression import Compression, codec_step
from p2pft_flower.algorithms.seam import Vector
from p2pft_flower.host.agreement import NewView
from p2pft_flower.host.best import COLUMNS
from p2pft_flower.host.class_counts import columns
from p2pft_flower.plan import Neighbourhood, Plan
from p2pft_flower.topology.views import View
from p2pft_flower.transport import Mailbox, Terms

__all__ = ["Edge", "Session", "Sessions", "remote_edges"]

log = logging.getLogger("p2pft_flower")

Edge = tuple[int, int]


def remote_edges(
    peers: Collection[Neighbourhood], *, always: bool
) -> tuple[frozenset[Edge], frozenset[Edge]]:
    """Return the edges (sender, receiver) that leave the host, and those that enter it, by the transport.

    Parameters
    ----------
    peers : collection of Neighbourhood
        The host's peers.
    always : bool
        Whether peers of the host use the transport between each other as well (``transport = "grpc"``).
    """
    here = set() if always else {p.peer for p in peers}
    leaving = frozenset((p.peer, i) for p in peers for i in p.out_neighbours if i not in here)
    entering = frozenset((j, p.peer) for p in peers for j in p.in_neighbours if j not in here)
    return leaving, entering


@dataclass(frozen=True)
class Session:
    """One host in one view; the only place with the view's number.

    Attributes
    ----------
    number : int
        The view's number.
    first : int
        The iteration that the view begins with.
    peers : tuple of int
        All peers of the view, ascending.
    places : mapping of int to Neighbourhood
        Each local peer's row of A and column of B, by peer.
    weights : mapping of int to float
        Factor of each local peer's loss among the peers of the view.
    leaving, entering : frozenset of (int, int)
        Edges of the transport, from :func:`remote_edges`.
    phases : tuple of str
        The method's names of its exchanges of an iteration.
    mailbox : Mailbox or None
        The mailbox for payloads along the entering edges; None if this host has no wires.
    compression : Compression or None
        Codec and γ of the exchanges in this view; None without a codec.
    view : View or None
        The peers and their graph; None for the view that the run began with.
    returned : frozenset of int
        Peers elsewhere that have come back with this view.
    donor : int or None
        The peer that the view names to give θ to this host, if the view has let it in; else None.
    rounds : int
        Number of exchanges of tables: those of numbers of images, and after them those of scores after an
        evaluation (``keep = best:…``); 0 if nothing is to be agreed on.
    counting : int
        Number of exchanges of tables of numbers of images (``class-weights``), when the view begins.
    columns : int
        Number of columns of a table.
    """

    number: int
    first: int
    peers: tuple[int, ...]
    places: Mapping[int, Neighbourhood]
    weights: Mapping[int, float]
    leaving: frozenset[Edge]
    entering: frozenset[Edge]
    phases: tuple[str, ...]
    mailbox: Mailbox | None
    compression: Compression | None = None
    view: View | None = None
    returned: frozenset[int] = frozenset()
    donor: int | None = None
    rounds: int = 0
    counting: int = 0
    columns: int = 0

    @property
    def inbox(self) -> Mailbox:
        """The mailbox of a host with wires.

        Raises
        ------
        RuntimeError
            If this host has none: a fault of the caller's.
        """
        if self.mailbox is None:
            raise RuntimeError(f"nothing comes from other hosts in view {self.number}")
        return self.mailbox

    @cached_property
    def receivers(self) -> dict[int, tuple[int, ...]]:
        """The out-neighbours that each local peer reaches by the transport, ascending."""
        return {j: tuple(sorted(i for s, i in self.leaving if s == j)) for j in self.places}

    @property
    def all_have_theta(self) -> int:
        """The iteration in which no peer of the view can lack θ any more.

        A peer that still lacks θ has sent nothing. So another peer gets no further than one period for each
        edge on the way between the two: each edge carries something in every period.
        """
        return self.first + len(self.peers) * self.period

    def exchange(self, iteration: int, phase: int) -> int:
        """Return the number, from 0, of an exchange among the exchanges of a period."""
        return iteration % self.period * len(self.phases) + phase

    @cached_property
    def period(self) -> int:
        """Number of iterations after which the view's weights come again."""
        return max(1, *(len(place.turns) for place in self.places.values()))

    @property
    def donors(self) -> tuple[int, ...]:
        """The view's peers on other hosts, in the order in which this host asks them for θ."""
        near = sorted(j for place in self.places.values() for j in place.row)
        named = [] if self.donor is None else [self.donor]
        return tuple(p for p in dict.fromkeys([*named, *near, *self.peers]) if p not in self.places)


class Sessions:
    """Makes a host's session for each view.

    Parameters
    ----------
    plan : Plan
        The host's part of the run.
    theta0 : numpy.ndarray
        (q,), θ^0; each vector of a payload has the length and dtype of θ^0.
    phases : tuple of str
        The method's names of its exchanges of an iteration; empty for a method that exchanges nothing.
    model_digest : str
        The digest of the model that neighbours compare; equal on all peers.
    always : bool
        Whether peers of the host use the transport between each other as well (``transport = "grpc"``).
    vectors : int
        Number of vectors in a payload; default 1.
    classes : int
        Number of classes by whose numbers of images losses are weighted; default 0, without weights.
    """

    def __init__(
        self,
        plan: Plan,
        theta0: Vector,
        phases: tuple[str, ...],
        model_digest: str,
        *,
        always: bool,
        vectors: int = 1,
        classes: int = 0,
    ) -> None:
        self._plan, self._theta0, self._phases, self._always = plan, theta0, phases, always
        self._vectors = vectors
        self._keeps = plan.config.learning.keeps_best and bool(phases)
        self._counts = classes > 0 and bool(phases)
        self._columns = max(COLUMNS if self._keeps else 0, columns(classes) if self._counts else 0)
        self._config = f"settings {plan.terms} model {model_digest}"
        self._each = make_codec(plan.config.method.codec)
        self._codec = None if self._each is None else for_vectors(self._each, vectors)
        if self._each is not None:
            size = self._each.most_bytes(theta0.size, theta0.dtype)
            what = "codec %s: at most %d bytes a payload instead of %d"
            log.info(what, plan.config.method.codec, size, theta0.nbytes)
        if source := source_digest(plan.config.method.codec):
            self._config += f" codec's file {source}"

    def first(self) -> Session:
        """Return the session of the view that the run begins with."""
        # If anything is exchanged, all peers begin at the same iteration.
        first = min(self._plan.begins.values())
        plan = self._plan
        return self._session(0, first, plan.live, plan.peers, plan.codec_step, plan.rounds)

    def of(self, new: NewView) -> Session:
        """Return the session of a view that was agreed on."""
        step = codec_step(self._each, self._plan.config.method.codec_step, new.view.graph)
        places = [Neighbourhood.of(new.view, p.peer, step) for p in self._plan.peers]
        longest = new.view.graph.diameter if self._columns else 0
        session = self._session(new.number, new.iteration, new.view.peers, places, step, longest)
        returned = frozenset(new.joined).difference(session.places)
        return replace(session, view=new.view, returned=returned, donor=new.donor)

    def _session(
        self,
        number: int,
        first: int,
        peers: tuple[int, ...],
        places: Sequence[Neighbourhood],
        step: float,
        longest: int,
    ) -> Session:
        leaving, entering = remote_edges(places if self._phases else (), always=self._always)
        weights = self._plan.weights_among(peers)
        counting, scoring = longest * self._counts, longest * self._keeps
        wired = leaving or entering or self._plan.members or self._plan.listens_for_stops
        return Session(
            number,
            first,
            peers,
            {p.peer: p for p in places},
            {p.peer: weights[p.peer] for p in places},
            leaving,
            entering,
            self._phases,
            self._mailbox(self._terms(number, step, counting, scoring), places, entering, first, counting)
            if wired
            else None,
            None if self._codec is None else Compression(self._codec, step),
            rounds=counting + scoring,
            counting=counting,
            columns=self._columns,
        )

    def _mailbox(
        self,
        terms: Terms,
        places: Sequence[Neighbourhood],
        entering: frozenset[Edge],
        first: int,
        counting: int,
    ) -> Mailbox:
        row = {place.peer: place for place in places}
        turns = [
            [(j, i) for j, i in sorted(entering) if j in row[i].at(k).row]
            for k in range(max(len(place.turns) for place in places))
        ]
        return Mailbox(
            terms,
            entering,
            first,
            codec=self._codec,
            turns=turns,
            tables=lambda k: k == first or (self._keeps and self._plan.evaluates_after(k)),
            once=counting,
        )

    def _terms(self, number: int, step: float, counting: int, scoring: int) -> Terms:
        rounds = counting + scoring
        codec, q, dtype = self._codec, self._theta0.size, self._theta0.dtype
        return Terms(
            run=self._plan.run,
            length=q,
            dtype=dtype,
            phases=rounds + max(1, len(self._phases)),  # without edges no payload is taken in at all
            phase_names=(
                *(f"class counts {r + 1}" for r in range(counting)),
                *(f"scores {r + 1}" for r in range(scoring)),
                *self._phases,
            ),
            view=number,
            config=self._config if codec is None else f"{self._config} codec-step {step:g}",
            codec="" if codec is None else self._plan.config.method.codec,
            vectors=self._vectors,
            most_bytes=0 if codec is None else codec.most_bytes(self._vectors * q, dtype),
            step=0.0 if codec is None else step,
            rounds=rounds,
            table=self._plan.n * self._columns,
        )
