"""Labels of images as arrays: a class for each image, or several labels for each image.

Labels are (N,) int64, the class of each image, or (N, C) int64 of 0 and 1: whether each image has each label.
An image may have no label there, as an X-ray without a finding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError

__all__ = [
    "SEPARATOR",
    "check_several",
    "draw_groups",
    "has_several",
    "held_classes",
    "images_by_class",
    "named",
    "warn_of_one_each",
]

log = logging.getLogger(__name__)

SEPARATOR = "|"
"""The sign between the names of an image's labels."""

Labels = npt.NDArray[np.int64]

_BY_CLASS = ("classes:", "dirichlet:", "shards:")
"""Beginnings of partitions that deal images out by their one class."""


def has_several(labels: Labels) -> bool:
    """Return whether images may have several labels each."""
    return labels.ndim == 2


def images_by_class(labels: Labels, classes: int) -> npt.NDArray[np.int64]:
    """Return the number of images of each class, (C,); an image with several labels counts for each."""
    return labels.sum(axis=0) if has_several(labels) else np.bincount(labels, minlength=classes)


def held_classes(labels: Labels) -> npt.NDArray[np.int64]:
    """Return the classes of which there is an image, ascending."""
    return np.flatnonzero(labels.any(axis=0)) if has_several(labels) else np.unique(labels)


def draw_groups(labels: Labels) -> npt.NDArray[np.int64]:
    """Return a group of each image, (N,), to draw images by: its class, or the rarest of its labels.

    Images without a label are a group of their own, C.
    """
    if not has_several(labels):
        return labels
    size = labels.shape[1]
    counts = np.where(labels > 0, labels.sum(axis=0), len(labels) + 1)
    rarest = counts.argmin(axis=1) if size else np.zeros(len(labels), np.int64)
    return np.where(labels.any(axis=1), rarest, size)


def warn_of_one_each(dataset: str, train: Labels, test: Labels) -> None:
    """Warn of labels, (N, C), that mark exactly one of C in each row: they may be classes, one-hot.

    Parameters
    ----------
    dataset : str
        The run-config's ``dataset``, for the message.
    train, test : (N,) or (N, C) int64 array
        The labels of the two splits, both of one kind; one of them may have no rows.
    """
    rows = np.concatenate([train, test])
    if has_several(train) and len(rows) and (rows.sum(axis=1) == 1).all():
        log.warning(
            "dataset = %s: its labels are (N, %d) and mark exactly one in each row, as if each had one "
            "class; they are trained on as several labels each (loss bce): if they are classes, store "
            "labels.argmax(axis=1), whole numbers",
            dataset,
            train.shape[1],
        )


def named(label: npt.NDArray[np.int64] | np.int64, classes: Sequence[str]) -> str:
    """Return the name of an image's class, or the names of its labels with ``|`` between them."""
    if np.ndim(label) == 0:
        return classes[int(label)]
    return SEPARATOR.join(classes[int(k)] for k in np.flatnonzero(label))


def check_several(config: LearningConfig, *, several: bool) -> None:
    """Refuse settings that do not fit data of which each image has one class, or several labels.

    Parameters
    ----------
    config : LearningConfig
        The settings.
    several : bool
        Whether an image may have several labels.

    Raises
    ------
    ConfigError
        When the loss is the other kind's, or a setting needs one class for each image; the message names it.
    """
    data = f"dataset = {config.dataset!r}"
    if not several:
        if config.loss == "bce":
            raise ConfigError(
                f"loss = 'bce' with {data}: each image has one class there, and bce is for several labels an "
                "image (a table's column labels): give loss = auto or ce"
            )
        return
    images = f"{data}: an image has several labels there, or none"
    if config.loss == "ce":
        raise ConfigError(
            f"loss = 'ce' with {images}, and cross-entropy needs one class: give loss = auto or bce"
        )
    if config.shots:
        raise ConfigError(
            f"shots = {config.shots} with {images}, so so many images of each class cannot be drawn: give "
            "shots = 0"
        )
    if config.partition.startswith(_BY_CLASS):
        raise ConfigError(
            f"partition = {config.partition!r} with {images}, so images cannot be dealt out by class: choose "
            "iid, by:COLUMN, own or my_module:my_partition"
        )
    if config.head == "text":
        raise ConfigError(
            f"head = 'text' with {images}: logits of texts compare classes with each other and say nothing "
            "of a label alone: give head = random"
        )
