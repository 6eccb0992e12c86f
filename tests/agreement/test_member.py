"""Agreement on views in simulated time: crashes, hangs, delays, losses, partitions, restarts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.agreement.gossip import CONTACTS
from p2pft_flower.agreement.quorum import is_quorum
from p2pft_flower.agreement.record import Ballot, Composition, Phase, Step, Vote
from p2pft_flower.topology import Graph
from tests.schedules import schedules as how_many

from .machine import Machine
from .world import INTERVAL, PATIENCE, ROUND, SILENCE, World


def test_one_of_four_dies_and_three_go_on_with_the_same_ring():
    world = World(Graph.load("directed-ring:4"), 0)
    world.run(20)
    assert not world.values
    world.crash(2)
    world.run(60)
    assert world.agreed() == {0, 1, 3}
    assert list(world.values) == [1]
    assert list(world.nodes[3].machine.neighbourhood().row(3)) == [1, 3]


def test_a_member_that_the_others_left_out_ends_when_they_have_come_to_the_end():
    world = World(Graph.load("directed-ring:4"), 0, iterations=200)
    world.run(20)
    world.separate({3})
    world.run(40)
    assert world.agreed() >= {0, 1, 2}
    world.cut.clear()
    for p in (0, 1, 2):  # the last word that it hears of them
        machine = world.nodes[p].machine
        machine.complete(200)
        machine.finish()
        world.gossip(p, world.nodes[p], 3, asks=False)
        world.nodes[p].done = True
    world.run(60)
    assert world.nodes[3].stopped == (
        "the members [0, 1, 2] of view 1 have come to the end without it, or have left"
    )


def test_nobody_that_goes_on_loses_an_iteration():
    world = World(Graph.load("ring:6"), 3)
    world.run(20)
    world.crash(5)
    done = {p: n.iteration for p, n in world.running().items()}
    world.run(21 + SILENCE)
    before = {p: n.iteration for p, n in world.nodes.items() if n.alive}
    world.run(40)
    assert world.values[1].iteration >= max(done.values())
    for p, node in world.running().items():
        assert node.iteration >= before[p]


def test_a_view_takes_one_ballot_where_nobody_else_fails():
    # Peer 0 has not missed peer 5 yet when peer 4 does, so its ballot waits for it, for a whole round.
    world = World(Graph.load("ring:6"), 3)
    world.run(20)
    world.crash(5)
    rounds = set()
    while 1 not in world.values:
        world.run(world.now + 0.25)
        rounds |= {n.machine.record.promised.round for n in world.nodes.values()}
    assert rounds == {0, 1}


@pytest.mark.parametrize("dead", [{0}, {0, 1}, {1, 4}, {0, 3}])
def test_several_die_at_once(dead):
    world = World(Graph.load("exponential:6"), 1)
    world.run(10)
    for p in dead:
        world.crash(p)
    world.run(60)
    assert world.agreed() == set(range(6)) - dead


def test_the_hub_of_a_star_dies_and_its_leaves_find_each_other():
    world = World(Graph.load("star:6"), 1)
    world.run(10)
    world.crash(0)
    world.run(60)
    assert world.agreed() == {1, 2, 3, 4, 5}


def test_several_that_follow_each_other_on_a_ring_die_at_once():
    world = World(Graph.load("directed-ring:7"), 1)
    world.run(10)
    for p in (1, 2, 5):
        world.crash(p)
    world.run(60)
    assert world.agreed() == {0, 3, 4, 6}


def test_the_proposer_dies_in_the_midst_of_a_change():
    world = World(Graph.load("ring:5"), 2)
    world.run(10)
    world.crash(3)
    while not any(n.machine.record.proposal for n in world.nodes.values()):
        world.run(world.now + 0.25)
    (proposer,) = [p for p, n in world.nodes.items() if n.machine.record.proposal]
    world.crash(proposer)
    world.run(world.now + 60)
    assert world.agreed() == set(range(5)) - {3, proposer}


def test_of_two_halves_the_larger_goes_on_and_the_smaller_comes_back_when_it_can():
    world = World(Graph.load("ring:7"), 4)
    world.run(10)
    world.separate({4, 5, 6})
    world.run(60)
    assert set(world.running()) == {0, 1, 2, 3}
    world.cut.clear()
    world.run(100)
    assert world.agreed() == set(range(7))


def test_of_two_equal_halves_only_the_one_with_the_lowest_peer_goes_on():
    world = World(Graph.load("ring:6"), 4)
    world.run(10)
    world.separate({0, 1, 2})
    world.run(20 + PATIENCE)
    assert world.agreed() == {0, 1, 2}
    assert all("only [3, 4, 5] are connected" in world.nodes[p].stopped for p in (3, 4, 5))


def test_too_few_to_decide_stop_after_their_patience_and_say_so():
    world = World(Graph.load("complete:4"), 4)
    world.run(10)
    for p in (0, 1, 2):
        world.crash(p)
    world.run(30 + PATIENCE)
    assert "view 0 only [3] are connected" in world.nodes[3].stopped


@pytest.mark.parametrize(("n", "gone"), [(2, (0,)), (4, (0, 2)), (5, (1, 2, 4))], ids=str)
@pytest.mark.parametrize("wait", [False, True], ids=["continue", "wait"])
def test_who_can_be_no_quorum_since_too_many_have_gone_stops_at_once_and_names_them(n, gone, wait):
    world = World(Graph.load(f"complete:{n}"), 4, wait=wait)
    world.run(10)
    for p in gone:
        world.leave(p)
    world.run(10 + 2 * INTERVAL)
    assert not world.there()
    for p in set(range(n)).difference(gone):
        assert "too many have gone for a quorum" in world.nodes[p].stopped
        for other in gone:
            assert f"{other}: its disk is full" in world.nodes[p].stopped


def test_who_has_begun_anew_is_waited_for_no_longer_by_those_that_are_no_quorum_without_it():
    world = World(Graph.load("complete:4"), 4)
    world.run(10)
    for p in (0, 1):
        world.crash(p)
        world.restart(p)
    world.run(20)
    assert all("0: it began anew; 1: it began anew" in world.nodes[p].stopped for p in (2, 3))


def test_a_cut_link_between_two_that_live_is_gone_around():
    world = World(Graph.load("directed-ring:5"), 5)
    world.run(10)
    world.cut.add(frozenset((1, 2)))
    world.run(60)
    assert world.agreed() == set(range(5))
    assert world.values[1].broken == ((1, 2), (2, 1))


@pytest.mark.parametrize("wait", [False, True])
def test_an_edge_that_carries_no_payloads_is_gone_around_though_both_its_ends_speak(wait):
    world = World(Graph.load("directed-ring:5"), 5, wait=wait)
    world.run(10)
    assert world.nodes[1].machine.do_without((1, 2), world.now)
    world.run(30)
    assert world.agreed() == set(range(5))
    assert world.values[1].broken == ((1, 2),)
    assert 1 not in world.nodes[2].machine.neighbourhood().row(2)
    world.run(60)
    assert list(world.values) == [1]
    assert not world.nodes[1].machine.do_without((1, 2), world.now)  # it is gone already


def test_a_word_from_the_receiver_does_not_mend_an_edge_that_carries_no_payloads():
    member = Machine.born(1, Graph.load("complete:4"), {p: (p,) for p in range(4)}, ROUND, PATIENCE)
    member.suspect(2, 1.0)
    assert member.do_without((1, 2), 2.0)
    member.heard_again(2, 2.0)
    assert (member.record.suspects, member.record.broken) == ((), ((1, 2),))
    assert member.record.phase is Phase.CHANGING


def left_out():
    """Return a member without which the others have gone on, and which has just learned of it."""
    member = Machine.born(1, Graph.load("complete:4"), {p: (p,) for p in range(4)}, ROUND, PATIENCE)
    votes = tuple(Vote(m, 0) for m in (0, 2, 3))
    member.hear([], 0.0, [Step(Composition(1, (0, 2, 3), (0, 0, 0)), Ballot(1, 0), votes)])
    assert member.excluded
    return member


def pass_time(member, begin, end):
    now = begin
    while now < end:
        now += ROUND
        member.tick(now)


def test_who_is_left_out_and_too_busy_to_ask_gives_up_when_its_patience_is_over():
    member = left_out()
    pass_time(member, 0.0, PATIENCE - ROUND)
    assert not member.hopeless
    pass_time(member, PATIENCE - ROUND, PATIENCE)
    assert "too busy to ask to be let in again" in member.hopeless


def test_who_is_left_out_and_asks_in_time_has_its_whole_patience_anew():
    member = left_out()
    pass_time(member, 0.0, PATIENCE - ROUND)
    member.rejoin(PATIENCE - ROUND)
    pass_time(member, PATIENCE - ROUND, 2 * PATIENCE - 2 * ROUND)
    assert not member.hopeless
    pass_time(member, 2 * PATIENCE - 2 * ROUND, 2 * PATIENCE)
    assert "nobody has let it in" in member.hopeless


def test_an_edge_to_who_is_gone_is_nobodys_concern():
    member = Machine.born(1, Graph.load("complete:4"), {p: (p,) for p in range(4)}, ROUND, PATIENCE)
    votes = tuple(Vote(m, 0) for m in (0, 1, 3))
    member.hear([], 0.0, [Step(Composition(1, (0, 1, 3), (0, 0, 0)), Ballot(1, 0), votes)])
    assert member.view.members == (0, 1, 3)
    assert not member.do_without((1, 2), 1.0)
    assert member.record.phase is Phase.RUNNING


def test_who_died_is_let_in_again_three_times_while_another_fails():
    world = World(Graph.load("exponential:6"), 6)
    for _ in range(3):
        world.run(world.now + 10)
        world.crash(4)
        world.run(world.now + 40)
        assert world.agreed() == {0, 1, 2, 3, 5}
        world.restart(4)
        world.run(world.now + 40)
        assert world.agreed() == set(range(6))
    world.crash(4)
    world.run(world.now + 40)
    world.restart(4)
    world.crash(1)
    world.run(world.now + 60)
    assert world.agreed() == {0, 2, 3, 4, 5}
    last = max(world.values)
    assert all(d != 4 for v in world.values.values() for d in v.donors)
    assert world.nodes[4].iteration >= world.values[last].iteration


def test_who_restarts_before_it_was_missed_is_let_in_as_another_life():
    world = World(Graph.load("ring:5"), 6)
    world.run(10)
    world.crash(2)
    world.run(11)
    world.restart(2)
    world.run(50)
    assert world.agreed() == set(range(5))
    assert world.values[max(world.values)].incarnation(2) > 0


def test_waiting_pauses_all_until_the_missing_one_is_back():
    world = World(Graph.load("ring:5"), 7, wait=True)
    world.run(10)
    world.separate({2})
    world.run(10 + PATIENCE / 3)
    assert not world.running()
    world.cut.clear()
    world.run(20 + PATIENCE / 3)
    assert world.agreed() == set(range(5))
    assert world.values[1].members == (0, 1, 2, 3, 4)


def test_waiting_in_vain_ends_in_a_view_without_the_missing_one():
    world = World(Graph.load("ring:5"), 7, wait=True)
    world.run(10)
    world.crash(2)
    world.run(20 + PATIENCE)
    assert world.agreed() == {0, 1, 3, 4}


@pytest.mark.parametrize("wait", [False, True], ids=["continue", "wait"])
def test_a_member_that_dies_after_it_promised_is_in_no_view(wait):
    world = World(Graph.load("directed-ring:5"), 7, wait=wait)
    world.run(10)
    world.crash(2)
    while not world.nodes[4].machine.record.promised.round:
        world.run(world.now + 0.25)
    world.crash(4)
    while not world.values:
        world.run(world.now + 0.25)
    assert world.values[1].members == (0, 1, 3)
    world.run(world.now + 60)
    assert world.agreed() == {0, 1, 3}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("swallow", [0, 1, 2])
@pytest.mark.parametrize("second", [0, 1, 2])
@pytest.mark.parametrize("when", [14.0, 20.0, 40.0])
def test_a_loss_while_a_broken_edge_waits_for_another_loss_leaves_nobody_waiting(seed, swallow, second, when):
    W = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1.0]])
    world = World(Graph.from_weights(W), seed, wait=True, iterations=9)
    faults = [(5.0, ("crash", 3)), (13.0, ("swallow", swallow)), (when, ("crash", second))]
    decisive = live_through(world, faults)
    while world.now < 69 + 3 * PATIENCE and world.there():
        world.run(world.now + 5)
    world.check_invariant()
    assert not world.there()
    assert decisive == any(n.done for n in world.nodes.values())


def test_a_host_of_several_peers_is_given_up_when_all_its_neighbours_miss_it():
    groups = {0: (0,), 1: (1, 2), 3: (3,), 4: (4,)}  # an edge runs between the peers of member 1
    machine = Machine.born(0, Graph.load("ring:5"), groups, ROUND, PATIENCE)
    assert machine.rules.around(1) == {0, 3}


def test_who_hangs_is_left_out_though_it_speaks():
    world = World(Graph.load("ring:5"), 8)
    world.run(10)
    world.nodes[1].machine.suspect(2, world.now, hanging=True)
    world.run(40)
    assert world.values[1].members == (0, 1, 3, 4)
    assert world.agreed() == set(range(5))  # as soon as it notices, it comes back


def test_nobody_leaves_before_all_have_finished():
    world = World(Graph.load("ring:3"), 9)
    world.run(10)
    machines = [world.nodes[p].machine for p in range(3)]
    machines[0].finish()
    machines[1].finish()
    world.run(20)
    assert not machines[0].all_finished
    machines[2].finish()
    for a, b in itertools.permutations(machines, 2):
        a.hear([b.record], world.now)
    assert all(m.all_finished for m in machines)


def test_who_has_finished_may_go_and_is_not_missed():
    world = World(Graph.load("ring:3"), 9)
    world.run(10)
    slow, done = world.nodes[0].machine, world.nodes[1].machine
    done.finish()
    slow.hear([done.record], world.now)
    assert slow.unfinished == [0, 2]
    slow.suspect(1, world.now)
    assert (slow.record.phase, slow.record.suspects) == (Phase.RUNNING, ())
    slow.suspect(2, world.now)
    assert slow.record.phase is Phase.CHANGING


def test_who_has_finished_stays_as_long_as_somebody_trains_that_is_no_neighbour():
    world = World(Graph.load("directed-ring:6"), 9, iterations=20)
    world.pace[3] = 6.0  # 2 can be five iterations ahead of it, 1 four
    while world.nodes[3].iteration < 20:
        assert not any(world.nodes[p].done for p in world.nodes)
        world.run(world.now + 1)
    world.run(world.now + 2 * SILENCE)
    assert all(n.done for n in world.nodes.values())
    assert not world.values  # nobody was missed


def test_who_has_finished_gossips_with_all_that_still_train_and_no_longer_with_those_that_do_not():
    world = World(Graph.load("directed-ring:6"), 9)
    world.run(10)
    machine = world.nodes[0].machine
    assert machine.contacts() == (1, 5)
    machine.finish()
    machine.hear([replace(world.nodes[3].machine.record, phase=Phase.FINISHED, version=99)], world.now)
    assert machine.contacts() == (1, 2, 4, 5)


def test_in_a_long_change_of_view_all_others_are_gossiped_with_in_turn_and_a_few_at_once():
    world = World(Graph.load("directed-ring:40"), 9)
    world.run(5)
    machine = world.nodes[7].machine
    machine.suspect(8, world.now)
    machine.tick(world.now + ROUND)
    met = set()
    for turn in range(5):
        now = set(machine.contacts())
        assert {6, 8, 9} <= now  # its neighbours, and that of the one that it misses, each time
        assert len(now) <= 3 + CONTACTS
        met |= now
        machine.tick(world.now + ROUND + turn)
    assert met == set(range(40)) - {7}


def test_who_is_missed_again_and_again_is_news_once():
    machine = World(Graph.load("ring:4"), 9).nodes[1].machine
    for hanging in (False, True):
        machine.suspect(2, 0.0, hanging=hanging)
        version = machine.record.version
        machine.suspect(2, 0.0, hanging=hanging)
        assert machine.record.version == version
    assert (machine.record.suspects, machine.record.hanging) == ((2,), (2,))


def test_a_record_is_told_to_whom_has_not_said_to_know_it_and_again_until_then():
    a, b = (
        Machine.born(p, Graph.load("ring:3"), {p: (p,) for p in range(3)}, ROUND, PATIENCE) for p in (0, 1)
    )
    assert a.news(1) == [a.record]  # while it trains
    assert a.said == {}
    a.suspect(2, 0.0)
    assert a.news(1) == a.news(1) == [a.record]  # which may be lost
    b.hear(a.news(1), 0.0)
    assert b.news(0) == [b.record]  # of which it has not said what it knows
    b.hear([], 0.0, speaker=0, known={2: (0, 0)})
    assert [r.member for r in b.news(0)] == [0, 1]
    b.hear([], 0.0, speaker=0, known=a.said)
    assert b.news(0) == [b.record]
    a.hear(b.news(0), 0.0)
    a.hear([], 0.0, speaker=1, known=b.said)
    assert a.news(1) == []
    a.tick(ROUND)
    assert a.news(1) == [a.record]  # it has proposed a view
    a.hear([], ROUND, speaker=1)  # of one that trains, which forgets nothing
    assert a.news(1) == [a.record]
    a.hear([], ROUND, speaker=1, known={1: (5, 0)})  # another life of its knows nothing
    assert [r.member for r in a.news(1)] == [0]


def test_a_view_begins_with_the_most_iterations_of_those_that_are_in_it():
    groups = {p: (p,) for p in range(4)}
    machines = [Machine.born(p, Graph.load("ring:4"), groups, ROUND, PATIENCE) for p in groups]
    for machine, done in zip(machines, (5, 4, 9, 5), strict=True):
        machine.complete(done)
    machines[1].suspect(2, 0.0, hanging=True)  # which speaks and promises all the same
    for now in range(12):
        for a, b in itertools.permutations(machines, 2):
            a.hear(b.table.values(), float(now), b.steps)
        for machine in machines:
            machine.tick(float(now))
    for p in (0, 1, 3):
        assert (machines[p].view.members, machines[p].view.iteration) == ((0, 1, 3), 5)


def test_who_left_in_an_earlier_life_is_there_in_this_one():
    world = World(Graph.load("ring:3"), 9)
    world.run(10)
    machine, former = world.nodes[0].machine, replace(world.nodes[1].machine.record, phase=Phase.LEFT)
    world.crash(1)
    world.restart(1)
    world.run(60)
    assert world.agreed() == {0, 1, 2}
    view = machine.view.number
    machine.state = replace(
        machine.state, records={**machine.records, 1: former}
    )  # as somebody still tells it
    machine.tick(world.now)
    assert (machine.record.phase, machine.missed, machine.view.number) == (Phase.RUNNING, set(), view)


def test_a_quorum_is_more_than_half_or_half_with_the_lowest():
    assert is_quorum([1, 2], [1, 2, 3])
    assert is_quorum([1], [1, 2])
    assert not is_quorum([2], [1, 2])
    assert not is_quorum([2, 3, 9], [1, 2, 3, 4])


@st.composite
def schedules(draw):
    n = draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    order = rng.permutation(n)
    edges = {(int(order[k - 1]), int(order[k])) for k in range(n)}
    edges |= {(int(a), int(b)) for a, b in rng.integers(0, n, (draw(st.integers(0, n)), 2)) if a != b}
    W = np.eye(n)
    for j, i in edges:
        W[i, j] = 1 + rng.integers(3)
    peers = st.integers(0, n - 1)
    times = st.floats(5, 50)
    fault = st.one_of(
        st.tuples(st.just("crash"), peers),
        st.tuples(st.just("restart"), peers),
        st.tuples(st.just("leave"), peers),
        st.tuples(st.just("separate"), st.frozensets(peers, min_size=1, max_size=n - 1)),
        st.tuples(st.just("cut"), peers, peers),
        st.tuples(st.just("heal")),
        st.tuples(st.just("hang"), peers, peers),
        st.tuples(st.just("swallow"), peers),
        st.tuples(st.just("weather"), st.floats(0.1, 12), st.floats(0, 0.7)),
    )
    faults = draw(st.lists(st.tuples(times, fault), max_size=12))
    return (
        Graph.from_weights(W),
        sorted(faults, key=lambda f: f[0]),
        draw(st.integers(0, 10**6)),
        draw(st.booleans()),
    )


def live_through(world, faults):
    """Let ``faults`` happen, then clear the weather; return whether those who can decide are there."""
    for when, (kind, *what) in faults:
        world.run(when)
        if kind == "weather":
            world.delay, world.loss = what
        elif kind == "cut":
            world.cut.add(frozenset(what))
        elif kind == "heal":
            world.cut.clear()
        elif kind == "hang":
            world.nodes[what[0]].machine.suspect(what[1], world.now, hanging=True)
            world.look(what[0], world.nodes[what[0]])
        elif kind == "swallow":  # an edge to a peer's first receiver carries no payloads
            machine = world.nodes[what[0]].machine
            row = [i for i in machine.neighbourhood().peers if i != what[0]]
            if world.nodes[what[0]].there and row:
                machine.do_without((what[0], row[0]), world.now)
                world.look(what[0], world.nodes[what[0]])
        else:
            getattr(world, kind)(*what)
    world.run(50)
    world.delay, world.loss = 0.5, 0.0
    world.cut.clear()
    able = {p for p, n in world.there().items() if n.machine.record.phase is not Phase.JOINING}  # to vote

    def members(view):
        return world.values[view].members if view else tuple(range(world.graph.n))

    newest = members(max(world.values, default=0))
    # Who had decided on the newest view may have died before telling: the others decide once more.
    known = members(max((world.nodes[p].machine.view.number for p in able), default=0))
    accepted = [
        r.accepted.value
        for m in able.intersection(newest)
        for r in world.nodes[m].machine.table.values()
        if r.accepted is not None
    ]
    # What may have been decided already, unknown to those that live, stands too: its members must be there.
    return all(is_quorum(able, some) for some in (newest, known, *(value.members for value in accepted)))


@pytest.mark.timeout(7200)  # so many by hand take an hour and more
@settings(deadline=None, max_examples=how_many(120))
@given(schedules())
def test_whatever_happens_those_who_go_on_agree_and_nobody_waits_for_ever(schedule):
    graph, faults, seed, wait = schedule
    world = World(graph, seed, wait=wait)
    decisive = live_through(world, faults)
    while world.now < 50 + 1.5 * PATIENCE and not world.quiet(3 * SILENCE):
        world.run(world.now + 5)
    world.check_invariant()
    # Nobody waits for ever: whoever is there runs; the others have died, left, or stopped and say why.
    for node in world.there().values():
        assert node.machine.record.phase is Phase.RUNNING
    together = world.agreed()
    # Where those who can decide were still there when the weather cleared, all that live go on together.
    if decisive:
        assert together
        assert together == set(world.there())


@pytest.mark.timeout(7200)
@settings(deadline=None, max_examples=how_many(180))
@given(schedules(), st.integers(5, 60))
def test_whatever_happens_a_run_comes_to_its_end_and_everybody_goes(schedule, iterations):
    graph, faults, seed, wait = schedule
    world = World(graph, seed, wait=wait, iterations=iterations)
    decisive = live_through(world, faults)
    while world.now < 60 + iterations + 3 * PATIENCE and world.there():
        world.run(world.now + 5)
    world.check_invariant()
    assert not world.there(), [n.machine.record.phase for n in world.there().values()]
    for node in world.nodes.values():
        assert not node.done or node.iteration == iterations
    # All is done by somebody, where those who can decide were still there when the weather cleared.
    if decisive:
        assert any(n.done for n in world.nodes.values())
