"""Bootstrap intervals hold the true score as often as they say, and follow their seed."""

from __future__ import annotations

import numpy as np
import pytest

from p2pft_flower.learning import bootstrap
from p2pft_flower.learning.bootstrap import intervals
from p2pft_flower.learning.class_scores import class_scores
from tests.later import Later

stats = Later("scipy.stats")

APART = 2.0
"""The distance of two classes' scores, in standard deviations."""


def two_classes(rng, images=40):
    """Return labels, answers and probabilities of two classes whose scores are normal, APART from each other.

    The recall of each class is Φ(APART / 2), the AUROC Φ(APART / √2).
    """
    labels = np.repeat([0, 1], images)
    logits = rng.normal(size=2 * images) + APART * (labels - 0.5)
    likely = 1 / (1 + np.exp(-logits))
    return labels, (logits > 0).astype(np.int64), np.stack([1 - likely, likely], axis=1)


@pytest.mark.parametrize("level", [0.9, 0.6])
def test_intervals_hold_the_true_scores_as_often_as_their_level_says(level, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    rng, repeats = np.random.default_rng(1), 150
    recall, auroc = stats.norm.cdf(APART / 2), stats.norm.cdf(APART / np.sqrt(2))
    true = {"accuracy": recall, "balanced_accuracy": recall, "macro_f1": recall}
    held = dict.fromkeys([*true, "recall", "auroc"], 0)
    for _ in range(repeats):
        found = intervals(*two_classes(rng), level=level, seed=0)
        for name, value in true.items():
            low, high = getattr(found, name)
            held[name] += low <= value <= high
        held["recall"] += found.recall[1][0] <= recall <= found.recall[1][1]
        held["auroc"] += found.auroc[1][0] <= auroc <= found.auroc[1][1]
    # Three standard deviations of the count, and what percentiles of 40 images are too narrow or, as shares
    # come in steps, too wide.
    slack = 3 * np.sqrt(level * (1 - level) / repeats)
    for name, count in held.items():
        assert level - slack - 0.03 <= count / repeats <= level + slack + 0.05, name


def test_the_scores_of_all_images_drawn_once_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 80)
    labels[labels == 2] = 1  # a class without an image
    logits = rng.normal(size=(80, 4))
    logits[np.arange(80), labels] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = logits.argmax(1)
    there = np.array([0, 1, 3])
    groups = [np.flatnonzero(labels == k) for k in there]
    found = bootstrap._scores(groups, there, predicted, probabilities)
    scores = class_scores(labels, predicted, probabilities, ("a", "b", "c", "d"))
    rows = scores.classes
    expected = [(labels == predicted).mean(), scores.balanced_accuracy, scores.macro_f1]
    expected += [rows.recall[k] for k in there] + [rows.auroc[k] for k in there]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_drawings_are_those_of_the_seed(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 50)
    answers = two_classes(np.random.default_rng(0))
    one = intervals(*answers, level=0.9, seed=1)
    assert intervals(*answers, level=0.9, seed=1) == one
    assert intervals(*answers, level=0.9, seed=2) != one
    wide = intervals(*answers, level=0.99, seed=1)
    assert wide.accuracy[0] < one.accuracy[0] < one.accuracy[1] < wide.accuracy[1]


def test_a_class_without_an_image_has_no_interval_and_one_with_a_single_image_a_point(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 50)
    labels, predicted, _ = two_classes(np.random.default_rng(0))
    labels, predicted = np.append(labels, 3), np.append(predicted, 3)
    probabilities = np.full((len(labels), 4), 0.25)
    found = intervals(labels, predicted, probabilities, level=0.9, seed=0)
    assert (found.recall[2], found.auroc[2]) == (None, None)
    assert found.recall[3] == (1.0, 1.0)
    assert found.recall[0][0] < found.recall[0][1]


def test_where_every_class_has_one_image_or_there_is_one_class_only_intervals_still_come(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 50)
    single = intervals(np.arange(2), np.array([0, 0]), np.eye(2), level=0.9, seed=0)
    assert (single.accuracy, single.recall) == ((0.5, 0.5), ((1.0, 1.0), (0.0, 0.0)))
    alike = intervals(np.zeros(4, int), np.array([0, 0, 1, 0]), np.full((4, 2), 0.5), level=0.9, seed=0)
    assert alike.auroc == (None, None)
    assert alike.recall[0] == alike.accuracy
    unknown = intervals(np.arange(4) % 2, np.arange(4) % 2, np.full((4, 2), np.nan), level=0.9, seed=0)
    assert (unknown.auroc, unknown.recall) == ((None, None), ((1.0, 1.0), (1.0, 1.0)))
    nothing = np.array([], np.int64)
    assert intervals(nothing, nothing, np.zeros((0, 2)), level=0.9, seed=0) is None
