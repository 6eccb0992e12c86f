"""Which peers are in the next view: agreement among the survivors, without a server.

A pure state machine: it is told what was heard and what time it is, and says what to tell others. No clock,
no thread, no socket, so that tests can drive thousands of schedules of crashes, delays and losses through
it.

*Members* are the hosts that take part, each named by the lowest of its peers. The members of view v agree
on view v + 1 by Paxos (Lamport, 1998) in its shared-memory form (Disk Paxos: Gafni & Lamport, 2003): each
member writes one *record*, the records spread by gossip, and everyone draws the same conclusions from them.

1. Who misses a member, or hears that another does, stops iterating (CHANGING). Its iteration is fixed from
   then on.
2. The lowest member that nobody misses proposes a *ballot*, a number of its own that is higher than all
   others. Who sees it promises to heed no lower one, and shows in its record what it has accepted before.
3. When all that can be hoped for have promised, and they are a *quorum* of view v, the proposer chooses the
   next view: what a promiser has accepted under the highest ballot, if anything; else those that have
   promised and those that ask to be let in.
4. Who sees a proposed view under a ballot as high as its promise accepts it. A view that a quorum of view v
   has accepted under one ballot is the next view; whoever sees this, in whatever order records come, sees
   the same.

A quorum is more than half of the members, or exactly half with the lowest of them. Two quorums have a
member in common, so of two parts of a divided network one at most goes on, whatever is lost, delayed or
repeated: there are never two runs that both call themselves the result. The other part waits to be
connected again and then asks to be let in; after ``patience`` seconds it stops. Where so many have said that
they go that no quorum can come together, those that are left stop at once. What the protocol cannot promise
is a time while messages take arbitrarily long (no protocol can: Fischer, Lynch & Paterson, 1985); rounds
grow longer until one is long enough.

docs/protocol.md tells the whole protocol.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from p2pft_flower.topology.graph import Graph
from p2pft_flower.topology.views import View

__all__ = [
    "CONTACTS",
    "Age",
    "Ballot",
    "Edge",
    "Membership",
    "NextView",
    "Phase",
    "Proposal",
    "Record",
    "is_quorum",
]

Edge = tuple[int, int]
"""(sender, receiver), peers."""

Age = tuple[int, int]
"""(incarnation, version) of a record: of two of one member the greater is the newer."""

CONTACTS = 8
"""Members whose turn it is to be gossiped with at once, at least; an eighth of all where that is more."""


class Phase(Enum):
    """What a member is doing."""

    RUNNING = 1
    """It trains in its view."""
    CHANGING = 2
    """It has stopped iterating; the next view is being agreed on."""
    JOINING = 3
    """It is in no view and asks to be let in."""
    FINISHED = 4
    """It has done all iterations, and stays until the others have."""
    LEFT = 5
    """It has gone, for a reason that it tells."""


class Ballot(NamedTuple):
    """A round and who opened it: no two members have the same one."""

    round: int
    member: int


NO_BALLOT = Ballot(0, -1)

_VIEWS_KEPT = 64


class NextView(NamedTuple):
    """What is agreed on.

    Attributes
    ----------
    members : tuple of int
        Who takes part, ascending.
    incarnations : tuple of int
        The life each of them was in: who died and came back is another member than it was.
    broken : tuple of (int, int)
        Edges (sender, receiver; peers) that carry nothing, ascending.
    iteration : int
        Where all go on: the most iterations that any of them, those of ``joined`` aside, has completed.
    joined : tuple of int
        Members that were not in the view before, ascending.
    donors : tuple of int
        From which peer each of ``joined`` takes θ.
    """

    members: tuple[int, ...]
    incarnations: tuple[int, ...]
    broken: tuple[Edge, ...] = ()
    iteration: int = 0
    joined: tuple[int, ...] = ()
    donors: tuple[int, ...] = ()

    def incarnation(self, member: int) -> int | None:
        """Return the life that ``member`` takes part in; None where it does not."""
        return self.incarnations[self.members.index(member)] if member in self.members else None


class Proposal(NamedTuple):
    """A ballot with the view proposed under it; None while promises are awaited."""

    ballot: Ballot
    value: NextView | None = None


@dataclass(frozen=True)
class Record:
    """All that one member says; newer ones (by incarnation, then version) replace older ones.

    Attributes
    ----------
    member, incarnation, version : int
        Who says it, in which life, and a number that grows with each change.
    view : int
        The view it is in, or the newest that it knows of where that is without it.
    phase : Phase
        What it is doing.
    iteration : int
        Iterations completed.
    promised : Ballot
        It heeds no lower one.
    accepted : Proposal or None
        The last view that it has accepted to follow ``view``.
    proposal : Proposal or None
        Its own.
    suspects : tuple of int
        Members that it has not heard for too long.
    hanging : tuple of int
        Members that speak, but do not get on: they are left out even where they promise.
    broken : tuple of (int, int)
        Edges of its peers that carry nothing.
    reaches : tuple of int
        Members that a joining one has spoken with directly.
    installed : NextView or None
        What ``view`` is; None for the first.
    reason : str
        Why it has left.
    """

    member: int
    incarnation: int
    version: int = 0
    view: int = 0
    phase: Phase = Phase.RUNNING
    iteration: int = 0
    promised: Ballot = NO_BALLOT
    accepted: Proposal | None = None
    proposal: Proposal | None = None
    suspects: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    broken: tuple[Edge, ...] = ()
    reaches: tuple[int, ...] = ()
    installed: NextView | None = None
    reason: str = ""

    @property
    def age(self) -> Age:
        """Order of one member's records."""
        return self.incarnation, self.version


def is_quorum(some: Iterable[int], members: Iterable[int]) -> bool:
    """Tell whether ``some`` are more than half of ``members``, or half of them with the lowest."""
    all_of, part = set(members), set(some) & set(members)
    return 2 * len(part) > len(all_of) or (2 * len(part) == len(all_of) and min(all_of) in part)


@dataclass
class _Change:
    """One change of view, as this member sees it."""

    since: float
    round_since: float
    promises: int = 0  # that its own ballot has
    promised_at: float = 0.0  # when its own ballot was opened, or got the last of them
    rounds: int = 0
    long: bool = False  # it has lasted longer than a round


@dataclass
class Membership:
    """One member's part in agreeing on views.

    Parameters
    ----------
    me : int
        This member.
    graph : Graph
        The whole graph.
    groups : mapping of int to tuple of int
        Each member's peers, of all members that the run began with.
    round_time : float
        Seconds after which a ballot that has not come to an end is given up for another one, at first.
    patience : float
        Seconds that a change of view, or waiting to be let in, may last.
    wait : bool
        Whether a missing member is waited for, up to ``patience``, before it is left out.
    incarnation : int
        This member's life; 0 for the first.
    joining : bool
        Whether it begins outside, after a restart.

    Attributes
    ----------
    view : int
        The number of the view it is in, or was in last.
    current : NextView
        That view.
    record : Record
        What it says of itself.
    records : dict of int to Record
        The newest of each other member.
    excluded : bool
        Whether the others have gone on without it; :meth:`rejoin` asks to be let in.
    expired : str
        Not empty: ``patience`` is over, and why; the member is to stop.
    """

    me: int
    graph: Graph
    groups: Mapping[int, tuple[int, ...]]
    round_time: float
    patience: float
    wait: bool = False
    incarnation: int = 0
    joining: bool = False
    view: int = field(default=0, init=False)
    current: NextView = field(init=False)
    record: Record = field(init=False)
    records: dict[int, Record] = field(default_factory=dict, init=False)
    excluded: bool = field(default=False, init=False)
    expired: str = field(default="", init=False)
    _change: _Change | None = field(default=None, init=False)
    _joining_since: float | None = field(default=None, init=False)
    _heard: dict[int, float] = field(default_factory=dict, init=False)
    """When each member's newest record came."""
    _known_to: dict[int, Mapping[int, Age]] = field(default_factory=dict, init=False)
    """What each other member has said last that it knows."""
    _turn: int = field(default=0, init=False)
    """How often time has passed: whose turn it is to be gossiped with."""
    _ran: float | None = field(default=None, init=False)
    """When time passed last, or something was heard."""
    _useless: set[Edge] = field(default_factory=set, init=False)
    """Edges that the next view is to be without, whoever speaks."""
    _views: dict[tuple[tuple[int, ...], tuple[Edge, ...]], View] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        members = tuple(sorted(self.groups))
        self.current = NextView(members, (0,) * len(members))
        phase = Phase.JOINING if self.joining else Phase.RUNNING
        if self.joining:
            self.incarnation = max(self.incarnation, 1)
        self.record = Record(self.me, self.incarnation, phase=phase)

    # What the runtime tells --------------------------------------------------------------------------

    def complete(self, iteration: int) -> bool:
        """Note that ``iteration`` iterations are done; False where the view changes and it does not count."""
        if self.record.phase is not Phase.RUNNING or self.excluded:
            return False
        # No new version: nobody has to hear of each iteration. It is told with the next one.
        self.record = replace(self.record, iteration=iteration)
        return True

    def finish(self) -> bool:
        """Note that all iterations are done; False where the view changes first."""
        if self.record.phase is Phase.RUNNING and not self.excluded:
            self._write(phase=Phase.FINISHED)
        return self.record.phase is Phase.FINISHED and not self.excluded

    @property
    def all_finished(self) -> bool:
        """Whether every member of the view has done all iterations, or has left."""
        return self.record.phase is Phase.FINISHED and all(
            (r := self._of(m)) is not None and r.view == self.view and r.phase in (Phase.FINISHED, Phase.LEFT)
            for m in self.current.members
        )

    @property
    def unfinished(self) -> list[int]:
        """The other members of the view that still train."""
        done = (Phase.FINISHED, Phase.LEFT)
        return [m for m in self.current.members if (r := self._of(m)) is None or r.phase not in done]

    def leave(self, reason: str) -> None:
        """Note that this member goes; the others need not wait for its silence."""
        self._write(phase=Phase.LEFT, reason=reason)

    def suspect(self, member: int, now: float, *, hanging: bool = False) -> None:
        """Note that ``member`` was not heard for too long, or that it is ``hanging``."""
        if member not in self.current.members or member == self.me or self.record.phase is Phase.JOINING:
            return
        r = self.records.get(member)
        if r is not None and r.phase is Phase.FINISHED and r.view == self.view:
            return  # it has sent all that it owes, and may go
        if hanging and member not in self.record.hanging:
            self._write(hanging=_with(self.record.hanging, member))
        elif not hanging and member not in self.record.suspects:
            edges = {(a, b) for a in self.groups[self.me] for b in self.groups[member]}
            both = edges | {(b, a) for a, b in edges}
            self._write(
                suspects=_with(self.record.suspects, member),
                broken=tuple(sorted({*self.record.broken, *both})),
            )
        self._advance(now)

    def heard_again(self, member: int) -> None:
        """Note that a suspected ``member`` speaks after all; before a view without it, it is still in."""
        if member in self.record.suspects:
            theirs = set(self.groups[member])
            self._write(
                suspects=tuple(m for m in self.record.suspects if m != member),
                broken=tuple(e for e in self.record.broken if e in self._useless or theirs.isdisjoint(e)),
            )

    def do_without(self, edge: Edge, now: float) -> bool:
        """Note that ``edge``, of this member's, carries no payloads, though both of its ends speak.

        Unlike what :meth:`suspect` notes, it stands until the view has changed, whoever is heard. Returns
        whether there is such an edge in the view, which is then to change.
        """
        if self.record.phase in (Phase.JOINING, Phase.LEFT) or self.excluded:
            return False
        if edge in self.current.broken or not self._inside(edge):
            return False
        self._useless.add(edge)
        self._write(broken=tuple(sorted({*self.record.broken, edge})))
        self._advance(now)
        return True

    def _inside(self, edge: Edge) -> bool:
        return {p for m in self.current.members for p in self.groups[m]}.issuperset(edge)

    def rejoin(self, now: float, iteration: int = 0) -> None:
        """Ask to be let in again, after the others have gone on without this member."""
        self.excluded, self._change, self._joining_since = False, None, now
        self._useless.clear()
        self.incarnation += 1
        self.record = Record(
            self.me,
            self.incarnation,
            view=self.record.view,
            phase=Phase.JOINING,
            iteration=iteration,
            installed=self.record.installed,
        )

    def reach(self, members: Iterable[int], now: float) -> None:
        """Note whom this member, while it joins, has just spoken with directly."""
        reaches = tuple(sorted(set(members)))
        if self.record.phase is Phase.JOINING and reaches != self.record.reaches:
            self._write(reaches=reaches)
            self._advance(now)

    def hear(self, records: Iterable[Record], now: float) -> bool:
        """Take in others' records; return whether any of them, or of what this member says, is new."""
        self._allow_for_a_pause(now)
        before, version = dict(self.records), self.record.age
        for record in records:
            if record.member not in self.groups:
                continue
            if record.member == self.me:
                self._meet_former_life(record)
                continue
            known = self.records.get(record.member)
            if known is None or record.age > known.age:
                self.records[record.member] = record
                self._heard[record.member] = now
        self._advance(now)
        return before != self.records or version != self.record.age

    def hear_known(self, other: int, known: Mapping[int, Age]) -> None:
        """Take in what ``other`` says that it knows; nothing where it trains, which it does not say then."""
        if known:
            self._known_to[other] = known

    def tick(self, now: float) -> bool:
        """Let time pass; return whether what this member says has changed."""
        self._allow_for_a_pause(now)
        self._turn += 1
        version = self.record.age
        if self.record.phase is Phase.JOINING:
            self._write()  # a sign of life: a record that does not change any more is a dead one's
        self._advance(now)
        return version != self.record.age

    # What it tells the runtime -----------------------------------------------------------------------

    @property
    def table(self) -> list[Record]:
        """All records known, this member's own included, ascending."""
        return [r for _, r in sorted({**self.records, self.me: self.record}.items())]

    @property
    def known(self) -> dict[int, Age]:
        """How new the records are that this member knows, by whom they are of; none while it trains."""
        return {} if self.record.phase is Phase.RUNNING else {r.member: r.age for r in self.table}

    def news(self, other: int) -> list[Record]:
        """Return the records to tell ``other``.

        All that are new to it, by what it has said that it knows; only this member's own while this one
        trains, or where the other has not said so yet, which it does in its answer unless it trains itself
        (van Renesse et al., Efficient Reconciliation and Flow Control for Anti-Entropy Protocols, 2008).
        """
        known = self._known_to.get(other)
        if known is None or self.record.phase is Phase.RUNNING:
            return [self.record]
        return [r for r in self.table if r.member not in known or known[r.member] < r.age]

    def spares(self, least: int) -> bool:
        """Tell whether the others can go on without this one: a quorum of the view, and ``least`` peers."""
        others = set(self.current.members) - self.missed - {self.me}
        enough = sum(len(self.groups[m]) for m in others) >= least
        return enough and is_quorum(others, self.current.members)

    @property
    def stranded(self) -> str:
        """Why nothing can come of the change under way, or of asking to be let in; empty where something can.

        Who has left, or begun anew, never votes on what follows this view: without a quorum of the others
        there is nothing to wait for. Nor is there where all have come to the end without this member.
        """
        if self.record.phase is Phase.JOINING:
            return self._all_over()
        if self.record.phase is not Phase.CHANGING:
            return ""
        members = self.current.members
        gone = {m for m in members if m != self.me and self._gone(m)}
        if is_quorum(set(members) - gone, members):
            return ""
        who = "; ".join(f"{m}: {self.records[m].reason or 'it began anew'}" for m in sorted(gone))
        return f"of the members {list(members)} of view {self.view} too many have gone for a quorum ({who})"

    def _all_over(self) -> str:
        """Why nobody is left who could let this member in; empty where somebody may be.

        One that has finished may still let it in while it waits for others that train, and would say so: only
        what has stood for four rounds counts.
        """
        newest = self._newest(self.table)
        if newest is None or newest.installed is None:
            return ""
        done = (Phase.FINISHED, Phase.LEFT)
        there = [self.records.get(m) for m in newest.installed.members]
        settled = -math.inf if self._ran is None else self._ran - 4 * self.round_time
        if all(
            r is not None and r.phase in done and r.view == newest.view and self._heard[r.member] <= settled
            for r in there
        ):
            members = list(newest.installed.members)
            return (
                f"the members {members} of view {newest.view} have come to the end without it, or have left"
            )
        return ""

    def contacts(self) -> tuple[int, ...]:
        """Return the members to gossip with, ascending: neighbours, and past those that are missing.

        Where a neighbour is missing, its neighbours are contacts too, and so on, as far as this member knows
        who is missing. In a change that lasts longer than a round all others are in turn, some of them (see
        `CONTACTS`) between two ticks; for a joining member all are at once. One that has finished stays as
        long as it hears those that still train, so these are its contacts too.
        """
        others = [m for m in sorted(self.groups) if m != self.me]
        if self.record.phase is Phase.JOINING:
            return tuple(others)
        there = set(self.current.members) - self.missed - set(self.record.suspects)
        seen, queue = {self.me}, [self.me]
        while queue:
            member = queue.pop()
            for other in self._around(member) - seen:
                seen.add(other)
                if other not in there:
                    queue.append(other)
        if self.record.phase is Phase.FINISHED:
            seen.update(self.unfinished)
        if self._change is not None and self._change.long:
            some = max(CONTACTS, -(-len(others) // 8))
            # Each begins with those after it: not all turn to the same ones.
            begin = bisect(others, self.me) + self._turn * some
            seen.update(others[(begin + k) % len(others)] for k in range(min(some, len(others))))
        return tuple(sorted(seen - {self.me}))

    def near(self) -> tuple[int, ...]:
        """Return the members of the newest view known that share an edge of the whole graph with this one."""
        newest = self._newest(self.table)
        value = self.current if newest is None or newest.installed is None else newest.installed
        return tuple(sorted(self._around(self.me).intersection(value.members) - {self.me}))

    @staticmethod
    def _newest(records: Iterable[Record]) -> Record | None:
        """Return the record of the latest view that any of them says what it is; None where none does."""
        return max((r for r in records if r.installed is not None), key=lambda r: r.view, default=None)

    def neighbourhood(self) -> View:
        """Return the view's peers and graph."""
        return self._graph_of(self.current.members, self.current.broken)

    # Rules -------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        if self.record.phase is Phase.LEFT or self.excluded or self.expired:
            return None
        if self._install_newer():
            return self._advance(now)
        if self.record.phase is Phase.JOINING:
            if self._joining_since is None:
                self._joining_since = now
            if now - self._joining_since >= self.patience:
                self.expired = f"nobody has let it in for {self.patience:g} s"
            return None
        if self.record.phase is not Phase.CHANGING:
            if not self._change_is_due(now):
                return None
            self._change = _Change(now, now)
            self._write(phase=Phase.CHANGING, promised=NO_BALLOT, accepted=None, proposal=None)
        self._vote(now)
        return None

    def _install_newer(self) -> bool:
        """Go to a later view that some record proves; return whether there was one."""
        newest = self._newest(self.records.values())
        if newest is None or newest.installed is None:
            return False
        mine = newest.installed.incarnation(self.me)
        if self.record.phase is Phase.JOINING:
            if mine == self.incarnation:
                self._install(newest.view, newest.installed)
                return True
            return False
        if newest.view <= self.view:
            return False
        self._follow(newest.view, newest.installed)
        return True

    def _follow(self, view: int, value: NextView) -> None:
        """Go to a view that was decided, or note that it is without this member."""
        if value.incarnation(self.me) == self.incarnation:
            self._install(view, value)
        else:
            # It may be the only one that knows of the decision: its record says so, also while it joins.
            self.excluded = True
            self._write(view=view, installed=value)

    def _install(self, view: int, value: NextView) -> None:
        self.view, self.current, self._change, self._joining_since = view, value, None, None
        self._useless.clear()
        self.record = Record(
            self.me,
            self.incarnation,
            self.record.version + 1,
            view,
            iteration=value.iteration,
            installed=value,
        )

    def _change_is_due(self, now: float) -> bool:
        if self.all_finished:
            return False
        if self.record.suspects or self.record.hanging or self._useless or self._joiners(now):
            return True
        for member in self.current.members:
            r = self._of(member)
            if r is not None and r.view == self.view and r.phase is Phase.CHANGING:
                return True
            if self._has_left(member):
                return True
        return False

    def _vote(self, now: float) -> None:
        change = self._change
        assert change is not None  # noqa: S101 - CHANGING has begun
        change.long = now - change.since >= self.round_time
        here = self._acceptors()
        top = max((r.proposal for r in here if r.proposal is not None), default=None, key=lambda p: p.ballot)
        if top is not None and top.ballot > self.record.promised:
            change.round_since = now
            self._write(promised=top.ballot)
        accepted = self.record.accepted
        if (
            top is not None
            and top.value is not None
            and top.ballot == self.record.promised
            and (accepted is None or accepted.ballot < top.ballot)
        ):
            change.round_since = now  # others need a moment to see and accept it, too
            self._write(accepted=top)
        if (value := self._decision()) is not None:
            self._follow(self.view + 1, value)
            return
        if now - change.since >= self.patience:
            promised = [r.member for r in self._acceptors()]
            self.expired = (
                f"no agreement for {self.patience:g} s: of the members {list(self.current.members)} of view "
                f"{self.view} only {promised} are connected with this one"
            )
            return
        own = self.record.proposal
        if own is not None and own.ballot == self.record.promised and own.value is None:
            self._choose(now, change, own.ballot)
        elif self._turn_has_come(now, change):
            change.rounds += 1
            change.round_since = change.promised_at = now
            change.promises = 0
            ballot = Ballot(self.record.promised.round + 1, self.me)
            self._write(promised=ballot, proposal=Proposal(ballot))
            self._vote(now)

    def _turn_has_come(self, now: float, change: _Change) -> bool:
        """Tell whether to open a ballot: at once for the lowest that is not missed, later for the next."""
        missing = self.missed
        rank = sum(1 for m in self.current.members if m < self.me and m not in missing)
        if self.record.promised == NO_BALLOT and rank == 0:
            return True
        longest = self.round_time * (1.5 ** min(change.rounds, 4))
        if self.wait and not self._patience_over(now, change):
            # Its proposer waits for who is missing; only if it is gone itself another one takes over.
            holder = self._of(self.record.promised.member)
            open_ballot = None if holder is None or holder.member in missing else holder.proposal
            if open_ballot == Proposal(self.record.promised):
                return False
        return now - change.round_since >= longest * (1 + rank)

    def _choose(self, now: float, change: _Change, ballot: Ballot) -> None:
        """Propose the next view when all that can be hoped for have promised."""
        here = self._acceptors()
        promised = {r.member: r for r in here if r.promised == ballot}
        if not is_quorum(promised, self.current.members):
            return
        if len(promised) > change.promises:  # as long as promises come in, nobody slow is left out
            change.promises, change.promised_at = len(promised), now
        elapsed = now - change.promised_at
        awaited = set(self.current.members) - promised.keys()
        if self.wait and not self._patience_over(now, change):
            returned = {r.member for r in self._joiners(now)}
            ready = awaited <= returned
        else:
            likely = {m for m in awaited if not self._given_up(m, promised)}
            ready = not awaited or elapsed >= (self.round_time if likely else self.round_time / 4)
        if ready:
            # An earlier ballot may have decided already: what was accepted under the highest one stands.
            before = max(
                (r.accepted for r in promised.values() if r.accepted is not None),
                default=None,
                key=lambda p: p.ballot,
            )
            value = self._next_view(promised, now) if before is None else before.value
            self._write(proposal=Proposal(ballot, value))
            self._vote(now)

    def _next_view(self, promised: Mapping[int, Record], now: float) -> NextView:
        hanging = {m for r in promised.values() for m in r.hanging}
        # A member may have died after it promised: its promise counts, but it is in no view.
        dead = {m for m in promised if self._given_up(m, promised)}
        stay = [m for m in sorted(promised) if m not in hanging | dead] or sorted(promised)
        broken = {*self.current.broken, *(e for r in promised.values() for e in r.broken)}
        stay, broken = self._connected(stay, broken)
        joined: list[Record] = []
        for joiner in self._joiners(now):
            if (grown := self._with_joiner(stay, broken, joiner)) is not None:
                stay, broken = grown
                joined.append(joiner)
        lives = {m: promised[m].incarnation for m in stay if m in promised}
        lives |= {r.member: r.incarnation for r in joined}
        new = {r.member for r in joined}
        graph = self._graph_of(stay, broken)
        donors = []
        for joiner in joined:
            old = [p for m in stay if m not in new for p in self.groups[m]]
            first = self.groups[joiner.member][0]
            near = [j for j in graph.row(first) if j in old]
            reached = [p for m in joiner.reaches if m in stay and m not in new for p in self.groups[m]]
            donors.append(min(near or reached or old))
        return NextView(
            tuple(stay),
            tuple(lives[m] for m in stay),
            tuple(sorted(broken)),
            max(promised[m].iteration for m in stay if m in promised),
            tuple(r.member for r in joined),
            tuple(donors),
        )

    def _connected(self, members: Iterable[int], broken: Iterable[Edge]) -> tuple[list[int], set[Edge]]:
        """Return the members that the graph keeps together, and the broken edges among them."""
        stay = list(members)
        while True:
            inside = {p for m in stay for p in self.groups[m]}
            among = {(j, i) for j, i in broken if j in inside and i in inside}
            kept = set(self._graph_of(stay, among).peers)
            rest = [m for m in stay if kept.issuperset(self.groups[m])]
            if rest == stay or not rest:  # a host whose peers the graph tears apart is left out whole
                return stay, among
            stay = rest

    def _with_joiner(
        self, members: list[int], broken: set[Edge], joiner: Record
    ) -> tuple[list[int], set[Edge]] | None:
        """Return members and broken edges with ``joiner``; None where it cannot be connected."""
        own = set(self.groups[joiner.member])
        far = {p for m in members if m not in joiner.reaches for p in self.groups[m]}
        edges = {(a, b) for a in own for b in far} | {(b, a) for a in own for b in far}
        cut = {e for e in broken if own.isdisjoint(e)} | edges
        wanted = sorted({*members, joiner.member})
        stay, among = self._connected(wanted, cut)
        return (stay, among) if stay == wanted else None

    def _joiners(self, now: float) -> list[Record]:
        """Return who asks to be let in and can be: its life is new, and it reaches its neighbours."""
        asking = []
        for r in self.records.values():
            former = self.current.incarnation(r.member)
            lives = now - self._heard[r.member] <= 2 * self.round_time
            if r.phase is Phase.JOINING and lives and (former is None or r.incarnation > former):
                missed = self.missed
                others = [m for m in self.current.members if m not in missed and m != r.member]
                if others and self._with_joiner(others, set(self.current.broken), r) is not None:
                    asking.append(r)
        return sorted(asking, key=lambda r: r.member)

    def _decision(self) -> NextView | None:
        """Return the view that a quorum has accepted under one ballot."""
        votes: dict[Ballot, list[Record]] = {}
        for r in self._acceptors():
            if r.accepted is not None:
                votes.setdefault(r.accepted.ballot, []).append(r)
        for records in votes.values():
            if is_quorum((r.member for r in records), self.current.members):
                proposal = records[0].accepted
                return None if proposal is None else proposal.value
        return None

    def _acceptors(self) -> list[Record]:
        """Return the records of the view's members that vote on the next one, this one's included."""
        return [
            r
            for m in self.current.members
            if (r := self._of(m)) is not None
            and r.view == self.view
            and r.phase is Phase.CHANGING
            and r.incarnation == self.current.incarnation(m)
        ]

    def _of(self, member: int) -> Record | None:
        return self.record if member == self.me else self.records.get(member)

    @property
    def missed(self) -> set[int]:
        """The members of the view that somebody misses, or that have left."""
        gone = {m for m in self.current.members if self._gone(m)}
        for r in self._acceptors():
            gone.update(r.suspects, r.hanging)
        return gone - {self.me}

    def _given_up(self, member: int, promised: Mapping[int, Record]) -> bool:
        """Tell whether ``member`` has gone, or is missed by all its neighbours that have promised.

        Whom one of them still hears, behind another's cut link, has a promise under way.
        """
        near = [promised[m] for m in self._around(member) & promised.keys()]
        missed = all(member in r.suspects or member in r.hanging for r in near)
        return self._gone(member) or (member in self.missed and missed)

    def _gone(self, member: int) -> bool:
        r = self.records.get(member)
        life = self.current.incarnation(member)
        begun_anew = r is not None and life is not None and r.incarnation > life
        return begun_anew or self._has_left(member)

    def _has_left(self, member: int) -> bool:
        """Tell whether ``member`` has left in the life that is in the view, not in one before."""
        r = self._of(member)
        return r is not None and r.phase is Phase.LEFT and r.incarnation == self.current.incarnation(member)

    def _patience_over(self, now: float, change: _Change) -> bool:
        # Half of it is left for agreeing on a view without them.
        return now - change.since >= self.patience / 2

    def _around(self, member: int) -> set[int]:
        """Return the members that the whole graph's edges, in either direction, join to ``member``."""
        near: set[int] = set()
        for p in self.groups[member]:
            near.update(self.graph.in_neighbours(p), self.graph.out_neighbours(p))
        return {m for m, peers in self.groups.items() if m != member and not near.isdisjoint(peers)}

    def _graph_of(self, members: Iterable[int], broken: Iterable[Edge]) -> View:
        key = tuple(members), tuple(sorted(broken))
        if key not in self._views:
            live = {p for m in key[0] for p in self.groups[m]}
            if len(self._views) >= _VIEWS_KEPT:
                self._views.clear()
            self._views[key] = View.without(self.graph, set(range(self.graph.n)) - live, key[1])
        return self._views[key]

    def _allow_for_a_pause(self, now: float) -> None:
        """Let no deadline run while this member itself did not: it was suspended, and heard nobody."""
        pause = 0.0 if self._ran is None else now - self._ran
        self._ran = now
        if pause <= 2 * self.round_time:
            return
        self._heard = {m: when + pause for m, when in self._heard.items()}
        if self._joining_since is not None:
            self._joining_since += pause
        if self._change is not None:
            self._change.since += pause
            self._change.round_since += pause
            self._change.promised_at += pause

    def _meet_former_life(self, record: Record) -> None:
        """Make sure that this life is a later one than any that others know of this member."""
        if self.record.phase is Phase.JOINING and record.age > self.record.age:
            self.incarnation = record.incarnation + 1
            self.record = replace(self.record, incarnation=self.incarnation)

    def _write(self, **changes: object) -> None:
        self.record = replace(self.record, version=self.record.version + 1, **changes)  # type: ignore[arg-type]


def _with(members: tuple[int, ...], member: int) -> tuple[int, ...]:
    return tuple(sorted({*members, member}))
