"""Runs as the report sees them: results, and what the peers' journals add to them.

:mod:`~p2pft_flower.report.page.reading` makes :class:`Run` objects of folders; everything else in this room
is a function of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from natsort import natsorted

from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.facts import PeerFacts
from p2pft_flower.keeping.invariants import Surplus
from p2pft_flower.keeping.lines import Stall
from p2pft_flower.plugins import is_reference
from p2pft_flower.report.stand_stills import StandStill
from p2pft_flower.report.tables import samples_word
from p2pft_flower.typed import Count, PeerNumber, Settings

__all__ = [
    "ALONE",
    "PEERS",
    "POOLED",
    "SERVER",
    "Peer",
    "Results",
    "Run",
    "Share",
    "View",
    "mean",
    "samples_of",
]

Kind = Literal["peers", "server", "pooled", "alone"]
PEERS: Kind = "peers"
"""Peers exchange with each other."""
SERVER: Kind = "server"
"""A strategy of Flower: a server averages the clients' models."""
POOLED: Kind = "pooled"
"""``centralized``: one peer holds the images of all."""
ALONE: Kind = "alone"
"""``local``: peers exchange nothing."""

Scores = tuple[float | None, ...]


class ClassRows(msgspec.Struct, frozen=True):
    """Of an entry ``peers[i].class_scores.classes``: columns with a row for each class."""

    names: tuple[str, ...]
    support: tuple[Count, ...]
    recall: Scores
    specificity: Scores


class ByClass(msgspec.Struct, frozen=True):
    """Of an entry ``peers[i].class_scores``."""

    images: Count
    balanced_accuracy: float | None = None
    classes: ClassRows | None = None


class Peer(msgspec.Struct, frozen=True):
    """An entry ``peers[i]`` of results.json; see docs/results-schema.md."""

    peer: PeerNumber
    name: str
    classes: tuple[str, ...]
    images: Count
    accuracy: float | None
    accuracy_unseen: float | None
    loss: float | None
    bytes_sent: Count
    seconds: dict[str, float]
    iterations: Count | None = None
    epsilon: float | None = None
    delta: float | None = None
    state: str | None = None
    class_scores: ByClass | None = None

    @property
    def several_labels(self) -> bool:
        """Whether its test images are known to have several labels, or none: their labels are not as many."""
        rows = None if self.class_scores is None else self.class_scores.classes
        return (
            rows is not None
            and self.class_scores is not None
            and sum(rows.support) != self.class_scores.images
        )

    @property
    def balance_unseen(self) -> float | None:
        """Mean of recall and specificity over the classes of which it holds no image; None if not known."""
        rows = None if self.class_scores is None else self.class_scores.classes
        if rows is None:
            return None
        columns = zip(rows.names, rows.recall, rows.specificity, strict=True)
        return mean(
            (r + s) / 2
            for name, r, s in columns
            if name not in self.classes and r is not None and s is not None
        )


class Moment(msgspec.Struct, frozen=True):
    """An entry ``history[k]`` of results.json."""

    iteration: Count
    accuracy: Scores
    loss: Scores = ()
    accuracy_unseen: Scores = ()
    bytes_sent: Count | None = None
    consensus_error: float | None = None


class View(msgspec.Struct, frozen=True):
    """An entry ``views[k]`` of results.json."""

    number: Count
    iteration: Count
    peers: tuple[PeerNumber, ...]
    edges: tuple[tuple[PeerNumber, PeerNumber], ...]
    lost: tuple[PeerNumber, ...]
    joined: tuple[PeerNumber, ...]
    why: dict[str, str]
    seconds: float
    missed: dict[str, Count] = {}
    time: float | None = None


class GraphFacts(msgspec.Struct, frozen=True):
    """The entry ``graph`` of results.json; a row is None if its peer's journal was missing."""

    name: str
    weights: tuple[tuple[float, ...] | None, ...] = ()
    peer_names: tuple[str | None, ...] = ()
    turns: tuple[tuple[tuple[float, ...] | None, ...], ...] = ()
    added_edges: tuple[tuple[PeerNumber, PeerNumber], ...] = ()


class Results(msgspec.Struct, frozen=True):
    """The content of results.json; of a run without numbers the first fields alone."""

    schema: str
    status: str
    algorithm: str
    run: str = ""
    seed: int | None = None
    error: str | None = None
    config: Settings = {}
    iterations: Count = 0
    peers: tuple[Peer, ...] = ()
    unfinished: tuple[Peer, ...] = ()
    consensus_error: float | None = None
    history: tuple[Moment, ...] = ()
    views: tuple[View, ...] | None = ()
    graph: GraphFacts | None = None
    partition: str = ""
    versions: dict[str, str] = {}
    seconds: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Share:
    """A peer's share of the data: its number, its name for a table, its classes and its number of images."""

    peer: int
    name: str
    classes: Sequence[str]
    images: int


@dataclass(frozen=True)
class Run:
    """One run: its results, and what its journals add to them.

    Attributes
    ----------
    folder : Path
        The run's folder.
    results : Results
        The content of its results.json.
    label : str
        The run's name in the report, unlike that of every other run there.
    times : dict of int to dict
        By the peer's number and by iteration: seconds from the peer's first evaluation to this one.
    sent : dict of int to dict
        By the peer's number and by iteration: payload bytes that the peer had sent.
    apart : list of (int, float)
        Iterations, and the consensus error there as a share of the distance that the peers' mean has come
        since the first evaluation; both from sketches.
    errors : dict of int to float
        By iteration: the consensus error of the peers that came to the end, from sketches.
    gone : dict of int to PeerFacts
        By the peer's number: facts of the peers that did not come to the end, if their journals are there.
    surplus : list of Surplus
        The surplus Σ τ − Σ g, if the peers traced their trackers.
    view_times : dict of int to float
        By a view's number: seconds from the first evaluation of a peer to this change of view.
    stalls : list of Stall
        The longest waits of its peers, if their journals are there.
    validation : dict of int to dict
        By the peer's number and by iteration: the score by which ``keep = best:…`` chooses.
    stand_stills : list of StandStill
        The times in which all stood still, by these journals.
    notes : list of str
        The reasons why something of the run could not be read.
    """

    folder: Path
    results: Results
    label: str = ""
    times: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    sent: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    apart: Sequence[tuple[int, float]] = ()
    errors: Mapping[int, float] = field(default_factory=dict)
    gone: Mapping[int, PeerFacts] = field(default_factory=dict)
    surplus: Sequence[Surplus] = ()
    view_times: Mapping[int, float] = field(default_factory=dict)
    stalls: Sequence[Stall] = ()
    validation: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    stand_stills: Sequence[StandStill] = ()
    notes: Sequence[str] = ()

    @property
    def algorithm(self) -> str:
        """The run-config's ``algorithm``."""
        return self.results.algorithm

    @property
    def kind(self) -> Kind:
        """Whether peers exchange, a server averages, the images are pooled, or each peer is alone."""
        if self.algorithm == "centralized":
            return POOLED
        if self.algorithm == "local":
            return ALONE
        return PEERS if self.algorithm in ALGORITHMS or is_reference(self.algorithm) else SERVER

    @property
    def samples(self) -> str:
        """The word for its samples: images, or samples of features and of problems of the user's own."""
        return samples_word(self.results.config)

    @property
    def sample(self) -> str:
        """The word for one of its samples."""
        return self.samples.removesuffix("s")

    @property
    def scored(self) -> bool:
        """Whether the run has numbers: at least one peer came to its end."""
        return bool(self.results.peers)

    @property
    def several_labels(self) -> bool:
        """Whether its images are known to have several labels, or none."""
        return any(peer.several_labels for peer in self.results.peers)

    @property
    def balance(self) -> float | None:
        """The mean of the peers' balanced accuracies over all classes; None if there is none."""
        told = [p.class_scores for p in self.results.peers]
        return mean(None if scores is None else scores.balanced_accuracy for scores in told)

    @property
    def private(self) -> bool:
        """Whether the gradients were differentially private."""
        return any(peer.delta is not None for peer in self.results.peers)

    def finals(self, key: str) -> list[float]:
        """Return the peers' final numbers ``key``, as ``"accuracy"``; peers without one are left out."""
        return [v for peer in self.results.peers if (v := getattr(peer, key)) is not None]

    @property
    def accuracy(self) -> float | None:
        """The mean of the peers' accuracies at the end; None if there is none."""
        return mean(self.finals("accuracy"))

    @property
    def bytes_sent(self) -> int:
        """Payload bytes that all peers have sent, lost ones as far as is known."""
        return sum(peer.bytes_sent for peer in self.all_peers)

    @property
    def all_peers(self) -> list[Peer]:
        """The peers at the end, and the lost ones that the results have, by number."""
        return sorted([*self.results.peers, *self.results.unfinished], key=lambda peer: peer.peer)

    @cached_property
    def seconds_at(self) -> dict[int, float]:
        """Seconds from the first evaluation to that of each iteration; of the slowest peer, by iteration.

        An iteration counts if all peers that came to the run's end have its time.
        """
        ended = [self.times.get(peer.peer, {}) for peer in self.results.peers]
        if not ended or not all(ended):
            return {}
        shared = set.intersection(*(set(times) for times in ended))
        return {k: max(times[k] for times in ended) for k in sorted(shared)}

    @property
    def training_seconds(self) -> float | None:
        """Seconds from the first evaluation to the last one, evaluations included; None if not known."""
        return max(self.seconds_at.values(), default=None)

    @property
    def names(self) -> dict[int, str]:
        """The peers' names by their numbers, also of peers that did not come to the end."""
        graph = self.results.graph
        told = dict(enumerate(graph.peer_names)) if graph is not None and self.kind != POOLED else {}
        journals = {p: about.name for p, about in self.gone.items()}
        known = {p: name for p, name in told.items() if name} | journals
        return known | {p.peer: p.name for p in self.all_peers}

    def name(self, peer: int) -> str:
        """Return ``peer 3``, or ``peer 3 (north)`` if the peer has a name other than its number."""
        name = self.names.get(peer, str(peer))
        return f"peer {peer}" if name == str(peer) else f"peer {peer} ({name})"

    @property
    def classes(self) -> list[str]:
        """All classes of which a peer is known to hold images, the numbers in them in their order."""
        return list(natsorted({name for held in self.shares for name in held.classes}))

    @property
    def shares(self) -> list[Share]:
        """The images and classes of each peer of which they are known, also if it did not come to the end."""

        def lost(peer: int, name: str, classes: Sequence[str], images: int) -> Share:
            return Share(peer, f"{name} (not at the end)", classes, images)

        known = {p: lost(p, a.name, a.classes, a.known.images) for p, a in self.gone.items()}
        known |= {p.peer: lost(p.peer, p.name, p.classes, p.images) for p in self.results.unfinished}
        known |= {p.peer: Share(p.peer, p.name, p.classes, p.images) for p in self.results.peers}
        return [share for _, share in sorted(known.items())]

    @property
    def unknown(self) -> list[int]:
        """The peers of the graph whose images and classes are not known."""
        known = {share.peer for share in self.shares}
        return [] if self.kind == POOLED else [p for p in sorted(self.names) if p not in known]

    def error_at(self, moment: Moment) -> float | None:
        """Return the consensus error at a moment; of the peers that came to the end, if one was missing."""
        told = moment.consensus_error
        return self.errors.get(moment.iteration) if told is None else told


def samples_of(runs: Iterable[Run]) -> str:
    """Return the word for the samples of several runs: images if all of them are."""
    return "images" if all(run.samples == "images" for run in runs) else "samples"


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers among ``values``; None if there are none."""
    numbers = [v for v in values if v is not None]
    return float(np.mean(numbers)) if numbers else None
