"""The one thread of networking: an event loop, in which all calls and servers of this process run.

The thread exists as long as anybody has `Tasks`. Each task belongs to the `Tasks` that started it:
`Tasks.close` ends and awaits all tasks of these, and an unforeseen error of a task reaches ``on_failure``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.wire.errors import ExchangeStoppedError

__all__ = ["Tasks", "all_on_the_loop"]

T = TypeVar("T")

_lock = threading.Lock()
"""Guards `_shared` and its count of users."""

_shared: _Network | None = None


class _Network:
    """An event loop and its thread; ``users`` is guarded by the module's lock."""

    def __init__(self) -> None:
        self.users = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="p2pft-network", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


def _hold() -> _Network:
    global _shared  # noqa: PLW0603 - a process has one network, as it has one gRPC
    with _lock:
        if _shared is None:
            _shared = _Network()
        _shared.users += 1
        return _shared


def _release(network: _Network) -> None:
    global _shared  # noqa: PLW0603
    with _lock:
        network.users -= 1
        if network.users:
            return
        _shared = None
    network.end()


async def all_on_the_loop(futures: Sequence[Future[Any]], timeout: float) -> None:
    """Wait until other threads have set the results of all ``futures``, or ``timeout`` seconds have passed.

    However many futures there are, the loop is woken once.
    """
    loop, lock, left = asyncio.get_running_loop(), threading.Lock(), len(futures)
    done = asyncio.Event()

    def count(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            loop.call_soon_threadsafe(done.set)

    for future in futures:
        future.add_done_callback(count)
    if futures:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), timeout)


class Tasks(Closing):
    """The tasks of one owner in the network's thread; a context manager.

    ``_closed`` is guarded by ``_lock``; ``_under_way`` is the loop's alone.

    Parameters
    ----------
    on_failure : callable, optional
        Gets the error that a task raised, in the network's thread; must return at once. Default: only the
        future that `start` returned raises it.
    """

    def __init__(self, on_failure: Callable[[Exception], None] | None = None) -> None:
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._closed = False
        self._under_way: set[asyncio.Task[Any]] = set()
        self._network = _hold()

    def start(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> Future[T]:
        """Begin ``work(*arguments)``, from any thread; return its future, whose `cancel` cancels the task.

        Raises
        ------
        ExchangeStoppedError
            When the tasks were closed.
        """
        return self._submit(work, arguments, self._on_failure)

    def run(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Do ``work(*arguments)`` and return its result; from any thread but the network's.

        Raises
        ------
        ExchangeStoppedError
            When the tasks were closed.
        Exception
            Any error that the work raised.
        """
        return self._submit(work, arguments, None).result()

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have the network's thread call a function soon; from any thread. Do nothing if closed."""
        with self._lock:
            if not self._closed:
                self._network.loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        """Cancel and await all tasks; the last owner's call ends the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._network.loop).result()
        _release(self._network)

    def _submit(
        self,
        work: Callable[..., Awaitable[T]],
        arguments: tuple[Any, ...],
        on_failure: Callable[[Exception], None] | None,
    ) -> Future[T]:
        with self._lock:
            if self._closed:
                raise ExchangeStoppedError("this host has closed its links")
            owned = self._owned(work, arguments, on_failure)
            return asyncio.run_coroutine_threadsafe(owned, self._network.loop)

    async def _owned(
        self,
        work: Callable[..., Awaitable[T]],
        arguments: tuple[Any, ...],
        on_failure: Callable[[Exception], None] | None,
    ) -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        self._under_way.add(task)
        try:
            return await work(*arguments)
        except Exception as error:
            if on_failure is not None:
                on_failure(error)
            raise
        finally:
            self._under_way.discard(task)

    async def _end(self) -> None:
        while left := [task for task in self._under_way if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left)
