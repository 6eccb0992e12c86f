"""A check that the reader of a dataset of the user's own returns images."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.pixels import Source, as_source

__all__ = ["NoImageError", "require_image"]

EXPECTED = (
    "return a PIL image, or a NumPy array of shape (H, W), or (H, W, C) with 1 to 4 channels, which come last"
)


class NoImageError(DataError):
    """A dataset's reader returned something that is no image: the reader's code must be corrected."""


def require_image(found: Any, name: str) -> Source:
    """Return a reader's result if it is an image.

    Parameters
    ----------
    found : object
        The result.
    name : str
        Words that name the dataset and the image in messages.

    Raises
    ------
    NoImageError
        When ``found`` is no image; the message describes it and the images that are expected.
    """
    if isinstance(found, Image.Image):
        return found
    try:
        return as_source(found)
    except ValueError as error:
        why = str(error) if isinstance(found, np.ndarray) else f"{_described(found)} is no image"
        raise NoImageError(f"{name}: {why}; {EXPECTED}{_remedy(found)}") from error


def _described(found: object) -> str:
    """Return words for an object's type, and for shape and element type if the object has them."""
    kind = type(found)
    whole = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    )
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    return f"a {whole}{'' if shape is None else f' of shape {tuple(shape)}'}{f' ({dtype})' if dtype else ''}"


def _remedy(found: object) -> str:
    """Return the remedy for arrays and tensors whose channels come first, and for other tensors; else ""."""
    shape = tuple(getattr(found, "shape", ()))
    first = len(shape) == 3 and shape[0] in (1, 2, 3, 4) and shape[2] not in (1, 2, 3, 4)
    if isinstance(found, np.ndarray):
        return ": np.moveaxis(image, 0, -1)" if first else ""
    if not shape:
        return ""
    return ": np.moveaxis(np.asarray(image), 0, -1)" if first else ": np.asarray(image)"
