"""The content of the live page (``p2pft dashboard``): bulletins in, one struct out, which is sent as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from p2pft_flower.errors import called
from p2pft_flower.keeping.absence import returned
from p2pft_flower.keeping.bulletins import Bulletin, EdgeNow, Point
from p2pft_flower.keeping.lines import Stall, ViewChange
from p2pft_flower.report.charts import Chart, charts_of_points
from p2pft_flower.report.stand_stills import StandStill, clock, others, sentence, stood_still
from p2pft_flower.report.status import PeerStatus, RunStatus, knows_most, reason_of, status_of

__all__ = ["Event", "Page", "PageEdge", "page_of", "stall_events", "turns", "view_events"]

_STALE = 10.0
"""Seconds without a new bulletin after which the page says that its news are old."""

_TOLD = ("slow", "silent", "ended")
"""States whose begin and end are events; a loss is one by its change of view."""


class PageEdge(msgspec.Struct, frozen=True, kw_only=True):
    """An edge of the present view.

    Attributes
    ----------
    sender, receiver : int
        Its ends.
    payloads, bytes : int
        What it has carried, as in :class:`~p2pft_flower.keeping.bulletins.EdgeNow`.
    seconds : float or None
        Time that a payload takes, of late; None if it has carried none by the transport.
    rate : float or None
        Bytes a second, of late; None before that is known.
    """

    sender: int
    receiver: int
    payloads: int
    bytes: int
    seconds: float | None
    rate: float | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened: its time (Unix seconds; 0: not known), good, bad or plain, and a text."""

    time: float
    kind: str
    text: str


class Changed(Protocol):
    """A change of view, of a journal or of results.json, with the fields of ``ViewChange``."""

    @property
    def number(self) -> int: ...
    @property
    def iteration(self) -> int: ...
    @property
    def lost(self) -> Sequence[int]: ...
    @property
    def joined(self) -> Sequence[int]: ...
    @property
    def missed(self) -> Mapping[int, int]: ...


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the page.

    Attributes
    ----------
    run : str
        The run's identifier.
    phase : str
        ``training``, ``quiet`` (its processes here were killed, or write nothing), ``ending`` (they have
        ended, and what came of it is not known yet), ``ended``.
    told : str
        The sentence on the phase; empty while it trains.
    outcome : str
        With ``ended``: the status as in results.json, such as ``completed``; else empty.
    source : str
        Whose knowledge this is, in words.
    at_risk, risk, iteration, iterations, view, left
        As in :class:`~p2pft_flower.report.status.RunStatus`.
    peers : tuple of PeerStatus
        All peers, ascending.
    edges : tuple of PageEdge
        The edges of the present view, ascending.
    events : tuple of Event
        What happened, the latest first.
    consensus_error : float or None
        As in RunStatus.
    bytes_sent : int
        Payload bytes that all peers had sent by their last evaluations.
    time, news : float
        The times, Unix seconds, of this page, and of the newest bulletin that it is made from.
    folder : str
        The run's folder on this machine.
    charts : dict of str to Chart
        ``accuracy``, ``accuracy_unseen``, ``loss``, ``consensus_error``, ``bytes_sent``, as far as there are
        numbers.
    """

    run: str
    phase: str
    told: str
    outcome: str
    source: str
    at_risk: bool
    risk: str
    iteration: int
    iterations: int
    view: int
    left: float | None
    peers: tuple[PeerStatus, ...]
    edges: tuple[PageEdge, ...]
    events: tuple[Event, ...]
    consensus_error: float | None
    bytes_sent: int
    time: float
    news: float
    folder: str
    charts: dict[str, Chart]

    @property
    def names(self) -> dict[int, str]:
        """The names of the peers that have one."""
        return {p.peer: p.name for p in self.peers if p.name}


def page_of(bulletins: Sequence[Bulletin], now: float) -> Page:
    """Return the page of a run, from the bulletins of its processes on this machine (at least one)."""
    status = status_of(bulletins, now)
    alive = any(b.alive for b in bulletins)
    news = max(b.written for b in bulletins)
    if not alive:
        told = "No process of this run is left on this machine: they were killed. This is their last word."
    elif now - news > _STALE:
        told = f"The run's processes here have written nothing since {clock(news)}: are they suspended?"
    else:
        told = ""
    live = knows_most(bulletins).live
    scores = {p.peer: _longest(bulletins, p.peer) for p in status.peers}
    return Page(
        run=status.run,
        phase="quiet" if told else "training",
        told=told,
        outcome="",
        source=_source(bulletins),
        at_risk=status.at_risk,
        risk=status.risk,
        iteration=status.iteration,
        iterations=status.iterations,
        view=status.view,
        left=status.left,
        peers=status.peers,
        edges=_edges(bulletins),
        events=_latest_first(status, bulletins),
        consensus_error=status.consensus_error,
        bytes_sent=sum(p.bytes_sent for p in status.peers),
        time=now,
        news=news,
        folder=status.folder,
        charts=charts_of_points(scores, max((b.apart for b in bulletins), key=len), live),
    )


def _longest(bulletins: Sequence[Bulletin], peer: int) -> tuple[Point, ...]:
    """Return the scores of a peer, from its own process if that is here, else where most are known."""
    return max((b.history.get(peer, ()) for b in sorted(bulletins, key=lambda b: peer not in b.own)), key=len)


def _source(bulletins: Sequence[Bulletin]) -> str:
    """Return, in words, whose knowledge the bulletins are."""
    own = sorted({p for b in bulletins for p in b.own})
    names = {p: name for b in bulletins for p, name in b.names.items()}
    office = any(not b.own for b in bulletins)
    if not own:
        return "the office, from the peers' reports"
    who = called(own[0], names) if len(own) == 1 else f"{len(own)} peers"
    if len(own) == bulletins[0].n:
        return "all peers, which run on this machine"
    return f"{who} on this machine{' and the office' if office else ''}, from gossip"


def _edges(bulletins: Sequence[Bulletin]) -> tuple[PageEdge, ...]:
    """Return the edges of the newest view, each with what the process that knows most says of it."""
    newest = max(b.views[-1].number if b.views else 0 for b in bulletins)
    known: dict[tuple[int, int], EdgeNow] = {}
    for b in bulletins:
        if (b.views[-1].number if b.views else 0) != newest:
            continue
        for edge in b.edges:
            ends = edge.sender, edge.receiver
            if ends not in known or edge.payloads > known[ends].payloads:
                known[ends] = edge
    return tuple(
        PageEdge(
            sender=e.sender,
            receiver=e.receiver,
            payloads=e.payloads,
            bytes=e.bytes,
            seconds=e.seconds if e.payloads else None,
        )
        for _, e in sorted(known.items())
    )


def _latest_first(status: RunStatus, bulletins: Sequence[Bulletin]) -> tuple[Event, ...]:
    """Return the events of a run's changes of view and stand-stills."""
    names = {p.peer: p.name for p in status.peers if p.name}
    events = [e for v in status.views for e in _events(v, names, bulletins)]
    events += stall_events(status.stalls, status.stand_stills, names)
    return tuple(sorted(events, key=lambda e: e.time)[::-1])


def stall_events(
    stalls: Iterable[Stall], stills: Sequence[StandStill], names: Mapping[int, str]
) -> list[Event]:
    """Return an event for each stand-still of all, and for each other wait, which is over."""
    told = [(s.time, sentence(s, names)) for s in others(stalls, stills)]
    told += [(s.end, stood_still(s, names)) for s in stills]
    return [Event(time=at, kind="plain", text=text) for at, text in told]


def _events(v: ViewChange, names: Mapping[int, str], bulletins: Sequence[Bulletin]) -> list[Event]:
    why = {p: reason_of(bulletins, v, p) for p in v.lost}
    return view_events(v.time, v, why, names)


def view_events(
    at: float,
    change: Changed,
    why: Mapping[int, str],
    names: Mapping[int, str],
) -> list[Event]:
    """Return an event for each peer that a change of view has lost or brought back, or one for the change.

    Parameters
    ----------
    at : float
        The time, Unix seconds; 0: it is not known.
    change : Changed
        The change of view.
    why : mapping of int to str
        The reason of each loss, where it is known.
    names : mapping of int to str
        The names of the peers that have one.
    """
    after = f"after {change.iteration} iterations (view {change.number})"
    gone = [(p, f"{called(p, names)} was lost {after}") for p in change.lost]
    events = [
        Event(time=at, kind="bad", text=f"{text}: {why[p]}" if why.get(p) else text) for p, text in gone
    ]
    back = [returned(called(p, names), change.iteration, change.missed.get(p)) for p in change.joined]
    events += [Event(time=at, kind="good", text=f"{text} {after}") for text in back]
    nobody = f"the peers went on in view {change.number} after {change.iteration} iterations; nobody was lost"
    return events or [Event(time=at, kind="plain", text=nobody)]


def turns(before: Mapping[int, PeerStatus], page: Page) -> list[Event]:
    """Return an event for each peer that has become slow or silent or has ended since ``before``, or is well.

    Losses and returns are not among these: they stand in the page's events by their changes of view.
    """
    events = []
    for p in page.peers:
        was = before.get(p.peer)
        if was is None or was.state == p.state:
            continue
        if p.state in _TOLD:
            state = "killed" if p.state == "ended" else p.state
            text = f"{p.called} is {state}{': ' if p.why else ''}{p.why}"
            events.append(Event(time=page.time, kind="bad", text=text))
        elif was.state in _TOLD and p.state not in ("lost", "unknown"):
            text = f"{p.called} is {was.state} no more: it is {p.state}"
            events.append(Event(time=page.time, kind="good", text=text))
    return events
