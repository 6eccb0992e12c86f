"""The next view, composed from the promises of a quorum, and the rules to accept one: pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from statistics import median_low

from p2pft_flower.agreement.record import Composition, Edge, Record
from p2pft_flower.agreement.rules import Rules

__all__ = ["can_join", "compose", "is_sound"]


def compose(
    rules: Rules,
    view: Composition,
    promised: Mapping[int, Record],
    dead: Iterable[int],
    joiners: Iterable[Record],
) -> Composition:
    """Return the view to propose.

    Members that hang, or that have died since they promised, are left out; so are members that working edges
    do not connect with the others. The view begins with the highest plausible number of iterations that any
    of its members has completed.

    Parameters
    ----------
    rules : Rules
        The rules of the run.
    view : Composition
        The view before the one to propose.
    promised : mapping of int to Record
        The records of the members that have promised, a quorum of ``view``.
    dead : iterable of int
        Members among ``promised`` that have gone, or that none of their neighbours hears any more.
    joiners : iterable of Record
        The records of the members that ask to be let in, ascending.
    """
    out = {m for r in promised.values() for m in r.hanging} | set(dead)
    stay = [m for m in sorted(promised) if m not in out] or sorted(promised)
    broken = {*view.broken, *(e for r in promised.values() for e in r.broken)}
    stay, broken = _connected(rules, stay, broken)
    iteration = _first_iteration(rules, [promised[m] for m in stay])
    joined: dict[int, Record] = {}
    for joiner in joiners:
        if (grown := _with_joiner(rules, stay, broken, joiner)) is not None:
            stay, broken = grown
            joined[joiner.member] = joiner
    donors = tuple(_donor(rules, stay, broken, joined, r) for r in joined.values())
    lives = {**promised, **joined}
    return Composition(
        view.number + 1,
        tuple(stay),
        tuple(lives[m].incarnation for m in stay),
        tuple(sorted(broken)),
        iteration,
        tuple(joined),
        donors,
    )


def can_join(rules: Rules, view: Composition, missed: Collection[int], joiner: Record) -> bool:
    """Tell whether working edges can connect ``joiner`` with the members of ``view`` that are not missed."""
    others = [m for m in view.members if m not in missed and m != joiner.member]
    return bool(others) and _with_joiner(rules, others, set(view.broken), joiner) is not None


def is_sound(rules: Rules, view: Composition, value: Composition, own: Record) -> bool:
    """Tell whether a member, whose record is ``own``, can accept that ``value`` follows ``view``.

    An honest proposer proposes only sound views. So a member that lies cannot make the others skip
    iterations.
    """
    before, joined = set(view.members), set(value.joined)
    old = [m for m in value.members if m not in joined]
    inside = rules.peers(value.members)
    stays = own.member in old
    return (
        value.number == view.number + 1
        and bool(old)
        and before.issuperset(old)
        and all(value.incarnation(m) == view.incarnation(m) for m in old)
        and not any(value.incarnation(m) == view.incarnation(m) for m in joined)
        and all(inside.issuperset(e) for e in value.broken)
        and rules.peers(old).issuperset(value.donors)
        and set(rules.view(value.members, value.broken).peers) == inside
        and abs(value.iteration - own.iteration) <= rules.apart
        and (not stays or value.iteration >= own.iteration)
    )


def _first_iteration(rules: Rules, stay: list[Record]) -> int:
    """Return the highest plausible number of iterations that a member of ``stay`` has completed.

    A receiver is at most one iteration ahead of its sender; with weights that change, at most one period. So
    in a strongly connected graph of n peers no two members are n iterations, or n periods, apart. A number
    that is further from the median is not true, and not used.
    """
    middle = median_low(r.iteration for r in stay)
    return max(r.iteration for r in stay if abs(r.iteration - middle) <= rules.apart)


def _connected(rules: Rules, members: Iterable[int], broken: Iterable[Edge]) -> tuple[list[int], set[Edge]]:
    """Return those of ``members`` that the graph connects, and the broken edges among them.

    If no member were left, the last set that has any is returned.
    """
    stay = list(members)
    while True:
        inside = rules.peers(stay)
        among = {e for e in broken if inside.issuperset(e)}
        held = set(rules.view(stay, among).peers)
        rest = [m for m in stay if held.issuperset(rules.groups[m])]
        if rest == stay or not rest:  # a host whose peers the graph tears apart is left out whole
            return stay, among
        stay = rest


def _with_joiner(
    rules: Rules, members: list[int], broken: set[Edge], joiner: Record
) -> tuple[list[int], set[Edge]] | None:
    """Return the members and broken edges with ``joiner`` added; None if they cannot all be connected."""
    own = rules.peers([joiner.member])
    far = rules.between([joiner.member], [m for m in members if m not in joiner.reaches])
    wanted = sorted({*members, joiner.member})
    stay, among = _connected(rules, wanted, {e for e in broken if own.isdisjoint(e)} | far)
    return (stay, among) if stay == wanted else None


def _donor(
    rules: Rules, stay: list[int], broken: set[Edge], joined: Mapping[int, Record], joiner: Record
) -> int:
    """Return the peer that ``joiner`` takes θ from: an in-neighbour, else one that it reaches, else any."""
    old = rules.peers(m for m in stay if m not in joined)
    near = old.intersection(rules.view(stay, broken).row(rules.groups[joiner.member][0]))
    reached = rules.peers(m for m in joiner.reaches if m in stay and m not in joined)
    return min(near or reached or old)
