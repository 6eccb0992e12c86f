"""An image file that is in no dataset, as a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.pixels import Range
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.learning.data.survey import survey

__all__ = ["picture_of"]


def picture_of(
    file: Path, window: Range | None, most: int | None = None, dicom: Range | None = None
) -> Image.Image:
    """Return an image file from outside the dataset as a picture.

    Parameters
    ----------
    file : Path
        The file.
    window : (float, float) or None
        The values that stand for black and for white in deep samples; None: those that the file declares.
    most : int, optional
        The most pixels of the image.
    dicom : (float, float), optional
        The same as ``window`` for deep grey DICOM samples, instead of it and of the file's own window.

    Raises
    ------
    ConfigError
        When the image's black and white samples are unknown.
    DataError
        When the file cannot be read; the message names it.
    """
    if file.exists() and not file.is_file():  # reading a pipe would block
        raise DataError(f"{file}: not a readable image (no regular file)")
    alone = Split.of_files([file], np.zeros(1, dtype=np.int64), most)
    return replace(alone, pixels=survey([alone], window, f"{file}'s", dicom).pixels).picture(0)
