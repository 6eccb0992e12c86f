"""results.json of many peers stays small, and the history of few peers is whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from p2pft_flower.facts import KnownImages, PeerFacts
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.lines import Outcome
from p2pft_flower.learning.class_scores import class_scores
from p2pft_flower.report.outcomes import run_results, thinned
from p2pft_flower.report.results import read_results, write_json, write_results
from p2pft_flower.topology import Graph

CLASSES = tuple(map(str, range(10)))


def evaluations(number, peers):
    rng = np.random.default_rng(0)
    return [
        {
            "iteration": 10 * k,
            "bytes_sent": 10**9 * k,
            "consensus_error": rng.random(),
            **{key: rng.random(peers).tolist() for key in ("loss", "accuracy", "accuracy_unseen")},
        }
        for k in range(number)
    ]


def outcome(peer, theta):
    rng = np.random.default_rng(peer)
    labels, probabilities = rng.integers(0, 10, 360), rng.dirichlet(np.ones(10), 360)
    return Outcome(
        peer=peer, loss=rng.random(), accuracy=rng.random(), accuracy_unseen=rng.random(),
        bytes_sent=10**12, seconds=dict.fromkeys(("gradient", "exchange", "evaluation"), rng.random()),
        iterations=1000, parameters=50762, model_parameters=200000, sketch=theta,
        class_scores=class_scores(labels, probabilities.argmax(1), probabilities, CLASSES),
    )  # fmt: skip


def test_results_of_1024_peers_take_less_than_20_mb_however_often_they_were_scored(tmp_path):
    n, graph = 1024, Graph.load("exponential:1024")
    theta = sketch.encode(np.ones(128, np.float32))
    results = run_results(
        total=n,
        missing=None,
        run_id="1",
        config={},
        iterations=1000,
        outcomes={p: outcome(p, theta) for p in range(n)},
        about={p: PeerFacts(str(p), CLASSES, KnownImages(60)) for p in range(n)},
        history=evaluations(150, n),
        graph=graph.to_dict(),
        partition="iid",
        hosts=[range(n)],
        versions={},
    )
    path = write_results(tmp_path, results)
    assert path.stat().st_size < 20e6
    found = read_results(tmp_path)
    assert (len(found["history"]), found["evaluations"]) == (128, 150)
    assert found["peers"][1023]["class_scores"]["classes"]["names"] == list(CLASSES)


@pytest.mark.parametrize(("peers", "most"), [(65, 2016), (1024, 128), (4096, 32)])
def test_of_many_peers_evenly_spaced_evaluations_are_left_with_both_ends(peers, most):
    rows = [{"iteration": k} for k in range(3000)]
    left = [row["iteration"] for row in thinned(rows, peers)]
    assert (len(left), left[0], left[-1]) == (most, 0, 2999)
    assert max(np.diff(left)) - min(np.diff(left)) <= 1
    assert thinned(rows[:most], peers) == rows[:most]


def test_of_64_peers_and_fewer_all_evaluations_are_left():
    rows = [{"iteration": k} for k in range(5000)]
    assert thinned(rows, 64) == thinned(rows, 1) == rows


def test_json_has_a_line_an_entry_and_a_line_a_list_of_numbers(tmp_path):
    content = {
        "a": [[1, None], [0.5]],
        "b": {"c": [], "d": {}, 'e"': ["ü", True]},
        "f": [{"g": [1]}, [float("nan")]],
    }
    text = write_json(tmp_path / "some.json", content).read_text()
    assert json.loads(text) == content | {"f": [{"g": [1]}, [None]]}
    assert text.splitlines()[:5] == ["{", '  "a": [', "    [1, null],", "    [0.5]", "  ],"]
