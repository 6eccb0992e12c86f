"""Whether this process itself did not run for a while: a thread that sleeps a second wakes much later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from p2pft_flower.host.long_waits import AT_LEAST

__all__ = ["Pause", "Pauses"]


class Pause(NamedTuple):
    """A time in which this process did not run.

    Attributes
    ----------
    seconds : float
        Its length.
    asleep : float
        Those of these seconds in which the whole machine was suspended.
    """

    seconds: float
    asleep: float


def _always() -> float:
    """Return a time, seconds, that goes on while the machine is suspended, where the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Pauses:
    """Finds out after a short sleep whether it was much longer than asked for.

    Parameters
    ----------
    clock, always : callable
        Return times in seconds, the second one also while the machine is suspended; default: the system's.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, always: Callable[[], float] = _always
    ) -> None:
        self._clock, self._always = clock, always
        self._before = 0.0, 0.0

    def begin(self) -> None:
        """Note that the sleep begins."""
        self._before = self._clock(), self._always()

    def end(self, asked: float) -> Pause | None:
        """End a sleep of ``asked`` seconds; return the pause in it, None if it was below 5 s."""
        passed, in_all = self._clock() - self._before[0], self._always() - self._before[1]
        seconds = max(passed, in_all) - asked
        return Pause(seconds, max(0.0, in_all - passed)) if seconds >= AT_LEAST else None
