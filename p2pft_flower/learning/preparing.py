"""That preparing goes on, for whoever waits for it: what it reads and computes, image by image.

What takes long lies deep: the trunk's batches, images that are decoded. As with the log, those who work there
do not know who listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["note_progress", "progress_told_to"]

_listener: ContextVar[Callable[[], None] | None] = ContextVar("p2pft-progress", default=None)


@contextmanager
def progress_told_to(listener: Callable[[], None]) -> Iterator[None]:
    """Call ``listener`` whenever this thread notes progress in a ``with`` block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def note_progress() -> None:
    """Say that an image was read, or a batch of them computed."""
    listener = _listener.get()
    if listener is not None:
        listener()
