"""Quorums and decisions, as tables: which records decide what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pft_flower.agreement.quorum import (
    acceptors,
    decision,
    gone,
    highest_accepted,
    highest_proposal,
    is_quorum,
    missed,
    proves,
)
from p2pft_flower.agreement.record import Ballot, Composition, Phase, Proposal, Record, Step, Vote

VIEW = Composition(0, (0, 1, 2), (0, 0, 0))
NEXT = Composition(1, (0, 1), (0, 0))
LOW, HIGH = Ballot(1, 0), Ballot(2, 1)


def member(m, **says):
    return Record(m, 0, **{"phase": Phase.CHANGING} | says)


def table(*records):
    return {r.member: r for r in records}


@pytest.mark.parametrize(
    ("some", "members", "enough"),
    [
        ([1, 2], [1, 2, 3], True),
        ([1], [1, 2, 3], False),
        ([1], [1, 2], True),  # half, with the lowest
        ([2], [1, 2], False),
        ([2, 3, 9], [1, 2, 3, 4], False),  # 9 is no member
        ([0], [0], True),
        ([], [0], False),
    ],
)
def test_a_quorum_is_more_than_half_or_half_with_the_lowest(some, members, enough):
    assert is_quorum(some, members) is enough


def test_two_quorums_of_the_same_members_share_one():
    members = range(6)
    subsets = [[m for m in members if bits >> m & 1] for bits in range(2**6)]
    quorums = [set(s) for s in subsets if is_quorum(s, members)]
    assert all(a & b for a in quorums for b in quorums)


@pytest.mark.parametrize(
    "says",
    [
        {"phase": Phase.RUNNING},
        {"phase": Phase.LEFT},
        {"view": 1},
        {"incarnation": 1},
    ],
    ids=str,
)
def test_only_a_member_that_has_stopped_iterating_in_this_view_and_this_incarnation_votes(says):
    assert [r.member for r in acceptors(VIEW, table(member(0), replace(member(1), **says)))] == [0]


@pytest.mark.parametrize(
    ("accepted", "decided"),
    [
        ({0: (LOW, NEXT)}, None),
        ({0: (LOW, NEXT), 1: (LOW, NEXT)}, LOW),
        ({0: (LOW, NEXT), 1: (HIGH, NEXT)}, None),  # under different ballots
        ({0: (LOW, NEXT), 1: (HIGH, NEXT), 2: (HIGH, NEXT)}, HIGH),
        ({0: (LOW, NEXT._replace(number=5)), 1: (LOW, NEXT._replace(number=5))}, None),
    ],
    ids=str,
)
def test_a_view_is_decided_once_a_quorum_has_accepted_it_under_one_ballot(accepted, decided):
    records = [member(m, accepted=Proposal(*a), vote=b"by %d" % m) for m, a in accepted.items()]
    step = decision(VIEW, table(*records))
    if decided is None:
        assert step is None
    else:
        voters = [m for m, (ballot, _) in accepted.items() if ballot == decided]
        assert step == Step(NEXT, decided, tuple(Vote(m, 0, b"by %d" % m) for m in voters))
        assert proves(step, VIEW)


STEP = Step(NEXT, LOW, (Vote(0, 0), Vote(2, 0)))


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (STEP._replace(votes=(Vote(2, 0),)), "no quorum"),
        (STEP._replace(votes=(Vote(2, 0), Vote(2, 0))), "the same vote twice"),
        (STEP._replace(votes=(Vote(0, 0), Vote(2, 7))), "a vote of another incarnation"),
        (STEP._replace(votes=(Vote(0, 0), Vote(9, 0))), "a vote of no member"),
        (STEP._replace(value=NEXT._replace(number=2)), "a view that does not follow"),
        (STEP._replace(value=NEXT._replace(number=0)), "the same view"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_step_without_a_quorum_of_the_view_before_it_proves_nothing(step, why):
    assert proves(STEP, VIEW)
    assert not proves(step, VIEW), why


def test_what_was_accepted_under_the_highest_ballot_must_be_proposed_again():
    other = NEXT._replace(iteration=3)
    records = [member(0, accepted=Proposal(LOW, NEXT)), member(1, accepted=Proposal(HIGH, other)), member(2)]
    assert highest_accepted(records) == Proposal(HIGH, other)
    assert highest_accepted([member(2)]) is None


def test_the_highest_ballot_is_heeded():
    records = [member(0, proposal=Proposal(LOW, NEXT)), member(1, proposal=Proposal(HIGH))]
    assert highest_proposal(records, 2) == Proposal(HIGH)
    assert highest_proposal(records, 1) == Proposal(LOW, NEXT)  # the other is too far ahead
    assert highest_proposal([], 2) is None


@pytest.mark.parametrize(
    ("record", "is_gone"),
    [
        (None, False),
        (member(1), False),
        (member(1, phase=Phase.LEFT), True),
        (replace(member(1), incarnation=1), True),  # begun anew: it never votes on what follows this view
        (replace(member(1, phase=Phase.JOINING), incarnation=1), True),
    ],
    ids=str,
)
def test_a_member_that_left_or_began_anew_is_gone(record, is_gone):
    assert gone(VIEW, {} if record is None else {1: record}, 1) is is_gone


def test_a_member_that_left_in_an_earlier_incarnation_is_there():
    view = Composition(3, (0, 1), (0, 2))
    assert not gone(view, {1: Record(1, 1, phase=Phase.LEFT)}, 1)
    assert gone(view, {1: Record(1, 2, phase=Phase.LEFT)}, 1)


def test_who_is_missed_is_said_by_those_that_vote_and_never_by_oneself():
    records = table(
        member(0, suspects=(2,)), member(1, hanging=(0,)), replace(member(2), phase=Phase.RUNNING)
    )
    assert missed(VIEW, records, 0) == {2}
    assert missed(VIEW, records, 1) == {0, 2}
