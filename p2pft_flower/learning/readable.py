"""Which images of a split can be read: all are decoded once, in several threads."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError
from p2pft_flower.learning.datasets import Split
from p2pft_flower.learning.images import REMEDY, UNREADABLE
from p2pft_flower.learning.preparing import note_progress

__all__ = ["require_readable", "unreadable_images"]

TELL_EVERY = 3.0
"""Seconds between two lines in the log while many images are looked at."""

log = logging.getLogger(__name__)


def unreadable_images(
    split: Split, positions: Sequence[int] | npt.NDArray[np.int64], what: str
) -> dict[int, str]:
    """Decode images once, in several threads, and return what is wrong with those that cannot be.

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
    """
    with closing(_decoded(split, positions, what)) as looked_at:
        return {
            position: _told(error, f"{what} image {position}").removesuffix(REMEDY)
            for position, error in looked_at
            if error is not None
        }


def require_readable(split: Split, positions: Sequence[int] | npt.NDArray[np.int64], what: str) -> None:
    """Decode images once, in several threads; parameters as of :func:`unreadable_images`.

    Raises
    ------
    DataError
        Naming the first image that cannot be read, and what to do.
    """
    with closing(_decoded(split, positions, what)) as looked_at:
        for position, error in looked_at:
            if error is not None:
                raise DataError(_told(error, f"{what} image {position}")) from error


def _told(error: BaseException, image: str) -> str:
    # The readers here name the file; those of own datasets may not.
    return str(error) if isinstance(error, DataError) else f"{image}: not readable ({error}){REMEDY}"


def _decoded(
    split: Split, positions: Sequence[int] | npt.NDArray[np.int64], what: str
) -> Generator[tuple[int, BaseException | None]]:
    def look(position: int) -> BaseException | None:
        try:
            split.read(position)
        except UNREADABLE as error:
            return error
        return None

    begin = told = time.monotonic()
    wanted = [int(p) for p in positions]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="p2pft-decode")
    try:
        for done, (position, error) in enumerate(zip(wanted, pool.map(look, wanted), strict=True), 1):
            yield position, error
            note_progress()
            now = time.monotonic()
            if now - told > TELL_EVERY and done < len(wanted):
                rate = done / (now - begin)
                left = (len(wanted) - done) / rate
                log.info(
                    "looked at %d of %d %s images, %.0f images/s, %.0f s left",
                    done,
                    len(wanted),
                    what,
                    rate,
                    left,
                )
                told = now
    finally:
        pool.shutdown(cancel_futures=True)  # where whoever asked has heard enough
