"""The whole app, coordinator and hosts, on an engine that limits what runs at once as Flower's does."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from p2pft_flower.config import MethodConfig
from p2pft_flower.errors import ConfigError, TopologyError
from p2pft_flower.flower.nodes import ONE_HOST, HostAssignment, RunFailedError, assign_hosts, overlap
from p2pft_flower.flower.strategies import make_strategy, strategy_names
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.report.results import read_results
from tests.quadratics import LARGE, QUADRATICS

from .engine import run_app


def tails(folder, n=4):
    return [load_file(folder / "peers" / f"peer-{p}.safetensors") for p in range(n)]


def same(a, b):
    return all(
        x.keys() == y.keys() and all((x[k] == y[k]).all() for k in x) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(("nodes", "slots", "hosts"), [(2, 1, 1), (4, 2, 2), (4, 4, 4), (10, 6, 4)], ids=str)
def test_peers_are_folded_onto_the_hosts_that_run_at_once(nodes, slots, hosts, tmp_path):
    engine = run_app(
        tmp_path, nodes=nodes, slots=slots, problem=QUADRATICS, topology="directed-ring:4", iterations=4
    )
    results = read_results(tmp_path)
    assert results["status"] == "completed"
    assert len(results["hosts"]) == hosts
    assert sorted(p for host in results["hosts"] for p in host) == [0, 1, 2, 3]
    assert engine.most <= slots


def test_the_same_seed_gives_the_same_theta_however_peers_are_hosted(tmp_path):
    run_app(tmp_path / "a", nodes=2, slots=1, iterations=6)
    run_app(tmp_path / "b", nodes=4, slots=4, iterations=6)
    run_app(tmp_path / "c", nodes=2, slots=1, iterations=6, transport="grpc")
    run_app(tmp_path / "d", nodes=4, slots=2, iterations=6, transport="memory")
    run_app(tmp_path / "e", nodes=2, slots=1, iterations=6, seed=1)
    reference = tails(tmp_path / "a")
    for other in "bcd":
        assert same(reference, tails(tmp_path / other)), other
    assert not same(reference, tails(tmp_path / "e"))


@pytest.mark.parametrize(("topology", "n"), [("exponential:16", 16), ("directed-ring:64", 64)])
@pytest.mark.parametrize(("nodes", "slots"), [(2, 1), (4, 2)], ids=["default-federation", "four-nodes"])
def test_many_peers_finish_on_few_slots(topology, n, nodes, slots, tmp_path):
    run_app(tmp_path, nodes=nodes, slots=slots, topology=topology, iterations=2, problem=QUADRATICS)
    results = read_results(tmp_path)
    assert [p["peer"] for p in results["peers"]] == list(range(n))
    assert len(list((tmp_path / "peers").glob("*.safetensors"))) == n


def test_what_crosses_flower_does_not_grow_with_q(tmp_path):
    sizes = {}
    for problem in (QUADRATICS, LARGE):
        engine = run_app(tmp_path / problem[-5:], iterations=2, problem=problem, topology="ring:4")
        sizes[problem] = (read_results(tmp_path / problem[-5:])["trainable_parameters"], engine.crossed)
    assert sizes[LARGE][0] > 100 * sizes[QUADRATICS][0]
    assert abs(sizes[LARGE][1] - sizes[QUADRATICS][1]) < 200  # numbers print with more or fewer digits
    assert sizes[LARGE][1] < 64 * 1024


def test_the_results_hold_what_the_schema_promises(tmp_path):
    run_app(tmp_path, iterations=24, evaluate_every=8)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["schema"] == "p2pft.results/2"
    assert (results["status"], results["algorithm"], results["seed"], results["iterations"]) == (
        "completed",
        "p2pft",
        0,
        24,
    )
    assert results["trainable_parameters"] == 50762
    assert results["preprocessing"]["input_size"] == [1, 8, 8]
    assert results["preprocessing"]["from"]["mean"] == "the model's pretrained_cfg"
    assert [h["iteration"] for h in results["history"]] == [0, 8, 16, 24]
    assert all(len(h["accuracy"]) == 4 and None not in h["accuracy"] for h in results["history"])
    assert [p["classes"] for p in results["peers"]] == [
        ["0", "1"],
        ["2", "3"],
        ["4", "5", "6"],
        ["7", "8", "9"],
    ]
    for p in results["peers"]:
        assert 0 <= p["accuracy"] <= 1
        assert p["bytes_sent"] == 24 * 2 * 50762 * 4
        assert p["seconds"].keys() == {"gradient", "exchange", "evaluation"}
    theta = [np.concatenate([t[k].ravel() for k in sorted(t)]) for t in tails(tmp_path)]
    exact = np.sqrt(np.mean([np.sum((t - np.mean(theta, axis=0)) ** 2) for t in theta]))
    assert results["consensus_error"] == pytest.approx(exact, rel=0.3)


def test_an_epoch_is_as_many_iterations_as_a_mean_share_has_batches(tmp_path):
    run_app(tmp_path, epochs=1, batch_size=100)
    assert read_results(tmp_path)["iterations"] == 4  # ceil(1437 / 4 / 100)


def test_centralized_is_one_model_with_all_the_data(tmp_path):
    run_app(tmp_path, algorithm="centralized", iterations=3, nodes=4, slots=4)
    peers = read_results(tmp_path)["peers"]
    assert [(p["name"], p["images"], p["bytes_sent"]) for p in peers] == [("all", 1437, 0)]


def test_objective_examples_weighs_peers_by_their_images(tmp_path):
    run_app(tmp_path / "e", iterations=5, objective="examples")
    run_app(tmp_path / "u", iterations=5)
    assert not same(tails(tmp_path / "e"), tails(tmp_path / "u"))


def test_on_the_complete_graph_p2pft_is_centralised_training_however_few_images_the_peers_have(tmp_path):
    """One image of each of the ten digits: 2, 2, 3 and 3 images, all in every mini-batch."""
    few = {"shots": 1, "iterations": 20, "momentum": 0.5, "evaluate_every": 1000}
    run_app(tmp_path / "p", topology="complete-4", **few)
    run_app(tmp_path / "c", algorithm="centralized", **few)
    run_app(tmp_path / "d", topology="directed-ring-4", **few)
    (union,) = tails(tmp_path / "c", 1)
    for own in tails(tmp_path / "p"):
        for key in union:
            np.testing.assert_allclose(own[key], union[key], rtol=1e-3, atol=1e-5)
    apart = max(np.abs(own[key] - union[key]).max() for own in tails(tmp_path / "d") for key in union)
    assert apart > 1e-2  # where peers do not agree at once, they take another way
    complete, pooled = (read_results(tmp_path / name)["summary"]["accuracy"] for name in "pc")
    assert complete["mean"] == pooled["mean"]


TWO_ROUNDS = {"epochs": 2, "shots": 4, "batch_size": 4}
"""Rounds of three mini-batches: a mean share has ten images."""


@pytest.mark.parametrize(
    "name",
    [
        "fedavg",
        "fedprox",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
        "fedavgm",
        "multikrum",
        "bulyan",
        "qfedavg",
    ],
)
def test_flowers_strategies_run_unmodified_on_the_same_peers(name, tmp_path):
    options = {"fedprox": "proximal-mu=0.1", "bulyan": "num-malicious-nodes=0"}.get(name, "")
    run_app(tmp_path, algorithm=name, nodes=2, slots=1, **TWO_ROUNDS, strategy_options=options)
    results = read_results(tmp_path)
    assert results["status"] == "completed"
    assert [h["iteration"] for h in results["history"]] == [0, 3, 6]
    assert len({p["accuracy"] for p in results["peers"]}) == 1  # one model for all
    assert same(*[[t] for t in tails(tmp_path)[:2]])
    assert all(p["bytes_sent"] == 2 * 2 * 50762 * 4 for p in results["peers"])


@pytest.mark.parametrize(
    ("every", "scored"), [(0, [0, 3, 6, 9, 10]), (6, [0, 6, 10]), (4, [0, 6, 9, 10]), (1000, [0, 10])]
)
def test_a_strategy_asks_for_scores_at_the_end_of_the_rounds_in_which_they_are_due(every, scored, tmp_path):
    run_app(tmp_path, algorithm="fedavg", iterations=10, shots=4, batch_size=4, evaluate_every=every)
    results = read_results(tmp_path)
    assert [h["iteration"] for h in results["history"]] == scored
    assert [h["bytes_sent"] // (4 * 2 * 50762 * 4) for h in results["history"]] == [
        -(-k // 3) for k in scored
    ]


def test_the_model_of_fedavg_depends_neither_on_the_number_of_supernodes_nor_on_when_it_is_scored(tmp_path):
    run_app(tmp_path / "a", algorithm="fedavg", nodes=2, slots=1, **TWO_ROUNDS)
    run_app(tmp_path / "b", algorithm="fedavg", nodes=4, slots=3, **TWO_ROUNDS)
    run_app(tmp_path / "last", algorithm="fedavg", **TWO_ROUNDS, evaluate_every=1000)
    assert same(tails(tmp_path / "a"), tails(tmp_path / "b"))
    assert same(tails(tmp_path / "a"), tails(tmp_path / "last"))


def test_one_local_step_of_fedavg_and_one_centralised_step_are_one_of_dgd_on_the_complete_graph(tmp_path):
    """All draw the very batches of the peers, and step along the mean of their gradients."""
    run_app(tmp_path / "f", algorithm="fedavg", iterations=1)
    run_app(tmp_path / "c", algorithm="centralized", iterations=1)
    run_app(tmp_path / "d", algorithm="dgd", topology="complete-4", iterations=1)
    (central,), decentralised = tails(tmp_path / "c", 1), tails(tmp_path / "d")
    for a, b in zip([*tails(tmp_path / "f"), central], [*decentralised, decentralised[0]], strict=True):
        for key in a:
            np.testing.assert_allclose(a[key], b[key], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"algorithm": "fedxyz"},
            ConfigError,
            "algorithm = 'fedxyz' is unknown; choose one of p2pft, dgd.*fedavg",
        ),
        ({"algorithm": "gt-dgd", "topology": "lopsided-4"}, TopologyError, "not doubly stochastic"),
        ({"topology": "ring-five"}, TopologyError, "ring-five"),
        (
            {"learning_rat": 1.0},
            ConfigError,
            "unknown run-config key 'learning-rat': did you mean 'learning-rate'",
        ),
        (
            {"transport": "carrier-pigeon"},
            ConfigError,
            "transport = 'carrier-pigeon': must be one of auto, memory, grpc",
        ),
        ({"strategy_options": "eta=1"}, ConfigError, "algorithm 'p2pft' is none of Flower's"),
        ({"algorithm": "fedavg", "strategy_options": "mu=1"}, ConfigError, "fedavg has no option 'mu'"),
        (
            {"algorithm": "fedtrimmedavg", "strategy_options": "beta=0.7"},
            ConfigError,
            "fedtrimmedavg refuses",
        ),
        (
            {"dataset": "mnist"},
            ConfigError,
            "dataset = 'mnist' is unknown; choose one of digits, cifar10, .*folder:/path",
        ),
        ({"model": "no_such_model"}, ConfigError, "model = 'no_such_model' is unknown"),
        (
            {"tune": "first-block"},
            ConfigError,
            "tune = 'first-block' is unknown; choose one of last-block",
        ),
        ({"partition": "classes:0-1"}, ConfigError, "names 1 groups of classes for 4 peers"),
        ({"learning_rate": 1e6}, RunFailedError, "diverged; lower learning-rate"),
    ],
    ids=str,
)
def test_wrong_settings_end_the_run_with_one_clear_error(settings, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run_app(tmp_path, iterations=3, **settings)
    if error is RunFailedError:
        results = read_results(tmp_path)
        assert results["status"] == "failed"
        assert results["error"]


FAILING = """
import numpy as np
from p2pft_flower.learning.data.datasets import Dataset, Split, digits

def broken(data_dir):
    whole = digits(data_dir)
    def read(index):
        if index == 3:
            raise OSError("the disk of this peer is gone")
        return whole.train.read(index)
    return Dataset("broken", whole.classes, Split(whole.train.labels, read), whole.test)
"""


@pytest.mark.parametrize("algorithm", ["p2pft", "fedavg"])
def test_a_peer_that_raises_ends_the_run_by_name(algorithm, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    with pytest.raises(RunFailedError, match=r"peer.*the disk of this peer is gone"):
        run_app(
            tmp_path / "out", algorithm=algorithm, nodes=4, slots=4, dataset=f"{tmp_path}/failing.py:broken"
        )
    assert read_results(tmp_path / "out")["status"] == "failed"


@pytest.mark.parametrize("algorithm", ["p2pft", "local", "centralized", "fedavg", "fedmedian"])
def test_a_run_that_diverges_never_counts_as_completed(algorithm, tmp_path):
    with np.errstate(all="ignore"), pytest.raises(RunFailedError, match=r"diverged; lower learning-rate"):
        run_app(tmp_path, algorithm=algorithm, learning_rate=1e6, epochs=2)
    assert read_results(tmp_path)["status"] == "failed"


def test_the_objective_does_not_change_what_nobody_is_weighed_against(tmp_path):
    run_app(tmp_path / "e", algorithm="local", iterations=3, objective="examples")
    run_app(tmp_path / "u", algorithm="local", iterations=3)
    assert same(tails(tmp_path / "e"), tails(tmp_path / "u"))


def test_addresses_of_a_graph_are_for_deployments_only(tmp_path):
    (tmp_path / "graph.yaml").write_text(
        "peers: [{name: a, address: '10.0.0.1:9000'}, {name: b, address: '10.0.0.2:9000'}]\n"
        "edges: [[a, b], [b, a]]\n"
    )
    graph = str(tmp_path / "graph.yaml")
    run_app(tmp_path / "out", topology=graph, problem=QUADRATICS, iterations=2, transport="grpc")
    assert [p["name"] for p in read_results(tmp_path / "out")["peers"]] == ["a", "b"]


def test_a_node_without_a_peer_id_beside_others_is_named(tmp_path):
    nodes = [{"peer-id": 0, "peer-address": "127.0.0.1:1"}, {}]
    for algorithm in ("p2pft", "fedavg"):
        with pytest.raises(RunFailedError, match=r"\(node 1001\) has no peer-id, others have"):
            run_app(tmp_path / algorithm, algorithm=algorithm, topology="ring:2", slots=2, node_configs=nodes)


def test_the_first_cause_is_reported_not_what_it_did_to_others(tmp_path):
    """Host 0 only hears of, or times out on, what happened on host 1."""
    (tmp_path / "failing.py").write_text(FAILING)
    with pytest.raises(RunFailedError, match="the disk of this peer is gone"):
        run_app(tmp_path / "out", nodes=2, slots=2, dataset=f"{tmp_path}/failing.py:broken", peer_timeout=3.0)


def test_flowers_strategies_go_by_flowers_own_names_too(tmp_path):
    run_app(tmp_path, algorithm="FedProx", **TWO_ROUNDS | {"epochs": 1}, strategy_options="proximal-mu=0.1")
    assert read_results(tmp_path)["status"] == "completed"


def test_results_of_an_earlier_run_are_not_written_over_nor_mixed_with_what_an_interrupted_one_left(tmp_path):
    small = {"problem": QUADRATICS, "topology": "ring:2", "iterations": 1}
    run_app(tmp_path, **small)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run_app(tmp_path, **small)
    assert (tmp_path / "results.json").read_bytes() == before
    (tmp_path / "results.json").unlink()
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run_app(tmp_path, **small)


def test_deployed_peers_speak_over_tcp_and_reach_the_same_theta(tmp_path):
    nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(4))]
    run_app(tmp_path / "d", slots=4, node_configs=nodes[::-1], iterations=6)
    run_app(tmp_path / "m", iterations=6)
    assert same(tails(tmp_path / "d"), tails(tmp_path / "m"))


def test_deployed_peers_that_start_from_other_weights_are_refused_before_they_train(tmp_path, monkeypatch):
    nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(4))]
    monkeypatch.setattr(
        "p2pft_flower.learning.workload.Workload.model_digest",
        property(lambda self: f"digest-{self.holdings.here}"),
    )
    with pytest.raises(
        RunFailedError, match=r"model digest differs: peers \[1\] have digest-\(1,\), peers \[0\]"
    ):
        run_app(tmp_path, slots=4, node_configs=nodes, iterations=1, algorithm="local", seed=91)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 1, 3], r"peer 1 is claimed by .*\(node 1001\), by .*\(node 1002\)"),
        ([0, 1, 2, 7], r"\(node 1003\) says peer-id=7, but the graph has the peers 0..3"),
        ([0, 1, 3], r"waiting for peers \[2\]; there are the peers \[0, 1, 3\]"),
    ],
)
def test_deployed_nodes_that_do_not_fit_the_graph_are_named(ids, message, tmp_path):
    nodes = [{"peer-id": i, "peer-address": "127.0.0.1:1"} for i in ids]
    with pytest.raises(RunFailedError, match=message):
        run_app(tmp_path, slots=4, node_configs=nodes, iterations=1, meet_timeout=1.0)


def test_overlap_is_the_most_that_ran_at_one_moment():
    def stretch(*pairs):
        return [{"begin": a, "end": b} for a, b in pairs]

    assert overlap(stretch((0, 1), (1.1, 2))) == 1
    assert overlap(stretch((0, 3), (1, 2), (1.5, 4), (3.5, 5))) == 3
    assert overlap(stretch((0, 1), (1, 2))) == 1  # one after the other


def test_hosts_get_contiguous_stretches_of_peers():
    answers = {7: {"peer-id": None, "begin": 0, "end": 2}, 5: {"peer-id": None, "begin": 1, "end": 3}}
    assert assign_hosts(answers, 5, "auto", pooled=False) == [
        HostAssignment(5, (0, 1, 2)),
        HostAssignment(7, (3, 4)),
    ]
    assert assign_hosts(answers, 5, "memory", pooled=False) == [HostAssignment(5, (0, 1, 2, 3, 4))]
    assert assign_hosts(answers, 5, "auto", pooled=True) == [HostAssignment(5, (0,))]
    assert [len(host.peers) for host in assign_hosts(answers, ONE_HOST, "auto", pooled=False)] == [ONE_HOST]
    assert len(assign_hosts(answers, ONE_HOST, "grpc", pooled=False)) > 1


def test_every_strategy_of_flower_that_aggregates_arrays_is_offered():
    names = strategy_names()
    assert {
        "fedavg",
        "fedprox",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
    } <= set(names)
    assert "fedxgbbagging" not in names
    assert "strategy" not in names
    for name in names:
        make_strategy(MethodConfig(algorithm=name), 4)


def test_what_hosts_say_while_they_prepare_reaches_the_coordinator(tmp_path, capsys):
    run_app(tmp_path, nodes=2, slots=1, iterations=1, seed=4711)  # a problem that no other test has prepared
    told = capsys.readouterr().out
    for line in (
        "glyph_vit_8 sees: image size 8 × 8 pixels, grey",
        "tune = last-block: q = 50762 trained parameters, 25.11 %",
        "path class-token",
    ):
        assert told.count(line) == 2, line  # the host's own log is this process's too


@pytest.mark.parametrize(
    "settings",
    [
        {"tune": "lora:2"},
        {"augment": "basic"},
        {"tune": "head", "cache": False},
        {"stream": True},
    ],
    ids=str,
)
def test_runs_that_keep_nothing_complete_and_do_not_depend_on_the_hosts(settings, tmp_path):
    for part, colours in (("train", 6), ("test", 2)):
        for label in range(4):
            (tmp_path / "pictures" / part / str(label)).mkdir(parents=True)
            for i in range(colours):
                grey = np.full((8, 8), 60 * label + i, np.uint8)
                Image.fromarray(grey).save(tmp_path / "pictures" / part / str(label) / f"{i}.png")
    data = {"dataset": f"folder:{tmp_path / 'pictures'}", "batch_size": 2, "iterations": 5}
    run_app(tmp_path / "one", nodes=2, slots=1, **data, **settings)
    run_app(tmp_path / "four", nodes=4, slots=4, **data, **settings)
    assert read_results(tmp_path / "one")["status"] == "completed"
    assert same(tails(tmp_path / "one"), tails(tmp_path / "four"))
