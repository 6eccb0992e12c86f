"""Quorums, and decisions read from a table of records: pure functions, the part that safety rests on.

A *table* maps each member to its newest record. The members of view v agree on view v + 1 by Paxos (Lamport,
1998) in its shared-memory form (Disk Paxos: Gafni & Lamport, 2003). Any two quorums of a view have a member
in common, so no two views are ever decided to follow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from p2pft_flower.agreement.record import Composition, Phase, Proposal, Record, Step, Vote

__all__ = [
    "acceptors",
    "decision",
    "gone",
    "has_left",
    "highest_accepted",
    "highest_proposal",
    "is_quorum",
    "missed",
    "proves",
]

Table = Mapping[int, Record]


def is_quorum(some: Iterable[int], members: Iterable[int]) -> bool:
    """Tell whether ``some`` are more than half of ``members``, or half of them with the lowest."""
    all_of, part = set(members), set(some) & set(members)
    return 2 * len(part) > len(all_of) or (2 * len(part) == len(all_of) and min(all_of) in part)


def acceptors(view: Composition, table: Table) -> list[Record]:
    """Return the records of the members of ``view`` that vote on the next view, ascending."""
    return [
        r
        for m in view.members
        if (r := table.get(m)) is not None
        and r.view == view.number
        and r.phase is Phase.CHANGING
        and r.incarnation == view.incarnation(m)
    ]


def highest_proposal(records: Iterable[Record], most: int) -> Proposal | None:
    """Return the proposal of the highest ballot, of round ``most`` at most, in ``records``; else None."""
    proposals = (r.proposal for r in records if r.proposal is not None and r.proposal.ballot.round <= most)
    return max(proposals, default=None, key=lambda p: p.ballot)


def highest_accepted(promised: Iterable[Record]) -> Proposal | None:
    """Return the proposal that has been accepted under the highest ballot in ``promised``; None if none has.

    The proposer must repeat this proposal's view.
    """
    return max((r.accepted for r in promised if r.accepted is not None), default=None, key=lambda p: p.ballot)


def decision(view: Composition, table: Table) -> Step | None:
    """Return the step to the view that a quorum of ``view`` has accepted under one ballot; else None."""
    votes: dict[Proposal, list[Vote]] = {}
    for r in acceptors(view, table):
        if r.accepted is not None:
            votes.setdefault(r.accepted, []).append(Vote(r.member, r.incarnation, r.vote))
    for (ballot, value), cast in votes.items():
        if value is not None and proves(step := Step(value, ballot, tuple(cast)), view):
            return step
    return None


def proves(step: Step, view: Composition) -> bool:
    """Tell whether ``step`` proves that a quorum of ``view`` has decided on the next view.

    The host checks the signatures of the votes when it receives the step (``host/notary.py``).
    """
    voters = [v.member for v in step.votes]
    return (
        step.value.number == view.number + 1
        and len(set(voters)) == len(voters)
        and all(view.incarnation(v.member) == v.incarnation for v in step.votes)
        and is_quorum(voters, view.members)
    )


def gone(view: Composition, table: Table, member: int) -> bool:
    """Tell whether ``member`` has left in the incarnation that is in ``view``, or has begun a later one."""
    r, life = table.get(member), view.incarnation(member)
    return r is not None and life is not None and (r.incarnation > life or has_left(view, table, member))


def has_left(view: Composition, table: Table, member: int) -> bool:
    """Tell whether ``member`` has left in the very incarnation that is in ``view``."""
    r = table.get(member)
    return r is not None and r.phase is Phase.LEFT and r.incarnation == view.incarnation(member)


def missed(view: Composition, table: Table, me: int) -> set[int]:
    """Return the members, other than ``me``, that are gone from ``view`` or that a voting member misses."""
    lost = {m for m in view.members if gone(view, table, m)}
    for r in acceptors(view, table):
        lost.update(r.suspects, r.hanging)
    return lost - {me}
