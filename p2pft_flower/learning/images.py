"""Images of arrays and files: found, read, and told from each other by their content."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2pft_flower.errors import DataError

__all__ = ["REMEDY", "UNREADABLE", "array_content", "file_content", "image_files", "read_image"]

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises of files that are no images, or broken ones."""

REMEDY = "; repair or remove it, or set bad-images = skip"
"""What to do about an image that cannot be read."""


def image_files(folder: Path) -> list[Path]:
    """Return the files in and below ``folder`` that have the extension of an image, sorted.

    Raises
    ------
    DataError
        When a folder may not be read. One that is not there has no files.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # as when it was removed while this looked
            raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error

    known = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return sorted(
        Path(here, name)
        for here, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if os.path.splitext(name)[1].lower() in known  # noqa: PTH122 - of each of many names
    )


def array_content(pixels: npt.NDArray[Any]) -> bytes:
    """Return the bytes that tell an array of pixels from every other."""
    return f"{pixels.dtype} {pixels.shape} ".encode() + pixels.tobytes()


def file_content(file: Path) -> bytes:
    """Return the bytes of an image file.

    Raises
    ------
    DataError
        When it cannot be read, naming it.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: not a readable image ({error}){REMEDY}") from error


def read_image(file: Path) -> Image.Image:
    """Read an image file; greys of 16 bits become 8.

    Raises
    ------
    DataError
        When it cannot be read, naming it.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return _eight_bits(image)
    except UNREADABLE as error:
        raise DataError(f"{file}: not a readable image ({error}){REMEDY}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion of 16-bit greys clips at 255: nearly all would be white.
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image
