"""Progress in the preparing of data and trunk, image by image, for the neighbours that wait for this host.

Slow work is deep in the code: the trunk's batches, the decoding of images. As with a log, that code does not
know its listener.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["note_progress", "progress_to"]

_listener: ContextVar[Callable[[], None] | None] = ContextVar("p2pft-progress", default=None)


@contextmanager
def progress_to(listener: Callable[[], None]) -> Iterator[None]:
    """Call ``listener`` whenever this thread notes progress within the ``with`` block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def note_progress() -> None:
    """Call this thread's listener, if there is one: an image was read, or a batch computed."""
    listener = _listener.get()
    if listener is not None:
        listener()
