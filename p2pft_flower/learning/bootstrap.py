"""Bootstrap confidence intervals of scores, over the test images.

Each class's images are drawn with replacement among themselves, as many as there are: what is asked is how
the scores would come out on other images of the same classes in the same numbers. So every class keeps its
support, and no drawing leaves a score undefined. The intervals are percentiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["RESAMPLES", "Interval", "Intervals", "intervals"]

RESAMPLES = 1000
"""Drawings of the test images."""

BATCH = 2**19
"""About so many numbers of drawings are in memory at once."""

Labels = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Confidence intervals of one θ's scores; None of a class of which the score is undefined.

    Attributes
    ----------
    level : float
        The share of intervals that hold the true score if the experiment is repeated, 0 < level < 1.
    resamples : int
        Number of drawings.
    accuracy, balanced_accuracy, macro_f1 : (float, float)
        Lower and upper end.
    recall, auroc : tuple of (float, float) or None
        Those of each class.
    """

    level: float
    resamples: int
    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    recall: tuple[Interval | None, ...]
    auroc: tuple[Interval | None, ...]


def intervals(
    labels: Labels, predicted: Labels, probabilities: Array, *, level: float, seed: int
) -> Intervals | None:
    """Return the confidence intervals of the scores of the answers to N test images; None without images.

    Parameters
    ----------
    labels, predicted : (N,) int64 arrays
        Each image's true class, and the class of its answer.
    probabilities : (N, C) float64 array
        Each image's probability of each class.
    level : float
        The level of the intervals, 0 < level < 1.
    seed : int
        Number that decides the drawings.
    """
    from scipy.stats import bootstrap

    if not len(labels):
        return None
    size = probabilities.shape[1]
    there = np.unique(labels)
    groups = [np.flatnonzero(labels == k) for k in there]
    # bootstrap draws from two images or more: a class's only one is in every drawing.
    drawn = [k for k, group in enumerate(groups) if len(group) > 1]

    def scores(*samples: npt.NDArray[np.int64], axis: int) -> Array:  # noqa: ARG001 - always the last
        several = np.broadcast_shapes(*(sample.shape[:-1] for sample in samples))
        whole = [np.broadcast_to(group, (*several, len(group))) for group in groups]
        for k, sample in zip(drawn, samples, strict=True):
            whole[k] = sample
        return _scores(whole, there, predicted, probabilities)

    if not drawn:
        low = high = _scores(groups, there, predicted, probabilities)
    else:
        found = bootstrap(
            [groups[k] for k in drawn],
            scores,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, BATCH // max(len(labels), size * len(there))),
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = found.low, found.high
    ends = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    recall, auroc = list[Interval | None]([None] * size), list[Interval | None]([None] * size)
    for k, own in zip(there, ends[3:], strict=False):
        recall[k] = own
    for k, own in zip(there, ends[3 + len(there) :], strict=False):
        auroc[k] = own
    return Intervals(level, RESAMPLES, ends[0], ends[1], ends[2], tuple(recall), tuple(auroc))


def _scores(
    images: list[npt.NDArray[np.int64]], there: Labels, predicted: Labels, probabilities: Array
) -> Array:
    """Return the scores of B drawings: accuracy, balanced accuracy, macro F1, recalls, AUROCs.

    Parameters
    ----------
    images : list of (B, n) or (n,) arrays
        The images of each class that has some, by position.
    there : (K,) int64 array
        These classes.
    predicted, probabilities : (N,) and (N, C) arrays
        As in :func:`intervals`.

    Returns
    -------
    (3 + 2 K, B) or (3 + 2 K,) array
        The scores; 3 + K of them, without AUROC, if there is one class only or a probability is not finite.
    """
    support = np.array([group.shape[-1] for group in images], dtype=np.float64)
    right = np.stack([(predicted[group] == k).sum(-1) for k, group in zip(there, images, strict=True)])
    taken = np.stack([sum((predicted[group] == k).sum(-1) for group in images) for k in there])
    support = support.reshape(-1, *[1] * (right.ndim - 1))
    recall, f1 = right / support, 2 * right / (support + taken)
    accuracy = right.sum(0) / support.sum()
    auroc = []
    if len(there) > 1 and np.isfinite(probabilities).all():
        auroc = [_auroc(images, place, k, probabilities) for place, k in enumerate(there)]
    return np.stack([accuracy, recall.mean(0), f1.mean(0), *recall, *auroc])


def _auroc(images: list[npt.NDArray[np.int64]], place: int, k: int, probabilities: Array) -> Array:
    """Return AUROC of class ``k``, whose images are ``images[place]``, against the others: U / (n m)."""
    from scipy.stats import mannwhitneyu

    own = probabilities[images[place], k]
    others = [probabilities[group, k] for other, group in enumerate(images) if other != place]
    rest = np.concatenate(others, axis=-1)
    u = mannwhitneyu(own, rest, axis=-1, method="asymptotic").statistic
    found: Array = u / (own.shape[-1] * rest.shape[-1])
    return found
