"""Training images that are held out: peers are scored on them instead of the test images."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.label_arrays import draw_groups, held_classes
from p2pft_flower.learning.data.names import some_names
from p2pft_flower.learning.data.splits import Dataset

__all__ = ["held_out"]

log = logging.getLogger(__name__)


def held_out(data: Dataset, share: float, seed: int) -> Dataset:
    """Return ``data`` with some of its training images in place of its test images.

    Parameters
    ----------
    data : Dataset
        The images; its test images are left out.
    share : float
        Share of each class that is held out, in (0, 1), rounded; at least one image of a class, and at least
        one is left to train on. A class with a single image keeps it and is not scored. If images have
        several labels, an image counts for the rarest of its labels, and images without a label for none;
        a warning names labels of which no image is left to train on.
    seed : int
        Number that decides the draw.

    Raises
    ------
    DataError
        When no class has two training images.
    """
    rng = np.random.default_rng(seed)
    groups = draw_groups(data.train.labels)
    chosen = []
    for group in range(len(data.classes) + 1):
        of_class = rng.permutation(np.flatnonzero(groups == group))
        number = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        chosen.append(of_class[: max(0, number)])
    scored = np.sort(np.concatenate(chosen))
    if not len(scored):
        raise DataError(
            f"validation = {share:g}: no class of {data.name!r} has two training images, one to train on and "
            "one to hold out"
        )
    left = np.setdiff1d(np.arange(len(groups)), scored)
    labels = data.train.labels
    if len(lost := np.setdiff1d(held_classes(labels), held_classes(labels[left]))):
        log.warning(
            "validation = %g holds out all images with %s: they are scored, and nobody can learn them",
            share,
            some_names([data.classes[k] for k in lost]),
        )
    return replace(data, train=data.train.at(left), test=data.train.at(scored))
