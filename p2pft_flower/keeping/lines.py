"""The lines of a peer's journal, one struct for each event; docs/results-schema.md says when each is written.

Each line ends with ``check``, the CRC-32 of the text before, which shows that a line was damaged or edited.
"""

from __future__ import annotations

import re
import time
import zlib
from typing import Annotated, Any

import msgspec

from p2pft_flower.errors import DataError
from p2pft_flower.facts import PeerFacts, RunFacts
from p2pft_flower.keeping.kept import Kept
from p2pft_flower.scores import ClassScores
from p2pft_flower.typed import Count, PeerCount, PeerNumber, Positive, Settings, decoded, encoded

__all__ = [
    "AnyLine",
    "Evaluation",
    "Failed",
    "LastRound",
    "Outcome",
    "Report",
    "Round",
    "Run",
    "Stall",
    "Start",
    "Trace",
    "ViewChange",
    "read_line",
    "written",
]

SKETCH = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9+/]{683}=\Z")]
"""128 little-endian float32 in base64 (:mod:`p2pft_flower.keeping.sketch`)."""

Seconds = dict[str, float]
"""A peer's seconds by activity: ``gradient``, ``exchange``, ``evaluation``."""


def _now() -> float:
    return time.time()  # looked up for each line: tests set another clock


class Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", forbid_unknown_fields=True):
    """The fields of all lines: the peer, and the time at which the line was made, Unix seconds."""

    peer: PeerNumber
    time: float = msgspec.field(default_factory=_now)


class Run(Line, frozen=True, kw_only=True, tag="run"):
    """The first line of a run, or of a life of the peer in the run; ``host`` has all peers of its host."""

    run: str
    n: PeerCount
    iterations: Positive
    evaluate_every: Positive
    host: tuple[PeerNumber, ...]
    config: Settings
    facts: RunFacts | None = None
    about: PeerFacts | None = None


class Start(Line, frozen=True, kw_only=True, tag="start"):
    """The neighbours were met: ``parameters`` is q, ``prepared`` the seconds of data, model and meeting."""

    parameters: Count
    prepared: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One peer's scores after an iteration.

    If the peer has no test image, loss and accuracy are NaN, or None if they were read from a file. The
    sketch is None if only others have told of the scores.
    """

    peer: PeerNumber
    iteration: Count
    loss: float | None
    accuracy: float | None
    accuracy_unseen: float | None
    sketch: SKETCH | None
    bytes_sent: Count


class Scored(Line, frozen=True, kw_only=True):
    """The fields of lines with scores after an iteration."""

    iteration: Count
    loss: float | None
    accuracy: float | None
    accuracy_unseen: float | None
    sketch: SKETCH


class Evaluation(Scored, frozen=True, kw_only=True, tag="evaluation"):
    """The fields of a :class:`Report`, ``seconds`` since the host began, ``epsilon`` and ``validation``.

    ``epsilon`` is what is spent so far; None if the gradients are not differentially private. ``validation``
    is the score by which ``keep = best:…`` chooses, of the peer's θ on its own validation images; None if it
    has none.
    """

    bytes_sent: Count
    seconds: float
    epsilon: float | None = None
    validation: float | None = None

    @property
    def report(self) -> Report:
        """The report of this evaluation to coordinator and observer."""
        return Report(**{name: getattr(self, name) for name in Report.__struct_fields__})


class Trace(Line, frozen=True, kw_only=True, tag="trace"):
    """The sketch ``surplus`` of τ_i − g_i after ``iteration`` iterations, in a view."""

    view: Count
    iteration: Count
    surplus: SKETCH


class ViewChange(Line, frozen=True, kw_only=True, tag="view"):
    """The peers go on in another view.

    Attributes
    ----------
    number : int
        The view's number.
    iteration : int
        Number of iterations that count as completed.
    peers : tuple of int
        The view's peers, ascending.
    edges : tuple of (int, int)
        Sender and receiver of each edge of the view's graph.
    lost, joined : tuple of int
        Peers of this host's last view that are not in this one; peers of this view that were not in the last
        one, or are in it in another incarnation.
    why, presumed : dict of int to str
        This host's observation on each lost peer; its presumption if it has no observation.
    seconds : float
        Seconds from the moment when this host stopped iterating until it took this view up.
    missed : dict of int to int
        Number of iterations that went by without a peer of ``joined``; a peer is missing if this host does
        not know when it was lost.
    """

    number: Count
    iteration: Count
    peers: tuple[PeerNumber, ...]
    edges: tuple[tuple[PeerNumber, PeerNumber], ...]
    lost: tuple[PeerNumber, ...]
    joined: tuple[PeerNumber, ...]
    why: dict[PeerNumber, str]
    presumed: dict[PeerNumber, str]
    seconds: float
    missed: dict[PeerNumber, Count] = {}


class Stall(Line, frozen=True, kw_only=True, tag="stall"):
    """The peer's host has waited unusually long for another peer; written when that is over.

    Attributes
    ----------
    iteration : int
        Number of iterations that were completed.
    awaited : int
        The peer that it waited for.
    last : int
        The peer that this one waited for in the end, as far as was known; else ``awaited``.
    silent : bool
        Whether ``awaited`` was silent; False: it spoke, and was slow or waited itself.
    seconds : float
        Seconds of waiting.
    """

    iteration: Count
    awaited: PeerNumber
    last: PeerNumber
    silent: bool
    seconds: float


class Failed(Line, frozen=True, kw_only=True, tag="failed"):
    """The last line of a peer that has not come to its end: its host gave up.

    Attributes
    ----------
    iteration : int
        The iteration that was under way.
    error, kind, cause : str
        The error's text, its class, and its cause's name.
    traceback : str
        Where the error was raised.
    bytes_sent, seconds, epsilon, delta, parameters, model_parameters
        As in :class:`Outcome`, so far; None or empty if it is not known.
    """

    iteration: Count
    error: str
    kind: str
    cause: str = ""
    traceback: str = ""
    bytes_sent: Count | None = None
    seconds: Seconds = msgspec.field(default_factory=dict)
    epsilon: float | None = None
    delta: float | None = None
    parameters: Count | None = None
    model_parameters: Count | None = None


class Outcome(Line, frozen=True, kw_only=True, tag="end"):
    """The last line of a peer that has come to its end: scores and numbers, whose size does not grow with q.

    Attributes
    ----------
    loss, accuracy, accuracy_unseen : float or None
        Scores of the peer's θ on the test split: its last θ, or the one that it has ``kept``.
    accuracy_seen : float or None
        The accuracy on the test images of classes of which the peer holds images; None if there is none, or
        the journal is an earlier version's.
    bytes_sent : int
        Payload bytes that the peer has sent along its out-edges.
    seconds : dict
        The peer's seconds by activity: ``gradient``, ``exchange``, ``evaluation``.
    iterations : int
        Number of iterations that are done.
    parameters : int
        The length q of θ.
    model_parameters : int
        Number of parameters of the whole model, the frozen ones included.
    sketch : str
        Sketch of that θ (:mod:`p2pft_flower.keeping.sketch`).
    epsilon, delta : float or None
        (ε, δ) of all the peer's gradients together; None if they are not differentially private.
    preprocessing : dict or None
        Settings of the images that the model saw, with their origins; None if the problem has none.
    class_scores : ClassScores or None
        The scores by class of the peer's last θ; None without test images, of a problem without classes, or
        in an earlier version's journal.
    kept : Kept or None
        The iteration whose θ the peer has kept, to which its tail, scores and sketch belong; None if these
        are its last θ's: without ``keep = best:…``, or if no evaluation could be decided on.
    """

    loss: float | None
    accuracy: float | None
    accuracy_unseen: float | None
    bytes_sent: Count
    seconds: Seconds
    iterations: Count
    parameters: Count
    model_parameters: Count
    sketch: SKETCH
    epsilon: float | None = None
    delta: float | None = None
    preprocessing: dict[str, Any] | None = None
    accuracy_seen: float | None = None
    class_scores: ClassScores | None = None
    kept: Kept | None = None


class Round(Scored, frozen=True, kw_only=True, tag="round"):
    """A client of one of Flower's strategies was evaluated, which took ``evaluation`` seconds."""

    evaluation: float
    accuracy_seen: float | None = None


class LastRound(Line, frozen=True, kw_only=True, tag="last round"):
    """The last round of one of Flower's strategies is over."""

    iteration: Count
    epsilon: float | None
    delta: float | None


AnyLine = Run | Start | Evaluation | Trace | ViewChange | Stall | Failed | Outcome | Round | LastRound

_END = re.compile(rb',"check":"([0-9a-f]{8})"}\n')
_CHECK = 21
"""Bytes of the field ``check`` at the end of a line."""


def written(line: AnyLine) -> bytes:
    """Return a line's bytes in a journal. Numbers that are not finite (a loss that diverged) become null."""
    told = encoded(line)[:-1]
    return told + b',"check":"%08x"}\n' % zlib.crc32(told)


def read_line(text: bytes, where: object) -> AnyLine:
    """Return the line whose bytes :func:`written` returned.

    Parameters
    ----------
    text : bytes
        The bytes of the line, with its end.
    where : object
        File and number of the line, for the error.

    Raises
    ------
    DataError
        If the bytes are no line of this version's journals, or were damaged or edited; the message names
        ``where``.
    """
    told, end = text[:-_CHECK], _END.fullmatch(text[-_CHECK:])
    if end is not None and int(end[1], 16) == zlib.crc32(told):
        return decoded(told + b"}", AnyLine, where)  # type: ignore[arg-type]  # a union
    decoded(text, dict, where)
    raise DataError(f"{where}: damaged, edited or of another version: its check is not that of its content")
