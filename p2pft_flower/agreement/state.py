"""All that one member knows of its view, and the conclusions from it."""

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
        Numbers of promises that its own ballot has, and of ballots that it has opened.
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
    """All that one member knows. Made by :func:`begin` or :func:`join`, then by :func:`step` alone.

    Attributes
    ----------
    rules : Rules
        The rules of the run.
    record : Record
        The member's own record.
    view : Composition
        The view that it is in, or was in last.
    steps : tuple of Step
        The step to each view after the first, as far as it knows them.
    records : mapping of int to Record
        The newest record of each other member.
    heard : mapping of int to float
        The time at which each of these came.
    known : mapping of int to mapping
        The ages of the records that each other member has, by its last gossip.
    change : Change or None
        The change of view under way.
    joining_since : float or None
        The time since which it asks to be let in, or has known that it may ask.
    ticks : int
        Number of its looks at the clock.
    ran : float or None
        The time of the last event.
    useless : frozenset of (int, int)
        Edges that the next view must do without, even if their ends speak.
    expired : str
        The reason why it gives up, if its patience is over; else empty.
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
    expired: str = ""

    @property
    def me(self) -> int:
        """The member whose state this is."""
        return self.record.member

    @property
    def phase(self) -> Phase:
        """The member's phase."""
        return self.record.phase

    @property
    def under_way(self) -> Change:
        """The change of view under way.

        Raises
        ------
        RuntimeError
            When there is none: a fault of the caller's.
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
        """The newest view that it knows, with or without it."""
        return self.steps[-1].value if self.steps else self.rules.first

    @property
    def excluded(self) -> bool:
        """Whether the others have gone on without it, and it has not asked to be let in again."""
        return self.phase is not Phase.JOINING and self.newest != self.view

    @property
    def trains(self) -> bool:
        """Whether it may complete an iteration of its view."""
        return self.phase is Phase.RUNNING and not self.excluded

    @cached_property
    def missed(self) -> set[int]:
        """The other members of its view that a member suspects or calls hanging, and those that are gone."""
        return quorum.missed(self.view, self.table, self.me)

    @property
    def unfinished(self) -> list[int]:
        """The members of its view that still train."""
        done, table = (Phase.FINISHED, Phase.LEFT), self.table
        return [m for m in self.view.members if m not in table or table[m].phase not in done]

    @property
    def all_finished(self) -> bool:
        """Whether every member of the view has done all iterations, or has left."""
        here = self.phase is Phase.FINISHED and not self.unfinished
        return here and all(self.table[m].view == self.view.number for m in self.view.members)

    @property
    def hopeless(self) -> str:
        """The reason why the member must give up; empty while there can be a view with it."""
        return self.expired or _stranded(self)

    def spares(self, least: int) -> bool:
        """Tell whether the others can go on without this one: a quorum of the view, and ``least`` peers."""
        others = set(self.view.members) - self.missed - {self.me}
        return len(self.rules.peers(others)) >= least and quorum.is_quorum(others, self.view.members)


def begin(rules: Rules, me: int) -> State:
    """Return the first state of a member that takes part from the start of the run."""
    return State(rules, Record(me, 0), rules.first)


def join(rules: Rules, me: int, incarnation: int) -> State:
    """Return the state of a member that was started again, in a later ``incarnation`` than any before."""
    return State(rules, Record(me, max(1, incarnation), phase=Phase.JOINING), rules.first)


def _stranded(s: State) -> str:
    """Return why neither the change under way nor a request to be let in can succeed; empty if one can.

    A member that has left, or begun anew, never votes on what follows this view: without a quorum of the
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
    """Return why nobody is left that could let this member in; empty if somebody may be.

    A member that has finished may still let it in while it waits for others that train, and would say so. So
    the state must have stood for four rounds.
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
