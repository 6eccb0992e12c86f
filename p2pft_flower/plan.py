"""The plan that a host is sent: its peers' weights, their neighbours' addresses, the settings."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Any

import msgspec
import networkx as nx

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import DataError
from p2pft_flower.facts import PeerFacts, RunFacts
from p2pft_flower.topology.graph import GraphParts
from p2pft_flower.topology.views import View
from p2pft_flower.typed import Count, Number, PeerCount, PeerNumber, Positive, Share, decoded, encoded

__all__ = ["SCHEMA", "Neighbourhood", "Plan", "ResumePoint", "config_digest", "greetings", "terms_digest"]

SCHEMA = "p2pft.plan/1"


@dataclass(frozen=True)
class Neighbourhood:
    """One peer's part of the graph.

    Attributes
    ----------
    peer : int
        The peer i.
    row : dict of int to float
        a_ij of each j that i receives from, i itself included; sums to one.
    column : dict of int to float
        b_ji of each j that i sends to, i itself included: the shares i gives away; sums to one.
    tracker_weight, next_weight : float
        The limit of τ_i in mean gradients, and that of the next iteration; the same if weights do not change.
    turns : tuple of Neighbourhood
        The place in iteration 0, 1, …, if the weights change; ``row`` and ``column`` have the edges of all.
    """

    peer: PeerNumber
    row: dict[PeerNumber, Share]
    column: dict[PeerNumber, Share]
    tracker_weight: Share = 1.0
    next_weight: Share = 1.0
    turns: tuple[Neighbourhood, ...] = ()

    @classmethod
    def of(cls, view: View, peer: int, codec_step: float = 0.0) -> Neighbourhood:
        """Cut ``peer``'s row of A and column of B out of the view's graph; 0: without a codec."""
        turns = tuple(cls(peer, *view.turn_of(peer, k, codec_step or 1.0)) for k in range(view.graph.period))
        if len(turns) == 1:
            return turns[0]
        whole = turns[0]
        return cls(peer, view.row(peer), view.column(peer), whole.tracker_weight, whole.next_weight, turns)

    def at(self, k: int) -> Neighbourhood:
        """Return the place in iteration ``k``."""
        return self.turns[k % len(self.turns)] if self.turns else self

    @property
    def whole(self) -> bool:
        """Whether the peer gives something to itself, and its turns have edges of its place only."""
        own = self.peer in self.row.keys() & self.column.keys()
        return own and all(
            turn.whole
            and not turn.turns
            and turn.peer == self.peer
            and turn.row.keys() <= self.row.keys()
            and turn.column.keys() <= self.column.keys()
            for turn in self.turns
        )

    @property
    def in_neighbours(self) -> tuple[int, ...]:
        """Peers that this one receives from, ascending."""
        return tuple(j for j in sorted(self.row) if j != self.peer)

    @property
    def out_neighbours(self) -> tuple[int, ...]:
        """Peers that this one sends to, ascending."""
        return tuple(j for j in sorted(self.column) if j != self.peer)


@dataclass(frozen=True)
class ResumePoint:
    """The point from which a run goes on.

    Attributes
    ----------
    run : str
        The run that is resumed.
    folder : str
        The run's folder, with the host's checkpoints and logs of it.
    iterations : dict of int to int
        Iterations that each peer has done; the same number for all if they exchange anything.
    digests : dict of int to str
        Digest of each peer's checkpoint.
    """

    run: str
    folder: str
    iterations: dict[PeerNumber, Count]
    digests: dict[PeerNumber, str]


@dataclass(frozen=True)
class Plan:
    """One host's part of a run.

    Attributes
    ----------
    run : str
        The run's identifier.
    config : RunConfig
        The settings.
    n : int
        Peers in the whole graph.
    greetings : int
        Rounds in which hosts greet their neighbours before they train (:func:`greetings`).
    terms : str
        Digest of what must be equal on all peers (:func:`terms_digest`).
    peers : tuple of Neighbourhood
        The peers that this host runs.
    loss_weights : dict of int to float
        Factor of each peer's loss (``objective``), of all peers of the run; their mean is one.
    iterations, evaluate_every : int
        Length of the run, and iterations between evaluations.
    addresses : dict of int to str
        Addresses of this host's peers and of their neighbours on other hosts, ``unix:/path`` or
        ``host:port``. Empty if everything stays in memory. The own peers of a deployed host have one even if
        they exchange nothing with others, since they listen for stops; they have none if neither site nor
        graph gives one.
    graph : GraphParts
        The whole graph (:meth:`Graph.to_dict`) if the view may change; else empty.
    members : dict of int to tuple of int
        The peers of each host of the run, by the host's lowest peer, if the view may change; else empty. If
        it may change, ``addresses`` has the addresses of all of them: any two may become neighbours.
    observer : str
        Address to which progress is reported; empty: it is reported to nobody.
    pooled : bool
        Whether one peer holds the data of all n.
    output_dir : str
        Folder for logs and tails, on the host's machine.
    facts : RunFacts or None
        Facts of the run for its results; each peer's log begins with them, so that results can be made of the
        peers' files alone. None: the logs have no facts.
    peer_facts : dict of int to PeerFacts
        Facts of each of these peers for the results; they go into the peer's log only.
    stop_digest : str
        SHA-256, hexadecimal, of the key that only the coordinator knows: a caller who shows the key may stop
        the run. Empty: only neighbours may.
    checkpoint_every : int
        Iterations between two checkpoints; negative: none are written.
    checkpoint_files : int
        Files that each peer keeps (:func:`p2pft_flower.keeping.retention.files_kept`).
    resume : ResumePoint or None
        The point from which the run goes on; None if it begins anew.
    codec_step : float
        γ of the exchanges in the view that the run begins with; 0 if there is no codec.
    """

    run: str
    config: RunConfig
    n: PeerCount
    greetings: Positive
    terms: str
    peers: tuple[Neighbourhood, ...]
    loss_weights: dict[PeerNumber, Share]
    iterations: Positive
    evaluate_every: Positive
    output_dir: str
    addresses: dict[PeerNumber, str] = field(default_factory=dict)
    graph: GraphParts = field(default_factory=GraphParts)
    members: dict[PeerNumber, tuple[PeerNumber, ...]] = field(default_factory=dict)
    observer: str = ""
    pooled: bool = False
    facts: RunFacts | None = None
    peer_facts: dict[PeerNumber, PeerFacts] = field(default_factory=dict)
    stop_digest: str = ""
    checkpoint_every: Number = -1
    checkpoint_files: Positive = 2
    resume: ResumePoint | None = None
    codec_step: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0

    @property
    def begins(self) -> dict[int, int]:
        """Iterations that each peer of this plan had done before this run: 0 unless it is resumed."""
        done = {} if self.resume is None else self.resume.iterations
        return {p.peer: done.get(p.peer, 0) for p in self.peers}

    @property
    def live(self) -> tuple[int, ...]:
        """The peers that were there at the start, ascending."""
        return tuple(range(self.n)) if self.facts is None else self.facts.live

    def weights_among(self, live: Collection[int]) -> dict[int, float]:
        """Return the factor of each peer's loss if the peers ``live`` train; the mean of theirs is one."""
        weights = self.loss_weights
        # Of all peers the mean is one, up to rounding: bits shall not change if nobody is missing.
        mean = sum(weights[p] for p in live) / len(live) if len(live) < len(weights) else 1.0
        return {p: weight / mean for p, weight in weights.items()}

    def evaluates_after(self, done: int) -> bool:
        """Tell whether the peers are evaluated after ``done`` iterations."""
        return done % self.evaluate_every == 0 or done == self.iterations

    @property
    def listens_for_stops(self) -> bool:
        """Whether the host is to listen though it may have no neighbours elsewhere."""
        return bool(self.stop_digest) and all(p.peer in self.addresses for p in self.peers)

    def to_json(self) -> str:
        """Serialise for a message or a file, with a digest that shows damage."""
        body = encoded(self)
        return msgspec.json.encode(_Sealed(SCHEMA, sha256(body).hexdigest(), msgspec.Raw(body))).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        DataError
            If it is no plan of this version, or was changed; names the field.
        """
        told = decoded(text, _Sealed, "not a plan of this version")
        if told.schema != SCHEMA:
            raise DataError(f"not a plan of this version: schema {told.schema!r}, it reads {SCHEMA!r}")
        if sha256(told.plan).hexdigest() != told.digest:
            raise DataError("the plan was damaged or changed: its digest is not that of its content")
        plan = decoded(bytes(told.plan), cls, "not a plan of this version")
        if fault := plan._fault:
            raise DataError(f"not a plan of this version: {fault}")
        return plan

    @property
    def _fault(self) -> str:
        """A text on fields that contradict each other; empty if none do."""
        own = [place.peer for place in self.peers]
        if not own or own != sorted(set(own)):
            return "the host's peers do not ascend - at `$.peers`"
        if any(not p.whole or len(p.turns) != len(self.peers[0].turns) for p in self.peers):
            return "a peer gives nothing to itself, or its turns are another place's - at `$.peers`"
        named = {p for place in self.peers for p in (*place.row, *place.column)}
        named |= {p for peers in self.members.values() for p in peers}
        if max((*named, *self.loss_weights, *self.addresses)) >= self.n:
            return "it names a peer beyond the graph - at `$.n`"
        if missing := set(own) - self.loss_weights.keys():
            return f"the losses of the peers {sorted(missing)} have no factor - at `$.loss_weights`"
        if self.members and not (self.graph and {p for m in self.members.values() for p in m} >= set(own)):
            return "the view may change, but graph or hosts are missing - at `$.members`"
        begun = (
            set(own) if self.resume is None else self.resume.iterations.keys() & self.resume.digests.keys()
        )
        return "" if begun >= set(own) else "a peer has nothing to go on from - at `$.resume`"


class _Sealed(msgspec.Struct, frozen=True):
    """A plan as it is written: its content, and a digest that shows damage."""

    schema: Annotated[str, msgspec.Meta(max_length=64)]
    digest: str
    plan: msgspec.Raw


def greetings(view: View, hosts: Iterable[Collection[int]]) -> int:
    """Return how many rounds of greetings tell every host that all others are prepared; at least 1.

    In each round a host asks its neighbours, and so hears of hosts one step further away, along edges in
    either direction. So the number is the diameter of the hosts' undirected graph.

    Parameters
    ----------
    view : View
        The peers that train, with their graph.
    hosts : iterable of collection of int
        The peers of each host.
    """
    host_of = {p: number for number, peers in enumerate(hosts) for p in peers}
    between = nx.Graph((host_of[j], host_of[i]) for i in host_of for j in view.row(i))
    return max(1, int(nx.diameter(between)))


PRIVATE_KEYS = ("output-dir", "data-dir", "download", "verify")
"""Settings that may differ from peer to peer."""


def terms_digest(config: RunConfig, view: View, iterations: int) -> str:
    """Digest what all peers must agree on before they train: settings, live graph, length.

    Each host adds the digest of its own model before it says hello.
    """
    text = json.dumps([_settings(config), view.peers, view.graph.digest, iterations], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def config_digest(config: RunConfig) -> str:
    """Digest the settings that must be the same on all peers, as this machine's package reads them."""
    return sha256(json.dumps(_settings(config), sort_keys=True).encode()).hexdigest()


def _settings(config: RunConfig) -> dict[str, Any]:
    return {k: v for k, v in config.to_mapping().items() if k not in PRIVATE_KEYS}
