"""Facts of a run and of its peers besides scores, as plans, journals, checkpoints and results have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from p2pft_flower.typed import Count, PeerNumber, Share

__all__ = [
    "ChangedData",
    "GraphName",
    "ImageChanges",
    "KnownImages",
    "ListedImage",
    "PeerFacts",
    "ResumedFrom",
    "Row",
    "RunFacts",
]


@dataclass(frozen=True)
class GraphName:
    """The whole graph's name and digest, and the edges added because peers were missing at the start."""

    name: str
    digest: str
    added_edges: tuple[tuple[PeerNumber, PeerNumber], ...] = ()


@dataclass(frozen=True)
class ResumedFrom:
    """The id of the run from which another one went on, and the number of iterations done by then."""

    run: str
    iteration: Count


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run that the journals of all its peers have in common.

    Attributes
    ----------
    graph : GraphName
        The whole graph.
    live : tuple of int
        The peers that were there at the start, ascending.
    partition : str
        The run-config's ``partition``, with ``auto`` resolved.
    versions : dict of str to str
        The version of each package, by its name.
    pooled : bool
        Whether one peer holds the data of all.
    resumed_from : ResumedFrom or None
        The run from which this one goes on; None if this run began anew.
    """

    graph: GraphName
    live: Annotated[tuple[PeerNumber, ...], msgspec.Meta(min_length=1)]
    partition: str
    versions: dict[str, str]
    pooled: bool
    resumed_from: ResumedFrom | None = None


@dataclass(frozen=True)
class KnownImages:
    """A peer's images: their number, and digests that recognise them; an empty text means "not known".

    Attributes
    ----------
    images : int
        Number of training images.
    train_digest, test_digest : str
        XXH3-128, hexadecimal, of the labels, names, sizes and contents of the images, in their order.
    pixel_range : str
        The sample values that are black and white in the images; a site may decide these for itself.
    """

    images: Count
    train_digest: str = ""
    test_digest: str = ""
    pixel_range: str = ""


class ListedImage(msgspec.Struct, frozen=True, array_like=True):
    """An image in a list beside its peer's checkpoints; the list stays on the peer's machine.

    Attributes
    ----------
    file : str
        The absolute path of the image's file.
    label : str
        The name of the image's class.
    size : int
        Bytes of the file; -1 if it cannot be read.
    content : str
        XXH3-128, hexadecimal, of the content; empty if it was not looked into.
    """

    file: str
    label: str
    size: int
    content: str


@dataclass(frozen=True)
class ImageChanges:
    """The numbers of a peer's images that are new, removed or changed; None: not known."""

    new: Count | None = None
    removed: Count | None = None
    changed: Count | None = None


@dataclass(frozen=True)
class ChangedData:
    """The changes of a peer's images since the checkpoint with which its run went on; None: the same images.

    Attributes
    ----------
    training, test : ImageChanges or None
        The changes of its training images, and of the images on which it is scored.
    """

    training: ImageChanges | None = None
    test: ImageChanges | None = None


@dataclass(frozen=True)
class Row:
    """A peer of the graph, and its row of W.

    Attributes
    ----------
    peer : int
        The peer's number.
    name : str
        The peer's name in the graph.
    address : str or None
        The peer's address in the graph; None if the graph has none.
    weights : dict of int to float
        The weight of each sender, without zeros.
    turns : tuple of dict of int to float
        The weights of each turn; empty if weights do not change.
    """

    peer: PeerNumber
    name: str
    address: str | None
    weights: dict[PeerNumber, Share]
    turns: tuple[dict[PeerNumber, Share], ...] = ()


@dataclass(frozen=True)
class PeerFacts:
    """Facts of one peer that results have besides its scores.

    Attributes
    ----------
    name : str
        The peer's name in the graph; ``all`` if it holds the data of all.
    classes : tuple of str
        Names of the classes of which the peer holds images.
    known : KnownImages
        The peer's images.
    rows : tuple of Row
        The peer's own row of W; the rows of all peers if the peer holds the data of all.
    data_changed : ChangedData or None
        The changes of its images with which the run went on (``data-changed = accept``); None: none.
    """

    name: str
    classes: tuple[str, ...]
    known: KnownImages
    rows: tuple[Row, ...] = ()
    data_changed: ChangedData | None = None
