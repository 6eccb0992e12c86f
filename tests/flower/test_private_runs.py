"""Runs with differential privacy, from the settings to the results."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from p2pft_flower.errors import ConfigError
from p2pft_flower.flower import clients
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.report.results import read_results
from p2pft_flower.report.tables import run_table

from .engine import run_app

pytestmark = pytest.mark.skipif(importlib.util.find_spec("opacus") is None, reason="Opacus is not installed")

PRIVATE = {"dp_clip": 1.0, "dp_noise": 2.0, "iterations": 4}


def spent(results):
    from p2pft_flower.learning.privacy import epsilon

    releases = {"p2pft": 5, "dgd": 4, "fedavg": 4}[results["algorithm"]]
    return [
        epsilon(noise=2.0, rate=32 / p["images"], releases=releases, delta=1 / (10 * p["images"]))
        for p in results["peers"]
    ]


@pytest.mark.parametrize("algorithm", ["p2pft", "dgd", "fedavg"])
def test_results_hold_what_each_peers_gradients_have_cost(algorithm, tmp_path):
    run_app(tmp_path, algorithm=algorithm, **PRIVATE)
    results = read_results(tmp_path)
    assert [p["epsilon"] for p in results["peers"]] == pytest.approx(spent(results))
    assert [p["delta"] for p in results["peers"]] == [1 / (10 * p["images"]) for p in results["peers"]]
    last = json.loads((tmp_path / "peers" / "peer-0.jsonl").read_text().splitlines()[-1])
    assert last["event"] == ("last round" if algorithm == "fedavg" else "end")
    assert last["epsilon"] == results["peers"][0]["epsilon"]
    table = run_table(results)
    assert "ε" in table
    assert f"differential privacy: ε {results['peers'][0]['epsilon']:.2f}" in table
    assert "clip 1, noise 2 | RDP accountant (Opacus)" in table


def test_clipping_alone_is_said_to_be_no_privacy(tmp_path):
    run_app(tmp_path, dp_clip=1.0, iterations=2)
    results = read_results(tmp_path)
    assert [p["epsilon"] for p in results["peers"]] == [None] * 4
    assert "differential privacy: ε ∞ ∞ ∞ ∞" in run_table(results)


def test_without_privacy_the_table_says_nothing_of_it(tmp_path):
    run_app(tmp_path, iterations=2)
    results = read_results(tmp_path)
    assert [(p["epsilon"], p["delta"]) for p in results["peers"]] == [(None, None)] * 4
    assert "ε" not in run_table(results)


def test_a_private_run_has_the_same_theta_however_its_peers_are_hosted(tmp_path):
    run_app(tmp_path / "a", nodes=2, slots=1, **PRIVATE)
    run_app(tmp_path / "b", nodes=4, slots=4, **PRIVATE)
    for p in range(4):
        one, other = (load_file(tmp_path / run / "peers" / f"peer-{p}.safetensors") for run in "ab")
        for name, tensor in one.items():
            np.testing.assert_array_equal(tensor, other[name])


def test_deployed_peers_draw_their_noise_from_no_seed(tmp_path):
    for run in "ab":
        nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(4))]
        run_app(tmp_path / run, slots=4, node_configs=nodes, **PRIVATE)
    one, other = (read_results(tmp_path / run) for run in "ab")
    assert [p["epsilon"] for p in one["peers"]] == [p["epsilon"] for p in other["peers"]]
    assert [p["epsilon"] for p in one["peers"]] == pytest.approx(spent(one))
    for p in range(4):
        tails = [load_file(tmp_path / run / "peers" / f"peer-{p}.safetensors") for run in "ab"]
        assert not any((tensor == tails[1][name]).all() for name, tensor in tails[0].items())


def test_a_private_client_does_not_tell_its_training_loss(tmp_path, monkeypatch):
    told = []
    train = clients.train

    def listen(*arguments):
        content = train(*arguments)
        told.append(dict(content.metric_records["metrics"]))
        return content

    monkeypatch.setattr(clients, "train", listen)
    run_app(tmp_path / "a", algorithm="fedavg", **PRIVATE)
    assert told
    assert all(set(metrics) == {"num-examples"} for metrics in told)
    told.clear()
    run_app(tmp_path / "b", algorithm="fedavg", iterations=2)
    assert all("train_loss" in metrics for metrics in told)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dp_noise": 1.0}, "dp-noise = 1.0 with dp-clip = 0"),
        ({"dp_clip": 1.0, "algorithm": "centralized"}, "the peer that pools all images sees them"),
    ],
    ids=["noise-alone", "centralized"],
)
def test_a_run_that_would_not_be_private_does_not_start(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_app(tmp_path, **settings)
    assert not (tmp_path / "peers").exists()
