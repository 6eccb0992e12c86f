"""Scores by class are those of scikit-learn, one call a number, and what is undefined has no number."""

from __future__ import annotations

import numpy as np
import pytest

from p2pft_flower.learning.class_scores import (
    BINS,
    balanced_accuracy,
    calibration_error,
    class_scores,
    rankings,
)
from p2pft_flower.scores import MOST_CELLS, MOST_ROWS, ClassScores, has_confusion, has_rows
from p2pft_flower.typed import decoded, encoded
from tests.later import Later

metrics = Later("sklearn.metrics")

NAMES = ("ant", "bee", "cat", "dog")


def drawn(images=60, held=(0, 1, 2, 3), seed=0):
    """Return labels among ``held``, answers that are right more often than not, and probabilities."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(held, images)
    logits = rng.normal(size=(images, len(NAMES)))
    logits[np.arange(images), labels] += 1.0
    shares = np.exp(logits)
    return labels, logits.argmax(1), shares / shares.sum(1, keepdims=True)


def test_each_number_is_that_of_scikit_learns_function_of_its_name():
    labels, predicted, probabilities = drawn()
    scores = class_scores(labels, predicted, probabilities, NAMES)
    assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert np.array_equal(scores.confusion, metrics.confusion_matrix(labels, predicted))
    rows = scores.classes
    assert rows.names == NAMES
    for k in range(len(NAMES)):
        is_k, said_k = labels == k, predicted == k
        assert (rows.support[k], rows.answers[k]) == (is_k.sum(), said_k.sum())
        assert rows.recall[k] == pytest.approx(metrics.recall_score(is_k, said_k))
        assert rows.specificity[k] == pytest.approx(metrics.recall_score(~is_k, ~said_k))
        assert rows.precision[k] == pytest.approx(metrics.precision_score(is_k, said_k))
        assert rows.auroc[k] == pytest.approx(metrics.roc_auc_score(is_k, probabilities[:, k]))
        ap = metrics.average_precision_score(is_k, probabilities[:, k])
        assert rows.average_precision[k] == pytest.approx(ap)
    lowest = int(np.argmin(rows.recall))
    told = (scores.lowest_recall, scores.lowest_class, scores.lowest_support)
    assert told == (pytest.approx(rows.recall[lowest]), NAMES[lowest], rows.support[lowest])


@pytest.mark.parametrize("digits", [0, 1, 2, 16])
def test_ranks_are_those_of_scikit_learn_also_among_equal_probabilities(digits):
    labels, _, probabilities = drawn(images=200, held=(0, 1, 3), seed=digits)
    truth, rounded = labels[:, None] == np.arange(4), probabilities.round(digits)
    truth[:, 1] = True  # all images are of a class, none of another
    auroc, precision = rankings(truth, rounded)
    assert [auroc[1], auroc[2], precision[1], precision[2]] == [None, None, 1.0, None]
    for k in (0, 3):
        assert auroc[k] == pytest.approx(metrics.roc_auc_score(truth[:, k], rounded[:, k]), rel=1e-12)
        wanted = metrics.average_precision_score(truth[:, k], rounded[:, k])
        assert precision[k] == pytest.approx(wanted, rel=1e-12)


def test_the_calibration_error_is_the_weighted_distance_of_the_bins():
    labels, predicted, probabilities = drawn(images=400)
    confidence = probabilities.max(1)
    error = 0.0
    for b in range(BINS):
        here = (confidence > b / BINS) & (confidence <= (b + 1) / BINS)
        if here.any():
            right = (labels == predicted)[here].mean()
            error += here.mean() * abs(right - confidence[here].mean())
    assert calibration_error(labels, predicted, probabilities) == pytest.approx(error, abs=1e-12)
    assert error > 0.01


@pytest.mark.parametrize(
    ("labels", "predicted", "names"),
    [([0], [1], NAMES), ([1], [1], NAMES), ([0, 0], [0, 0], NAMES[:1])],
    ids=str,
)
def test_one_image_or_one_class_has_scores_whose_counts_are_whole(labels, predicted, names):
    probabilities = np.full((len(labels), len(names)), 1 / len(names))
    scores = class_scores(np.array(labels), np.array(predicted), probabilities, names)
    counts = [*scores.classes.support, *scores.classes.answers, *(n for row in scores.confusion for n in row)]
    assert {type(count) for count in counts} == {int}
    assert sum(scores.classes.support) == len(labels)
    assert scores.balanced_accuracy == (labels == predicted)
    assert decoded(encoded(scores), ClassScores, "a line") == scores


def test_perfect_answers_score_1_and_no_rounding_above():
    labels = np.repeat(np.arange(4), 20)
    probabilities = np.full((80, 4), 0.1)
    probabilities[np.arange(80), labels] = 0.6 + 0.1 * np.random.default_rng(0).random(80)
    assert metrics.average_precision_score(labels == 2, probabilities[:, 2]) > 1.0
    scores = class_scores(labels, labels, probabilities, NAMES)
    assert set(scores.classes.average_precision) == set(scores.classes.auroc) == {1.0}
    assert (scores.balanced_accuracy, scores.macro_f1) == (1.0, 1.0)
    assert decoded(encoded(scores), ClassScores, "a line") == scores


def test_a_class_without_a_test_image_has_support_0_and_no_recall():
    labels, predicted, probabilities = drawn(held=(0, 1, 3))
    scores = class_scores(labels, predicted, probabilities, NAMES)
    rows = scores.classes
    assert rows.support[2] == 0
    assert (rows.recall[2], rows.auroc[2], rows.average_precision[2]) == (None, None, None)
    assert rows.specificity[2] is not None
    there = [0, 1, 3]
    assert scores.balanced_accuracy == pytest.approx(np.mean([rows.recall[k] for k in there]))
    f1 = metrics.f1_score(labels, predicted, labels=there, average="macro")
    assert scores.macro_f1 == pytest.approx(f1)


def test_a_class_that_no_image_is_taken_for_has_no_precision():
    labels, predicted, probabilities = drawn()
    predicted = np.where(predicted == 1, 0, predicted)
    rows = class_scores(labels, predicted, probabilities, NAMES).classes
    assert (rows.answers[1], rows.precision[1], rows.recall[1]) == (0, None, 0.0)


def test_where_all_images_are_of_one_class_nothing_can_be_told_apart():
    labels = np.zeros(5, dtype=np.int64)
    predicted, probabilities = np.array([0, 0, 1, 0, 0]), np.full((5, 4), 0.25)
    rows = class_scores(labels, predicted, probabilities, NAMES).classes
    assert (rows.recall[0], rows.specificity[0], rows.auroc[0]) == (0.8, None, None)


def test_probabilities_that_are_not_finite_leave_only_the_counts():
    labels, predicted, probabilities = drawn()
    probabilities[3, 2] = np.nan
    scores = class_scores(labels, predicted, probabilities, NAMES)
    assert scores.calibration_error is None
    assert set(scores.classes.auroc) == set(scores.classes.average_precision) == {None}
    assert None not in scores.classes.recall


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_have_images() -> None:
    labels, predicted = np.array([0, 0, 0, 2]), np.array([0, 1, 1, 2])
    assert balanced_accuracy(labels, predicted) == pytest.approx((1 / 3 + 1) / 2)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert balanced_accuracy(labels, predicted) == metrics.balanced_accuracy_score(labels, predicted)


def test_without_images_there_are_no_scores() -> None:
    nothing = np.array([], np.int64)
    assert balanced_accuracy(nothing, nothing) is None
    assert class_scores(nothing, nothing, np.zeros((0, 4)), NAMES) is None


def test_results_have_room_for_so_many_classes_of_so_many_peers():
    assert has_rows(64, 312)
    assert not has_rows(64, 313)
    assert (MOST_ROWS, MOST_CELLS) == (20_000, 200_000)
    assert has_confusion(1024, 13)
    assert not has_confusion(1024, 14)
