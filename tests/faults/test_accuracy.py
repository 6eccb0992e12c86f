"""What peers have learned in spite of a fault, in the default job, beside the same peers without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from p2pft_flower.algorithms import simulate
from p2pft_flower.config import LearningConfig
from p2pft_flower.lab.ports import free_addresses
from p2pft_flower.lab.relay import Relays
from p2pft_flower.learning.scoring import evaluate
from p2pft_flower.learning.workload import Workload
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from tests.faults.federation import Fault, Federation, injects
from tests.faults.peer import Orders

RING = "directed-ring-4"
ITERATIONS, RATE = 120, 0.1
SETTINGS = {"iterations": ITERATIONS, "learning-rate": RATE, "evaluate-every": ITERATIONS}
TRAINS, SLOW = Orders(default_job=True), Orders(default_job=True, slow_from=20)
HELD = Orders(default_job=True, hold=("gradient 20",))


def check_accuracy(ended, trained):
    """Check what the peers ``trained`` end with against the same peers on their graph without a fault."""
    with_fault = np.stack([ended[p].theta for p in trained])
    workload = Workload(LearningConfig(), 4)
    objectives = workload.objectives(trained)
    view = View.without(Graph.load(RING), set(range(4)).difference(trained), ())
    gradients = [objectives[p].gradient for p in view.peers]
    without = simulate(
        "p2pft", view.graph, gradients, workload.theta0, alpha=RATE, iterations=ITERATIONS
    ).theta

    labels = workload.test_features.labels
    theirs = torch.isin(labels, torch.cat([workload.features(p).labels for p in trained]))
    # Nobody else holds the digits that a lost peer held.
    assert (theirs.sum() < len(labels)) == (len(trained) < 4)

    def accuracies(thetas):
        return [evaluate(workload.tail, t, workload.test_features, theirs).accuracy_unseen for t in thetas]

    found, wanted = accuracies(with_fault), accuracies(without)
    assert min(wanted) > 0.9
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 0.02, (found, wanted)


@injects(Fault.KILL_ONE)
def test_survivors_are_as_accurate_as_the_same_peers_trained_without_the_fault(tmp_path):
    survivors = [0, 2, 3]
    with Federation(tmp_path, RING, orders=dict.fromkeys(range(4), TRAINS) | {1: HELD}, **SETTINGS) as peers:
        peers.hold(1, "gradient 20")
        peers.kill(1)
        ended = peers.ended()
        assert [ended[p].exitcode for p in survivors] == [0, 0, 0], peers.logs()
        peers.check_told(survivors, {1: "crashed"})
        peers.check_invariant()
    check_accuracy(ended, survivors)


@injects(Fault.KILL_AND_REJOIN)
def test_a_peer_that_comes_back_costs_nobody_any_accuracy(tmp_path):
    orders = dict.fromkeys((0, 2, 3), SLOW) | {1: HELD}
    with Federation(tmp_path, RING, orders=orders, checkpoint_every=10, **SETTINGS) as peers:
        peers.hold(1, "gradient 20")
        peers.kill(1)
        peers.start_again(1, replace(SLOW, slow_from=0))
        peers.await_view(peers.peers, peers.peers)
        peers.hurry(*peers.peers)
        ended = peers.ended()
        assert [ended[p].exitcode for p in peers.peers] == [0, 0, 0, 0], peers.logs()
        peers.check_invariant()
    check_accuracy(ended, peers.peers)


@injects(Fault.LINK_CUT_BOTH_WAYS)
def test_a_graph_that_does_without_a_cut_link_costs_nobody_any_accuracy(tmp_path):
    addresses = free_addresses(4)
    orders = dict.fromkeys(range(4), TRAINS) | {2: HELD}
    with Relays() as relays:
        link = relays.link(addresses, 1, 2)
        where = {"addresses": addresses, "routes": link.routes}
        with Federation(tmp_path, RING, **where, orders=orders, **SETTINGS) as peers:
            peers.hold(2, "gradient 20")
            link.cut()
            peers.release(2)
            ended = peers.ended()
            assert [ended[p].exitcode for p in peers.peers] == [0, 0, 0, 0], peers.logs()
            assert [1, 2] not in peers.views(0)[0]["edges"]
            peers.check_invariant()
    check_accuracy(ended, peers.peers)
