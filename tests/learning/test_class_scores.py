"""Scores by class are those of scikit-learn, and what has no test image has no number."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from p2pft_flower.learning.class_scores import balanced_accuracy


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_have_images() -> None:
    labels, predicted = np.array([0, 0, 0, 2]), np.array([0, 1, 1, 2])
    assert balanced_accuracy(labels, predicted) == pytest.approx((1 / 3 + 1) / 2)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert balanced_accuracy(labels, predicted) == balanced_accuracy_score(labels, predicted)


def test_balanced_accuracy_without_images_is_none() -> None:
    assert balanced_accuracy(np.array([], np.int64), np.array([], np.int64)) is None
