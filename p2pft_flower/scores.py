"""A peer's scores by class, as journals, messages and results have them.

:mod:`p2pft_flower.learning.class_scores` computes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pft_flower.typed import Count

__all__ = ["MOST_CELLS", "MOST_ROWS", "ByClass", "ClassScores", "confusion", "has_confusion", "has_rows"]

MOST_ROWS = 20_000
"""Results have numbers of each class if all peers together have no more classes than this."""

MOST_CELLS = 200_000
"""Results have confusion matrices if those of all peers together have no more cells than this."""

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ByClass:
    """Columns of numbers with one row for each class, in the order of the head's outputs; None: undefined.

    If images have several labels, a row is a label, and an image is taken for it at a probability of 0.5.

    Attributes
    ----------
    names : tuple of str
        The classes' names.
    support : tuple of int
        Number of test images of the class.
    answers : tuple of int
        Number of test images that were taken for the class.
    recall : tuple of float or None
        Share of the class's images that were taken for it (sensitivity); None without such an image.
    specificity : tuple of float or None
        Share of the other images that were not taken for it; None without another image.
    precision : tuple of float or None
        Share of the class's images among those taken for it; None if none was.
    auroc, average_precision : tuple of float or None
        Area under the ROC curve, and average precision, of the class's probability against all other classes;
        None without an image of the class, the first also without another image.
    """

    names: tuple[str, ...]
    support: tuple[Count, ...]
    answers: tuple[Count, ...]
    recall: tuple[float | None, ...]
    specificity: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    auroc: tuple[float | None, ...]
    average_precision: tuple[float | None, ...]


@dataclass(frozen=True)
class ClassScores:
    """The scores by class of one θ on N test images, N ≥ 1.

    Attributes
    ----------
    images : int
        N.
    balanced_accuracy : float or None
        Mean recall of the classes with test images. Of several labels: mean, over the labels that a
        test image has, of recall and specificity (recall alone if all have it); None if no test image has a
        label.
    macro_f1 : float or None
        Mean F1 of the classes with test images.
    calibration_error : float or None
        Expected calibration error: the mean distance, over the images, between the probability of the answer
        and the share of right answers in the same bin of probability; None if a probability is not finite. Of
        several labels: over images and labels, between the label's probability and the share that has it.
    bins : int
        Number of these bins, of equal width.
    lowest_recall, lowest_class, lowest_support : float or None, str, int
        The lowest recall of a class with test images, the first such class, and the number of its images;
        None, an empty text and 0 if no test image has a label.
    classes : ByClass or None
        The numbers of each class; None: too many for results (:func:`has_rows`).
    confusion : tuple of tuples of int, or None
        Row: true class, column: answer; None: too many for results (:func:`has_confusion`), or the images
        have several labels.
    several_labels : bool
        Whether an image may have several labels, or none.
    macro_auroc, macro_average_precision : float or None
        Mean AUROC and average precision of the labels of which they are defined; None if there is none, or
        each image has one class.
    """

    images: Count
    balanced_accuracy: float | None
    macro_f1: float | None
    calibration_error: float | None
    bins: Count
    lowest_recall: float | None
    lowest_class: str
    lowest_support: Count
    classes: ByClass | None = None
    confusion: tuple[tuple[Count, ...], ...] | None = None
    several_labels: bool = False
    macro_auroc: float | None = None
    macro_average_precision: float | None = None


def has_rows(peers: int, classes: int) -> bool:
    """Return whether results of ``peers`` peers have numbers of each of ``classes`` classes."""
    return peers * classes <= MOST_ROWS


def has_confusion(peers: int, classes: int) -> bool:
    """Return whether results of ``peers`` peers have confusion matrices of ``classes`` classes."""
    return peers * classes**2 <= MOST_CELLS


def confusion(labels: Labels, predicted: Labels, classes: int) -> npt.NDArray[np.int64]:
    """Return how often images of each class (rows) got each answer (columns), (C, C)."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes**2)
    return pairs.reshape(classes, classes).astype(np.int64)
