"""The defaults keep their promise: every peer learns all ten digits, which none could alone."""

from __future__ import annotations

import pytest

from p2pft_flower.report.results import read_results

from .engine import run_app


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory):
    found = {}
    for algorithm in ("p2pft", "local", "centralized"):
        folder = tmp_path_factory.mktemp(algorithm)
        run_app(folder, nodes=2, slots=1, algorithm=algorithm, evaluate_every=100)
        found[algorithm] = [p["accuracy"] for p in read_results(folder)["peers"]]
    return found


def test_every_peer_reaches_0_93_on_all_ten_digits(accuracies):
    assert len(accuracies["p2pft"]) == 4
    assert min(accuracies["p2pft"]) >= 0.93


def test_every_peer_is_within_0_02_of_centralised_training(accuracies):
    (centralised,) = accuracies["centralized"]
    assert all(abs(a - centralised) <= 0.02 for a in accuracies["p2pft"])


def test_no_peer_exceeds_0_32_alone(accuracies):
    assert max(accuracies["local"]) <= 0.32
