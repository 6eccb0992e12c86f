"""A peer's gradients and scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.scoring import evaluate
from p2pft_flower.learning.theta import tail_vector

from .conftest import DROPS, MemoryFeatures, small_vit


@pytest.fixture(scope="module")
def problem():
    """A tail with drop-out and drop-path, and 20 images' features."""
    trunk, tail, *_ = split_model(small_vit(**DROPS), "last-block")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        values = trunk(torch.randn(20, 3, 8, 8, generator=generator))
    return tail, MemoryFeatures(values, torch.arange(20) % 5), tail_vector(tail)


def objective_of(problem, seed=0, peer=0, batch=4):
    tail, features, _ = problem
    batches = Batches(len(features), batch, seed=seed, peer=peer)
    return PeerObjective(tail, MiniBatches(features, batches), features, seed=seed, peer=peer)


def gradients(objective, theta, count):
    return np.stack([objective.gradient(theta) for _ in range(count)])


def test_a_gradient_is_a_new_vector_and_theta_is_not_written_to(problem):
    theta = problem[2].copy()
    objective = objective_of(problem)
    first = objective.gradient(theta)
    kept = first.copy()
    second = objective.gradient(theta)
    np.testing.assert_array_equal(theta, problem[2])
    assert (first.shape, first.dtype) == (theta.shape, np.float32)
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)
    assert not np.shares_memory(first, theta)


def test_a_read_only_theta_will_do(problem):
    frozen = problem[2].copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(
        objective_of(problem).gradient(frozen), objective_of(problem).gradient(problem[2])
    )


def test_the_gradient_is_taken_where_theta_is(problem):
    other = problem[2] + np.float32(0.1)
    here, there = objective_of(problem).gradient(problem[2]), objective_of(problem).gradient(other)
    assert not np.allclose(here, there)
    mixed = objective_of(problem)
    mixed.evaluate(problem[2])
    np.testing.assert_array_equal(mixed.gradient(other), there)


def test_gradients_are_those_of_seed_peer_and_position_whatever_else_happens(problem):
    theta = problem[2]
    alone = gradients(objective_of(problem, peer=3), theta, 5)
    one, other = objective_of(problem, peer=3), objective_of(problem, peer=1)
    together = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        for k in range(5):
            torch.rand(7 + k)
            other.gradient(theta + k)
            together.append(one.gradient(theta))
            other.evaluate(theta)
    np.testing.assert_array_equal(alone, together)


def test_a_peer_that_goes_on_at_its_position_draws_what_it_would_have_drawn(problem):
    whole = gradients(objective_of(problem), problem[2], 6)
    resumed = objective_of(problem)
    resumed.drawn = 4
    np.testing.assert_array_equal(gradients(resumed, problem[2], 2), whole[4:])
    assert resumed.drawn == 6


def test_the_number_of_threads_does_not_change_the_drop_outs(problem):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = objective_of(problem).gradient(problem[2])
        torch.set_num_threads(2)
        two = objective_of(problem).gradient(problem[2])
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_torchs_global_generator_is_left_alone(problem):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        before = torch.get_rng_state()
        objective = objective_of(problem)
        objective.gradient(problem[2])
        objective.evaluate(problem[2])
        assert torch.equal(torch.get_rng_state(), before)


class AllInOrder:
    """Every batch is all images in the same order, so that only the masks can differ."""

    def batch(self, t):
        return np.arange(20)


def test_drop_out_masks_differ_by_seed_by_peer_and_by_position(problem):
    tail, features, theta = problem

    def drawn(seed, peer):
        return PeerObjective(tail, MiniBatches(features, AllInOrder()), features, seed=seed, peer=peer)

    vectors = [*gradients(drawn(0, 0), theta, 2), drawn(0, 1).gradient(theta), drawn(1, 0).gradient(theta)]
    for i, a in enumerate(vectors):
        for b in vectors[i + 1 :]:
            assert np.linalg.norm(a - b) > 0.05 * np.linalg.norm(a)


def test_evaluation_is_in_eval_mode_and_changes_no_later_gradient(problem):
    theta = problem[2]
    plain = gradients(objective_of(problem), theta, 3)
    watched, seen = objective_of(problem), []
    for _ in range(3):
        seen.append(watched.gradient(theta))
        assert watched.evaluate(theta) == watched.evaluate(theta)
        watched.evaluate(theta * 2)
    np.testing.assert_array_equal(seen, plain)
    assert watched.drawn == 3


def test_evaluation_equals_the_model_without_drop_out(problem):
    tail, features, theta = problem
    with torch.no_grad():
        logits = tail.eval()(*features.inputs)
    score = objective_of(problem).evaluate(theta)
    assert score.loss == pytest.approx(float(nn.functional.cross_entropy(logits, features.labels)), rel=1e-5)
    assert score.accuracy == float((logits.argmax(1) == features.labels).double().mean())


def test_the_training_loss_is_that_of_the_last_mini_batch():
    _, tail, *_ = split_model(small_vit(), "head")
    features = MemoryFeatures(
        (torch.randn(4, 16, generator=torch.Generator().manual_seed(0)),), torch.arange(4)
    )
    images = MiniBatches(features, Batches(4, 4, seed=0, peer=0))
    objective = PeerObjective(tail, images, features, seed=0, peer=0)
    assert math.isnan(objective.train_loss)
    objective.gradient(tail_vector(tail))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(tail(*features.inputs), features.labels)
    assert objective.train_loss == pytest.approx(float(expected), rel=1e-6)


class Answers(nn.Module):
    """Answers each image with the class that is written in it; θ is added to the logits."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, values):
        return 5 * values + self.bias


def answers(predicted, truth):
    return MemoryFeatures((torch.eye(4)[predicted],), torch.tensor(truth))


def test_unseen_accuracy_counts_the_images_of_classes_that_the_peer_does_not_hold_and_seen_the_others():
    test = answers([0, 0, 1, 2, 2, 3, 0, 3], [0, 1, 1, 2, 2, 2, 3, 3])
    for held, unseen, seen in [
        ([0, 1], 3 / 5, 2 / 3),
        ([0, 1, 1, 0, 2], 1 / 2, 4 / 6),
        ([3], 4 / 6, 1 / 2),
        ([0, 1, 2, 3], None, 5 / 8),
    ]:
        train = answers(held, held)
        images = MiniBatches(train, Batches(len(held), 2, seed=0, peer=0))
        objective = PeerObjective(Answers(), images, test, seed=0, peer=0)
        score = objective.evaluate(np.zeros(4, np.float32))
        assert score.accuracy == 5 / 8
        assert score.accuracy_unseen == (None if unseen is None else pytest.approx(unseen))
        assert score.accuracy_seen == pytest.approx(seen)
    assert objective.evaluate(np.array([100, 0, 0, 0], np.float32)).accuracy == 1 / 8


def test_scores_do_not_depend_on_the_stretches_in_which_images_are_evaluated(monkeypatch):
    truth = (np.arange(11) % 4).tolist()
    test = answers([0] * 11, truth)
    nobody = torch.tensor(truth) == 3
    theta = np.array([0, 1, 2, 3], np.float32)
    whole = evaluate(Answers(), theta, test, nobody)
    monkeypatch.setattr("p2pft_flower.learning.scoring.EVALUATION_BATCH", 4)
    parts = evaluate(Answers(), theta, test, nobody)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert (parts.accuracy, parts.accuracy_unseen) == (whole.accuracy, whole.accuracy_unseen)


def test_peers_share_nothing_that_training_writes_to(problem):
    tail, _, theta = problem
    a, b = objective_of(problem, peer=0), objective_of(problem, peer=1)
    expected = gradients(objective_of(problem, peer=1), theta, 2)
    own = theta.copy()
    a.gradient(own)
    first = b.gradient(theta)
    own += 100  # a's tail looks at this memory
    a.evaluate(own)
    a.gradient(own)
    np.testing.assert_array_equal([first, b.gradient(theta)], expected)
    np.testing.assert_array_equal(tail_vector(tail), theta)
    assert not tail.training
