"""Which images of a split can be read: all become pictures once, in several threads."""

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
    """Decode images once, in several threads, and return what is wrong with those that make no picture.

    Parameters
    ----------
    split : Split
        The images.
    positions : sequence of int
        Which of them to look at.
    what : str
        For the progress in the log, e.g. ``"test"``.

    Returns
    -------
    dict of int to str
        Position ↦ what is wrong, naming the file where there is one; in the order of ``positions``.

    Raises
    ------
    NoImageError
        When the reader of one's own dataset returned what is no image: that is no image to be left out.
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
    """Decode images once, in several threads; parameters as of :func:`unreadable_images`.

    Raises
    ------
    DataError
        Naming the first image that cannot be read, and what to do.
    """
    with closing(each(split.picture, positions, what)) as looked_at:
        for position, found in looked_at:
            if isinstance(found, Exception):
                raise DataError(_told(found, f"{what} image {position}")) from found


def _told(error: Exception, image: str) -> str:
    # The readers here name the file; those of own datasets may not.
    return str(error) if isinstance(error, DataError) else f"{image}: not readable ({error}){REMEDY}"
