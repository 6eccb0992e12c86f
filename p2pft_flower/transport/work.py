"""Work that a host's links have begun in the network's thread, and the error that ends all of it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

from p2pft_flower.transport.mailbox import first_error
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.wire.errors import ExchangeStoppedError, ViewChangeError

__all__ = ["Work"]

T = TypeVar("T")
_ASK = 0.1
"""Seconds between two calls of ``check`` by a thread that waits."""


class Work:
    """Work that a failure ends: nothing begins after one, and what has begun is cancelled.

    All methods may be called from any thread. ``_lock`` guards ``_error`` and ``_going``.

    Parameters
    ----------
    tasks : Tasks
        The network's thread, in which the work is done.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._going: set[Future[Any]] = set()

    @property
    def error(self) -> Exception | None:
        """The first error that `fail` was called with; None if it was not called."""
        with self._lock:
            return self._error

    def raise_if_failed(self) -> None:
        """Raise the error that `fail` was called with, if it was."""
        if (error := self.error) is not None:
            raise error

    def start(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> Future[T]:
        """Begin ``work(*arguments)`` in the network's thread, and return the future of the result.

        Raises
        ------
        ExchangeStoppedError
            When the tasks were closed.
        Exception
            The error that `fail` was called with.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            future = self._tasks.start(work, *arguments)
            self._going.add(future)
        future.add_done_callback(self._forget)
        return future

    def start_part(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> Future[T]:
        """Begin a part of other work, and return its future; after `fail` the part is cancelled at once.

        Raises
        ------
        ExchangeStoppedError
            When the tasks were closed.
        """
        future = self._tasks.start(work, *arguments)
        with self._lock:
            self._going.add(future)
            failed = self._error is not None
        future.add_done_callback(self._forget)
        if failed:
            future.cancel()
        return future

    def result(self, future: Future[T], timeout: float | None = None) -> T:
        """Return the result of the future of some work.

        Raises
        ------
        TimeoutError
            When there is no result within ``timeout`` seconds.
        ExchangeStoppedError
            When the work was cancelled, and `fail` was not called.
        Exception
            Any error of the work, or the error that `fail` was called with if the work was cancelled.
        """
        try:
            return future.result(timeout)
        except CancelledError:
            raise self.error or ExchangeStoppedError("this host has closed its links") from None

    def wait(
        self, work: Callable[..., Awaitable[T]], *arguments: Any, check: Callable[[], None] = lambda: None
    ) -> T:
        """Do ``work(*arguments)`` and return its result; ``check``, called several times a second, may raise.

        Raises
        ------
        Exception
            The error that `fail` was called with, or that ``check`` raised, or any error of the work.
        """
        future = self.start(work, *arguments)
        try:
            while not wait({future}, _ASK).done:
                check()
            return self.result(future)
        finally:
            future.cancel()

    def fail(self, error: Exception) -> None:
        """End all work with ``error``. The first error stays, but a `ViewChangeError` gives way to others."""
        with self._lock:
            self._error = first_error(self._error, error)
        self.cancel()

    def cancel(self) -> None:
        """Cancel all work that has begun."""
        with self._lock:
            going = list(self._going)
        for future in going:  # not under the lock, which `_forget` takes
            future.cancel()

    def renew(self) -> None:
        """Let work begin again after a `ViewChangeError`.

        Raises
        ------
        Exception
            Any other error that `fail` was called with.
        """
        with self._lock:
            if self._error is not None and not isinstance(self._error, ViewChangeError):
                raise self._error
            self._error = None

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._going.discard(future)
