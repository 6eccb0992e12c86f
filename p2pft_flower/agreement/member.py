"""One member's part in agreeing on the next view: how each event changes its state.

:func:`step` is pure: it takes a state, an event and the time, and returns the next state and effects. It has
no clock, thread or socket, so tests go through every order of events of small scopes, and through thousands
of schedules of crashes, delays and losses.

*Members* are the hosts that take part, each named by the lowest of its peers. Each writes one *record*;
records spread by gossip, and all members draw the same conclusions from them.

1. A member that misses another, or hears that one is missed, stops iterating (CHANGING). Its iteration is
   fixed from then on.
2. The lowest member that nobody misses opens a *ballot*, a number of its own that is higher than all others.
   Every member that sees it promises to heed no lower one, and shows in its record the view that it has
   accepted before.
3. When all members that can be hoped for have promised, and they are a *quorum* of view v, the proposer
   chooses the next view: the one that a promiser has accepted under the highest ballot, if any; else one of
   the members that have promised and of those that ask to be let in (`composing.py`).
4. A member that sees a proposed view, under a ballot as high as its promise, accepts it. A view that a quorum
   of view v has accepted under one ballot is view v + 1; the votes of that quorum prove it to anybody
   (`quorum.py`), and are kept with it as a *step*.

Of two parts of a divided network one at most has a quorum, even if messages are lost, delayed or repeated.
So no two runs ever both call themselves the result. The other part waits to be connected again and then
asks to be let in; after ``patience`` seconds it gives up. If so many members have left that no quorum can
come together, the rest give up at once. No protocol can promise a time while messages take arbitrarily long
(Fischer, Lynch & Paterson, 1985); rounds grow longer until one is long enough.

Two parts can both decide only if a member lies. Whoever sees the proof of a view that contradicts a known one
passes it on and gives up.

docs/protocol.md describes the whole protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from p2pft_flower.agreement import composing, quorum
from p2pft_flower.agreement.events import (
    Completed,
    Effect,
    Event,
    Finished,
    Heard,
    Left,
    Missed,
    Reached,
    Rejoining,
    TimePassed,
    Useless,
)
from p2pft_flower.agreement.record import (
    NO_BALLOT,
    Ballot,
    Edge,
    Phase,
    Proposal,
    Record,
    Step,
)
from p2pft_flower.agreement.state import Change, State

__all__ = ["step"]

_AHEAD = 2**20
"""More ballots than all members together open in the time of a round."""


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Effect, ...]]:
    """Return the state after ``event``, and the effects: the actions that the caller takes at once.

    Parameters
    ----------
    state : State
        The state before.
    event : Event
        The event.
    now : float
        The time, in seconds of any clock that does not go back.
    """
    after = _after(state, event, now)
    effects: list[Effect] = []
    if after.record.age != state.record.age or after.records != state.records:
        effects.append(Effect.TELL)
    changes = after.phase is Phase.CHANGING or after.excluded
    begins = changes and state.phase is not Phase.CHANGING and not state.excluded
    if after.view != state.view or begins or after.contradiction != state.contradiction:
        effects.append(Effect.PAUSE)
    return after, tuple(effects)


def _after(s: State, event: Event, now: float) -> State:  # noqa: PLR0911 - one case an event
    match event:
        case Completed(iteration):
            # No new version: the others need not hear of each iteration. The next record has the number.
            return replace(s, record=replace(s.record, iteration=iteration)) if s.trains else s
        case Finished():
            return _say(s, phase=Phase.FINISHED) if s.trains else s
        case Left(reason):
            return _say(s, phase=Phase.LEFT, reason=reason)
        case Missed(member, hanging):
            return _advance(_miss(s, member, hanging=hanging), now)
        case Useless(edge):
            return _advance(_do_without(s, edge), now)
        case Rejoining(iteration):
            own = Record(
                s.me, s.record.incarnation + 1, view=s.newest.number, phase=Phase.JOINING, iteration=iteration
            )
            return replace(s, record=own, change=None, joining_since=now, useless=frozenset())
        case Reached(members):
            reaches = tuple(sorted(set(members)))
            if s.phase is not Phase.JOINING or reaches == s.record.reaches:
                return s
            return _advance(_say(s, reaches=reaches), now)
        case Heard():
            return _advance(_hear(_allow_for_a_pause(s, now), event, now), now)
        case TimePassed():
            s = replace(_allow_for_a_pause(s, now), ticks=s.ticks + 1)
            if s.phase is Phase.JOINING:
                s = _say(s)  # a sign of life: the record of a dead member never changes again
            return _advance(s, now)


# Effects of the events -------------------------------------------------------------------------------


def _say(s: State, **changes: Any) -> State:
    return replace(s, record=replace(s.record, version=s.record.version + 1, **changes))


def _miss(s: State, member: int, *, hanging: bool) -> State:
    if member not in s.view.members or member == s.me or s.phase is Phase.JOINING:
        return s
    r = s.records.get(member)
    if r is not None and r.phase is Phase.FINISHED and r.view == s.view.number:
        return s  # it has sent all that it owes, and may go
    if hanging:
        return s if member in s.record.hanging else _say(s, hanging=_with(s.record.hanging, member))
    if member in s.record.suspects:
        return s
    broken = s.rules.between([s.me], [member])
    return _say(
        s,
        suspects=_with(s.record.suspects, member),
        broken=tuple(sorted(broken.union(s.record.broken))),
    )


def _forgive(s: State, member: int) -> State:
    if member not in s.record.suspects:
        return s
    theirs = set(s.rules.groups[member])
    return _say(
        s,
        suspects=tuple(m for m in s.record.suspects if m != member),
        broken=tuple(e for e in s.record.broken if e in s.useless or theirs.isdisjoint(e)),
    )


def _do_without(s: State, edge: Edge) -> State:
    outside = not s.rules.peers(s.view.members).issuperset(edge)
    if s.phase in (Phase.JOINING, Phase.LEFT) or s.excluded or edge in s.view.broken or outside:
        return s
    s = replace(s, useless=s.useless | {edge})
    return _say(s, broken=tuple(sorted({*s.record.broken, edge})))


def _hear(s: State, heard: Heard, now: float) -> State:
    records, times = dict(s.records), dict(s.heard)
    for r in heard.records:
        if r.member == s.me:
            if (
                s.phase is Phase.JOINING and r.age > s.record.age
            ):  # of a life that others know, and this member does not
                s = replace(s, record=replace(s.record, incarnation=r.incarnation + 1))
        elif r.member in s.rules.groups and (r.member not in records or r.age > records[r.member].age):
            records[r.member], times[r.member] = r, now
    if records != s.records:
        s = replace(s, records=records, heard=times)
    if heard.speaker is not None:
        s = _forgive(s, heard.speaker)
        if heard.known:
            s = replace(s, known={**s.known, heard.speaker: heard.known})
    if s.phase is not Phase.LEFT:
        for decided in heard.steps:
            s = _learn(s, decided)
    return s


def _learn(s: State, decided: Step) -> State:
    """Take in a decided view if its step proves that it follows the newest known view.

    If it proves that a view was decided which contradicts a known one, the member gives up.
    """
    if s.expired:
        return s
    if twice := _decided_twice(s, decided):
        return replace(s, contradiction=decided, expired=twice)
    if not quorum.proves(decided, s.newest):
        return s
    excluded, value = s.excluded, decided.value
    s = replace(s, steps=(*s.steps, decided))
    if value.incarnation(s.me) == s.record.incarnation and not excluded:
        own = Record(
            s.me, s.record.incarnation, s.record.version + 1, value.number, iteration=value.iteration
        )
        return replace(s, record=own, view=value, change=None, joining_since=None, useless=frozenset())
    # Its record shows that it knows, also while it is excluded or joins.
    return _say(s, view=value.number, accepted=None, proposal=None)


def _decided_twice(s: State, decided: Step) -> str:
    """Return why a member must have lied, by a step that contradicts a known one; empty if it does not."""
    number = decided.value.number
    if not 1 <= number <= len(s.steps):
        return ""
    known = s.steps[number - 1]
    before = s.steps[number - 2].value if number > 1 else s.rules.first
    if decided.value == known.value or not quorum.proves(decided, before):
        return ""
    one, other = sorted((known, decided), key=lambda step: step.ballot)
    both = sorted({v.member for v in one.votes} & {v.member for v in other.votes})
    return (
        f"view {number} was decided twice, for the members {list(one.value.members)} and for "
        f"{list(other.value.members)}: one of the members {both}, which have voted for both, or member "
        f"{other.ballot.member}, which proposed the second one, has lied (docs/protocol.md, A member that "
        "lies); the results of neither part are the run's"
    )


# Rules -----------------------------------------------------------------------------------------------


def _advance(s: State, now: float) -> State:
    if s.phase is Phase.LEFT or s.expired:
        return s
    if s.phase is Phase.JOINING or s.excluded:
        since = now if s.joining_since is None else s.joining_since
        s = replace(s, joining_since=since)
        if now - since < s.rules.patience:
            return s
        if s.phase is Phase.JOINING:
            return replace(s, expired=f"nobody has let it in for {s.rules.patience:g} s")
        why = "the others have gone on without it, and it was too busy to ask to be let in again for"
        return replace(s, expired=f"{why} {s.rules.patience:g} s")
    if s.phase is not Phase.CHANGING:
        if not _change_is_due(s, now):
            return s
        s = replace(
            _say(s, phase=Phase.CHANGING, promised=NO_BALLOT, accepted=None, proposal=None),
            change=Change(now, now),
        )
    return _vote(s, now)


def _change_is_due(s: State, now: float) -> bool:
    if s.all_finished:
        return False
    table = s.table
    return bool(
        s.record.suspects
        or s.record.hanging
        or s.useless
        or _joiners(s, now)
        or s.acceptors
        or any(quorum.has_left(s.view, table, m) for m in s.view.members)
    )


def _vote(s: State, now: float) -> State:
    """Promise, accept, and see whether a view is decided; else, in its turn, open a ballot or choose."""
    change = s.under_way
    if not change.long and now - change.since >= s.rules.round_time:
        s = replace(s, change=replace(change, long=True))
    top = quorum.highest_proposal(s.acceptors, _highest_round(s, now))
    if top is not None and top.ballot > s.record.promised:
        s = _say(_progress(s, now), promised=top.ballot)
    accepted = s.record.accepted
    if (
        top is not None
        and top.value is not None
        and top.ballot == s.record.promised
        and (accepted is None or accepted.ballot < top.ballot)
        and composing.is_sound(s.rules, s.view, top.value, s.record)
    ):
        s = _say(_progress(s, now), accepted=top)  # the others need a moment to see and accept it, too
    if (decided := quorum.decision(s.view, s.table)) is not None:
        return _advance(_learn(s, decided), now)
    if now - change.since >= s.rules.patience:
        here = [r.member for r in s.acceptors]
        return replace(
            s,
            expired=f"no agreement for {s.rules.patience:g} s: of the members {list(s.view.members)} of view "
            f"{s.view.number} only {here} are connected with this one",
        )
    own = s.record.proposal
    if own is not None and own.ballot == s.record.promised and own.value is None:
        return _choose(s, own.ballot, now)
    if _turn_has_come(s, now):
        return _open_ballot(s, now)
    return s


def _highest_round(s: State, now: float) -> int:
    """Return the highest round of a ballot to heed.

    Rounds are opened one after the other, so one that is far ahead is not true: if it were heeded, nobody
    could open a higher one. The limit grows with time, so that members with different promises meet again.
    """
    rounds = int((now - s.under_way.since) / s.rules.round_time)
    return s.record.promised.round + _AHEAD * (1 + rounds)


def _progress(s: State, now: float) -> State:
    return replace(s, change=replace(s.under_way, round_since=now))


def _open_ballot(s: State, now: float) -> State:
    ballot = Ballot(s.record.promised.round + 1, s.me)
    change = replace(s.under_way, round_since=now, promised_at=now, promises=0, rounds=s.under_way.rounds + 1)
    return _vote(_say(replace(s, change=change), promised=ballot, proposal=Proposal(ballot)), now)


def _turn_has_come(s: State, now: float) -> bool:
    """Tell whether to open a ballot: the lowest member that is not missed at once, each higher one later."""
    change, missing, promised = s.under_way, s.missed, s.record.promised
    rank = sum(1 for m in s.view.members if m < s.me and m not in missing)
    if promised == NO_BALLOT and rank == 0:
        return True
    if _waits(s, change, now):
        # The proposer waits for the missing member; another one takes over only if the proposer is missed.
        holder = s.table.get(promised.member)
        if holder is not None and holder.member not in missing and holder.proposal == Proposal(promised):
            return False
    longest = s.rules.round_time * (1.5 ** min(change.rounds, 4))
    return now - change.round_since >= longest * (1 + rank)


def _choose(s: State, ballot: Ballot, now: float) -> State:
    """Propose the next view if all members that can be hoped for have promised."""
    change = s.under_way
    promised = {r.member: r for r in s.acceptors if r.promised == ballot}
    if not quorum.is_quorum(promised, s.view.members):
        return s
    if len(promised) > change.promises:  # as long as promises come in, no slow member is left out
        change = replace(change, promises=len(promised), promised_at=now)
        s = replace(s, change=change)
    awaited = set(s.view.members) - promised.keys()
    if _waits(s, change, now):
        ready = awaited <= {r.member for r in _joiners(s, now)}
    else:
        likely = any(not _given_up(s, m, promised) for m in awaited)
        longest = s.rules.round_time if likely else s.rules.round_time / 4
        ready = not awaited or now - change.promised_at >= longest
    if not ready:
        return s
    # An earlier ballot may have decided already: the view accepted under the highest one stands.
    before = quorum.highest_accepted(promised.values())
    if before is None or before.value is None:
        # A member may have died after it promised: its promise counts, but it is in no view.
        dead = [m for m in promised if _given_up(s, m, promised)]
        value = composing.compose(s.rules, s.view, promised, dead, _joiners(s, now))
    else:
        value = before.value
    return _vote(_say(s, proposal=Proposal(ballot, value)), now)


def _waits(s: State, change: Change, now: float) -> bool:
    """Tell whether missing members are still waited for; half of the patience is left for the agreement."""
    return s.rules.wait and now - change.since < s.rules.patience / 2


def _joiners(s: State, now: float) -> list[Record]:
    """Return the records of the members that ask to be let in and can be, ascending."""
    asking = []
    for m, r in sorted(s.records.items()):
        former = s.view.incarnation(m)
        lives = r.phase is Phase.JOINING and now - s.heard[m] <= 2 * s.rules.round_time
        new = former is None or r.incarnation > former
        if lives and new and composing.can_join(s.rules, s.view, s.missed, r):
            asking.append(r)
    return asking


def _given_up(s: State, member: int, promised: Mapping[int, Record]) -> bool:
    """Tell whether ``member`` is gone, or missed by all its neighbours that have promised.

    If any of these neighbours still hears ``member``, its promise may be in transit.
    """
    near = [promised[m] for m in s.rules.around(member) & promised.keys()]
    missed = all(member in r.suspects or member in r.hanging for r in near)
    return quorum.gone(s.view, s.table, member) or (member in s.missed and missed)


def _allow_for_a_pause(s: State, now: float) -> State:
    """Move all deadlines later by the time that this member itself was suspended and could hear nobody."""
    pause = 0.0 if s.ran is None else now - s.ran
    s = s if s.ran == now else replace(s, ran=now)
    if pause <= 2 * s.rules.round_time:
        return s
    s = replace(s, heard={m: when + pause for m, when in s.heard.items()})
    if s.joining_since is not None:
        s = replace(s, joining_since=s.joining_since + pause)
    if (c := s.change) is not None:
        later = replace(
            c, since=c.since + pause, round_since=c.round_since + pause, promised_at=c.promised_at + pause
        )
        s = replace(s, change=later)
    return s


def _with(members: tuple[int, ...], member: int) -> tuple[int, ...]:
    return tuple(sorted({*members, member}))
