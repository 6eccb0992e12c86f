"""The members with which a member gossips, and the content of its gossip to each."""

from __future__ import annotations

from bisect import bisect

from p2pft_flower.agreement.record import Age, Phase, Record, Step
from p2pft_flower.agreement.state import State

__all__ = ["CONTACTS", "contacts", "known", "near", "news", "steps"]

CONTACTS = 8
"""Number of other members that take their turn at once; an eighth of them if that is more."""

_STEPS_AT_ONCE = 8
"""The most steps that one gossip carries."""


def contacts(state: State) -> tuple[int, ...]:
    """Return the members to gossip with, ascending: neighbours, and members past those that are missing.

    If a neighbour is missing, its neighbours are contacts too, and so on, past all members known to be
    missing. In a change that lasts longer than a round all other members take turns, some of them (see
    :data:`CONTACTS`) between two ticks. For a joining member all others are contacts at once. A member that
    has finished stays as long as it hears members that still train, so these are its contacts too.
    """
    groups, me = state.rules.groups, state.me
    others = [m for m in sorted(groups) if m != me]
    if state.phase is Phase.JOINING:
        return tuple(others)
    there = set(state.view.members) - state.missed - set(state.record.suspects)
    seen, queue = {me}, [me]
    while queue:
        for other in state.rules.around(queue.pop()) - seen:
            seen.add(other)
            if other not in there:
                queue.append(other)
    if state.phase is Phase.FINISHED:
        seen.update(state.unfinished)
    if state.change is not None and state.change.long:
        some = min(max(CONTACTS, -(-len(others) // 8)), len(others))
        # Each begins with those after it: not all turn to the same ones.
        first = bisect(others, me) + state.ticks * some
        seen.update(others[(first + k) % len(others)] for k in range(some))
    return tuple(sorted(seen - {me}))


def near(state: State) -> tuple[int, ...]:
    """Return the members of the newest known view that an edge of the whole graph joins to this member."""
    return tuple(sorted(state.rules.around(state.me).intersection(state.newest.members) - {state.me}))


def known(state: State) -> dict[int, Age]:
    """Return the age of each record that this member has, by author; empty while this member trains."""
    return {} if state.phase is Phase.RUNNING else {m: r.age for m, r in state.table.items()}


def news(state: State, other: int) -> list[Record]:
    """Return the records to send to the member ``other``.

    These are the records that are newer than the ages that ``other`` has sent (van Renesse et al., Efficient
    Reconciliation and Flow Control for Anti-Entropy Protocols, 2008). While this member trains, or if
    ``other`` has sent no ages yet, only this member's own record is sent. A member that trains sends no ages.
    """
    there = state.known.get(other)
    if there is None or state.phase is Phase.RUNNING:
        return [state.record]
    return [r for m, r in state.table.items() if m not in there or there[m] < r.age]


def steps(state: State, other: int) -> tuple[Step, ...]:
    """Return the first steps, eight at most, to the views after the newest one that ``other`` has named.

    If ``other`` takes part in a view of that number or a later one, and the views known here are without it,
    it may have gone on in other ones. Then the step that left it out comes first. Two steps that contradict
    each other are for everybody, and come last.
    """
    r = state.records.get(other)
    first = 0 if r is None else r.view
    told = state.steps[first : first + _STEPS_AT_ONCE]
    if r is not None and r.phase not in (Phase.JOINING, Phase.LEFT):
        views = (step.value for step in reversed(state.steps))
        last = next((v.number for v in views if v.incarnation(other) == r.incarnation), 0)
        told = (*state.steps[last : min(last + 1, first)], *told)
    if (other_one := state.contradiction) is not None:
        told = (*told, state.steps[other_one.value.number - 1], other_one)
    return told
