"""Hosts in threads of a test's process: where they listen, how they are run, and what they leave."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors import safe_open

from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.host.training import TRACE
from p2pft_flower.host.wires import Access
from p2pft_flower.lab.ports import free_addresses
from p2pft_flower.topology import Graph
from p2pft_flower.transport import Pulse, unix_address
from tests.journals import lines_of, tracker_surplus

from .quadratic import GRAPH, Peer, Quadratics, plans, thetas

RING = Graph.load("directed-ring:4")
ALONE = [[0], [1], [2], [3]]
FOLDED = [[0, 1], [2, 3]]


def unix(folder):
    return {p: unix_address("test", p, folder) for p in range(4)}


def tcp():
    return free_addresses(4)


def run_together(all_plans, problems, accesses=None):
    """Run hosts in threads of this process; return their outcomes or errors, in order."""

    def run(plan, problem, access):
        try:
            with np.errstate(all="ignore"):  # runs that diverge on purpose
                return Host(plan, problem, access).run()
        except Exception as error:  # the tests look at it
            return error

    with ThreadPoolExecutor(len(all_plans)) as pool:
        return list(pool.map(run, all_plans, problems, accesses or [Access()] * len(all_plans)))


def train(folder, hosts, addresses, **settings):
    problems = [Quadratics() for _ in hosts]
    results = run_together(plans(GRAPH, hosts, addresses, folder, **settings), problems)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return thetas(problems), [outcome for result in results for outcome in result]


class Federation:
    """Hosts in threads; a peer's gradient waits a little as long as somebody is away."""

    def __init__(self, folder, addresses, monkeypatch, graph=RING, hosts=ALONE, **settings):
        monkeypatch.setenv(TRACE, "1")
        settings = {"iterations": 120, "survive": True, "peer-timeout": 16.0} | settings
        self.folder = folder
        self.plans = plans(graph, hosts, addresses, folder, **settings)
        self.all_there = threading.Event()
        self.pool = ThreadPoolExecutor(2 * len(hosts))
        self.problems = {}
        self.hosts = {}

    def start(self, host, joining=False, hook=None, access=None, **faults):
        def paced(peer, drawn):
            if hook is not None:
                hook(peer, drawn)
            self.all_there.wait(0.1)

        problem = self.problems[host] = Quadratics(hook=paced, **faults)
        life = self.hosts[host] = Host(self.plans[host], problem, access or Access(), joining=joining)
        return self.pool.submit(life.run)

    def pauses(self, host):
        """Whether a host has stopped iterating until a view is agreed on."""
        return self.hosts[host]._pulse.read().activity == Pulse.PAUSED

    def view_of(self, host):
        """Return the number of the view that a host has agreed on, whatever its peers compute."""
        return self.hosts[host]._agreement._state.view.number

    def kept(self, peer):
        return next(p.built[peer].kept for p in self.problems.values() if peer in p.built)


def lose_and_let_in(net):
    """Train all four hosts of a federation; peer 2 fails in its 60th gradient and is let in again later.

    Returns each peer's surplus of Σ τ over Σ g, by view.
    """
    net.all_there.set()
    released = threading.Event()

    def hook(peer, drawn):
        if peer == 2 and drawn == 60:
            raise ValueError("no more images")
        if peer != 2 and net.hosts[peer]._iteration == 80:
            assert released.wait(60)

    runs = [net.start(p, hook=hook) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    until(lambda: all(net.hosts[p]._iteration >= 30 for p in (0, 1, 3)))
    runs[2] = net.start(2, joining=True)
    until(lambda: all(net.view_of(p) == 2 for p in (0, 1, 3)))
    released.set()
    for run in runs:
        run.result(60)
    return tracker_surplus(net.folder, range(4))


def best(*peers):
    return np.mean([Peer(p).minimiser for p in peers], axis=0)


def events(folder, peer, kind):
    return [e for e in lines_of(folder / "peers" / f"peer-{peer}.jsonl") if e["event"] == kind]


def stopped_tail(folder, peer):
    """Return the θ that a stopped peer has left, and after how many iterations."""
    with safe_open(folder / "peers" / f"peer-{peer}.stopped.safetensors", "np") as file:
        return file.get_tensor("theta"), int(file.metadata()["iterations"])


def until(condition, seconds=60.0):
    """Wait for what another thread or process does; a broken test waits to the end."""
    end, never = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        never.wait(0.02)
