"""Callbacks: what watches a run, each in a thread of its own, so that it never slows training or ends it."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pft_flower.config import RunConfig, RuntimeConfig
from p2pft_flower.keeping.event_files import EventFiles, require_tensorboard
from p2pft_flower.keeping.lines import Evaluation, Failed, Outcome, ViewChange
from p2pft_flower.plugins import check_reference, load_reference, telling_whose

__all__ = ["Callbacks", "WatchedRun", "require_watchers"]

WAITING = 1000
"""The most events that wait for one callback; later ones are left out."""

CLOSING = 10.0
"""Seconds that the callbacks of a host have to come to their end once its peers have."""

log = logging.getLogger("p2pft_flower")


@dataclass(frozen=True)
class WatchedRun:
    """Facts of the run, with which a callback is made.

    Attributes
    ----------
    run, name : str
        The run's id; its name, empty if it has none.
    folder : Path
        The run's folder on this machine.
    peers : tuple of int
        The peers whose events the callback gets: those of one host.
    n : int
        Number of peers of the graph.
    iterations : int
        Number of iterations of the run.
    config : dict
        The run-config by its keys.
    """

    run: str
    name: str
    folder: Path
    peers: tuple[int, ...]
    n: int
    iterations: int
    config: dict[str, Any]


def require_watchers(runtime: RuntimeConfig, beside: Sequence[Path] = ()) -> None:
    """Refuse a callback or TensorBoard if what they need is not on this machine; no code of theirs is run.

    Parameters
    ----------
    runtime : RuntimeConfig
        The settings.
    beside : sequence of Path
        Folders in which modules are looked for, beside those of ``sys.path``; default none.

    Raises
    ------
    ConfigError
        If the package tensorboard, or the callback's module or name, is not there.
    """
    if runtime.tensorboard:
        require_tensorboard()
    if runtime.callbacks:
        check_reference(runtime.callbacks, key="callbacks", beside=beside)


class Callbacks:
    """All callbacks of a host: TensorBoard's event files and the user's own, as the run-config says.

    Parameters
    ----------
    config : RunConfig
        The run's settings.
    run : WatchedRun
        The facts with which the user's own callback is made.
    tell : callable
        Called with a sentence on a callback that fails or is too slow, from any thread.

    Raises
    ------
    ConfigError
        If the module of the user's own callback cannot be imported, or event files cannot be written since a
        package is missing.
    """

    def __init__(self, config: RunConfig, run: WatchedRun, tell: Callable[[str], None]) -> None:
        makers: dict[tuple[str, str], Callable[[], object]] = {}
        if config.runtime.tensorboard:
            require_tensorboard()
            makers["tensorboard", "true"] = lambda: EventFiles(run.folder)
        if (value := config.runtime.callbacks) != "":
            own = load_reference(value, key="callbacks")  # refused before training, if it is at fault
            makers["callbacks", value] = lambda: own(run)
        self._threads = [_Thread(key, value, make, tell) for (key, value), make in makers.items()]

    def start(self) -> None:
        """Start the threads, which make the callbacks."""
        for thread in self._threads:
            thread.start()

    def evaluated(self, evaluation: Evaluation) -> None:
        """Hand on that a peer was evaluated; returns at once."""
        self._hand_on("evaluated", evaluation)

    def view_changed(self, change: ViewChange) -> None:
        """Hand on that the peers go on in another view; returns at once."""
        self._hand_on("view_changed", change)

    def _hand_on(self, event: str, content: object) -> None:
        for thread in self._threads:
            thread.add(event, content)

    def close(self, ends: Mapping[int, Outcome | Failed]) -> None:
        """Hand on the peers' ends; wait until all events were handled, :data:`CLOSING` seconds at most."""
        self._hand_on("ended", dict(ends))
        deadline = time.monotonic() + CLOSING
        for thread in self._threads:
            thread.close(deadline)
        self._threads = []


class _Thread:
    """The thread of one callback, which makes the callback and calls it.

    Parameters
    ----------
    key, value : str
        The run-config key that asks for the callback, and its value, for the messages.
    make : callable
        Returns the callback: an object with some of the methods ``evaluated``, ``view_changed``, ``ended``.
    tell : callable
        As of :class:`Callbacks`.
    """

    def __init__(self, key: str, value: str, make: Callable[[], object], tell: Callable[[str], None]) -> None:
        self._key, self._value, self._make, self._tell = key, value, make, tell
        self._events: queue.Queue[tuple[str, object] | None] = queue.Queue(WAITING)  # None: the end
        self._left_out = 0
        self._failed = False
        self._thread = threading.Thread(target=self._serve, name=f"p2pft-{key}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, event: str, content: object) -> None:
        """Put an event into the queue; if it is full, leave the event out."""
        try:
            self._events.put_nowait((event, content))
        except queue.Full:
            self._left_out += 1
            if self._left_out == 1:
                self._tell(
                    f"{self._key} = {self._value!r} is slower than the run: {WAITING} events wait for it, "
                    "and later ones are left out"
                )

    def close(self, deadline: float) -> None:
        """Wait until the events were handled, until ``deadline`` on the monotonic clock."""
        with contextlib.suppress(queue.Full):
            self._events.put(None, timeout=max(0.0, deadline - time.monotonic()))
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._tell(
                f"{self._key} = {self._value!r} has not come to its end within {CLOSING:g} s of the peers' "
                "end, and is given up"
            )

    def _serve(self) -> None:
        callback: object = None
        try:
            with telling_whose(self._value, key=self._key, doing="its start"):
                callback = self._make()
        except Exception as error:
            self._note(error)
        while (waiting := self._events.get()) is not None:
            event, content = waiting
            if (method := getattr(callback, event, None)) is None:
                continue
            try:
                with telling_whose(self._value, key=self._key, doing=f"its {event}"):
                    method(content)
            except Exception as error:
                self._note(error)

    def _note(self, error: Exception) -> None:
        """Tell of the first error of the callback alone: a service that is down fails every time."""
        log.debug("%s = %r", self._key, self._value, exc_info=error)
        if not self._failed:
            self._failed = True
            self._tell(f"{error}; the run goes on, and later errors of it are not told")
