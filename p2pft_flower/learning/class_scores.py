"""Scores by class of the answers to N test images: those of scikit-learn, for all classes at once.

scikit-learn computes a class at a time and checks its arguments anew each time: 30 ms a peer of ten classes,
of which a host may have a thousand. Here it takes less than 1 ms. ``tests/learning/test_class_scores.py``
holds each number to scikit-learn's.

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
_Ranked = tuple[Sequence[float | None], Sequence[float | None]]

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
        Each image's true class, and the class of its answer; or (N, C) of 0 and 1, the labels that each image
        has, and those of its answer.
    probabilities : (N, C) float64 array
        Each image's probability of each class.
    names : sequence of str
        The names of the C classes.
    rows, cells : bool
        Whether the numbers of each class and the confusion matrix are wanted; default True.
    """
    if not len(labels):
        return None
    if labels.ndim == 2:
        return _label_scores(labels, predicted, probabilities, names, rows=rows)
    each = (labels[labels == predicted], labels, predicted)
    right, support, answers = (np.bincount(images, minlength=len(names)) for images in each)
    recall, f1 = right / np.maximum(support, 1), 2 * right / np.maximum(support + answers, 1)
    there = np.flatnonzero(support)
    lowest = there[np.argmin(recall[there])]
    return ClassScores(
        images=len(labels),
        balanced_accuracy=float(recall[there].mean()),
        macro_f1=float(f1[there].mean()),
        calibration_error=calibration_error(labels, predicted, probabilities),
        bins=BINS,
        lowest_recall=float(recall[lowest]),
        lowest_class=names[lowest],
        lowest_support=int(support[lowest]),
        classes=_by_class(labels, (right, support, answers), probabilities, names) if rows else None,
        confusion=tuple(map(tuple, confusion(labels, predicted, len(names)).tolist())) if cells else None,
    )


def balanced_accuracy(labels: Labels, predicted: Labels) -> float | None:
    """Return the mean recall of the classes that ``labels`` has, 0..1; None without images.

    Of several labels it is the mean balanced accuracy of those that an image has; None if no image has one.

    Parameters
    ----------
    labels, predicted : (N,) or (N, C) int64 arrays
        As for :func:`class_scores`.
    """
    if labels.ndim == 2:
        truth, right = labels > 0, (labels > 0) == (predicted > 0)
        shares = [
            [float(right[has, k].mean()) for has in (truth[:, k], ~truth[:, k]) if has.any()]
            for k in np.flatnonzero(truth.any(axis=0))
        ]
        return float(np.mean([np.mean(each) for each in shares])) if shares else None
    if not len(labels):
        return None
    _, place, support = np.unique(labels, return_inverse=True, return_counts=True)
    return float((np.bincount(place, weights=labels == predicted) / support).mean())


def calibration_error(labels: Labels, predicted: Labels, probabilities: Probabilities) -> float | None:
    """Return the expected calibration error with :data:`BINS` bins; None if a probability is not finite.

    Σ_b n_b/N · |right_b − confident_b|, over the bins b: the share of right answers, and the mean probability
    of the answer, among the n_b images whose answer's probability lies in the bin. Of several labels: the
    share that has the label, and its mean probability, among the n_b pairs of an image and a label.
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        return None
    if labels.ndim == 2:
        confidence, truth = probabilities.ravel(), labels.ravel()
    else:
        confidence = probabilities[np.arange(len(labels)), predicted]
        truth = (labels == predicted).astype(int)
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)
    counts = np.bincount(bins, minlength=BINS)
    held = counts > 0
    right, confident = (np.bincount(bins, weights=w, minlength=BINS)[held] for w in (truth, confidence))
    return float(np.average(np.abs(right - confident) / counts[held], weights=counts[held]))


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
    images, classes = truth.shape
    some, every = np.array(truth.any(axis=0)), np.array(truth.all(axis=0))
    if not np.isfinite(probabilities).all():
        some[:] = False
    # In descending order, each of a group of equal probabilities has the place of the group's first and last.
    order = np.argsort(-probabilities, axis=0)
    held = np.take_along_axis(truth, order, axis=0)
    ranked = np.take_along_axis(probabilities, order, axis=0)
    place, another = np.arange(1, images + 1)[:, None], ranked[1:] != ranked[:-1]
    edge = np.ones((1, classes), bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, another]), place, 0), axis=0)
    ends = np.where(np.concatenate([another, edge]), place, images)
    last = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
    of_class = held.sum(axis=0)
    # AUROC is Mann and Whitney's U / (n m); the average precision is the mean, over the class's images, of
    # the share of the class among all images with no smaller probability.
    u = (held * (images + 1 - (first + last) / 2)).sum(axis=0) - of_class * (of_class + 1) / 2
    auroc = u / np.maximum(of_class * (images - of_class), 1)
    among = np.take_along_axis(held.cumsum(axis=0), last - 1, axis=0)
    precision = (held * (among / last)).sum(axis=0) / np.maximum(of_class, 1)
    # Sums that should be 1 can be one rounding above.
    return _where(some & ~every, np.minimum(auroc, 1.0)), _where(some, np.minimum(precision, 1.0))


def _where(defined: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]) -> list[float | None]:
    return [value if there else None for there, value in zip(defined.tolist(), values.tolist(), strict=True)]


def _by_class(
    labels: Labels, counts: Sequence[Labels], probabilities: Probabilities, names: Sequence[str]
) -> ByClass:
    """Return the numbers of each class.

    ``counts``, (C,) each, are the images of the class that were taken for it, all images of the class, and
    all that were taken for it.
    """
    right, support, answers = counts
    missed, false = support - right, answers - right
    ranked = rankings(labels[:, None] == np.arange(len(names)), probabilities)
    return _rows(names, (len(labels) - right - missed - false, false, missed, right), ranked)


def _rows(names: Sequence[str], counts: Sequence[Labels], ranked: _Ranked) -> ByClass:
    """Return the numbers of each class, by the counts of images, (C,) each, as :class:`ByClass` has them.

    ``counts`` are those that are not of the class and not taken for it, not of it but taken, of it but not
    taken, and of it and taken; ``ranked`` is what :func:`rankings` returns.
    """
    true_negative, false_positive, false_negative, true_positive = counts
    return ByClass(
        names=tuple(names),
        support=tuple((true_positive + false_negative).tolist()),
        answers=tuple((true_positive + false_positive).tolist()),
        recall=_shares(true_positive, false_negative),
        specificity=_shares(true_negative, false_positive),
        precision=_shares(true_positive, false_positive),
        auroc=tuple(ranked[0]),
        average_precision=tuple(ranked[1]),
    )


def _label_scores(
    labels: Labels, predicted: Labels, probabilities: Probabilities, names: Sequence[str], *, rows: bool
) -> ClassScores:
    """Return the scores by label of images with several labels; parameters as of :func:`class_scores`."""
    truth, taken = labels > 0, predicted > 0
    masks = (~truth & ~taken, ~truth & taken, truth & ~taken, truth & taken)
    counts = [mask.sum(axis=0, dtype=np.int64) for mask in masks]
    each = _rows(names, counts, rankings(truth, probabilities))
    there = [k for k, support in enumerate(each.support) if support]
    recall = [each.recall[k] or 0.0 for k in there]
    f1 = [2 * (each.recall[k] or 0.0) * each.support[k] / (each.support[k] + each.answers[k]) for k in there]
    lowest = None if not there else there[int(np.argmin(recall))]
    return ClassScores(
        images=len(labels),
        balanced_accuracy=balanced_accuracy(labels, predicted),
        macro_f1=_mean(f1),
        calibration_error=calibration_error(labels, predicted, probabilities),
        bins=BINS,
        lowest_recall=None if lowest is None else each.recall[lowest],
        lowest_class="" if lowest is None else names[lowest],
        lowest_support=0 if lowest is None else each.support[lowest],
        classes=each if rows else None,
        several_labels=True,
        macro_auroc=_mean(each.auroc),
        macro_average_precision=_mean(each.average_precision),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the numbers among ``values``; None if there is none."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def _shares(those: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> tuple[float | None, ...]:
    """Return the share of ``those`` in both together; None of nothing."""
    return tuple(int(a) / int(a + b) if a + b else None for a, b in zip(those, others, strict=True))
