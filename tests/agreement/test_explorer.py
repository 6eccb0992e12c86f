"""The agreement in every order of events: all states that a small scope can reach, one after the other.

Three members agree on what follows their view. Any gossip may come at any moment, again, or never; one member
may crash, and may be started again; members miss each other; each may find that a ballot takes too long. What
must hold is checked in each state, not along some random ways.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import pytest

from p2pft_flower.agreement import quorum
from p2pft_flower.agreement.events import Heard, Missed, Reached, TimePassed
from p2pft_flower.agreement.member import step
from p2pft_flower.agreement.record import Phase
from p2pft_flower.agreement.rules import Rules
from p2pft_flower.agreement.state import begin, join
from p2pft_flower.topology import Graph

GROUPS = {m: (m,) for m in range(3)}
ROUND, PATIENCE = 1.0, 1e9
STEP = 100.0
"""Seconds by which a member's clock goes on at once: longer than any of its rounds."""


def after(member, *events, now):
    """Return a member's state after events that come at once."""
    for event in events:
        member, _ = step(member, event, now)
    return member


class Member(NamedTuple):
    """A member's machine and its clock; ``key`` is the same for all that later events cannot tell apart."""

    machine: object
    clock: float
    key: int


class Members:
    """Each member that was seen, once; and what each event makes of it, so that it is computed once."""

    def __init__(self):
        self._known, self._after = {}, {}

    def of(self, machine, clock):
        """Return the member with this machine and clock."""
        joins = any(r.phase is Phase.JOINING for r in machine.records.values())
        heard = tuple(sorted(machine.heard.items())) if joins else ()
        records = tuple(machine.table.values())
        what = (
            machine.me,
            records,
            machine.view,
            machine.steps,
            machine.change,
            machine.joining_since,
            machine.useless,
            heard,
            clock,
        )
        return self._known.setdefault(what, Member(machine, clock, len(self._known)))

    def after(self, member, *events, key, clock=None):
        """Return a member after events that come at once; ``key`` tells them from others."""
        found = self._after.get((member.key, key))
        if found is None:
            now = member.clock if clock is None else clock
            # It has not slept.
            machine = member.machine if clock is None else replace(member.machine, ran=clock)
            found = self._after[member.key, key] = self.of(after(machine, *events, now=now), now)
        return found


class State(NamedTuple):
    """Members, each with a clock of its own; None where one has crashed."""

    members: tuple
    clocks: tuple
    crashes: int = 0
    restarts: int = 0

    def with_(self, me, member, **counts):
        members, clocks = list(self.members), list(self.clocks)
        members[me] = member
        if member is not None:
            clocks[me] = member.clock
        return self._replace(members=tuple(members), clocks=tuple(clocks), **counts)

    @property
    def key(self):
        """What tells this state from others: all that a later event can depend on."""
        members = (None if m is None else m.key for m in self.members)
        return (*members, self.clocks, self.crashes, self.restarts)


def next_states(state, scope, known):
    """Yield each event that may come next, by its name, and the state after it."""
    for a, b in itertools.permutations(range(3), 2):
        sender, receiver = state.members[a], state.members[b]
        if sender is None or receiver is None or {a, b} in scope["cut"]:
            continue
        told = Heard((sender.machine.record,), sender.machine.steps)
        heard = known.after(receiver, told, key=("hears", sender.key))
        if heard.machine.table != receiver.machine.table:
            yield f"{b} hears {a}", state.with_(b, heard)
    for m, there in enumerate(state.members):
        if there is None:
            if state.restarts < scope["restarts"]:
                again = known.of(join(scope["rules"], m, 1), state.clocks[m])
                yield f"{m} is started again", state.with_(m, again, restarts=state.restarts + 1)
            continue
        machine = there.machine
        if sum(state.clocks) < scope["waits"] * STEP and machine.record.phase in (
            Phase.CHANGING,
            Phase.JOINING,
        ):
            others = tuple(o for o in range(3) if o != m and state.members[o] is not None)
            clock = there.clock + STEP
            waited = known.after(there, Reached(others), TimePassed(), key=("waits", others), clock=clock)
            yield f"{m} has waited", state.with_(m, waited)
        for other in scope["missed"].get(m, ()):
            changes = machine.record.phase in (Phase.RUNNING, Phase.CHANGING)
            if changes and machine.view.number == 0 and other not in machine.record.suspects:
                missed = known.after(there, Missed(other), key=("misses", other))
                yield f"{m} misses {other}", state.with_(m, missed)
        if state.crashes < scope["crashes"] and m in scope["may_crash"]:
            yield f"{m} crashes", state.with_(m, None, crashes=state.crashes + 1)


def check(state):
    """Assert what must hold in a state."""
    decided, values = {}, {}
    for member in state.members:
        if member is None:
            continue
        for value in (member.machine.view, *(s.value for s in member.machine.steps)):
            assert decided.setdefault(value.number, value) == value
        for record in member.machine.table.values():
            for proposal in (record.accepted, record.proposal):
                if proposal is not None and proposal.value is not None:
                    key = record.view, proposal.ballot
                    assert values.setdefault(key, proposal.value) == proposal.value


def check_step(before, after):
    """Assert what must hold between two states: in one life and view no promise is taken back."""
    for old, new in zip(before.members, after.members, strict=True):
        if old is None or new is None or old is new:
            continue
        a, b = old.machine.record, new.machine.record
        if (a.incarnation, a.view, a.phase) == (b.incarnation, b.view, b.phase):
            assert b.promised >= a.promised
            assert a.accepted is None or b.accepted.ballot >= a.accepted.ballot


def events(way):
    """Return the names of the events of a way, which is a chain of them."""
    names = []
    while way:
        way, name = way
        names.append(name)
    return names[::-1]


def explore(scope):
    """Visit every state; return how many there are, and the views that were agreed on."""
    known = Members()
    first = State(tuple(known.of(begin(scope["rules"], m), 0.0) for m in range(3)), (0.0,) * 3)
    seen, todo, views = {first.key}, [(first, ())], set()
    while todo:
        state, way = todo.pop()
        for name, reached in next_states(state, scope, known):
            key = reached.key
            if key in seen:
                continue
            seen.add(key)
            further = (way, name)
            try:
                check(reached)
                check_step(state, reached)
            except AssertionError as error:
                raise AssertionError(f"after {', '.join(events(further))}") from error
            machines = [m.machine for m in reached.members if m is not None]
            views |= {(m.view.number, m.view.members) for m in machines if m.steps}
            todo.append((reached, further))
    return len(seen), views


RULES = Rules(Graph.load("complete:3"), GROUPS, ROUND, PATIENCE)
SCOPES = {
    "one misses another that lives": {"missed": {0: (2,)}, "waits": 1},
    "and the proposer crashes": {"missed": {0: (2,)}, "waits": 1, "crashes": 1, "may_crash": (0,)},
    "and the one that is missed crashes and is started again": {
        "missed": {0: (2,)},
        "waits": 1,
        "crashes": 1,
        "may_crash": (2,),
        "restarts": 1,
    },
}
HALVES = {"missed": {0: (1, 2), 1: (0,), 2: (0,)}, "cut": [{0, 1}, {0, 2}], "waits": 4}
NOTHING = {"rules": RULES, "cut": (), "waits": 0, "crashes": 0, "may_crash": (), "restarts": 0}


@pytest.mark.parametrize("name", SCOPES)
def test_in_no_order_of_events_two_views_are_agreed_on_or_a_promise_is_taken_back(name, record_property):
    states, views = explore(NOTHING | SCOPES[name])
    record_property("states", states)
    print(f"{name}: {states} states; views {sorted(views)}")
    assert states > 10_000
    assert {(1, (0, 1)), (1, (0, 1, 2))} <= views  # the scope reaches what it is about


def test_of_two_halves_only_the_one_that_is_a_quorum_agrees_on_a_view():
    states, views = explore(NOTHING | HALVES)
    assert states > 100
    assert views == {(1, (1, 2))}


def test_the_explorer_finds_what_a_broken_quorum_leads_to(monkeypatch):
    monkeypatch.setattr(quorum, "is_quorum", lambda some, members: bool(set(some)))
    with pytest.raises(AssertionError, match="after "):
        explore(NOTHING | HALVES)
