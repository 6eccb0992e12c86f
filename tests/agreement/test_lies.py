"""What one member of three that lies in its record cannot do to the two that do not."""

from __future__ import annotations

import pytest

from p2pft_flower.agreement.events import Effect
from p2pft_flower.agreement.record import Ballot, Composition, Phase, Proposal, Record, Step, Vote
from p2pft_flower.host.records import decode, encode
from p2pft_flower.topology import Graph

from .machine import Machine

GROUPS = {m: (m,) for m in range(3)}
GRAPH = Graph.load("complete:3")
ROUND = 1.0
FIVE, GROUPS_OF_FIVE = Graph.load("complete:5"), {m: (m,) for m in range(5)}
VIEW = Composition(1, (0, 1, 2), (0, 0, 0))
LAST = 2**63  # no number of a record is greater


def changing(**says):
    return Record(2, 0, version=1, phase=Phase.CHANGING, **says)


LIES = {
    "the last ballot of all": changing(promised=Ballot(LAST, 2), proposal=Proposal(Ballot(LAST, 2))),
    "a view under it": changing(promised=Ballot(LAST, 2), proposal=Proposal(Ballot(LAST, 2), VIEW)),
    "a view accepted under it": changing(promised=Ballot(LAST, 2), accepted=Proposal(Ballot(LAST, 2), VIEW)),
    "a ballot far ahead": changing(promised=Ballot(2**31, 2), proposal=Proposal(Ballot(2**31, 2))),
    "one as far ahead as is heeded": changing(promised=Ballot(2**20, 2), proposal=Proposal(Ballot(2**20, 2))),
    "a ballot that it never ends": changing(promised=Ballot(1, 2), proposal=Proposal(Ballot(1, 2))),
    "it misses the others": changing(suspects=(0, 1)),
}


@pytest.mark.parametrize("name", LIES)
def test_the_others_agree_whatever_it_says_once(name):
    lie = decode(encode(LIES[name]), GROUPS, 100)  # within the bounds
    honest = [Machine.born(m, GRAPH, GROUPS, ROUND, 1000.0) for m in (0, 1)]
    for machine in honest:
        machine.hear([lie], 0.0)
    for tick in range(1, 120):
        for one, other in (honest, honest[::-1]):
            one.tick(float(tick))
            # As it comes over the wire: what is beyond the bounds is refused there.
            one.hear([decode(encode(r), GROUPS, 100) for r in other.news(one.me)], float(tick), other.steps)
    assert {m.view.number for m in honest} == {1}
    assert honest[0].view == honest[1].view


def gone_on(part):
    """Return the members of a part of five that have decided on a view without the others."""
    machines = {m: Machine.born(m, FIVE, GROUPS_OF_FIVE, ROUND, 1000.0) for m in part}
    for machine in machines.values():
        for away in GROUPS_OF_FIVE.keys() - set(part):
            machine.suspect(away, 0.0)
    for tick in range(1, 60):
        for machine in machines.values():
            machine.tick(float(tick))
            for other in machines.values():
                if other is not machine:
                    machine.hear(other.news(machine.me), float(tick), other.steps_for(machine.me), other.me)
    assert all(machine.view.members == part for machine in machines.values())
    return machines


def test_two_parts_that_one_member_let_decide_on_a_view_each_find_it_out_when_they_meet_and_all_give_up():
    one, other = gone_on((0, 1, 4)), gone_on((2, 3, 4))  # member 4 votes in both
    other[2].hear([one[0].record], 60.0, (), 0)
    assert not other[2].hopeless, "that it is in another view says nothing: it may just have been left out"
    one[0].hear([other[2].record], 60.0, other[2].steps_for(0), 2)
    told = (
        "view 1 was decided twice, for the members [0, 1, 4] and for [2, 3, 4]: one of the members [4], "
        "which have voted for both, or member 2, which proposed the second one, has lied"
    )
    assert told in one[0].hopeless
    assert Effect.PAUSE in one[0].effects
    assert not one[0].trains
    assert not one[0].complete(5)
    for m, by in ((1, one[0]), (2, one[0]), (3, other[2])):
        machine = {**other, **one}[m]
        machine.hear([], 61.0, by.steps_for(m), by.me)
        assert "view 1 was decided twice" in machine.hopeless, m


def fork():
    """Return two decided steps to view 1, the first of which has members of both parts."""
    first = Machine.born(0, FIVE, GROUPS_OF_FIVE, ROUND, 1000.0).newest
    whole = first._replace(number=1, iteration=5)
    part = Composition(1, (2, 3, 4), (0, 0, 0), iteration=6)
    return (
        Step(whole, Ballot(1, 0), tuple(Vote(m, 0) for m in (0, 1, 4))),
        Step(part, Ballot(2, 2), tuple(Vote(m, 0) for m in (2, 3, 4))),
    )


def test_the_proof_reaches_also_those_who_are_in_both_views():
    one, other = fork()
    zero, two = (Machine.born(m, FIVE, GROUPS_OF_FIVE, ROUND, 1000.0) for m in (0, 2))
    zero.hear([], 1.0, [one], 1)
    two.hear([], 1.0, [other], 3)
    zero.hear([two.record], 2.0, [other], 2)
    assert "view 1 was decided twice" in zero.hopeless
    two.hear([zero.record], 3.0, zero.steps_for(2), 0)
    assert "view 1 was decided twice" in two.hopeless


def test_who_is_far_behind_learns_neither_of_two_views_without_the_other():
    chain = [Step(Composition(0, tuple(range(5)), (0,) * 5), Ballot(1, 0), ())]
    for number in range(1, 10):
        value = chain[-1].value._replace(number=number, iteration=number)
        chain.append(Step(value, Ballot(1, 0), tuple(Vote(m, 0) for m in range(5))))
    contradicting = chain[9]._replace(value=chain[9].value._replace(iteration=99), ballot=Ballot(2, 1))
    ahead, behind = (Machine.born(m, FIVE, GROUPS_OF_FIVE, ROUND, 1000.0) for m in (0, 1))
    ahead.hear([behind.record], 1.0, [*chain[1:], contradicting], 2)
    assert "view 9 was decided twice" in ahead.hopeless
    behind.hear([], 2.0, ahead.steps_for(1), 0)
    assert behind.view.iteration == 9
    assert "view 9 was decided twice" in behind.hopeless


def test_a_member_that_was_left_out_hears_of_that_again_and_again_and_no_lie_is_seen_in_it():
    one, late = gone_on((0, 1, 4)), Machine.born(2, FIVE, GROUPS_OF_FIVE, ROUND, 1000.0)
    for now in (60.0, 61.0, 62.0):
        late.hear([one[0].record], now, one[0].steps_for(2), 0)
        one[0].hear([late.record], now, late.steps_for(0), 2)
        assert late.excluded
        assert not late.hopeless
    assert len(one[0].steps_for(2)) == 1
    late.rejoin(63.0)
    one[0].hear([late.record], 63.0, late.steps_for(0), 2)
    assert one[0].steps_for(2) == ()
    assert one[0].trains or one[0].phase is Phase.CHANGING


def test_a_step_without_the_votes_of_a_quorum_contradicts_nothing():
    one, other = gone_on((0, 1, 4)), gone_on((2, 3, 4))
    (step,) = other[2].steps
    one[0].hear([], 60.0, [step._replace(votes=step.votes[:2])], 2)
    assert not one[0].hopeless
    assert one[0].trains
