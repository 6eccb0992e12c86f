"""Lines of the package's log that one thread writes, handed on: many hosts may share a process."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

__all__ = ["handed_on"]

log = logging.getLogger("p2pft_flower")


class _Notes(logging.Handler):
    """Gives each thread's lines to those that have asked for them; meanwhile the log lets INFO through."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._asked: dict[int, list[Callable[[str], None]]] = {}
        self._guard = threading.Lock()
        self._level = logging.NOTSET

    def emit(self, record: logging.LogRecord) -> None:
        for tell in tuple(self._asked.get(record.thread or 0, ())):
            tell(record.getMessage())

    def ask(self, thread: int, tell: Callable[[str], None]) -> None:
        """Have ``tell`` called with each line of a thread."""
        with self._guard:
            if not self._asked:
                self._level = log.level
                log.addHandler(self)
                # Flower's engine brings the app into its workers without their log's set-up.
                log.setLevel(logging.INFO)
            self._asked.setdefault(thread, []).append(tell)

    def leave(self, thread: int, tell: Callable[[str], None]) -> None:
        """Call it no more; the last one to leave sets the log's level back."""
        with self._guard:
            self._asked[thread].remove(tell)
            if not self._asked[thread]:
                del self._asked[thread]
            if not self._asked:
                log.setLevel(self._level)
                log.removeHandler(self)


_NOTES = _Notes()


@contextlib.contextmanager
def handed_on(tell: Callable[[str], None]) -> Iterator[None]:
    """Give ``tell`` what this thread logs in a ``with`` block, from INFO on, beside where it goes anyway."""
    thread = threading.get_ident()
    _NOTES.ask(thread, tell)
    try:
        yield
    finally:
        _NOTES.leave(thread, tell)
