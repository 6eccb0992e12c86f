"""Standings and scores of a run's members, spread by gossip for people to read: no decision depends on them.

A *standing* is what a member does and how far it is; *scores* are those of its peers' last evaluation. Each
member makes its own, signs them if it has a certificate, and passes on the newest of all others. What the
other end has is known by the last list that it has sent, so a gossip that is lost is told again.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pft_flower.agreement.record import Age
from p2pft_flower.host import records
from p2pft_flower.transport import MOST_CERTIFICATES, Gossip, Refusals, Scores, Signatures, Standing, Status
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.parsing import parse

__all__ = ["Heard", "Standings", "most_edges"]

_VIEWS = 64
"""The most changes of view that a look shows."""

_LONGEST = 10.0**9
"""Seconds and iterations a second beyond which a standing is none of an honest member."""

_MOST = 2**53
"""Payloads and bytes beyond which a standing is none of an honest member."""


def most_edges(members: int) -> int:
    """Return the most edges in a standing, in a run of ``members`` members: 32, more if members are few."""
    return max(32, 2048 // members)


@dataclass
class _Board:
    """The newest note of one kind of each member, and what each other member has of them.

    Attributes
    ----------
    kind : type
        Standing or Scores.
    title : str
        The text that a signature of such a note begins with.
    notes : dict of int to tuple
        By author: the note's age, the note as its author has signed it, the note itself, and the time at
        which it came.
    had : dict of int to dict of int to Age
        By member that gossips with this one: the age of each note that it has.
    """

    kind: type[Standing] | type[Scores]
    title: bytes
    notes: dict[int, tuple[Age, pb.Signed, Any, float]] = field(default_factory=dict)
    had: dict[int, dict[int, Age]] = field(default_factory=dict)

    def news(self, other: int) -> list[int]:
        """Return the authors, ascending, of the notes that are new to the member ``other``."""
        had = self.had.get(other, {})
        return [m for m in sorted(self.notes) if m != other and self.notes[m][0] > had.get(m, (-1, -1))]

    def known(self) -> pb.Known | None:
        """Return the age of each note, as a message."""
        return records.encode_known({m: note[0] for m, note in sorted(self.notes.items())})


@dataclass(frozen=True)
class Heard:
    """What this host has heard of one member.

    Attributes
    ----------
    standing : Standing or None
        The member's newest standing.
    scores : Scores or None
        Its newest scores.
    since : float
        Seconds since its newest standing came; 0 of this host's own.
    """

    standing: Standing | None
    scores: Scores | None
    since: float


class Standings:
    """The newest standings and scores of all members of a run. Any thread may call any method.

    ``_lock`` guards all fields.

    Parameters
    ----------
    run : str
        The run's identifier.
    me : int
        The number of this host: its lowest peer.
    groups : mapping of int to tuple of int
        The peers of each member of the run.
    iterations : int
        Number of iterations of the run; no note may claim more.
    signatures : Signatures or None
        Signatures of this host's only peer, for this object alone; None without certificates.
    clock : callable
        Returns the time in seconds; default time.monotonic.
    """

    def __init__(
        self,
        run: str,
        me: int,
        groups: Mapping[int, tuple[int, ...]],
        iterations: int,
        signatures: Signatures | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._me, self._groups, self._iterations = run, me, groups, iterations
        self._signatures, self._clock = signatures, clock
        self._member_of = {p: m for m, peers in groups.items() for p in peers}
        self._lock = threading.Lock()
        self._standings = _Board(Standing, b"p2pft standing")
        self._scores = _Board(Scores, b"p2pft scores")
        self._own: dict[int, pb.PeerScores] = {}
        self._new = False
        self._views: list[bytes] = []
        self._refusals = Refusals()

    def check_with(self, signatures: Signatures) -> None:
        """Use only notes that their authors have signed from now on; for the coordinator, which looks."""
        with self._lock:
            self._signatures = signatures

    # Of this host -------------------------------------------------------------------------------------

    def stand(self, standing: Standing) -> None:
        """Take this host's own standing, whose member and version are set here, and its new scores."""
        with self._lock:
            self._put(self._standings, standing)
            if self._new:
                told = Scores(incarnation=standing.incarnation, peers=self._own_scores)
                for scores in told.peers:  # a sketch tells of θ, which is for the coordinator and neighbours
                    del scores.sketch[:]
                self._put(self._scores, told)
                self._new = False

    def score(self, scores: pb.PeerScores) -> None:
        """Take the scores of one of this host's peers, which are told with the next standing."""
        with self._lock:
            self._own[scores.peer], self._new = scores, True

    @property
    def _own_scores(self) -> list[pb.PeerScores]:
        return [self._own[p] for p in sorted(self._own)]

    def _put(self, board: _Board, note: Any) -> None:
        before = board.notes.get(self._me)
        note.member, note.version = self._me, 1 if before is None else before[0][1] + 1
        content = note.SerializeToString()
        signature = (
            b"" if self._signatures is None else self._signatures.sign(self._statement(board, content))
        )
        signed = pb.Signed(record=content, signature=signature)
        board.notes[self._me] = _age(note), signed, note, self._clock()

    # Gossip -------------------------------------------------------------------------------------------

    def tell(self, remote: int, gossip: Gossip) -> None:
        """Add all that is new to the host of the peer ``remote`` to ``gossip``."""
        other = self._member_of.get(remote)
        if other is None:
            return
        with self._lock:
            standings, scores = self._standings.news(other), self._scores.news(other)
            gossip.standings.extend(self._standings.notes[m][1] for m in standings)
            gossip.scores.extend(self._scores.notes[m][1] for m in scores)
            for known, board in (
                (gossip.known_standings, self._standings),
                (gossip.known_scores, self._scores),
            ):
                if (ages := board.known()) is not None:
                    known.CopyFrom(ages)
            there = set(gossip.certificates)
            # Who has a note of an author has the certificate that it was checked with.
            gossip.certificates.extend(
                c for c in self._certificates({*standings, *scores}, other) if c not in there
            )

    def answer(self, known: Gossip) -> Gossip:
        """Return all that is new to one who says what is ``known`` there, for the coordinator's look.

        With it go all changes of view, the scores of this host's peers with their sketches, and the
        certificates of authors of whose present life nothing is known there.

        Raises
        ------
        ValueError
            If ``known`` names members that the run does not have.
        """
        answer, lives = Gossip(), set[int]()
        with self._lock:
            for board, told, has in (
                (self._standings, answer.standings, known.known_standings),
                (self._scores, answer.scores, known.known_scores),
            ):
                had = records.decode_known(has, self._groups)
                new = {m: n for m, n in sorted(board.notes.items()) if n[0] > had.get(m, (-1, -1))}
                told.extend(n[1] for n in new.values())
                lives |= {m for m, n in new.items() if n[0][0] > had.get(m, (-1, -1))[0]}
            if self._signatures is not None:
                peers = (p for m in sorted(lives) for p in self._groups[m])
                answer.certificates.extend(c for p in peers for c in self._signatures.certificates(p))
            answer.view_changes.extend(self._views)
            answer.own_scores.extend(self._own_scores)
        return answer

    def known(self) -> Gossip:
        """Return how new the notes here are, for a look."""
        with self._lock:
            return Gossip(known_standings=self._standings.known(), known_scores=self._scores.known())

    def view_changed(self, line: bytes) -> None:
        """Take the line of this host's journal on a change of view, for looks."""
        with self._lock:
            self._views.append(line)
            del self._views[:-_VIEWS]

    def _certificates(self, authors: Iterable[int], other: int) -> list[bytes]:
        if self._signatures is None:
            return []
        had = self._standings.had.get(other, {}).keys() | self._scores.had.get(other, {}).keys()
        new = sorted(set(authors) - had)
        return [c for m in new for p in self._groups[m] for c in self._signatures.certificates(p)]

    def hear(self, gossip: Gossip) -> None:
        """Take in another host's gossip, or its answer; notes with a fault are logged and not used."""
        speaker = self._member_of.get(gossip.sender)
        wrong: list[ValueError] = []
        with self._lock:
            if self._signatures is not None:
                for certificate in gossip.certificates[: MOST_CERTIFICATES * len(self._groups)]:
                    _tried(lambda c=certificate: self._signatures.learn(c), wrong)  # type: ignore[misc]
            for board, told, known in (
                (self._standings, gossip.standings, gossip.known_standings),
                (self._scores, gossip.scores, gossip.known_scores),
            ):
                for signed in told[: len(self._groups)]:
                    _tried(lambda b=board, s=signed: self._take(b, s), wrong)  # type: ignore[misc]
                if speaker is not None:
                    _tried(lambda b=board, k=known: self._note_had(b, speaker, k), wrong)  # type: ignore[misc]
        if wrong:
            what = f"{len(wrong)} notes of its gossip are not used; the first: {wrong[0]}"
            self._refusals.note(f"from peer {gossip.sender}", Status.BAD_HEADER, what)

    def _note_had(self, board: _Board, speaker: int, known: pb.Known) -> None:
        board.had[speaker] = records.decode_known(known, self._groups)

    def _take(self, board: _Board, signed: pb.Signed) -> None:
        """Put a note onto its board if it is newer than the one there.

        Raises
        ------
        ValueError
            If no honest member writes such a note, or its author has not signed it.
        """
        note = parse(board.kind, signed.record)
        who = f"{board.title.decode().removeprefix('p2pft ')} of member {note.member}"
        if note.member not in self._groups or note.member == self._me:
            raise ValueError(f"{who}, which is none that others may speak for")
        if note.member in board.notes and _age(note) <= board.notes[note.member][0]:
            return
        if isinstance(note, Standing):
            self._check_standing(who, note)
        else:
            self._check_scores(who, note)
        peers = self._groups[note.member]
        if self._signatures is not None and not (
            len(peers) == 1
            and self._signatures.is_by(peers[0], self._statement(board, signed.record), signed.signature)
        ):
            raise ValueError(f"{who} that is not signed with its key")
        board.notes[note.member] = _age(note), signed, note, self._clock()

    def _check_standing(self, who: str, note: Standing) -> None:
        if note.iteration > self._iterations:
            raise ValueError(f"{who} with the iteration {note.iteration}, over {self._iterations}")
        if note.state not in Standing.State.values() or note.state == Standing.STATE_UNSPECIFIED:
            raise ValueError(f"{who} in state number {note.state}")
        if not (0 <= note.busy <= _LONGEST and 0 <= note.rate <= _LONGEST):
            raise ValueError(f"{who} with {note.busy:g} s and {note.rate:g} iterations a second")
        if note.HasField("awaited") and note.awaited not in self._member_of:
            raise ValueError(f"{who} that waits for peer {note.awaited}, which the run does not have")
        self._check_edges(who, note)

    def _check_edges(self, who: str, note: Standing) -> None:
        if len(note.edges) > (most := most_edges(len(self._groups))):
            raise ValueError(f"{who} with {len(note.edges)} edges, over {most}")
        pairs = [(e.sender, e.receiver) for e in note.edges]
        if any(a >= b for a, b in itertools.pairwise(pairs)):
            raise ValueError(f"{who} with edges that do not ascend, each once")
        for e in note.edges:
            edge = f"{who} with the edge {e.sender} -> {e.receiver}"
            if e.sender not in self._groups[note.member] or e.receiver not in self._member_of:
                raise ValueError(f"{edge}, which is none from a peer of its own to one of the run")
            if e.sender == e.receiver:
                raise ValueError(f"{edge}, which leads from a peer to itself")
            if max(e.payloads, e.bytes) > _MOST or not 0 <= e.seconds <= _LONGEST:
                raise ValueError(f"{edge}, {e.payloads} payloads of {e.bytes} bytes in {e.seconds:g} s each")
            if not e.payloads and (e.bytes or e.seconds):
                raise ValueError(f"{edge}, {e.bytes} bytes and {e.seconds:g} s without a payload")

    def _check_scores(self, who: str, note: Scores) -> None:
        named = [s.peer for s in note.peers]
        if named != sorted(set(named)) or not set(named) <= set(self._groups[note.member]):
            raise ValueError(f"{who} of peers that are not its own, each once")
        for s in note.peers:
            if s.iteration > self._iterations:
                raise ValueError(f"{who} with the iteration {s.iteration}, over {self._iterations}")
            if s.sketch:
                raise ValueError(f"{who} with a sketch, which is for the coordinator alone")
            rates = [s.accuracy, *([s.accuracy_unseen] if s.HasField("accuracy_unseen") else [])]
            if not all(math.isnan(r) or 0 <= r <= 1 for r in rates):
                raise ValueError(f"{who} with an accuracy that is none")

    def _statement(self, board: _Board, content: bytes) -> bytes:
        return b"\0".join((board.title, self._run.encode(), content))

    # For people ---------------------------------------------------------------------------------------

    def heard(self) -> dict[int, Heard]:
        """Return what this host has heard of each member of which it has heard anything, ascending."""
        with self._lock:
            now, found = self._clock(), {}
            for m in sorted(self._standings.notes.keys() | self._scores.notes.keys()):
                standing, scores = self._standings.notes.get(m), self._scores.notes.get(m)
                own = Scores(member=m, peers=self._own_scores) if m == self._me and self._own else None
                found[m] = Heard(
                    None if standing is None else standing[2],
                    own or (None if scores is None else scores[2]),
                    0.0 if standing is None or m == self._me else now - standing[3],
                )
            return found


def _age(note: Standing | Scores) -> Age:
    return note.incarnation, note.version


def _tried(act: Callable[[], None], wrong: list[ValueError]) -> None:
    try:
        act()
    except ValueError as error:
        wrong.append(error)
