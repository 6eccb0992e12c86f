"""Codecs and local steps in the app: lengths, bytes, what private gradients cost, and own codecs."""

from __future__ import annotations

import pytest

from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results
from tests.examples import write_example

from .engine import run_app

SMALL = {"topology": "directed-ring-4", "evaluate_every": 1000}


def test_the_default_job_with_an_eighth_of_the_exchanges_and_of_the_bytes_learns_as_much(tmp_path):
    run_app(tmp_path / "plain", epochs=4, **SMALL)
    run_app(tmp_path / "few", epochs=4, codec="q4", algorithm_options="local-steps=4", **SMALL)
    plain, few = read_results(tmp_path / "plain"), read_results(tmp_path / "few")
    assert (plain["iterations"], few["iterations"]) == (4 * 12, 4 * 3)  # 12 batches an epoch
    sent = [sum(peer["bytes_sent"] for peer in results["peers"]) for results in (plain, few)]
    assert sent[0] / sent[1] == pytest.approx(4 * 7.88, rel=0.01)
    assert few["summary"]["accuracy"]["mean"] > plain["summary"]["accuracy"]["mean"] - 0.02


def test_a_run_in_epochs_draws_no_more_gradients_than_it_must(tmp_path):
    run_app(tmp_path, epochs=3, algorithm_options="local-steps=8", **SMALL)
    assert read_results(tmp_path)["iterations"] == 5  # 36 batches, 8 an iteration


def test_local_steps_cost_as_much_privacy_as_so_many_iterations(tmp_path):
    private = {"dp_clip": 1.0, "dp_noise": 2.0, **SMALL}
    run_app(tmp_path / "plain", iterations=12, **private)
    run_app(tmp_path / "local", iterations=3, algorithm_options="local-steps=4", **private)
    spent = [read_results(tmp_path / name)["peers"][0]["epsilon"] for name in ("plain", "local")]
    assert spent[0] == spent[1] > 0


def test_the_docs_own_codec_trains_in_the_app(tmp_path):
    file = write_example("my_codec", tmp_path)
    run_app(tmp_path / "out", iterations=8, codec=f"{file}:Powers", **SMALL)
    results = read_results(tmp_path / "out")
    assert {peer["bytes_sent"] for peer in results["peers"]} == {8 * 2 * results["trainable_parameters"]}


def test_the_docs_own_schedule_trains_in_the_app_and_collects(tmp_path):
    file = write_example("my_schedule", tmp_path)
    own = f"{file}:pairs"
    run_app(tmp_path / "out", iterations=8, schedule_graph=own, **SMALL)
    results = read_results(tmp_path / "out")
    q = results["trainable_parameters"]
    # Peers 0 and 3 have a neighbour in every other iteration only.
    assert [peer["bytes_sent"] for peer in results["peers"]] == [n * 2 * 4 * q for n in (4, 8, 8, 4)]
    collected = collect_results(find_peers([tmp_path / "out"]))
    assert collected["graph"]["turns"] == results["graph"]["turns"]
    assert collected["graph"]["digest"] == results["graph"]["digest"]
