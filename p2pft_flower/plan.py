"""The plan that a host is sent: its peers' rows and columns, their neighbours' addresses, the settings."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import DataError, called
from p2pft_flower.facts import PeerFacts, RunFacts
from p2pft_flower.topology.graph import GraphParts
from p2pft_flower.topology.views import View
from p2pft_flower.typed import (
    MAX_PEERS,
    Count,
    Number,
    PeerCount,
    PeerNumber,
    Positive,
    Share,
    decoded,
    encoded,
)

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
        The weight a_ij of each j from which i receives, i itself included; sums to one.
    column : dict of int to float
        The share b_ji that i gives to each j, i itself included; sums to one.
    tracker_weight, next_weight : float
        The limit of τ_i in this iteration, and in the next one, as a factor of the mean gradient; the two are
        equal if weights do not change.
    turns : tuple of Neighbourhood
        The peer's part in the iterations 0, 1, … of a period, if weights change; then ``row`` and ``column``
        have the edges of all turns. Empty if weights do not change.
    """

    peer: PeerNumber
    row: dict[PeerNumber, Share]
    column: dict[PeerNumber, Share]
    tracker_weight: Share = 1.0
    next_weight: Share = 1.0
    turns: tuple[Neighbourhood, ...] = ()

    @classmethod
    def of(cls, view: View, peer: int, codec_step: float = 0.0) -> Neighbourhood:
        """Return ``peer``'s part of the view's graph; ``codec_step`` is γ, or 0 without a codec."""
        turns = tuple(cls(peer, *view.turn_of(peer, k, codec_step or 1.0)) for k in range(view.graph.period))
        if len(turns) == 1:
            return turns[0]
        whole = turns[0]
        return cls(peer, view.row(peer), view.column(peer), whole.tracker_weight, whole.next_weight, turns)

    def at(self, k: int) -> Neighbourhood:
        """Return the peer's part of the graph in iteration ``k``."""
        return self.turns[k % len(self.turns)] if self.turns else self

    @property
    def whole(self) -> bool:
        """Whether the peer gives something to itself, and its turns are its own and have no other edges."""
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
        """The peers from which this one receives, ascending."""
        return tuple(j for j in sorted(self.row) if j != self.peer)

    @property
    def out_neighbours(self) -> tuple[int, ...]:
        """The peers to which this one sends, ascending."""
        return tuple(j for j in sorted(self.column) if j != self.peer)


@dataclass(frozen=True)
class ResumePoint:
    """The point from which a run goes on.

    Attributes
    ----------
    run : str
        The id of the run that is resumed.
    folder : str
        The folder of the run that is resumed, with the checkpoints and journals of the host's peers.
    iterations : dict of int to int
        Number of iterations that each peer has done; the same number for all if they exchange anything.
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
        Number of peers in the whole graph.
    greetings : int
        Number of rounds in which hosts greet their neighbours before they train (:func:`greetings`).
    terms : str
        Digest of the settings that must be equal on all peers (:func:`terms_digest`).
    peers : tuple of Neighbourhood
        The peers that this host runs, ascending.
    loss_weights : dict of int to float
        Factor of the loss (``objective``) of each peer of the run; the mean of all is one.
    iterations, evaluate_every : int
        Number of iterations of the run, and of iterations between two evaluations.
    addresses : dict of int to str
        Addresses of this host's peers and of their neighbours on other hosts, ``unix:/path`` or
        ``host:port``. Empty if everything stays in memory. Each peer of a deployed host has an address, if
        its site or the graph gives one, even if it exchanges nothing with others: it listens for stops.
    graph : GraphParts
        The whole graph (:meth:`Graph.to_dict`) if the view may change; else empty.
    members : dict of int to tuple of int
        The peers of each host of the run, by the host's lowest peer, if the view may change; else empty. If
        the view may change, ``addresses`` has the address of every peer: any two may become neighbours.
    hosts : dict of int to tuple of int
        The peers of each host of the run, by the host's lowest peer, whether or not the view may change;
        empty: all are on this host.
    names : dict of int to str
        The name of each peer that has one, for people: that of its site, else that of the graph.
    register : str
        Name of the actor at which the hosts of a simulation report where each of them runs, if Ray's cluster
        has several nodes; then ``addresses`` has the peers only, and each host learns their addresses there.
        Empty: ``addresses`` has them.
    observer : str
        Address to which progress is reported; empty: to nobody.
    pooled : bool
        Whether one peer holds the data of all n.
    output_dir : str
        Folder for journals and tails, on the host's machine.
    facts : RunFacts or None
        Facts of the run for its results; each peer's journal begins with them, so that results can be made of
        the peers' files alone. None: the journals have no facts.
    peer_facts : dict of int to PeerFacts
        Facts of each of this host's peers for the results; they go into the peer's journal only.
    stop_digest : str
        SHA-256, hexadecimal, of the key that only the coordinator knows: a caller who shows the key may stop
        the run. Empty: only neighbours may.
    look_digest : str
        The same of another key, which only shows how the run gets on. Empty: nobody may look.
    checkpoint_every : int
        Number of iterations between two checkpoints; negative: none are written.
    checkpoint_files : int
        Number of files that each peer keeps (:func:`p2pft_flower.keeping.retention.files_kept`).
    resume : ResumePoint or None
        The point from which the run goes on; None if it begins anew.
    codec_step : float
        γ of the exchanges in the view that the run begins with; 0 if there is no codec.
    rounds : int
        Number of exchanges after an evaluation with which all peers of that view learn all peers' validation
        scores (``keep = best:…``), or numbers of images (``class-weights``): the diameter of the view's
        graph; 0 if nothing is to be agreed on.
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
    hosts: dict[PeerNumber, tuple[PeerNumber, ...]] = field(default_factory=dict)
    names: dict[PeerNumber, str] = field(default_factory=dict)
    register: str = ""
    observer: str = ""
    pooled: bool = False
    facts: RunFacts | None = None
    peer_facts: dict[PeerNumber, PeerFacts] = field(default_factory=dict)
    stop_digest: str = ""
    look_digest: str = ""
    checkpoint_every: Number = -1
    checkpoint_files: Positive = 2
    resume: ResumePoint | None = None
    codec_step: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    rounds: Annotated[int, msgspec.Meta(ge=0, lt=MAX_PEERS)] = 0

    @property
    def begins(self) -> dict[int, int]:
        """Number of iterations that each of the host's peers did in the resumed run; 0 if there is none."""
        done = {} if self.resume is None else self.resume.iterations
        return {p.peer: done.get(p.peer, 0) for p in self.peers}

    @property
    def live(self) -> tuple[int, ...]:
        """The peers that were there at the start, ascending."""
        return tuple(range(self.n)) if self.facts is None else self.facts.live

    def called(self, peer: int) -> str:
        """Return a peer's number, with its name if it has one, for messages."""
        return called(peer, self.names)

    def weights_among(self, live: Collection[int]) -> dict[int, float]:
        """Return the factor of each peer's loss if the peers ``live`` train: the mean among these is one."""
        weights = self.loss_weights
        # Of all peers the mean is one, up to rounding: bits shall not change if nobody is missing.
        mean = sum(weights[p] for p in live) / len(live) if len(live) < len(weights) else 1.0
        return {p: weight / mean for p, weight in weights.items()}

    def evaluates_after(self, done: int) -> bool:
        """Tell whether the peers are evaluated after ``done`` iterations."""
        return done % self.evaluate_every == 0 or done == self.iterations

    @property
    def listens_for_stops(self) -> bool:
        """Whether the host is to listen for stops, even if it has no neighbours on other hosts."""
        return bool(self.stop_digest) and all(p.peer in self.addresses for p in self.peers)

    def to_json(self) -> str:
        """Return the plan as JSON for a message or a file, with a digest that shows damage."""
        body = encoded(self)
        return msgspec.json.encode(_Sealed(SCHEMA, sha256(body).hexdigest(), msgspec.Raw(body))).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Return the plan of a text that :meth:`to_json` returned.

        Raises
        ------
        DataError
            If ``text`` is no plan of this version, or was changed; the message names the field or the fault.
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
        """A text on the first fields that contradict each other; empty if none do."""
        own = [place.peer for place in self.peers]
        if not own or own != sorted(set(own)):
            return "the host's peers do not ascend - at `$.peers`"
        if any(not p.whole or len(p.turns) != len(self.peers[0].turns) for p in self.peers):
            return "a peer gives nothing to itself, or its turns are another place's - at `$.peers`"
        named = {p for place in self.peers for p in (*place.row, *place.column)}
        named |= {p for groups in (self.members, self.hosts) for peers in groups.values() for p in peers}
        if max((*named, *self.loss_weights, *self.addresses, *self.names)) >= self.n:
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
    """A plan as :meth:`Plan.to_json` writes it: its content, and a digest that shows damage."""

    schema: Annotated[str, msgspec.Meta(max_length=64)]
    digest: str
    plan: msgspec.Raw


def greetings(view: View, hosts: Iterable[Collection[int]]) -> int:
    """Return the number of rounds of greetings that tell every host that all are prepared; at least 1.

    In each round a host asks its neighbours, and so hears of hosts that are one step further away, along
    edges in either direction. So the number is the diameter of the hosts' undirected graph.

    Parameters
    ----------
    view : View
        The peers that train, with their graph.
    hosts : iterable of collection of int
        The peers of each host.
    """
    import networkx as nx

    host_of = {p: number for number, peers in enumerate(hosts) for p in peers}
    between = nx.Graph((host_of[j], host_of[i]) for i in host_of for j in view.row(i))
    return max(1, int(nx.diameter(between)))


PRIVATE_KEYS = ("output-dir", "data-dir", "download", "verify")
"""Run-config keys whose values may differ from peer to peer."""


def terms_digest(config: RunConfig, view: View, iterations: int) -> str:
    """Return the digest of settings, live graph and number of iterations: SHA-256, hexadecimal.

    All peers must have the same digest before they train. Each host adds the digest of its own model before
    it says hello.
    """
    text = json.dumps([_settings(config), view.peers, view.graph.digest, iterations], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def config_digest(config: RunConfig) -> str:
    """Return the digest of the settings that all peers must have alike: SHA-256, hexadecimal.

    Settings that this version of the package reads otherwise give another digest.
    """
    return sha256(json.dumps(_settings(config), sort_keys=True).encode()).hexdigest()


def _settings(config: RunConfig) -> dict[str, Any]:
    return {k: v for k, v in config.to_mapping().items() if k not in PRIVATE_KEYS}
