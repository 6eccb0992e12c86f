"""scikit-learn's digits, and a split of them, without importing scikit-learn: that takes as long as torch.

The images are read from scikit-learn's own file. ``digits_split.npy`` (1797,) has their positions, those of
training first, as ``train_test_split(range(1797), test_size=0.2, stratify=labels, random_state=0)`` returns
them.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2pft_flower.learning.data.images import array_content
from p2pft_flower.learning.data.splits import Dataset, Split

__all__ = ["digits"]

TRAIN = 1437
"""How many of the 1,797 digits are to train; the split does not depend on the run's seed."""


@cache
def _digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the digits' pixels (1797, 8, 8) and their labels (1797,); read once a process."""
    rows = _rows()
    # Counts of 0..16 to grey levels of 0..255.
    pixels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return pixels, rows[:, -1].astype(np.int64)


def _rows() -> npt.NDArray[np.float64]:
    """Return 64 counts and a label of each digit, (1797, 65)."""
    found = find_spec("sklearn")  # imports nothing
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a version that keeps them elsewhere

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels])


def digits(data_dir: str) -> Dataset:  # noqa: ARG001 - a dataset's signature
    """Return scikit-learn's own 1,797 digits of 8 × 8 pixels: 1,437 to train, 360 to test."""
    pixels, labels = _digits()
    order = np.load(Path(__file__).with_name("digits_split.npy")).astype(np.int64)

    def split(positions: npt.NDArray[np.int64]) -> Split:
        return Split(
            labels=labels[positions],
            read=lambda index: Image.fromarray(pixels[positions[index]]),
            content=lambda index: array_content(pixels[positions[index]]),
        )

    return Dataset("digits", tuple(str(d) for d in range(10)), split(order[:TRAIN]), split(order[TRAIN:]))
