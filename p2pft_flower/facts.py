"""What is said of a run and its peers beside their scores: in plans, logs, checkpoints and results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from p2pft_flower.typed import Count, PeerNumber, Share

__all__ = ["GraphName", "KnownImages", "PeerFacts", "ResumedFrom", "Row", "RunFacts"]


@dataclass(frozen=True)
class GraphName:
    """By what the whole graph is known: name, digest, and the edges that a start without all added."""

    name: str
    digest: str
    added_edges: tuple[tuple[PeerNumber, PeerNumber], ...] = ()


@dataclass(frozen=True)
class ResumedFrom:
    """The run that another one went on from, and its iterations by then."""

    run: str
    iteration: Count


@dataclass(frozen=True)
class RunFacts:
    """What the logs of all peers of a run say alike.

    Attributes
    ----------
    graph : GraphName
        The whole graph.
    live : tuple of int
        The peers that were there at the start, ascending.
    partition : str
        With ``auto`` resolved.
    versions : dict of str to str
        Package to version.
    pooled : bool
        One peer holds the data of all.
    resumed_from : ResumedFrom or None
        None: it began.
    """

    graph: GraphName
    live: Annotated[tuple[PeerNumber, ...], msgspec.Meta(min_length=1)]
    partition: str
    versions: dict[str, str]
    pooled: bool
    resumed_from: ResumedFrom | None = None


@dataclass(frozen=True)
class KnownImages:
    """A peer's images: how many it trains on, and by what they are known again; empty texts say nothing.

    Attributes
    ----------
    images : int
        Training images.
    train_digest, test_digest : str
        XXH3-128, hexadecimal, of labels, names, sizes and contents in their order.
    pixel_range : str
        Which samples are black and white in them, which a site may decide for itself.
    """

    images: Count
    train_digest: str = ""
    test_digest: str = ""
    pixel_range: str = ""


@dataclass(frozen=True)
class Row:
    """A peer of the graph, and its row of W: the weights of what comes from whom, without zeros."""

    peer: PeerNumber
    name: str
    address: str | None
    weights: dict[PeerNumber, Share]


@dataclass(frozen=True)
class PeerFacts:
    """What results say of one peer beside its scores.

    Attributes
    ----------
    name : str
        In the graph; ``all`` of one that holds all data.
    classes : tuple of str
        Names of the classes of which it holds images.
    known : KnownImages
        Its images.
    rows : tuple of Row
        Its own row of W; of all peers where it holds all data.
    """

    name: str
    classes: tuple[str, ...]
    known: KnownImages
    rows: tuple[Row, ...] = ()
