"""Which waits of a host are unusually long: for its site's log, its journal and its bulletin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Awaited", "LongWait", "LongWaits"]

_USUAL = 10.0
"""Multiple of the usual time of an iteration from which on a wait is unusually long."""

AT_LEAST = 5.0
"""Seconds from which on it can be."""


class Awaited(NamedTuple):
    """A peer that is waited for.

    Attributes
    ----------
    peer : int
        The peer.
    since : float
        The time at which the waiting began.
    spoken : float or None
        Seconds since the peer last spoke to this host; None if it has not yet.
    chain : tuple of int
        The peer that it waits for itself, the one that this one waits for, and so on, as far as is known.
    """

    peer: int
    since: float
    spoken: float | None
    chain: tuple[int, ...] = ()


@dataclass(frozen=True)
class LongWait:
    """An unusually long wait: it has begun to be one, or its time has doubled, or it is over.

    Attributes
    ----------
    awaited : Awaited
        The peer that is or was waited for, as of the last look at which this was told.
    seconds : float
        The seconds for which it has been waited for.
    over : bool
        Whether the wait is over.
    """

    awaited: Awaited
    seconds: float
    over: bool = False


class LongWaits:
    """Finds unusually long waits by looking now and then."""

    def __init__(self) -> None:
        self._told: Awaited | None = None
        """The peer that was last told of."""
        self._looked = -math.inf
        """The time of the last look."""
        self._again = 0.0
        """Seconds of waiting after which it is told again."""

    @property
    def long_since(self) -> float | None:
        """The time at which the present long wait began; None if there is none."""
        return None if self._told is None else self._told.since

    def look(self, awaited: Awaited | None, now: float, rate: float) -> list[LongWait]:
        """Return what there is to tell: a wait that is over, and one that has become long.

        Parameters
        ----------
        awaited : Awaited or None
            The peer that is waited for at ``now``; None if there is none.
        now : float
            The time, by the clock of ``awaited.since``.
        rate : float
            Iterations a second of late; 0 if that is not known.
        """
        stood_still, self._looked = now - self._looked > AT_LEAST, now
        if stood_still and awaited is not None:  # this process itself: it was suspended, or starts
            return []
        told = []
        if self._told is not None and (awaited is None or self._told[:2] != awaited[:2]):
            told.append(LongWait(self._told, now - self._told.since, over=True))
            self._told = None
        if awaited is None:
            return told
        usual = _USUAL / rate if rate > 0 else 0.0
        waited = now - awaited.since
        if waited >= (self._again if self._told else max(AT_LEAST, usual)):
            self._told, self._again = awaited, 2 * waited
            told.append(LongWait(awaited, waited))
        return told
