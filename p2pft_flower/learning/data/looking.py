"""A function applied to many images in several threads, with progress in the log."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from p2pft_flower.learning.data.decoding import UNREADABLE
from p2pft_flower.learning.preparing import note_progress

__all__ = ["each"]

TELL_EVERY = 3.0
"""Seconds between two lines of progress in the log."""

Found = TypeVar("Found")

log = logging.getLogger(__name__)


def each(
    look: Callable[[int], Found], positions: Sequence[int] | npt.NDArray[np.int64], what: str
) -> Generator[tuple[int, Found | Exception]]:
    """Yield each position, in order, with the result of ``look``, or with the error of an unreadable image.

    Close the generator to stop early.

    Parameters
    ----------
    look : callable
        Called with a position, in several threads at once.
    positions : sequence of int
        The positions of the images.
    what : str
        Words that name the images in the log's lines of progress, e.g. ``"test"``.
    """

    def tried(position: int) -> Found | Exception:
        try:
            return look(position)
        except UNREADABLE as error:
            return error

    begin = reported = time.monotonic()
    wanted = [int(p) for p in positions]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="p2pft-decode")
    try:
        for done, (position, found) in enumerate(zip(wanted, pool.map(tried, wanted), strict=True), 1):
            yield position, found
            note_progress()
            now = time.monotonic()
            if now - reported > TELL_EVERY and done < len(wanted):
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
                reported = now
    finally:
        pool.shutdown(cancel_futures=True)
