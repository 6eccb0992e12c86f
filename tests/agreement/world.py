"""Members in simulated time over a network that delays, loses and reorders; faults are done to them."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

import numpy as np

from p2pft_flower.agreement.record import Phase

from .machine import Machine

INTERVAL, SILENCE, ROUND, PATIENCE = 1.0, 8.0, 4.0, 80.0


@dataclass
class Node:
    machine: Machine
    last: dict[int, float]
    alive: bool = True
    stopped: str = ""
    left: bool = False
    done: bool = False
    iteration: int = 0
    state: tuple[float, float, float] = (0.0, 0.0, 0.0)  # θ, τ, g
    ready: float = 0.0
    installed: list[int] = field(default_factory=list)

    @property
    def there(self):
        """Whether it takes part: it lives, and has neither stopped nor left nor gone when all was done."""
        return self.alive and not (self.stopped or self.left or self.done)


class World:
    """Members that train and gossip once a second over a network which delays, loses and reorders.

    Each does an iteration of gradient tracking, of one number, where its in-neighbours have done as many;
    those in ``pace`` take so many seconds for one.
    """

    def __init__(self, graph, seed, *, wait=False, iterations=10**6):
        self.graph, self.rng, self.wait = graph, random.Random(seed), wait
        self.noise = random.Random(seed)
        self.iterations, self.pace = iterations, {}
        self.now, self.queue, self.ids = 0.0, [], itertools.count()
        self.groups = {p: (p,) for p in range(graph.n)}
        self.delay, self.loss = 0.5, 0.0
        self.cut: set[frozenset[int]] = set()
        self.values: dict[int, object] = {}
        self.states: dict[tuple[int, int], dict[int, tuple[float, float, float]]] = {}
        self.seen = [], 0.0
        self.nodes = {p: self.born(p) for p in range(graph.n)}
        for p, node in self.nodes.items():
            self.begin(p, node, 0.0)
            self.at(self.rng.random() * INTERVAL, self.tick, p, self.nodes[p])

    def born(self, p, **more):
        machine = Machine.born(p, self.graph, self.groups, ROUND, PATIENCE, wait=self.wait, **more)
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
        if self.nodes[p].there or self.nodes[p].done:
            return
        self.nodes[p] = node = self.born(p, joining=True, incarnation=int(self.now * 1000) + 1)
        self.at(0.0, self.tick, p, node)

    def leave(self, p):
        """Go and say so once, as a host that fails by itself: also where the others are no quorum."""
        node = self.nodes[p]
        machine = node.machine
        trains = (
            machine.record.phase in (Phase.RUNNING, Phase.CHANGING, Phase.FINISHED) and not machine.excluded
        )
        if node.there and trains:
            machine.leave("its disk is full")
            for other in machine.contacts():
                self.gossip(p, node, other, asks=False)
            node.left = True

    def separate(self, some):
        self.cut |= {frozenset((a, b)) for a in some for b in self.nodes if b not in some}

    def send(self, source, target, deliver, *arguments):
        if frozenset((source, target)) in self.cut or self.rng.random() < self.loss:
            return
        self.at(self.rng.random() * self.delay, deliver, source, target, *arguments)

    def tick(self, p, node):
        if self.nodes[p] is not node or not node.there:
            return
        machine = node.machine
        self.train(p, node)
        if machine.excluded:
            machine.rejoin(self.now, node.iteration)
        if machine.record.phase in (Phase.RUNNING, Phase.CHANGING, Phase.FINISHED):
            for other in self.neighbours(machine):
                if self.now - node.last[other] > SILENCE:
                    machine.suspect(other, self.now)
        for other in machine.record.suspects:
            if self.now - node.last[other] <= SILENCE:
                machine.heard_again(other, self.now)
        machine.reach([m for m in self.groups if m != p and self.now - node.last[m] < SILENCE], self.now)
        machine.tick(self.now)
        self.look(p, node)
        for other in sorted({*machine.contacts(), *self.neighbours(machine)}):
            self.gossip(p, node, other, asks=True)
        self.at(INTERVAL, self.tick, p, node)

    def train(self, p, node):
        machine = node.machine
        if machine.record.phase is Phase.RUNNING and node.iteration < self.iterations:
            view, last = machine.neighbourhood(), self.states[machine.view.number, node.iteration]
            there = self.now >= node.ready and last.keys() >= view.row(p).keys()
            if there and machine.complete(node.iteration + 1):
                node.ready = self.now + self.pace.get(p, 0.0)
                self.step(p, node, view, last)
        elif machine.record.phase is Phase.RUNNING:
            machine.finish()
        if machine.record.phase is Phase.FINISHED:
            heard = [node.last[m] for m in machine.unfinished]
            node.done = machine.all_finished or all(self.now - when > SILENCE for when in heard)

    def gradient(self, p, theta):
        """∇L_p(θ) on a mini-batch: noisy, of another minimiser for each peer."""
        return theta - p + self.noise.random()

    def begin(self, p, node, theta):
        grad = self.gradient(p, theta)
        self.note(p, node, (theta, grad, grad))

    def step(self, p, node, view, last):
        theta = sum(a * (last[j][0] - 0.05 * last[j][1]) for j, a in view.row(p).items())
        grad = self.gradient(p, theta)
        node.iteration += 1
        # Corrected after mixing, not before as Algorithm 1 does: nobody waits within an iteration.
        tau = sum(view.column(j)[p] * last[j][1] for j in view.row(p)) + grad - last[p][2]
        self.note(p, node, (theta, tau, grad))

    def note(self, p, node, state):
        node.state = state
        self.states.setdefault((node.machine.view.number, node.iteration), {})[p] = state

    def check_invariant(self):
        """Check Σ τ = Σ g after each iteration that all peers of its view have completed."""
        whole = {0: self.groups.keys()} | {v: set(value.members) for v, value in self.values.items()}
        for (view, iteration), states in self.states.items():
            if states.keys() == whole[view]:
                surplus = sum(tau - grad for _, tau, grad in states.values())
                assert abs(surplus) < 1e-9 * (1 + sum(abs(s[1]) for s in states.values())), (view, iteration)

    def neighbours(self, machine):
        view = machine.neighbourhood()
        if machine.me not in view.peers:
            return set()
        return {*view.row(machine.me), *view.column(machine.me)} - {machine.me}

    def gossip(self, p, node, other, *, asks):
        machine = node.machine
        steps = machine.steps_for(other)
        self.send(p, other, self.receive, machine.news(other), steps, machine.said, asks)

    def receive(self, source, target, records, steps, known, asks):
        node = self.nodes[target]
        if not node.there:
            return
        node.last[source] = self.now
        node.machine.hear(records, self.now, steps, source, known)
        self.look(target, node)
        if asks:
            self.gossip(target, node, source, asks=False)

    def look(self, p, node):
        machine = node.machine
        if why := machine.hopeless:
            node.stopped = why
        if (
            machine.view.number and machine.view.number not in node.installed
        ):  # be it to go on to the next one at once
            node.installed.append(machine.view.number)
            node.last = dict.fromkeys(node.last, self.now)
            node.iteration = machine.view.iteration
            donor = machine.view.donor(p)
            self.begin(p, node, (node if donor is None else self.nodes[donor]).state[0])
            # Safety: whoever installs view v installs the same one, and its graph is fit to train on.
            assert self.values.setdefault(machine.view.number, machine.view) == machine.view
            view = machine.neighbourhood()
            assert set(view.peers) == set(machine.view.members)
            assert p in view.peers
            np.testing.assert_allclose(view.graph.B.sum(axis=0), 1.0)
            np.testing.assert_allclose(view.graph.A.sum(axis=1), 1.0)

    def running(self):
        return {p: n for p, n in self.there().items() if n.machine.record.phase is Phase.RUNNING}

    def there(self):
        return {p: n for p, n in self.nodes.items() if n.there}

    def quiet(self, seconds):
        """Tell whether all that live have been running, in the same views, for so long."""
        still = len(self.running()) == len(self.there())
        views = [n.machine.view.number for n in self.nodes.values()]
        if not still or views != self.seen[0]:
            self.seen = views, self.now
        return self.now - self.seen[1] >= seconds

    def agreed(self):
        """Assert that all who run are in one view, all of whose members run; return that view's members."""
        views = {n.machine.view.number for n in self.running().values()}
        assert len(views) <= 1, views
        members = set(self.running())
        for node in self.running().values():
            assert set(node.machine.view.members) == members
        return members
