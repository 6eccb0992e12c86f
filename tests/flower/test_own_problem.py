"""``problem = my_module:my_problem``: any model trains, and no torch is imported for one that has none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open

from p2pft_flower.algorithms import simulate
from p2pft_flower.errors import ConfigError
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.report.results import read_results
from p2pft_flower.topology import Graph
from tests.quadratics import QUADRATICS, Peer, Quadratics

from .engine import run_app

GRAPH = "lopsided-4"


def thetas(folder):
    found = {}
    for file in sorted(folder.rglob("peer-*.safetensors")):
        if file.parent.name == "peers":
            with safe_open(file, "np") as opened:
                found[file.stem] = opened.get_tensor("theta")
    return found


def reference(iterations):
    problem = Quadratics(32, 0)
    peers: dict[int, Peer] = problem.objectives(range(4), lambda: None)
    gradients = [peers[p].gradient for p in range(4)]
    return simulate(
        "p2pft", Graph.load(GRAPH), gradients, problem.theta0, alpha=0.1, iterations=iterations
    ).theta


def run(folder, **settings):
    return run_app(folder, problem=QUADRATICS, topology=GRAPH, **{"iterations": 12, **settings})


def test_it_trains_in_simulation_and_deployed_as_the_mathematics_says(tmp_path):
    nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(4))]
    run(tmp_path / "simulated", slots=2)
    run(tmp_path / "deployed", slots=4, node_configs=nodes)
    simulated, deployed = thetas(tmp_path / "simulated"), thetas(tmp_path / "deployed")
    for p, expected in enumerate(reference(12)):
        np.testing.assert_array_equal(simulated[f"peer-{p}"], expected)
        np.testing.assert_array_equal(deployed[f"peer-{p}"], expected)
    results = read_results(tmp_path / "simulated")
    assert [peer["images"] for peer in results["peers"]] == [64, 65, 66, 67]
    assert (results["trainable_parameters"], results["partition"]) == (300, "problem")
    assert results["config"]["problem"] == QUADRATICS


def test_samples_say_how_long_an_epoch_is_and_how_much_a_peer_counts(tmp_path):
    run(tmp_path, iterations=0, epochs=2, batch_size=8, objective="examples")
    begin = json.loads((tmp_path / "peers" / "peer-0.jsonl").read_text().splitlines()[0])
    assert (begin["iterations"], begin["evaluate_every"]) == (18, 9)  # 65.5 samples a peer, in eights
    assert not np.array_equal(thetas(tmp_path)["peer-0"], reference(18)[0])


def test_a_resumed_run_is_bit_for_bit_the_one_that_was_not_interrupted(tmp_path):
    run(tmp_path / "first", iterations=6, checkpoint_every=3)
    resumed = {"iterations": 12, "extend": True, "resume": str(tmp_path / "first")}
    run(tmp_path / "second", checkpoint_every=3, **resumed)
    for p, expected in enumerate(reference(12)):
        np.testing.assert_array_equal(thetas(tmp_path / "second")[f"peer-{p}"], expected)
    with pytest.raises(ConfigError, match="seed: 0 in the checkpoint, 1 now"):
        run(tmp_path / "third", seed=1, **resumed)
