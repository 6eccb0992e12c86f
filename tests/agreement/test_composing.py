"""The next view, as tables: who is in it, over which edges, from which iteration, and who accepts it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pft_flower.agreement.composing import can_join, compose, is_sound
from p2pft_flower.agreement.record import Composition, Phase, Record
from p2pft_flower.agreement.rules import Rules
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled

GROUPS = {m: (m,) for m in range(4)}
RING = Rules(Graph.load("ring:4"), GROUPS, 1.0, 10.0)
ALL = Composition(0, (0, 1, 2, 3), (0, 0, 0, 0))


def promised(**done):
    return {int(m[1:]): Record(int(m[1:]), 0, phase=Phase.CHANGING, iteration=k) for m, k in done.items()}


def joiner(m, *reaches):
    return Record(m, 1, phase=Phase.JOINING, reaches=reaches)


def test_those_that_have_promised_go_on_from_the_most_iterations_of_any_of_them():
    value = compose(RING, ALL, promised(m0=5, m1=6, m3=4), [], [])
    assert value == Composition(1, (0, 1, 3), (0, 0, 0), (), 6)


@pytest.mark.parametrize(
    ("iterations", "begins"),
    [
        ({"m0": 5, "m1": 6, "m2": 5, "m3": 10**6}, 6),
        ({"m0": 5, "m1": 6, "m2": 0, "m3": 5}, 6),
        ({"m0": 5, "m1": 6, "m2": 9, "m3": 5}, 9),  # as far as is possible on four peers
    ],
    ids=str,
)
def test_an_iteration_that_nobody_can_have_reached_is_not_used(iterations, begins):
    assert compose(RING, ALL, promised(**iterations), [], []).iteration == begins


def test_where_weights_change_members_may_be_further_apart_by_a_period_an_edge():
    turns = Rules(scheduled(Graph.load("ring:4"), "one-peer-exponential"), GROUPS, 1.0, 10.0)
    far = {"m0": 5, "m1": 6, "m2": 13, "m3": 5}  # twice as far as on a graph that does not change
    assert compose(turns, ALL, promised(**far), [], []).iteration == 13
    assert compose(RING, ALL, promised(**far), [], []).iteration == 6
    assert compose(turns, ALL, promised(**far | {"m2": 14}), [], []).iteration == 6


def test_a_member_that_hangs_or_died_after_its_promise_is_left_out():
    records = promised(m0=1, m1=1, m2=1, m3=1)
    records[0] = replace(records[0], hanging=(2,))
    assert compose(RING, ALL, records, [3], []).members == (0, 1)


def test_broken_edges_of_those_that_promised_and_of_the_view_before_stay_broken():
    records = promised(m0=1, m1=1, m2=1, m3=1)
    records[0] = replace(records[0], broken=((0, 1),))
    before = ALL._replace(broken=((2, 3),))
    assert compose(RING, before, records, [], []).broken == ((0, 1), (2, 3))


def test_a_member_that_no_edge_connects_any_more_is_left_out():
    records = promised(m0=1, m1=1, m2=1, m3=1)
    cut = tuple(sorted(RING.between([3], [0, 1, 2])))
    records[3] = replace(records[3], broken=cut)
    assert compose(RING, ALL, records, [], []).members == (0, 1, 2)


@pytest.mark.parametrize(
    ("reaches", "joins", "donor"),
    [((0, 2), True, 0), ((2,), True, 2), ((0, 1, 2), True, 0), ((), False, None)],
    ids=str,
)
def test_a_joining_member_is_let_in_if_it_is_connected_and_takes_theta_from_an_in_neighbour(
    reaches, joins, donor
):
    view = Composition(1, (0, 1, 2), (0, 0, 0))
    assert can_join(RING, view, (), joiner(3, *reaches)) is joins
    value = compose(RING, view, promised(m0=7, m1=7, m2=7), [], [joiner(3, *reaches)])
    assert (3 in value.members) is joins
    assert value.donor(3) == donor
    assert value.iteration == 7
    if joins:
        assert (value.joined, value.incarnation(3)) == ((3,), 1)


def test_a_host_of_several_peers_is_left_out_whole():
    rules = Rules(Graph.load("directed-ring:4"), {0: (0,), 1: (1, 2), 3: (3,)}, 1.0, 10.0)
    view = rules.first
    records = {m: Record(m, 0, phase=Phase.CHANGING) for m in (0, 1, 3)}
    records[1] = replace(
        records[1], broken=tuple(sorted({(1, p) for p in (0, 2, 3)} | {(p, 1) for p in (0, 2, 3)}))
    )
    assert compose(rules, view, records, [], []).members == (0, 3)


OWN = Record(1, 0, phase=Phase.CHANGING, iteration=6)
SOUND = compose(RING, ALL, promised(m0=5, m1=6, m3=4), [], [joiner(2, 1, 3)])


def test_what_an_honest_member_composes_is_sound_to_all_that_voted():
    for m, k in ((0, 5), (1, 6), (3, 4)):
        assert is_sound(RING, ALL, SOUND, Record(m, 0, phase=Phase.CHANGING, iteration=k))


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 2},
        {"iteration": 5},  # before what this member has done
        {"iteration": 11},  # more than anybody can have done
        {"iteration": 10**6},
        {"incarnations": (0, 3, 1, 0)},  # this member's own is 0
        {"members": (2,), "incarnations": (1,)},  # nobody of the view before
        {"donors": (2,)},  # itself
        {"broken": ((0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0))},  # not connected
        {"members": (0, 1, 3), "incarnations": (0, 0, 0), "joined": (), "donors": (), "broken": ((2, 1),)},
        {"joined": (), "donors": (), "incarnations": (0, 0, 1, 0)},  # an incarnation nobody let in
    ],
    ids=str,
)
def test_what_no_honest_member_composes_is_not_accepted(changes):
    assert is_sound(RING, ALL, SOUND, OWN)
    assert not is_sound(RING, ALL, SOUND._replace(**changes), OWN)
