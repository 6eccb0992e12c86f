"""The content of gossip between members: records, ballots, proposals, votes, and decided views."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

__all__ = ["NO_BALLOT", "Age", "Ballot", "Composition", "Edge", "Phase", "Proposal", "Record", "Step", "Vote"]

Edge = tuple[int, int]
"""(sender, receiver): the numbers of two peers."""

Age = tuple[int, int]
"""(incarnation, version) of a record: of two records of one member the greater is the newer."""


class Phase(Enum):
    """A member's phase."""

    RUNNING = 1
    """The member trains in its view."""
    CHANGING = 2
    """The member has stopped iterating; the members agree on the next view."""
    JOINING = 3
    """The member is in no view and asks to be let in."""
    FINISHED = 4
    """The member has done all iterations, and stays until the others have."""
    LEFT = 5
    """The member has gone; its record gives the reason."""


class Ballot(NamedTuple):
    """The round of a ballot and the member that opened it, so that no two members open the same ballot."""

    round: int
    member: int


NO_BALLOT = Ballot(0, -1)
"""Lower than every ballot."""


class Composition(NamedTuple):
    """The content of a view: its members, its broken edges, and the iteration with which it begins.

    Attributes
    ----------
    number : int
        The view's number; 0 for the view that the run begins with.
    members : tuple of int
        The members, ascending.
    incarnations : tuple of int
        The incarnation of each member: one that was started again is another member than before.
    broken : tuple of (int, int)
        Edges (sender, receiver; peers) that carry nothing, ascending.
    iteration : int
        Number of iterations after which all members begin.
    joined : tuple of int
        Members that were not in the view before, ascending.
    donors : tuple of int
        For each of ``joined``, the peer from which it takes θ.
    """

    number: int
    members: tuple[int, ...]
    incarnations: tuple[int, ...]
    broken: tuple[Edge, ...] = ()
    iteration: int = 0
    joined: tuple[int, ...] = ()
    donors: tuple[int, ...] = ()

    def incarnation(self, member: int) -> int | None:
        """Return the incarnation in which ``member`` takes part; None if ``member`` is not in the view."""
        return self.incarnations[self.members.index(member)] if member in self.members else None

    def donor(self, member: int) -> int | None:
        """Return the peer from which ``member`` takes θ; None if ``member`` has not joined with this view."""
        return self.donors[self.joined.index(member)] if member in self.joined else None


class Proposal(NamedTuple):
    """A ballot and the view proposed under it; ``value`` is None while the proposer awaits promises."""

    ballot: Ballot
    value: Composition | None = None


class Vote(NamedTuple):
    """One member's acceptance of a proposal, in a form that other members can pass on.

    Attributes
    ----------
    member, incarnation : int
        The member that has accepted, and its incarnation.
    signature : bytes
        The signature, by the member's key, of the run, the proposal, ``member`` and ``incarnation``; empty
        without certificates.
    """

    member: int
    incarnation: int
    signature: bytes = b""


class Step(NamedTuple):
    """A decided view with its proof: the votes of a quorum of the view before it, under one ballot."""

    value: Composition
    ballot: Ballot
    votes: tuple[Vote, ...]


@dataclass(frozen=True)
class Record:
    """A member's record of its own state; a newer record (by incarnation, then version) replaces older ones.

    Attributes
    ----------
    member, incarnation, version : int
        The member that is the author, its incarnation, and a number that grows with each change.
    view : int
        The number of the newest view that the author knows.
    phase : Phase
        The author's phase.
    iteration : int
        Number of iterations that the author has completed.
    promised : Ballot
        The promise: the author heeds no lower ballot.
    accepted : Proposal or None
        The proposal that the author has accepted last, for the view after ``view``.
    vote : bytes
        The author's signature of ``accepted``, for a :class:`Vote`; empty in the author's own table.
    proposal : Proposal or None
        The author's own proposal.
    suspects : tuple of int
        Members that the author has not heard for too long.
    hanging : tuple of int
        Members that speak but make no progress: they are left out even if they promise.
    broken : tuple of (int, int)
        Edges of the author's peers that carry nothing.
    reaches : tuple of int
        Members with which the author, while it is joining, has spoken directly.
    reason : str
        The reason why the author has left; else empty.
    """

    member: int
    incarnation: int
    version: int = 0
    view: int = 0
    phase: Phase = Phase.RUNNING
    iteration: int = 0
    promised: Ballot = NO_BALLOT
    accepted: Proposal | None = None
    vote: bytes = b""
    proposal: Proposal | None = None
    suspects: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    broken: tuple[Edge, ...] = ()
    reaches: tuple[int, ...] = ()
    reason: str = ""

    @property
    def age(self) -> Age:
        """The record's incarnation and version, which order one member's records."""
        return self.incarnation, self.version
