"""``problem = my_module:my_problem``: any model trains, and no torch is imported for one that has none."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from safetensors import safe_open

from p2pft_flower.algorithms import simulate
from p2pft_flower.cli import app as cli
from p2pft_flower.cli.settings import check
from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.flower.site import Site
from p2pft_flower.host.own_problem import Plugged
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.report.results import read_results
from p2pft_flower.topology import Graph
from tests.commands import CliRunner
from tests.examples import write_example
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


def test_its_tails_are_scored_by_it_and_are_no_vision_transformers(tmp_path):
    run(tmp_path)
    done = CliRunner().invoke(cli, ["evaluate", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    results = read_results(tmp_path)["peers"]
    assert [(s["loss"], s["accuracy"]) for s in json.loads(done.stdout)] == [
        (peer["loss"], peer["accuracy"]) for peer in results
    ]
    done = CliRunner().invoke(cli, ["evaluate", str(tmp_path)])
    assert f"{results[0]['accuracy']:.4f}" in done.stdout
    for words, said in (
        (["evaluate", str(tmp_path), "--dataset", "digits"], "--dataset does not apply"),
        (["evaluate", str(tmp_path), "--zero-shot"], "--zero-shot does not apply"),
        (["evaluate", str(tmp_path), "--text-embeddings", "t.npz"], "--text-embeddings does not apply"),
        (["export", str(tmp_path), "--out", str(tmp_path / "x")], "it is no vision"),
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 2
        assert said in done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "vit_tiny_patch16_224", "shots": 3}, r"model = 'vit_tiny_patch16_224', shots = 3 with pr"),
        ({"algorithm": "fedavg"}, "Flower's strategies are run on vision transformers only"),
        ({"algorithm": "centralized"}, "it has one objective a peer, and none of all data together"),
        ({"problem": "quadratics"}, "must be empty, my_module:my_problem or /path/file.py:my_problem"),
    ],
    ids=str,
)
def test_settings_that_do_not_apply_are_refused_before_anything_starts(settings, said, tmp_path):
    values = {"problem": QUADRATICS, "topology": "ring:4", **settings}
    with pytest.raises(ConfigError, match=said):
        check(values, here=True)
    with pytest.raises(P2PFTError, match=said):
        run_app(tmp_path, **values)


def test_a_site_hands_it_its_own_folder_and_no_range_of_pixels():
    learning = LearningConfig(problem=QUADRATICS)
    assert Site(0, data_dir="/mine").with_own_data(learning).data_dir == "/mine"
    with pytest.raises(ConfigError, match=r"pixel-range = 'auto' in --node-config with problem"):
        Site(0, pixel_range="auto").with_own_data(learning)


class Wrong(Quadratics):
    """A problem with one attribute in another form than it must have."""

    def __init__(self, name, value):
        super().__init__(32, 0)
        setattr(self, name, value)


def wrong_peer(name, value):
    peer = Peer(0, 0, 0.1)
    setattr(peer, name, value)
    return lambda peers, progress: dict.fromkeys(peers, peer)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("theta0", [0.0], "its theta0 is .*; it must be a NumPy array"),
        ("theta0", np.zeros((2, 2), "f4"), r"its theta0 is \(2, 2\) float32"),
        ("theta0", np.zeros(3, int), "finite numbers of float32 or float64"),
        ("theta0", np.array([np.nan]), "finite numbers of float32 or float64"),
        ("model_digest", b"x", "its model_digest is b'x'"),
        ("model_parameters", -1, "its model_parameters is -1"),
        ("samples", lambda peer: 0, r"samples\(2\) is 0; it must be a whole number >= 1"),
        ("objectives", lambda peers, progress: {}, "the objective of peer 2"),
        ("objectives", lambda peers, progress: {2: 3}, "without gradient, evaluate"),
        ("objectives", wrong_peer("gradient", lambda theta: theta[:-1]), r"gradient is \(299,\) float32"),
        ("objectives", wrong_peer("gradient", np.float64), r"peer 2's gradient is \(300,\) float64"),
        ("objectives", wrong_peer("evaluate", lambda theta: 0.5), "numbers loss and accuracy"),
    ],
)
def test_what_it_may_not_return_is_refused_by_what_and_where(name, value, said, monkeypatch):
    module = type(sys)("own_wrong")
    module.problem = lambda **_: Wrong(name, value)
    monkeypatch.setitem(sys.modules, "own_wrong", module)

    def trains():
        asked = Plugged(LearningConfig(problem="own_wrong:problem"), 3)
        asked.samples(2)
        objective = asked.objectives([2])[2]
        objective.gradient(asked.theta0)
        objective.evaluate(asked.theta0)

    with pytest.raises(ConfigError, match=rf"problem = 'own_wrong:problem': .*{said}"):
        trains()


def test_what_is_missing_or_raises_is_named_with_the_line(tmp_path):
    (tmp_path / "own.py").write_text("def nothing(**_):\n    return 3\n\n\ndef raises(**_):\n    1 / 0\n")
    with pytest.raises(ConfigError, match="what it returned is a int without theta0, model_digest"):
        Plugged(LearningConfig(problem=f"{tmp_path / 'own.py'}:nothing"), 3)
    with pytest.raises(ConfigError, match=r"calling it raised ZeroDivisionError: .* \(.*own.py, line 6\)"):
        Plugged(LearningConfig(problem=f"{tmp_path / 'own.py'}:raises"), 3)


def test_the_example_in_the_docs_trains_to_the_mean_of_its_centres(tmp_path):
    file = write_example("my_problem", tmp_path)
    own = f"{file}:quadratics"
    run_app(tmp_path / "out", problem=own, topology="ring:4", iterations=300, evaluate_every=100)
    for theta in thetas(tmp_path / "out").values():
        np.testing.assert_allclose(theta, 0.25, atol=0.01)
    peers = read_results(tmp_path / "out")["peers"]
    assert [peer["accuracy"] for peer in peers] == [None] * 4  # it has none
