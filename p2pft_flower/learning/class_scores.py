"""Scores by class of the answers to N test images, from scikit-learn, which is imported where it is used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["balanced_accuracy"]

Labels = npt.NDArray[np.int64]


def balanced_accuracy(labels: Labels, predicted: Labels) -> float | None:
    """Return the mean recall of the classes that ``labels`` has, 0..1; None without images.

    Parameters
    ----------
    labels, predicted : (N,) int64 arrays
        Each image's true class, and the class of its answer.
    """
    from sklearn.metrics import recall_score

    if not len(labels):
        return None
    # balanced_accuracy_score gives the same number, but warns if an answer is a class without an image.
    there = np.unique(labels)
    return float(recall_score(labels, predicted, labels=there, average="macro", zero_division=0))
