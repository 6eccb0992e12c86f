"""Agreement on views in simulated time: crashes, hangs, delays, losses, partitions, restarts."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.runtime.membership import Membership, Phase, is_quorum
from p2pft_flower.topology import Graph

INTERVAL, SILENCE, ROUND, PATIENCE = 1.0, 8.0, 4.0, 80.0


@dataclass
class Node:
    machine: Membership
    last: dict[int, float]
    alive: bool = True
    stopped: str = ""
    iteration: int = 0
    installed: list[int] = field(default_factory=list)


class World:
    """Members that gossip once a second over a network which delays, loses and reorders."""

    def __init__(self, graph, seed, *, wait=False):
        self.graph, self.rng, self.wait = graph, random.Random(seed), wait
        self.now, self.queue, self.ids = 0.0, [], itertools.count()
        self.groups = {p: (p,) for p in range(graph.n)}
        self.delay, self.loss = 0.5, 0.0
        self.cut: set[frozenset[int]] = set()
        self.values: dict[int, object] = {}
        self.seen = [], 0.0
        self.nodes = {p: self.born(p) for p in range(graph.n)}
        for p in self.nodes:
            self.at(self.rng.random() * INTERVAL, self.tick, p, self.nodes[p])

    def born(self, p, **more):
        machine = Membership(p, self.graph, self.groups, ROUND, PATIENCE, wait=self.wait, **more)
        return Node(machine, dict.fromkeys(self.groups, self.now))

    def at(self, after, what, *arguments):
        heapq.heappush(self.queue, (self.now + after, next(self.ids), what, arguments))

    def run(self, until):
        while self.queue and self.queue[0][0] <= until:
            self.now, _, what, arguments = heapq.heappop(self.queue)
            what(*arguments)
        self.now = until

    def crash(self, p):
        self.nodes[p].alive = False

    def restart(self, p):
        if self.nodes[p].alive:
            return
        self.nodes[p] = node = self.born(p, joining=True, incarnation=int(self.now * 1000) + 1)
        self.at(0.0, self.tick, p, node)

    def separate(self, some):
        self.cut |= {frozenset((a, b)) for a in some for b in self.nodes if b not in some}

    def send(self, source, target, deliver, *arguments):
        if frozenset((source, target)) in self.cut or self.rng.random() < self.loss:
            return
        self.at(self.rng.random() * self.delay, deliver, source, target, *arguments)

    def tick(self, p, node):
        if self.nodes[p] is not node or not node.alive or node.stopped:
            return
        machine = node.machine
        if machine.record.phase is Phase.RUNNING and machine.complete(node.iteration + 1):
            node.iteration += 1
        if machine.excluded:
            machine.rejoin(self.now, node.iteration)
        if machine.record.phase is Phase.RUNNING:
            for other in self.neighbours(machine):
                if self.now - node.last[other] > SILENCE:
                    machine.suspect(other, self.now)
        for other in machine.record.suspects:
            if self.now - node.last[other] <= SILENCE:
                machine.heard_again(other)
        machine.reach([m for m in self.groups if m != p and self.now - node.last[m] < SILENCE], self.now)
        machine.tick(self.now)
        self.look(p, node)
        for other in sorted({*machine.contacts(), *self.neighbours(machine)}):
            self.send(p, other, self.receive, self.says(machine), machine.view, True)
        self.at(INTERVAL, self.tick, p, node)

    def says(self, machine, theirs=None):
        quiet = machine.record.phase in (Phase.RUNNING, Phase.FINISHED)
        return [machine.record] if quiet and theirs in (None, machine.view) else machine.table

    def neighbours(self, machine):
        view = machine.neighbourhood()
        if machine.me not in view.peers:
            return set()
        return {*view.row(machine.me), *view.column(machine.me)} - {machine.me}

    def receive(self, source, target, records, view, asks):
        node = self.nodes[target]
        if not node.alive or node.stopped:
            return
        node.last[source] = self.now
        node.machine.hear(records, self.now)
        self.look(target, node)
        if asks:
            self.send(target, source, self.receive, self.says(node.machine, view), node.machine.view, False)

    def look(self, p, node):
        machine = node.machine
        if machine.expired:
            node.stopped = machine.expired
        if machine.view and machine.record.phase is Phase.RUNNING and machine.view not in node.installed:
            node.installed.append(machine.view)
            node.last = dict.fromkeys(node.last, self.now)
            node.iteration = machine.current.iteration
            # Safety: whoever installs view v installs the same one, and its graph is fit to train on.
            assert self.values.setdefault(machine.view, machine.current) == machine.current
            view = machine.neighbourhood()
            assert set(view.peers) == set(machine.current.members)
            assert p in view.peers
            np.testing.assert_allclose(view.graph.B.sum(axis=0), 1.0)
            np.testing.assert_allclose(view.graph.A.sum(axis=1), 1.0)

    def running(self):
        return {
            p: n
            for p, n in self.nodes.items()
            if n.alive and not n.stopped and n.machine.record.phase is Phase.RUNNING
        }

    def quiet(self, seconds):
        """Tell whether all that live have been running, in the same views, for so long."""
        lively = [n for n in self.nodes.values() if n.alive and not n.stopped]
        still = len(self.running()) == len(lively)
        views = [n.machine.view for n in self.nodes.values()]
        if not still or views != self.seen[0]:
            self.seen = views, self.now
        return self.now - self.seen[1] >= seconds

    def agreed(self):
        """Assert that all who run are in one view, all of whose members run; return that view's members."""
        views = {n.machine.view for n in self.running().values()}
        assert len(views) <= 1, views
        members = set(self.running())
        for node in self.running().values():
            assert set(node.machine.current.members) == members
        return members


def test_one_of_four_dies_and_three_go_on_with_the_same_ring():
    world = World(Graph.load("directed-ring:4"), 0)
    world.run(20)
    assert not world.values
    world.crash(2)
    world.run(60)
    assert world.agreed() == {0, 1, 3}
    assert list(world.values) == [1]
    assert list(world.nodes[3].machine.neighbourhood().row(3)) == [1, 3]


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


def test_a_cut_link_between_two_that_live_is_gone_around():
    world = World(Graph.load("directed-ring:5"), 5)
    world.run(10)
    world.cut.add(frozenset((1, 2)))
    world.run(60)
    assert world.agreed() == set(range(5))
    assert world.values[1].broken == ((1, 2), (2, 1))


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
    assert machines[0].finish()
    assert machines[1].finish()
    world.run(20)
    assert not machines[0].all_finished
    assert machines[2].finish()
    for a, b in itertools.permutations(machines, 2):
        a.hear([b.record], world.now)
    assert all(m.all_finished for m in machines)


def test_who_has_finished_may_go_and_is_not_missed():
    world = World(Graph.load("ring:3"), 9)
    world.run(10)
    slow, done = world.nodes[0].machine, world.nodes[1].machine
    assert done.finish()
    slow.hear([done.record], world.now)
    assert slow.unfinished == [0, 2]
    slow.suspect(1, world.now)
    assert (slow.record.phase, slow.record.suspects) == (Phase.RUNNING, ())
    slow.suspect(2, world.now)
    assert slow.record.phase is Phase.CHANGING


def test_who_left_in_an_earlier_life_is_there_in_this_one():
    world = World(Graph.load("ring:3"), 9)
    world.run(10)
    machine, former = world.nodes[0].machine, replace(world.nodes[1].machine.record, phase=Phase.LEFT)
    world.crash(1)
    world.restart(1)
    world.run(60)
    assert world.agreed() == {0, 1, 2}
    view = machine.view
    machine.records[1] = former  # what somebody still tells
    machine.tick(world.now)
    assert (machine.record.phase, machine.missed, machine.view) == (Phase.RUNNING, set(), view)


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
        st.tuples(st.just("separate"), st.frozensets(peers, min_size=1, max_size=n - 1)),
        st.tuples(st.just("cut"), peers, peers),
        st.tuples(st.just("heal")),
        st.tuples(st.just("hang"), peers, peers),
        st.tuples(st.just("weather"), st.floats(0.1, 12), st.floats(0, 0.7)),
    )
    faults = draw(st.lists(st.tuples(times, fault), max_size=12))
    return (
        Graph.from_weights(W),
        sorted(faults, key=lambda f: f[0]),
        draw(st.integers(0, 10**6)),
        draw(st.booleans()),
    )


@pytest.mark.timeout(1200)  # two minutes of a processor's time
@settings(deadline=None, max_examples=2000)
@given(schedules())
def test_whatever_happens_those_who_go_on_agree_and_nobody_waits_for_ever(schedule):
    graph, faults, seed, wait = schedule
    world = World(graph, seed, wait=wait)
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
        else:
            getattr(world, kind)(*what)
    world.run(50)
    world.delay, world.loss = 0.5, 0.0
    world.cut.clear()
    fit = {p for p, n in world.nodes.items() if n.alive and not n.stopped}
    newest = max(world.values, default=0)
    members = world.values[newest].members if newest else tuple(range(graph.n))
    able = {p for p in fit if world.nodes[p].machine.record.phase is not Phase.JOINING}  # to vote
    voters = able.intersection(members)
    accepted = [
        r.accepted.value for m in voters for r in world.nodes[m].machine.table if r.accepted is not None
    ]
    while world.now < 50 + 1.5 * PATIENCE and not world.quiet(3 * SILENCE):
        world.run(world.now + 5)
    # Nobody waits for ever: whoever lives runs, or has stopped and says why.
    for node in world.nodes.values():
        phase = node.machine.record.phase
        assert not node.alive or node.stopped or phase is Phase.RUNNING, phase
    together = world.agreed()
    # Where those who can decide were still there when the weather cleared, all that live go on together. What
    # may have been decided already, unknown to those that live, stands too: its members must be there.
    if is_quorum(voters, members) and all(is_quorum(able, value.members) for value in accepted):
        assert together
        assert together == {p for p, n in world.nodes.items() if n.alive and not n.stopped}
