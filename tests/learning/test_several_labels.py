"""The loss, gradients and scores of images with several labels, or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from p2pft_flower.learning.class_scores import BINS, balanced_accuracy, class_scores
from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.losses import image_loss
from p2pft_flower.learning.minibatches import MiniBatch, MiniBatches
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.model.tuning import tune_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.privacy import ClippedGradients
from p2pft_flower.learning.scoring import Answers, prediction_rows, scores_of
from p2pft_flower.learning.theta import tail_vector, trained_parameters
from p2pft_flower.scores import ClassScores
from p2pft_flower.typed import decoded, encoded
from tests.later import Later

from .conftest import MemoryFeatures, small_swin, small_vit

metrics = Later("sklearn.metrics")
calibration = Later("sklearn.calibration")

NAMES = ("ant", "bee", "cat", "dog", "eel")

PATHS = {
    "class-token": (small_vit, "last-block", 8),
    "query": (small_vit, "last-blocks:2", 8),
    "tokens": (lambda: small_swin(drop_path_rate=0.0), "last-block", 32),
    "pooled": (small_vit, "head", 8),
    "full": (small_vit, "lora:2", 8),
}


def drawn(images=6, seed=0):
    """(N, 5) of 0 and 1; the first image has all labels, the second none."""
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (images, len(NAMES))))
    labels[0], labels[1] = 1, 0
    return labels


def made(path, images=6):
    make, tune, size = PATHS[path]
    batch = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(1))
    parts = split_model(make(), tune)
    assert parts.path == path
    with torch.no_grad():
        return make(), tune, parts.tail, parts.trunk(batch), batch


# --- the loss and its gradients -----------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_labels_of_binary_cross_entropy_and_of_one_class_as_before():
    logits, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), drawn()
    p = logits.double().sigmoid()
    each = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(image_loss(logits, labels, "none").double(), each, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(image_loss(logits, labels).double(), each.mean(), rtol=1e-6, atol=1e-6)
    one = labels.argmax(dim=1)
    assert torch.equal(image_loss(logits, one), nn.functional.cross_entropy(logits, one))


@pytest.mark.parametrize("path", PATHS)
def test_every_paths_gradient_is_that_of_the_whole_model_by_autograd(path):
    model, tune, tail, inputs, batch = made(path)
    labels = drawn()
    whole = tune_model(model, tune)
    ours = PeerObjective(
        tail,
        MiniBatches(MemoryFeatures(inputs, labels), Batches(6, 6, seed=0, peer=0)),
        MemoryFeatures(inputs, labels),
        seed=0,
        peer=0,
    )
    gradient = ours.gradient(tail_vector(tail))
    named = {n: p for n, p in whole.named_parameters() if p.requires_grad}
    loss = nn.functional.binary_cross_entropy_with_logits(whole(batch), labels.float())
    theirs = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    order = [n.removeprefix("model.") for n, p in tail.named_parameters() if p.requires_grad]
    assert set(order) == set(theirs)
    flat = torch.cat([theirs[n].reshape(-1) for n in order]).numpy()
    assert ours.train_loss == pytest.approx(float(loss.detach()), rel=1e-5)
    np.testing.assert_allclose(gradient, flat, rtol=1e-4, atol=1e-5 * np.abs(flat).max())


def test_peers_whose_mini_batches_are_pooled_count_the_same_whatever_their_sizes():
    logits, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), drawn()
    pooled = MiniBatch((), labels, (4, 2)).loss(logits)
    own = [image_loss(logits[:4], labels[:4]), image_loss(logits[4:], labels[4:])]
    assert float(pooled) == pytest.approx(float(sum(own) / 2), rel=1e-6)
    assert float(pooled) != pytest.approx(float(image_loss(logits, labels)), rel=1e-4)


@pytest.mark.parametrize("path", ["class-token", "pooled"])
def test_private_gradients_clip_each_images_own_gradient(path):
    *_, tail, inputs, _ = made(path)
    labels = drawn()
    alone = []
    for i in range(6):
        loss = image_loss(tail(*(t[i : i + 1] for t in inputs)), labels[i : i + 1])
        alone.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trained_parameters(tail))]))
    clip = float(torch.stack([g.norm() for g in alone]).median())
    expected = sum(g * min(1.0, clip / float(g.norm())) for g in alone)
    total, losses = ClippedGradients(tail, clip).total(inputs, labels)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses, image_loss(tail(*inputs), labels, "none"), rtol=1e-5, atol=1e-6)


# --- scores -------------------------------------------------------------------------------------------------


def answered(images=50, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((images, 5)) < (0.5, 0.3, 0.1, 0.6, 0.4)).astype(np.int64)
    labels[:, 0] = 1  # all images have this label
    labels[:, 4] = 0  # and none this one
    logits = rng.normal(size=labels.shape) + 1.5 * labels - 0.5
    probabilities = 1 / (1 + np.exp(-logits))
    return labels, (probabilities >= 0.5).astype(np.int64), probabilities


def test_each_number_of_a_label_is_that_of_scikit_learns_function_of_its_name():
    labels, predicted, probabilities = answered()
    scores = class_scores(labels, predicted, probabilities, NAMES)
    rows, there = scores.classes, range(4)
    for k in there:
        truth, said, likely = labels[:, k], predicted[:, k], probabilities[:, k]
        assert (rows.support[k], rows.answers[k]) == (truth.sum(), said.sum())
        assert rows.recall[k] == pytest.approx(metrics.recall_score(truth, said), abs=1e-12)
        assert rows.precision[k] == pytest.approx(metrics.precision_score(truth, said), abs=1e-12)
        ap = metrics.average_precision_score(truth, likely)
        assert rows.average_precision[k] == pytest.approx(ap, abs=1e-12)
        if k:
            assert rows.specificity[k] == pytest.approx(metrics.recall_score(1 - truth, 1 - said), abs=1e-12)
            assert rows.auroc[k] == pytest.approx(metrics.roc_auc_score(truth, likely), abs=1e-12)
    assert (rows.specificity[0], rows.auroc[0]) == (None, None)
    assert (rows.support[4], rows.recall[4], rows.auroc[4], rows.average_precision[4]) == (
        0,
        None,
        None,
        None,
    )
    assert rows.specificity[4] == pytest.approx(1 - predicted[:, 4].mean())
    f1 = metrics.f1_score(labels[:, :4], predicted[:, :4], average="macro")
    assert scores.macro_f1 == pytest.approx(f1, abs=1e-12)
    balanced = [metrics.balanced_accuracy_score(labels[:, k], predicted[:, k]) for k in (1, 2, 3)]
    expected = np.mean([metrics.recall_score(labels[:, 0], predicted[:, 0]), *balanced])
    assert scores.balanced_accuracy == pytest.approx(expected, abs=1e-12)
    assert balanced_accuracy(labels, predicted) == scores.balanced_accuracy
    assert scores.macro_auroc == pytest.approx(np.mean(rows.auroc[1:4]), abs=1e-12)
    assert scores.macro_average_precision == pytest.approx(np.mean(rows.average_precision[:4]), abs=1e-12)
    lowest = int(np.argmin(rows.recall[:4]))
    told = (scores.lowest_recall, scores.lowest_class, scores.lowest_support)
    assert told == (rows.recall[lowest], NAMES[lowest], rows.support[lowest])
    assert (scores.confusion, scores.several_labels) == (None, True)
    assert decoded(encoded(scores), ClassScores, "scores") == scores


def test_calibration_is_of_labels_probabilities_over_all_images():
    labels, predicted, probabilities = answered()
    right, confident = calibration.calibration_curve(labels.ravel(), probabilities.ravel(), n_bins=BINS)
    edges = np.linspace(0, 1, BINS + 1)
    counts = np.histogram(probabilities.ravel(), edges)[0]
    expected = np.sum(counts[counts > 0] / labels.size * np.abs(right - confident))
    found = class_scores(labels, predicted, probabilities, NAMES).calibration_error
    assert found == pytest.approx(expected, abs=1e-12)


def test_where_no_test_image_has_a_label_what_is_undefined_is_none():
    nothing = np.zeros((3, 5), dtype=np.int64)
    scores = class_scores(nothing, nothing, np.full((3, 5), 0.1), NAMES)
    assert (scores.balanced_accuracy, scores.macro_f1, scores.macro_auroc) == (None, None, None)
    assert (scores.lowest_recall, scores.lowest_class, scores.lowest_support) == (None, "", 0)
    assert scores.classes.specificity == (1.0,) * 5


def test_accuracy_is_the_share_of_right_decisions_and_unseen_that_on_labels_which_the_peer_does_not_hold():
    *_, tail, inputs, _ = made("pooled")
    labels, test = drawn(seed=3), drawn(seed=4)
    labels[:, 1] = labels[:, 4] = 0  # the peer holds no image with bee or eel
    objective = PeerObjective(
        tail,
        MiniBatches(MemoryFeatures(inputs, labels), Batches(6, 6, seed=0, peer=0)),
        MemoryFeatures(inputs, test),
        seed=0,
        peer=0,
    )
    score = objective.evaluate(tail_vector(tail))
    with torch.no_grad():
        logits = tail(*inputs)
    right = ((logits.sigmoid() >= 0.5).long() == test).double()
    assert score.accuracy == pytest.approx(1 - metrics.hamming_loss(test, (logits >= 0).long()))
    assert score.accuracy_unseen == pytest.approx(float(right[:, [1, 4]].mean()))
    assert score.accuracy_seen == pytest.approx(float(right[:, [0, 2, 3]].mean()))
    assert score.loss == pytest.approx(float(image_loss(logits, test)), rel=1e-6)


def test_a_row_of_predictions_has_the_names_of_labels_and_the_sigmoid_of_each_logit():
    labels, predicted, probabilities = map(torch.from_numpy, answered(4))
    given = Answers(labels, predicted, torch.zeros(4, dtype=torch.double), probabilities)
    header, *rows = prediction_rows(["1.png", "2.png", "3.png", "4.png"], NAMES, given)
    assert header == ["image", "truth", "predicted", *(f"p({name})" for name in NAMES)]
    for i, (image, truth, taken, *likely) in enumerate(rows):
        assert image == f"{i + 1}.png"
        assert truth == "|".join(name for name, is_one in zip(NAMES, labels[i], strict=True) if is_one)
        assert taken == "|".join(name for name, is_one in zip(NAMES, predicted[i], strict=True) if is_one)
        assert [float(number) for number in likely] == probabilities[i].tolist()
    assert scores_of(given).accuracy == pytest.approx(float((labels == predicted).double().mean()))
