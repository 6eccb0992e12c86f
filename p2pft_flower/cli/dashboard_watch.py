"""Looks at a machine's runs again and again: those that train here, and those that have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.bulletins import Bulletin, bulletins
from p2pft_flower.report.ended import ending_of, page_of_folder
from p2pft_flower.report.live_page import Event, Page, PageEdge, page_of, turns
from p2pft_flower.report.status import PeerStatus

__all__ = ["Watch"]

_MOST_EVENTS = 200
"""The most events of a page."""

_MOST_RUNS = 16
"""The most ended runs that are kept in mind."""

_OF_LATE = 5.0
"""Seconds over which the traffic of an edge is measured."""

_PATIENCE = 60.0
"""Seconds without a bulletin in which a run's results are waited for."""


@dataclass
class _Seen:
    """What has been seen of one run so far.

    Attributes
    ----------
    page : Page
        Its last page.
    own : tuple of int
        The peers that train, or trained, on this machine.
    turned : deque of Event
        The peers' turns, as they were noticed here.
    carried : deque of (float, dict)
        The time of each of the last pages, and the bytes that each edge had carried.
    """

    page: Page
    own: tuple[int, ...] = ()
    turned: deque[Event] = field(default_factory=lambda: deque(maxlen=_MOST_EVENTS))
    carried: deque[tuple[float, dict[tuple[int, int], int]]] = field(default_factory=deque)


class Watch:
    """Reads the bulletins of this machine, and the files of runs that have ended; it writes nothing.

    Parameters
    ----------
    run : str, optional
        The identifier of the only run to look at; default: all that train here.
    folder : Path, optional
        The folder of the only run to look at, absolute.

    Raises
    ------
    DataError
        When the run in ``folder`` does not train, and has left nothing there.
    """

    def __init__(self, run: str | None = None, folder: Path | None = None) -> None:
        self._run, self._folder = run, folder
        self._seen: dict[str, _Seen] = {}
        if folder is not None and not self._bulletins():
            page = page_of_folder(folder)
            self._seen[page.run] = _Seen(page)

    def _bulletins(self) -> list[Bulletin]:
        """Return the bulletins of the runs to look at."""
        return [b for b in bulletins(self._run) if self._folder in (None, Path(b.folder).resolve())]

    def look(self, now: float) -> dict[str, Page]:
        """Return the page of each run, by its identifier: the run that was heard of last comes first.

        Parameters
        ----------
        now : float
            The time, Unix seconds.
        """
        told: dict[str, list[Bulletin]] = {}
        for bulletin in self._bulletins():
            told.setdefault(bulletin.run, []).append(bulletin)
        for run in [run for run, of in told.items() if _is_over(of)]:
            # A process that was killed has left its bulletin behind, but the run has ended since.
            if run not in self._seen:
                self._note(page_of(told[run], now), told[run])
            del told[run]
        for of in told.values():
            self._note(page_of(of, now), of)
        for run, seen in self._seen.items():
            if run not in told and seen.page.phase != "ended":
                seen.page = _without_bulletin(seen, now)
        ended = [run for run in self._seen if run not in told]
        for run in ended[: max(0, len(ended) - _MOST_RUNS)]:
            del self._seen[run]
        latest = sorted(self._seen, key=lambda r: (r in told, self._seen[r].page.news), reverse=True)
        return {run: self._seen[run].page for run in latest}

    def _note(self, page: Page, of: Sequence[Bulletin]) -> None:
        seen = self._seen.get(page.run)
        if seen is None or seen.page.phase == "ended":  # it goes on in its folder
            seen = self._seen[page.run] = _Seen(page)
        seen.own = tuple(sorted({*seen.own, *(p for b in of for p in b.own)}))
        seen.turned.extend(turns({p.peer: p for p in seen.page.peers}, page))
        events = sorted([*seen.turned, *page.events], key=lambda e: -e.time)[:_MOST_EVENTS]
        edges = tuple(_rated(seen, page))
        seen.page = msgspec.structs.replace(page, events=tuple(events), edges=edges)


def _final(folder: Path, last: Page) -> Page | None:
    """Return the page of a run's files; None if they say less than what had been heard until ``last``."""
    try:
        final = page_of_folder(folder)
    except DataError:
        return None
    # A site has the journals of its own peers only.
    less = len(final.charts) < len(last.charts) or any(p.state == "unknown" for p in final.peers)
    return None if less else final


def _finished(peer: PeerStatus, iterations: int) -> PeerStatus:
    return msgspec.structs.replace(
        peer, state="finished", iteration=iterations, since=None, awaited=None, why=""
    )


def _is_over(bulletins: Sequence[Bulletin]) -> bool:
    """Tell whether all processes of a run here have ended, and the run's files say how it ended."""
    if any(b.alive for b in bulletins):
        return False
    own = sorted({p for b in bulletins for p in b.own})
    return ending_of(Path(bulletins[0].folder), own) is not None


def _rated(seen: _Seen, page: Page) -> list[PageEdge]:
    """Return the page's edges with the rates of late."""
    seen.carried.append((page.time, {(e.sender, e.receiver): e.bytes for e in page.edges}))
    while page.time - seen.carried[0][0] > _OF_LATE and len(seen.carried) > 2:
        seen.carried.popleft()
    then, before = seen.carried[0]
    passed = page.time - then
    if passed <= 0:
        return list(page.edges)
    return [
        msgspec.structs.replace(e, rate=max(0.0, e.bytes - before[ends]) / passed)
        if (ends := (e.sender, e.receiver)) in before
        else e
        for e in page.edges
    ]


def _most_told(seen: _Seen, final: Page) -> tuple[Event, ...]:
    """Return the events of a run that has ended, the latest first: what was noticed here, and what happened.

    A process that has begun anew knows little of what happened before it, and may be the last one here: so
    the run's files tell it if they have more.
    """
    told = [event for event in seen.page.events if event not in seen.turned]
    events = max(told, final.events, key=len)
    return tuple(sorted([*seen.turned, *events], key=lambda e: -e.time)[:_MOST_EVENTS])


def _without_bulletin(seen: _Seen, now: float) -> Page:
    """Return the page of a run whose processes here have ended: its results, or its last state."""
    last, folder = seen.page, Path(seen.page.folder)
    ending = ending_of(folder, seen.own)
    edges = tuple(msgspec.structs.replace(e, rate=0.0 if e.payloads else None) for e in last.edges)
    last = msgspec.structs.replace(last, edges=edges, left=None, at_risk=False, risk="")
    if ending is None:
        if now - last.news < _PATIENCE:
            told = "The processes of the run here have ended; what has come of it is not written yet."
            return msgspec.structs.replace(last, phase="ending", told=told)
        told = "The run's processes here have ended; nothing in its folder says how. This is its last state."
        return msgspec.structs.replace(last, phase="ended", told=told)
    final = _final(folder, last)
    if final is None:
        final = last
        if ending.outcome == "completed":
            peers = tuple(_finished(p, last.iterations) if p.peer in seen.own else p for p in last.peers)
            final = msgspec.structs.replace(last, peers=peers, iteration=last.iterations)
    return msgspec.structs.replace(
        final,
        phase="ended",
        outcome=ending.outcome,
        told=ending.told,
        events=_most_told(seen, final),
        edges=last.edges,
        time=now,
        news=last.news,
    )
