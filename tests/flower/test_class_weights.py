"""``class-weights = balanced`` through Flower, on an uneven table: rare classes are found, on any hosts."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from p2pft_flower.flower import client
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.report.results import read_results
from tests.later import Later
from tests.several_labels import NAMES as LOOKS
from tests.several_labels import write_digits

from .engine import run_app
from .sameness import tails
from .test_moved_data import interrupted

class_weight = Later("sklearn.utils.class_weight")

NAMES = ("common", "rare", "rarest")
TRAIN, TEST = (240, 12, 6), (40, 40, 40)


@pytest.fixture(autouse=True)
def _fresh():
    client.workload.cache_clear()
    client.holdings.cache_clear()


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A file of features: three classes that overlap, one far more common than the others in training."""
    rng = np.random.default_rng(3)
    centres = np.eye(3, 4)
    held = {}
    for part, sizes in (("train", TRAIN), ("test", TEST)):
        labels = rng.permutation(np.repeat(np.arange(3), sizes))
        held[f"{part}.features"] = (centres[labels] + 0.45 * rng.normal(size=(len(labels), 4))).astype(
            np.float32
        )
        held[f"{part}.labels"] = labels.astype(np.int64)
    file = tmp_path_factory.mktemp("uneven") / "uneven.npz"
    np.savez(file, **held, classes=np.array(NAMES))
    return file


@pytest.fixture
def settings(features):
    return {
        "dataset": f"features:{features}", "model": "none", "tune": "head", "partition": "dirichlet:0.5",
        "topology": "directed-ring:4", "learning_rate": 0.3, "iterations": 150, "evaluate_every": 50,
    }  # fmt: skip


def balanced_accuracy(folder):
    return [peer["class_scores"]["balanced_accuracy"] for peer in read_results(folder)["peers"]]


@pytest.mark.parametrize("objective", ["uniform", "examples"])
def test_rare_classes_are_found_more_often(objective, settings, tmp_path):
    settings["partition"] = "iid"
    run_app(tmp_path / "none", nodes=1, **settings, objective=objective)
    run_app(tmp_path / "balanced", nodes=1, **settings, objective=objective, class_weights="balanced")
    assert min(balanced_accuracy(tmp_path / "balanced")) > max(balanced_accuracy(tmp_path / "none")) + 0.1


@pytest.mark.parametrize("algorithm", ["p2pft", "centralized"])
def test_all_have_scikit_learns_weights_of_the_pooled_labels_and_the_same_theta_on_any_hosts(
    algorithm, settings, features, tmp_path, monkeypatch
):
    weigh, weights = PeerObjective.weigh, []

    def noted(self, counts):
        weigh(self, counts)
        weights.append(self._weights.tolist())

    monkeypatch.setattr(PeerObjective, "weigh", noted)
    settings |= {"iterations": 6, "evaluate_every": 3, "class_weights": "balanced", "algorithm": algorithm}
    hosts = (1, 3) if algorithm == "p2pft" else (1,)
    for nodes in hosts:
        run_app(tmp_path / str(nodes), nodes=nodes, **settings)
    labels = np.load(features)["train.labels"]
    theirs = class_weight.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    peers = 4 if algorithm == "p2pft" else 1
    assert weights == [theirs.astype(np.float32).tolist()] * peers * len(hosts)
    assert len({str(tails(tmp_path / str(nodes), range(peers))) for nodes in hosts}) == 1


def test_a_resumed_run_ends_as_the_uninterrupted_one(settings, tmp_path):
    settings |= {"iterations": 4, "evaluate_every": 2, "checkpoint_every": 2, "class_weights": "balanced"}
    run_app(tmp_path / "run", nodes=2, **settings)
    interrupted(tmp_path / "run", tmp_path / "killed", after=2)
    run_app(tmp_path / "on", nodes=1, **settings, resume=str(tmp_path / "killed"))
    assert tails(tmp_path / "on") == tails(tmp_path / "run")


@pytest.mark.parametrize("more", [{}, {"keep": "best:loss", "validation": 0.2}], ids=["last", "best"])
def test_rare_labels_are_weighted_by_those_without_them_to_those_with_them(more, tmp_path, monkeypatch):
    weigh, told = PeerObjective.weigh, []

    def noted(self, counts):
        weigh(self, counts)
        told.append((counts.tolist(), self._weights.tolist()))

    monkeypatch.setattr(PeerObjective, "weigh", noted)
    data = f"table:{write_digits(tmp_path / 'data', 60, 20)}"
    run_app(
        tmp_path / "run", nodes=2, dataset=data, topology="ring:4", iterations=4, evaluate_every=2,
        tune="head", class_weights="balanced", **more,
    )  # fmt: skip
    ((counts, weights),) = {(tuple(c), tuple(w)) for c, w in told}
    assert len(told) == 4
    images, of_label = counts[0], np.array(counts[1:])
    assert weights == pytest.approx((images - of_label) / of_label)
    if not more:
        with (tmp_path / "data" / "labels.csv").open(newline="") as file:
            cells = [row["labels"].split("|") for row in csv.DictReader(file) if row["split"] == "train"]
        assert counts == (60, *(sum(name in cell for cell in cells) for name in LOOKS))
