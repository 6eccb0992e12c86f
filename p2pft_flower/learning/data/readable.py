"""Finding the images of a split that cannot be read, by making pictures of all, in several threads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.decoding import REMEDY
from p2pft_flower.learning.data.looking import each
from p2pft_flower.learning.data.own_images import NoImageError
from p2pft_flower.learning.data.splits import Split

__all__ = ["require_readable", "unreadable_images"]


def unreadable_images(
    split: Split, positions: Sequence[int] | npt.NDArray[np.int64], what: str
) -> dict[int, str]:
    """Decode images once, in several threads, and return the faults of those that make no picture.

    Parameters
    ----------
    split : Split
        The images.
    positions : sequence of int
        The positions of the images to decode.
    what : str
        Words that name the images in the log and in faults, e.g. ``"test"``.

    Returns
    -------
    dict of int to str
        The fault of each image that makes no picture, by position, in the order of ``positions``; it names
        the image's file, if there is one.

    Raises
    ------
    NoImageError
        When the reader of a dataset of the user's own returned something that is no image.
    """
    wrong = {}
    with closing(each(split.picture, positions, what)) as looked_at:
        for position, found in looked_at:
            if isinstance(found, NoImageError):
                raise found
            if isinstance(found, Exception):
                wrong[position] = _told(found, f"{what} image {position}").removesuffix(REMEDY)
    return wrong


def require_readable(split: Split, positions: Sequence[int] | npt.NDArray[np.int64], what: str) -> None:
    """Decode images once, in several threads; the parameters are those of :func:`unreadable_images`.

    Raises
    ------
    DataError
        When an image cannot be read; the message names the first one and the remedy.
    """
    with closing(each(split.picture, positions, what)) as looked_at:
        for position, found in looked_at:
            if isinstance(found, Exception):
                raise DataError(_told(found, f"{what} image {position}")) from found


def _told(error: Exception, image: str) -> str:
    # This package's readers name the file; readers of the user's own may not.
    return str(error) if isinstance(error, DataError) else f"{image}: not readable ({error}){REMEDY}"
