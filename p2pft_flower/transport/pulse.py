"""The activity and progress of this host, as its heartbeats report them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = ["Clock", "OwnPulse"]

Clock = Callable[[], float]


class OwnPulse:
    """The activity and progress of this host, kept by the threads that work and read by `Heartbeats`.

    Every call but that of :meth:`read` is progress. Calls may come from any thread.

    Parameters
    ----------
    clock : callable
        The time in seconds; default time.monotonic.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._activity: pb.Pulse.Activity = pb.Pulse.PAUSED
        self._view = self._iteration = self._progress = 0
        self._since = self._last = clock()
        self._slowest: dict[int, float] = {}

    def enter(self, activity: pb.Pulse.Activity) -> None:
        """Note that the host turns to ``activity``, another one than before or the same again."""
        with self._lock:
            self._step()
            self._activity, self._since = activity, self._last

    def advance(self) -> None:
        """Note that the host got further within its activity, such as by a batch of a long evaluation."""
        with self._lock:
            self._step()

    def complete(self, iterations: int, view: int) -> None:
        """Note the number of completed iterations, and the host's view."""
        with self._lock:
            self._step()
            self._iteration, self._view = iterations, view

    def read(self) -> pb.Pulse:
        """Return the pulse of this moment."""
        with self._lock:
            return pb.Pulse(
                view=self._view,
                iteration=self._iteration,
                activity=self._activity,
                progress=self._progress,
                busy=self._clock() - self._since,
                slowest=self._slowest.get(self._activity, 0.0),
            )

    def _step(self) -> None:
        now = self._clock()
        self._slowest[self._activity] = max(self._slowest.get(self._activity, 0.0), now - self._last)
        self._last = now
        self._progress += 1
