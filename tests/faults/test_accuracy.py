"""What survivors have learned: the app's default job, in processes, one of which is killed."""

from __future__ import annotations

import numpy as np
import torch

from p2pft_flower.algorithms import simulate
from p2pft_flower.config import LearningConfig
from p2pft_flower.learning.objective import evaluate
from p2pft_flower.learning.workload import Workload
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from tests.faults.federation import Fault, Federation, injects
from tests.faults.peer import Orders

RING = "directed-ring-4"
ITERATIONS, RATE = 120, 0.1
SURVIVORS = [0, 2, 3]


@injects(Fault.KILL_ONE)
def test_survivors_are_as_accurate_as_the_same_peers_trained_without_the_fault(tmp_path):
    orders = dict.fromkeys(range(4), Orders(digits=True)) | {1: Orders(digits=True, hold=("gradient 20",))}
    settings = {"iterations": ITERATIONS, "learning-rate": RATE, "evaluate-every": ITERATIONS}
    with Federation(tmp_path, RING, orders=orders, **settings) as peers:
        peers.hold(1, "gradient 20")
        peers.kill(1)
        ended = peers.ended()
        assert [ended[p].exitcode for p in SURVIVORS] == [0, 0, 0], peers.logs()
        peers.check_told(SURVIVORS, {1: "crashed"})
        peers.check_invariant()
    with_fault = np.stack([ended[p].theta for p in SURVIVORS])

    workload = Workload(LearningConfig(), 4)
    objectives = workload.objectives(SURVIVORS)
    view = View.without(Graph.load(RING), {1}, ())
    gradients = [objectives[p].gradient for p in view.peers]
    without = simulate(
        "p2pft", view.graph, gradients, workload.theta0, alpha=RATE, iterations=ITERATIONS
    ).theta

    labels = workload.test_features.labels
    theirs = torch.isin(labels, torch.cat([workload.features(p).labels for p in SURVIVORS]))
    assert 0 < theirs.sum() < len(labels)  # nobody else holds the digits that peer 1 held

    def accuracies(thetas):
        return [evaluate(workload.tail, t, workload.test_features, theirs).accuracy_unseen for t in thetas]

    found, wanted = accuracies(with_fault), accuracies(without)
    assert min(wanted) > 0.9
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 0.02, (found, wanted)
