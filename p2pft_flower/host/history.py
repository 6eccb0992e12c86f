"""The scores of a run so far, as a process has heard of them, thinned so that they stay small."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from p2pft_flower.host.standings import Heard
from p2pft_flower.keeping.bulletins import Apart, Point
from p2pft_flower.keeping.progress import scored
from p2pft_flower.transport import PeerScores

__all__ = ["History", "Series"]

P = TypeVar("P", bound=Point | Apart)


class Series(Generic[P]):
    """Points that ascend by iteration, the first and the last among them, evenly spaced if there were many.

    Parameters
    ----------
    most : int
        The most points that are kept; at least 2.
    """

    def __init__(self, most: int) -> None:
        self._most, self._stride, self._seen = most, 1, 0
        self._kept: list[P] = []
        self._last: P | None = None

    def add(self, point: P) -> None:
        """Add a point; one of the last point's iteration is left out.

        If the peers go on from an earlier iteration, what came after it has not been.
        """
        if self._last is not None and point.iteration == self._last.iteration:
            return
        if self._last is not None and point.iteration < self._last.iteration:
            self._kept = [p for p in self._kept if p.iteration < point.iteration]
            self._seen = len(self._kept) * self._stride
        if self._seen % self._stride == 0:
            self._kept.append(point)
        self._seen, self._last = self._seen + 1, point
        if len(self._kept) >= self._most:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    @property
    def points(self) -> tuple[P, ...]:
        """The points."""
        new = [] if self._last is None or self._last in self._kept[-1:] else [self._last]
        return (*self._kept, *new)


class History:
    """The scores of each peer and the consensus error, over the iterations.

    Parameters
    ----------
    peers : iterable of int
        All peers of the run.
    """

    def __init__(self, peers: Iterable[int]) -> None:
        of = sorted(peers)
        most = max(16, 1600 // len(of))
        self._scores: dict[int, Series[Point]] = {p: Series(most) for p in of}
        self._apart: Series[Apart] = Series(max(most, 128))

    def hear(self, heard: Mapping[int, Heard]) -> None:
        """Take in the newest scores of each member."""
        for member in heard.values():
            for told in () if member.scores is None else member.scores.peers:
                self._scores[told.peer].add(_point(told))

    def note_apart(self, iteration: int, error: float) -> None:
        """Take in the consensus error after ``iteration`` iterations."""
        self._apart.add(Apart(iteration, time.time(), error))

    @property
    def scores(self) -> dict[int, tuple[Point, ...]]:
        """The points of each peer that has any."""
        return {p: points for p, series in self._scores.items() if (points := series.points)}

    @property
    def apart(self) -> tuple[Apart, ...]:
        """The points of the consensus error."""
        return self._apart.points


def _point(told: PeerScores) -> Point:
    return Point(
        told.iteration,
        time.time(),
        scored(told.loss),
        scored(told.accuracy),
        told.accuracy_unseen if told.HasField("accuracy_unseen") else None,
        told.bytes_sent,
    )
