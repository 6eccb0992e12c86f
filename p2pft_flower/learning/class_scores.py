"""Scores by class of the answers to N test images, from scikit-learn, which is imported where it is used.

Numbers of one class against the rest are computed from the (N, C) truth of each class, so that data of which
an image has several labels can have them too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2pft_flower.scores import ByClass, ClassScores, confusion

__all__ = ["BINS", "balanced_accuracy", "calibration_error", "class_scores", "rankings"]

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]

BINS = 15
"""Bins of equal width of the expected calibration error."""


def class_scores(
    labels: Labels,
    predicted: Labels,
    probabilities: Probabilities,
    names: Sequence[str],
    *,
    rows: bool = True,
    cells: bool = True,
) -> ClassScores | None:
    """Return the scores by class; None without images.

    Parameters
    ----------
    labels, predicted : (N,) int64 arrays
        Each image's true class, and the class of its answer.
    probabilities : (N, C) float64 array
        Each image's probability of each class.
    names : sequence of str
        The names of the C classes.
    rows, cells : bool
        Whether the numbers of each class and the confusion matrix are wanted; default True.
    """
    from sklearn.metrics import precision_recall_fscore_support

    if not len(labels):
        return None
    every = np.arange(len(names))
    _, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
    )
    there = np.flatnonzero(support)
    lowest = there[np.argmin(recall[there])]
    return ClassScores(
        images=len(labels),
        balanced_accuracy=balanced_accuracy(labels, predicted) or 0.0,
        macro_f1=float(f1[there].mean()),
        calibration_error=calibration_error(labels, predicted, probabilities),
        bins=BINS,
        lowest_recall=float(recall[lowest]),
        lowest_class=names[lowest],
        lowest_support=int(support[lowest]),
        classes=_by_class(labels, predicted, probabilities, names) if rows else None,
        confusion=tuple(map(tuple, confusion(labels, predicted, len(names)).tolist())) if cells else None,
    )


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


def calibration_error(labels: Labels, predicted: Labels, probabilities: Probabilities) -> float | None:
    """Return the expected calibration error with :data:`BINS` bins; None if a probability is not finite.

    Σ_b n_b/N · |right_b − confident_b|, over the bins b: the share of right answers, and the mean probability
    of the answer, among the n_b images whose answer's probability lies in the bin.
    """
    from sklearn.calibration import calibration_curve

    if not len(labels) or not np.isfinite(probabilities).all():
        return None
    confidence = probabilities[np.arange(len(labels)), predicted]
    right, confident = calibration_curve((labels == predicted).astype(int), confidence, n_bins=BINS)
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)  # as calibration_curve has them
    counts = np.bincount(bins, minlength=BINS)
    return float(np.average(np.abs(right - confident), weights=counts[counts > 0]))


def rankings(
    truth: npt.NDArray[np.bool_], probabilities: Probabilities
) -> tuple[list[float | None], list[float | None]]:
    """Return AUROC and average precision of each class against the rest; None where it is undefined.

    Parameters
    ----------
    truth : (N, C) bool array
        Whether each image is of each class.
    probabilities : (N, C) float64 array
        The probabilities. If one is not finite, all numbers are undefined.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    auroc, precision = list[float | None](), list[float | None]()
    finite = bool(np.isfinite(probabilities).all())
    for k in range(truth.shape[1]):
        some, every = bool(truth[:, k].any()), bool(truth[:, k].all())
        given = (truth[:, k], probabilities[:, k])
        # Sums that should be 1 can be one rounding above.
        auroc.append(min(1.0, float(roc_auc_score(*given))) if finite and some and not every else None)
        precision.append(min(1.0, float(average_precision_score(*given))) if finite and some else None)
    return auroc, precision


def _by_class(
    labels: Labels, predicted: Labels, probabilities: Probabilities, names: Sequence[str]
) -> ByClass:
    from sklearn.metrics import multilabel_confusion_matrix

    every = np.arange(len(names))
    counts = multilabel_confusion_matrix(labels, predicted, labels=every).astype(np.int64)
    (true_negative, false_positive), (false_negative, true_positive) = counts.transpose(1, 2, 0)
    auroc, average_precision = rankings(labels[:, None] == every, probabilities)
    return ByClass(
        names=tuple(names),
        support=tuple((true_positive + false_negative).tolist()),
        answers=tuple((true_positive + false_positive).tolist()),
        recall=_shares(true_positive, false_negative),
        specificity=_shares(true_negative, false_positive),
        precision=_shares(true_positive, false_positive),
        auroc=tuple(auroc),
        average_precision=tuple(average_precision),
    )


def _shares(those: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> tuple[float | None, ...]:
    """Return the share of ``those`` in both together; None of nothing."""
    return tuple(int(a) / int(a + b) if a + b else None for a, b in zip(those, others, strict=True))
