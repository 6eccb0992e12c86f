"""Training images that are held out: peers are scored on them instead of the test images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.splits import Dataset

__all__ = ["held_out", "held_out_of"]


def held_out(data: Dataset, share: float, seed: int) -> Dataset:
    """Return ``data`` with some of its training images in place of its test images.

    Parameters
    ----------
    data : Dataset
        The images; its test images are left out.
    share : float
        Share of each class that is held out, in (0, 1), rounded; at least one image of a class, and at least
        one is left to train on. A class with a single image keeps it and is not scored.
    seed : int
        Number that decides the draw.

    Raises
    ------
    DataError
        When no class has two training images.
    """
    labels = data.train.labels
    scored = _drawn(labels, len(data.classes), share, np.random.default_rng(seed))
    if not len(scored):
        raise DataError(
            f"validation = {share:g}: no class of {data.name!r} has two training images, one to train on and "
            "one to hold out"
        )
    left = np.setdiff1d(np.arange(len(labels)), scored)
    return replace(data, train=data.train.at(left), test=data.train.at(scored))


def held_out_of(
    labels: npt.NDArray[np.int64], classes: int, share: float, seed: int, peer: int
) -> npt.NDArray[np.int64]:
    """Return the positions of a peer's own training images that it holds out, ascending.

    Parameters
    ----------
    labels : (N,) int64 array
        The class of each of the peer's images.
    classes : int
        Number of classes.
    share : float
        As for :func:`held_out`; empty if no class has two images.
    seed, peer : int
        Numbers that decide the draw.
    """
    # 1: another draw than that of images to be scored on instead of the test images.
    return _drawn(labels, classes, share, np.random.default_rng([seed, peer, 1]))


def _drawn(
    labels: npt.NDArray[np.int64], classes: int, share: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    chosen = [np.empty(0, np.int64)]
    for label in range(classes):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        number = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        chosen.append(of_class[: max(0, number)])
    return np.sort(np.concatenate(chosen))
