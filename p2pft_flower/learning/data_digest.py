"""By what images are known again at another path: labels, names below their folder, some sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from p2pft_flower.learning.datasets import Split

__all__ = ["images_digest"]

LOOKED_AT = 2000
"""Images, spread evenly, of which the file's size or the pixels count; of all others the name only."""


def images_digest(split: Split, positions: npt.NDArray[np.int64], classes: Sequence[str]) -> str:
    """Digest images: the same ones, in the same order, have the same digest wherever their folder lies.

    No image file is opened. Of own datasets, whose images have no name, only the labels count.

    Parameters
    ----------
    split : Split
        Where they come from.
    positions : (N,) int64 array
        Which ones, in this order.
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    str
        XXH3-128, hexadecimal.
    """
    found = xxhash.xxh3_128()

    def add(part: bytes) -> None:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)

    for name in classes:
        add(_bytes(name))
    add(np.ascontiguousarray(split.labels[positions], dtype="<i8").tobytes())
    some = positions[:: max(1, -(-len(positions) // LOOKED_AT))]
    if split.files is not None and len(positions):
        files = [os.path.abspath(split.files[index]) for index in positions]  # noqa: PTH100 - of many
        above = os.path.commonpath(files)
        for file in files:
            add(_bytes(file.removeprefix(above)))
        for index in some:
            add(str(_size(split.files[index])).encode())
    elif split.content is not None:
        for index in some:
            add(split.content(int(index)))
    return found.hexdigest()


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogatepass")  # names may be any bytes


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1  # whoever reads it says what is wrong
