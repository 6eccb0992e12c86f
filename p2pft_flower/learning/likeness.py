"""The likeness of two models' attention maps over a test set, and a choice of its images for a figure."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TOP_SHARE", "choose_images", "correlation", "likeness", "top_overlap", "top_size"]

TOP_SHARE = 0.2
"""Share of the patches that count as the strongest."""

Array = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def correlation(maps: Array, reference: Array) -> Numbers:
    """Return Pearson's correlation of each image's two maps over their patches, (N,).

    Both arrays of maps are (N, H, W). NaN where one of the two maps is constant.
    """
    a, b = (m.reshape(len(m), -1).astype(np.float64) for m in (maps, reference))
    a, b = (m - m.mean(axis=1, keepdims=True) for m in (a, b))
    norms = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    with np.errstate(invalid="ignore"):  # 0 / 0 is the documented NaN
        return np.asarray((a * b).sum(axis=1) / norms)


def top_size(patches: int) -> int:
    """Return the number of patches that count as the strongest: a fifth of all, rounded, at least one."""
    return max(1, round(TOP_SHARE * patches))


def top_overlap(maps: Array, reference: Array) -> Numbers:
    """Return the share, (N,), of the strongest patches that an image's two maps have in common.

    Both arrays of maps are (N, H, W).

    With k = :func:`top_size`, that is the number of patches that are among the k strongest of both maps,
    divided by k. Unrelated maps have a fifth in common on average.
    """
    a, b = (m.reshape(len(m), -1) for m in (maps, reference))
    k = top_size(a.shape[1])
    tops = [np.argsort(-m, axis=1, kind="stable")[:, :k] for m in (a, b)]
    return np.array([len(np.intersect1d(x, y)) / k for x, y in zip(*tops, strict=True)])


def likeness(alike: Numbers, overlap: Numbers, right: Mask, chosen: Mask) -> dict[str, Any] | None:
    """Return a summary of the chosen images for JSON.

    Parameters
    ----------
    alike, overlap : (N,) float64 array
        :func:`correlation` and :func:`top_overlap` of each image's maps.
    right : (N,) bool array
        Whether the image was classified right.
    chosen : (N,) bool array
        The images that count.

    Returns
    -------
    dict or None
        ``images`` (their number), ``correlation`` and ``overlap`` (each ``mean`` and ``std``, the
        population's), ``accuracy`` (0..1); None if no image was chosen. A constant map makes the correlation
        NaN.
    """
    if not chosen.any():
        return None
    spread = {
        name: {"mean": float(values[chosen].mean()), "std": float(values[chosen].std())}
        for name, values in (("correlation", alike), ("overlap", overlap))
    }
    return {"images": int(chosen.sum()), **spread, "accuracy": float(right[chosen].mean())}


def choose_images(
    labels: npt.NDArray[np.int64], candidates: Mask, count: int, seed: int
) -> npt.NDArray[np.int64]:
    """Return the positions, (count,), of images drawn at random, from as many classes as possible.

    Parameters
    ----------
    labels : (N,) int64 array
        Classes of the images.
    candidates : (N,) bool array
        The images to choose from, at least ``count``.
    count : int
        Number of images to choose.
    seed : int
        Number that decides the choice.
    """
    drawn = np.random.default_rng(np.random.SeedSequence((seed, 5))).permutation(np.flatnonzero(candidates))
    times: Counter[int] = Counter()
    turns = []
    for label in labels[drawn].tolist():
        turns.append(times[label])
        times[label] += 1
    # The first of every class, then the second of every class, …
    return drawn[np.argsort(turns, kind="stable")][:count]
