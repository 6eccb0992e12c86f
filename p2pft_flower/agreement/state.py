"""All that one member knows of the run and its views, and the conclusions from this knowledge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from p2pft_flower.agreement import quorum
from p2pft_flower.agreement.record import Age, Composition, Edge, Phase, Record, Step
from p2pft_flower.agreement.rules import Rules

__all__ = ["Change", "State", "begin", "join"]


@dataclass(frozen=True)
class Change:
    """A change of view, as one member sees it.

    Attributes
    ----------
    since, round_since : float
        The times at which the change began, and at which a ballot last made progress.
    promised_at : float
        The time at which the member's own ballot was opened, or got its last promise.
    promises, rounds : int
        Numbers of promises that the member's own ballot has, and of ballots that the member has opened.
    long : bool
        Whether the change has lasted longer than a round.
    """

    since: float
    round_since: float
    promised_at: float = 0.0
    promises: int = 0
    rounds: int = 0
    long: bool = False


@dataclass(frozen=True)
class State:
    """All that one member knows.

    :func:`begin` or :func:`join` makes the first state, and :func:`p2pft_flower.agreement.member.step` each
    later one.

    Attributes
    ----------
    rules : Rules
        The rules of the run.
    record : Record
        The member's own record.
    view : Composition
        The view that the member is in, or was in last.
    steps : tuple of Step
        The step to each view after the first, as far as the member knows them.
    records : mapping of int to Record
        The newest record of each other member.
    heard : mapping of int to float
        The time at which each record of ``records`` came.
    known : mapping of int to mapping
        The ages of the records that each other member has, by author, as that member's last gossip said.
    change : Change or None
        The change of view that is under way; None if there is none.
    joining_since : float or None
        The time since which the member has asked to be let in, or has known that it may ask.
    ticks : int
        Number of times that the member has looked at its clock.
    ran : float or None
        The time of the last event.
    useless : frozenset of (int, int)
        Edges that the next view must do without, even if their ends speak.
    contradiction : Step or None
        A proved step to another view than the one of ``steps`` with the same number; None unless a member
        lies.
    expired : str
        The reason why the member gives up, if its patience is over; else empty.
    """

    rules: Rules
    record: Record
    view: Composition
    steps: tuple[Step, ...] = ()
    records: Mapping[int, Record] = field(default_factory=dict)
    heard: Mapping[int, float] = field(default_factory=dict)
    known: Mapping[int, Mapping[int, Age]] = field(default_factory=dict)
    change: Change | None = None
    joining_since: float | None = None
    ticks: int = 0
    ran: float | None = None
    useless: frozenset[Edge] = frozenset()
    contradiction: Step | None = None
    expired: str = ""

    @property
    def me(self) -> int:
        """The number of the member whose state this is."""
        return self.record.member

    @property
    def phase(self) -> Phase:
        """The member's phase."""
        return self.record.phase

    @property
    def under_way(self) -> Change:
        """The change of view that is under way.

        Raises
        ------
        RuntimeError
            If there is none: a fault of the caller's.
        """
        if self.change is None:
            raise RuntimeError(f"view {self.view.number} does not change")
        return self.change

    @cached_property
    def table(self) -> dict[int, Record]:
        """The newest record of each member, its own included, ascending."""
        return dict(sorted({**self.records, self.me: self.record}.items()))

    @property
    def newest(self) -> Composition:
        """The newest view that the member knows, whether the member is in it or not."""
        return self.steps[-1].value if self.steps else self.rules.first

    @property
    def excluded(self) -> bool:
        """Whether the others have gone on without this member, which has not asked to be let in again."""
        return self.phase is not Phase.JOINING and self.newest != self.view

    @property
    def trains(self) -> bool:
        """Whether the member may complete an iteration of its view."""
        return self.phase is Phase.RUNNING and not self.excluded and not self.expired

    @cached_property
    def acceptors(self) -> list[Record]:
        """The records of the members of the view that vote on the next one, ascending."""
        return quorum.acceptors(self.view, self.table)

    @cached_property
    def missed(self) -> set[int]:
        """The other members that are gone, or that a voting member suspects or calls hanging."""
        return quorum.missed(self.view, self.table, self.me)

    @property
    def unfinished(self) -> list[int]:
        """The members of the view that have neither finished nor left, as far as this member knows."""
        done, table = (Phase.FINISHED, Phase.LEFT), self.table
        return [m for m in self.view.members if m not in table or table[m].phase not in done]

    @property
    def all_finished(self) -> bool:
        """Whether this member has done all iterations, and every other member of the view has or has left."""
        here = self.phase is Phase.FINISHED and not self.unfinished
        return here and all(self.table[m].view == self.view.number for m in self.view.members)

    @property
    def hopeless(self) -> str:
        """The reason why the member must give up, a text; empty while there can be a view with the member."""
        return self.expired or _stranded(self)

    def spares(self, least: int) -> bool:
        """Tell whether the others can go on without this member: a quorum with ``least`` peers or more."""
        others = set(self.view.members) - self.missed - {self.me}
        return len(self.rules.peers(others)) >= least and quorum.is_quorum(others, self.view.members)


def begin(rules: Rules, me: int) -> State:
    """Return the first state of the member ``me``, which takes part from the start of the run."""
    return State(rules, Record(me, 0), rules.first)


def join(rules: Rules, me: int, incarnation: int) -> State:
    """Return the first state of the member ``me``, which was started again and asks to be let in.

    The member's incarnation is ``incarnation``, or 1 if that is less.
    """
    return State(rules, Record(me, max(1, incarnation), phase=Phase.JOINING), rules.first)


def _stranded(s: State) -> str:
    """Return the reason why neither a change of view nor a request to be let in can succeed; else empty.

    A member that has left, or begun anew, never votes on the view after this one: without a quorum of the
    others there is nothing to wait for. Nor is there if all have come to the end without this member.
    """
    if s.phase is Phase.JOINING:
        return _all_over(s)
    if s.phase is not Phase.CHANGING or s.excluded:
        return ""
    members = s.view.members
    gone = {m for m in members if m != s.me and quorum.gone(s.view, s.records, m)}
    if quorum.is_quorum(set(members) - gone, members):
        return ""
    reasons = "; ".join(f"{m}: {s.records[m].reason or 'it began anew'}" for m in sorted(gone))
    return (
        f"of the members {list(members)} of view {s.view.number} too many have gone for a quorum ({reasons})"
    )


def _all_over(s: State) -> str:
    """Return the reason why no member is left that could let this one in; empty if one may be left.

    A member that has finished may still let this one in while it waits for others that train, and then a new
    record of its own comes. So the last records must be more than four rounds old.
    """
    if not s.steps:
        return ""
    settled = -math.inf if s.ran is None else s.ran - 4 * s.rules.round_time
    for m in s.newest.members:
        r = s.records.get(m)
        done = r is not None and r.phase in (Phase.FINISHED, Phase.LEFT) and r.view == s.newest.number
        if not done or s.heard[m] > settled:
            return ""
    members = list(s.newest.members)
    return f"the members {members} of view {s.newest.number} have come to the end without it, or have left"
