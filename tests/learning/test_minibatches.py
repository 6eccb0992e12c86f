"""What a gradient is taken of; that of pooled images is the mean over peers, however few images they have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from p2pft_flower.algorithms.objective import peer_weights
from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.batches import Batches, PoissonBatches
from p2pft_flower.learning.losses import balanced_weights
from p2pft_flower.learning.minibatches import MiniBatch, MiniBatches, PooledMiniBatches
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.model.structure import share_copy
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.scoring import Scored
from p2pft_flower.learning.theta import tail_vector
from p2pft_flower.learning.workload import Workload
from tests.later import Later

from .conftest import MemoryFeatures, small_vit, write_images

class_weight = Later("sklearn.utils.class_weight")

BATCH = 4
SIZES = [(1, 1, 1), (1, 2, 9), (3, 4), (9, 9), (2, 3, 3, 8), (6,)]
"""Images of each peer: fewer than a batch, as many, more."""


@pytest.fixture(scope="module")
def tail():
    return split_model(small_vit(), "last-block").tail


@pytest.fixture(scope="module")
def tokens():
    """What a trunk makes of 20 images."""
    trunk = split_model(small_vit(), "last-block").trunk
    with torch.no_grad():
        return trunk(torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(2)))


def apart_and_pooled(sizes, tokens):
    """Mini-batches of peers with so many images, and the same ones pooled, which start anew."""

    def parts():
        ends = np.cumsum(sizes)
        for peer, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            held = MemoryFeatures(
                tuple(t[end - size : end] for t in tokens), torch.arange(end - size, end) % 5
            )
            yield MiniBatches(held, Batches(size, BATCH, seed=1, peer=peer))

    return list(parts()), PooledMiniBatches(list(parts()))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_pooled_gradient_and_loss_are_the_mean_of_the_peers_own(sizes, tail, tokens):
    apart, pooled = apart_and_pooled(sizes, tokens)
    test = MemoryFeatures(tokens, torch.arange(20) % 5)
    peers = [PeerObjective(tail, images, test, seed=1, peer=p) for p, images in enumerate(apart)]
    union = PeerObjective(tail, pooled, test, seed=1, peer=0)
    theta = tail_vector(tail)
    for _ in range(4):
        own = [peer.gradient(theta) for peer in peers]
        gradient = union.gradient(theta)
        np.testing.assert_allclose(gradient, np.mean(own, axis=0), rtol=1e-4, atol=1e-6)
        assert union.train_loss == pytest.approx(np.mean([p.train_loss for p in peers]), rel=1e-5)
        theta = theta - np.float32(0.05) * gradient


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 2**31 - 1))
def test_the_loss_of_a_mini_batch_is_the_mean_of_means_in_double_precision(sizes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(sum(sizes), 3))
    labels = rng.integers(3, size=sum(sizes))
    each = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    expected = np.mean([part.mean() for part in np.split(each, np.cumsum(sizes)[:-1])])
    batch = MiniBatch((), torch.from_numpy(labels), tuple(sizes))
    assert float(batch.loss(torch.from_numpy(logits))) == pytest.approx(expected, rel=1e-12)


def test_pooled_mini_batches_go_on_where_they_were(tokens):
    _, pooled = apart_and_pooled((2, 9), tokens)
    for t in range(3):
        pooled.read(t)
    position = pooled.position()()
    expected = [pooled.read(t).labels.tolist() for t in (3, 4)]
    _, again = apart_and_pooled((2, 9), tokens)
    again.go_to(position)
    assert [again.read(t).labels.tolist() for t in (3, 4)] == expected


def test_a_mini_batch_without_an_image_is_read_as_such(tokens):
    features = MemoryFeatures(tokens, torch.arange(20) % 5)
    batch = MiniBatches(features, PoissonBatches(20, 1e-12, key=(0,))).read(0)
    assert (batch.inputs, len(batch.labels), batch.sizes) == ((), 0, (0,))


# --- a run's ----------------------------------------------------------------------------------------------

UNEVEN = {"blue": 1, "green": 2, "red": 5}
"""Training images of three peers with a class each."""


@pytest.fixture
def uneven(tmp_path):
    root = write_images(tmp_path / "pictures", {"train": 5, "test": 1})
    for name, count in UNEVEN.items():
        for file in sorted((root / "train" / name).iterdir())[count:]:
            file.unlink()
    return root


def workload(root, pooled="", **config):
    return Workload(
        LearningConfig(**{"dataset": f"folder:{root}", "batch_size": 3} | config), 3, pooled=pooled
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"cache": False},
        {"augment": "basic"},
        {"stream": True},
        {"stream": True, "augment": "rand-m9-mstd0.5-inc1"},
        {"shots": 1},
        {"tune": "full"},
        {"tune": "head", "batch_size": 1},
    ],
    ids=str,
)
def test_centralised_under_uniform_is_the_mean_over_peers_on_the_images_that_they_draw(config, uneven):
    alone, union = workload(uneven, **config), workload(uneven, "uniform", **config)
    peers, pooled = alone.objectives([0, 1, 2]), union.objectives([0])[0]
    theta = alone.theta0
    for _ in range(4):
        gradient = pooled.gradient(theta)
        own = [peers[p].gradient(theta) for p in range(3)]
        np.testing.assert_allclose(gradient, np.mean(own, axis=0), rtol=1e-3, atol=1e-5)
        assert pooled.train_loss == pytest.approx(np.mean([p.train_loss for p in peers.values()]), rel=1e-4)
        theta = theta - np.float32(0.05) * gradient
    assert pooled.evaluate(theta).accuracy_unseen is None  # it holds all classes


def test_centralised_under_examples_is_the_mean_over_images(uneven):
    alone, union = workload(uneven, batch_size=8), workload(uneven, "examples", batch_size=8)
    own = [objective.gradient(alone.theta0) for objective in alone.objectives([0, 1, 2]).values()]
    weights = peer_weights("examples", [*UNEVEN.values()])  # as p2pft weighs them
    expected = np.mean([w * g for w, g in zip(weights, own, strict=True)], axis=0)
    pooled = union.objectives([0])[0]
    np.testing.assert_allclose(pooled.gradient(alone.theta0), expected, rtol=1e-3, atol=1e-5)
    mean_over_peers = np.mean(own, axis=0)
    assert np.linalg.norm(expected - mean_over_peers) > 0.1 * np.linalg.norm(expected)


def vanish(root, config, t):
    """Remove an image of peer 2's mini-batch ``t``, which was listed before mini-batch 0."""
    first = int(workload(root, **config).batches(2).batch(t)[0])
    sorted((root / "train" / "red").iterdir())[first].unlink()


def test_images_that_vanish_from_a_mini_batch_leave_their_weight_to_the_rest_of_their_peers(uneven, caplog):
    alone, union = workload(uneven, stream=True), workload(uneven, "uniform", stream=True)
    peers, pooled = alone.objectives([0, 1, 2]), union.objectives([0])[0]
    for objective in (*peers.values(), pooled):
        objective.gradient(alone.theta0)
    vanish(uneven, {}, 1)
    own = [peers[p].gradient(alone.theta0) for p in range(3)]
    np.testing.assert_allclose(pooled.gradient(alone.theta0), np.mean(own, axis=0), rtol=1e-3, atol=1e-5)
    assert caplog.text.count("left out of a mini-batch") == 2


def test_a_peer_whose_mini_batch_has_vanished_ends_the_pooled_run_as_it_ends_its_own(uneven):
    config = {"stream": True, "batch_size": 1}
    alone, pooled = workload(uneven, **config), workload(uneven, "uniform", **config).objectives([0])[0]
    peer = alone.objectives([2])[2]
    for objective in (peer, pooled):
        objective.gradient(alone.theta0)
    vanish(uneven, {"batch_size": 1}, 1)
    for objective in (peer, pooled):
        with pytest.raises(DataError, match=r"none of the 1 images of a mini-batch exists any more"):
            objective.gradient(alone.theta0)


# --- weights of classes ---


def uneven_labels(several):
    """Labels of 20 images, of which class 0 has most, as (N,) or (N, C), and their numbers by class."""
    one = np.repeat([0, 1, 2, 4], [12, 5, 2, 1])
    if not several:
        return torch.from_numpy(one), np.array([20, *np.bincount(one, minlength=5)], float)
    many = np.stack([one == 0, one <= 1, one == 4, one > 1, one > 5], axis=1).astype(np.int64)
    return torch.from_numpy(many), np.array([20, *many.sum(axis=0)], float)


def test_the_weights_are_scikit_learns_and_a_class_without_images_disturbs_none():
    labels, counts = uneven_labels(several=False)
    weights = balanced_weights(counts, several=False)
    theirs = class_weight.compute_class_weight("balanced", classes=np.unique(labels), y=labels.numpy())
    np.testing.assert_allclose(weights[np.unique(labels)], theirs, rtol=1e-7)
    assert weights[labels].sum() == pytest.approx(20)


@pytest.mark.parametrize("several", [False, True], ids=["one class", "several labels"])
def test_peers_gradients_of_all_their_images_add_up_to_that_of_the_pooled_weighted_loss(
    several, tail, tokens
):
    """However unevenly: no mini-batch is divided by the sum of its own weights (objective = examples)."""
    labels, counts = uneven_labels(several)
    weights = torch.from_numpy(np.ones(5))
    held = counts[1:] > 0
    each = counts[1:][held]
    weights[held] = torch.from_numpy((20 - each) / each if several else 20 / (held.sum() * each))
    test, theta, sizes = MemoryFeatures(tokens, labels), tail_vector(tail), (3, 13, 4)
    total, start, told = 0.0, 0, []
    for peer, size in enumerate(sizes):
        part = slice(start, start + size)
        images = MemoryFeatures(tuple(t[part] for t in tokens), labels[part])
        batches = MiniBatches(images, Batches(size, size, seed=1, peer=peer))
        scored = Scored("abcde", list, 3)
        one = PeerObjective(tail, batches, test, seed=1, peer=peer, scored=scored, balanced=True)
        with pytest.raises(RuntimeError, match="no weights came before the first gradient"):
            one.gradient(theta)
        told.append(one.class_counts())
        loss = one.evaluate(theta).loss
        one.weigh(counts)
        assert one.evaluate(theta).loss == loss  # scores are not weighted
        total, start = total + size / 20 * one.gradient(theta), start + size
    np.testing.assert_array_equal(np.sum(told, axis=0), counts)
    copy = share_copy(tail).eval()
    logits = copy(*tokens)
    if several:
        log = nn.functional.logsigmoid
        loss = -(weights * labels * log(logits) + (1 - labels) * log(-logits)).mean()
    else:
        loss = -(weights[labels] * logits.log_softmax(dim=1)[range(20), labels]).mean()
    trained = [p for p in copy.parameters() if p.requires_grad]
    pooled = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trained)])
    np.testing.assert_allclose(total, pooled, rtol=1e-4, atol=1e-6)
