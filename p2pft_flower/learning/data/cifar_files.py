"""CIFAR's official files: pickles of a dictionary with arrays and lists, the only content that is admitted.

A pickle may name any function to be called when it is read. Here only functions that make a NumPy array are
admitted, so a file that asks for other code is refused instead of obeyed.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["read_cifar", "read_names"]

_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}
"""The functions that make an array, in pickles of Python 2 and 3."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and arrays only are read from it")
        return super().find_class(module, name)


def _dictionary(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        found = _ArraysOnly(opened, encoding="latin1").load()
    if not isinstance(found, dict):
        raise TypeError(f"{file.name} holds a {type(found).__name__}, not a dictionary")
    return found


def read_cifar(*files: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the images of ``files``, (N, 32, 32, 3) uint8, and their labels, (N,) int64.

    Parameters
    ----------
    *files : Path
        Batches of cifar10, or a split of cifar100, whose fine labels count.

    Raises
    ------
    Exception
        When a file cannot be read: any error that a reader of pickles raises.
    """
    batches = [_dictionary(file) for file in files]
    pixels = np.vstack([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    key = "labels" if "labels" in batches[0] else "fine_labels"
    labels = [label for batch in batches for label in batch[key]]
    return pixels.astype(np.uint8, copy=False), np.array(labels, dtype=np.int64)


def read_names(file: Path) -> tuple[str, ...]:
    """Return the classes' names, by label, out of ``batches.meta`` or ``meta``.

    Raises
    ------
    Exception
        When the file cannot be read, as in :func:`read_cifar`.
    """
    meta = _dictionary(file)
    return tuple(map(str, meta["label_names" if "label_names" in meta else "fine_label_names"]))
