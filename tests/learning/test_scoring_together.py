"""Peers of one host are scored together, with the scores that each gets by itself, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from p2pft_flower.learning import scoring, scoring_together
from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.scoring import Scored
from p2pft_flower.learning.scoring_together import evaluate_together
from p2pft_flower.learning.theta import tail_vector

from .conftest import MemoryFeatures, small_vit

NAMES = tuple("abcde")
IMAGES, PEERS = 20, 5


class Counted(MemoryFeatures):
    """Features that count how often each image is read."""

    def __init__(self, values, labels):
        super().__init__(values, labels)
        self.reads = np.zeros(len(labels), int)

    def read(self, positions, draw=None):
        self.reads[positions] += 1
        return super().read(positions, draw)


@pytest.fixture(params=["head", "last-block", "last-blocks:2"])
def peers(request, monkeypatch):
    """Objectives that share test images and differ in the classes that they hold, and a θ for each."""
    monkeypatch.setattr(scoring, "EVALUATION_BATCH", 8)
    trunk, tail, *_ = split_model(small_vit(), request.param)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        values = trunk(torch.randn(IMAGES, 3, 8, 8, generator=generator))
    labels = torch.arange(IMAGES) % 5
    test = Counted(values, labels)
    rng, theta = np.random.default_rng(0), tail_vector(tail)
    return {p: objective(tail, values, labels, p, test) for p in range(PEERS)}, {
        p: (theta + 0.1 * rng.standard_normal(theta.size)).astype(np.float32) for p in range(PEERS)
    }


def objective(tail, values, labels, peer, test):
    held = labels <= peer % 4
    mine = MemoryFeatures(tuple(v[held] for v in values), labels[held])
    batches = MiniBatches(mine, Batches(len(mine), 4, seed=0, peer=peer))
    scored = Scored(NAMES, lambda: [str(i) for i in range(len(test))], PEERS)
    return PeerObjective(tail, batches, test, seed=0, peer=peer, scored=scored)


def together(objectives, thetas, **options):
    found = {}
    for some in evaluate_together(objectives, thetas, **options):
        found |= some
    return found


@pytest.mark.parametrize("at_a_time", [1, 2, PEERS])
def test_each_peer_has_the_scores_that_it_gets_by_itself_to_the_last_bit(peers, at_a_time, monkeypatch):
    objectives, thetas = peers
    alone = {p: objectives[p].evaluate(theta) for p, theta in thetas.items()}
    in_full = {p: objectives[p].evaluate_in_full(theta) for p, theta in thetas.items()}
    assert len({score.loss for score in alone.values()}) == PEERS
    assert [alone[p].accuracy_unseen is None for p in thetas] == [False] * PEERS
    monkeypatch.setattr(scoring_together, "MEMORY", at_a_time * IMAGES * 8 * (2 + len(NAMES)))
    assert {p: one.score for p, one in together(objectives, thetas).items()} == alone
    found = list(evaluate_together(objectives, thetas, full=True))
    assert [len(some) for some in found] == [at_a_time] * (PEERS // at_a_time) + [1] * (PEERS % at_a_time)
    for some in found:
        for p, one in some.items():
            assert (one.score, one.class_scores) == (alone[p], in_full[p].class_scores)
            assert list(one.predictions) == list(in_full[p].predictions)


def test_each_image_is_read_once_for_all_peers_and_each_theta_runs_once(peers):
    objectives, thetas = peers
    passes = []
    same = dict.fromkeys(thetas, thetas[0])
    found = together(objectives, same | {3: thetas[3]}, progress=lambda: passes.append(1))
    assert len(passes) == 2 * 3  # two θ, three batches
    assert objectives[0].test.reads.tolist() == [1] * IMAGES
    assert found[0].score.loss == found[4].score.loss != found[3].score.loss
    assert found[0].score.accuracy_unseen != found[2].score.accuracy_unseen  # each by its own classes


@pytest.mark.parametrize("threads", [2, 3, 20])
def test_threads_share_the_thetas_and_change_no_score(peers, threads):
    objectives, thetas = peers
    before = together(objectives, thetas, full=True)
    reads, passes = objectives[0].test.reads.copy(), []
    found = together(objectives, thetas, full=True, threads=threads, progress=lambda: passes.append(1))
    for p, one in found.items():
        assert (one.score, one.class_scores) == (before[p].score, before[p].class_scores)
        assert list(one.predictions) == list(before[p].predictions)
    assert len(passes) == PEERS * 3
    assert (objectives[0].test.reads - reads).tolist() == [1] * IMAGES


def test_peers_with_test_images_of_their_own_are_scored_on_these(peers):
    objectives, thetas = peers
    for p in (1, 2):
        whole = objectives[p].test
        objectives[p].test = MemoryFeatures(tuple(v[p:12] for v in whole.inputs), whole.labels[p:12])
    alone = {p: objectives[p].evaluate(theta) for p, theta in thetas.items()}
    found = together(objectives, thetas)
    assert [*found] == [*thetas]
    assert {p: one.score for p, one in found.items()} == alone


def test_a_tail_that_has_scored_can_be_copied_and_trained(peers):
    objectives, thetas = peers
    before = objectives[0].gradient(thetas[0])
    together(objectives, thetas)
    again = PeerObjective(objectives[0].tail, objectives[0]._images, objectives[0].test, seed=0, peer=0)
    np.testing.assert_array_equal(again.gradient(thetas[0]), before)
