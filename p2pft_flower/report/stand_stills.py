"""When a run stood still, and for whom: made of the long waits that its peers tell of."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from p2pft_flower.errors import called
from p2pft_flower.keeping.lines import AnyLine, Run, Stall, ViewChange

__all__ = [
    "StandStill",
    "all_stood_still",
    "clock",
    "longest",
    "moment",
    "of_journals",
    "others",
    "sentence",
    "stood_still",
]


class StandStill(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which all hosts of a view waited for the peers of one or more others.

    Attributes
    ----------
    begin, end : float
        Unix seconds, by the clocks of those that waited.
    awaited : tuple of int
        The peers that they waited for in the end, ascending.
    silent : bool
        Whether one of these was silent; False: they spoke, and were slow.
    iteration : int
        The most iterations that one of those that waited had completed.
    """

    begin: float
    end: float
    awaited: tuple[int, ...]
    silent: bool
    iteration: int


def all_stood_still(
    stalls: Iterable[Stall], hosts: Iterable[Sequence[int]], views: Iterable[ViewChange]
) -> list[StandStill]:
    """Return the times in which all stood still, ascending.

    Who has told of no wait is not known to have waited: with the waits of some hosts only, as those of one
    site, nothing is found, unless the others are those that were waited for.

    Parameters
    ----------
    stalls : iterable of Stall
        The waits, of all hosts.
    hosts : iterable of sequence of int
        The peers of each host of the run; a wait is told by a host's lowest peer.
    views : iterable of ViewChange
        The changes of view; before the first, all peers of ``hosts`` take part.
    """
    member = {p: min(peers) for peers in hosts for p in peers}
    changes = sorted((v.time, v.number, v.peers) for v in views)
    waits = sorted(stalls, key=lambda s: s.time)
    edges = sorted({*(s.time for s in waits), *(s.time - s.seconds for s in waits), *(c[0] for c in changes)})
    found: list[StandStill] = []
    for begin, end in itertools.pairwise(edges):
        during = [s for s in waits if s.time - s.seconds <= begin and s.time >= end]
        there = next((peers for at, _, peers in reversed(changes) if at <= begin), tuple(member))
        waiting = {s.peer for s in during}
        roots = {s.last for s in during if member.get(s.last, s.last) not in waiting}
        needed = {member.get(p, p) for p in there} - {member.get(p, p) for p in roots}
        if not roots or not needed or not needed <= waiting:
            continue
        still = StandStill(
            begin=begin,
            end=end,
            awaited=tuple(sorted(roots)),
            silent=any(s.silent for s in during if s.awaited in roots),
            iteration=max(s.iteration for s in during),
        )
        if found and found[-1].end == begin and found[-1].awaited == still.awaited:
            still = msgspec.structs.replace(
                still,
                begin=found[-1].begin,
                silent=still.silent or found[-1].silent,
                iteration=max(still.iteration, found[-1].iteration),
            )
            found.pop()
        found.append(still)
    return found


def of_journals(journals: Iterable[Iterable[AnyLine]]) -> tuple[list[Stall], list[StandStill]]:
    """Return the waits that the journals of a run tell of, and when all stood still.

    Parameters
    ----------
    journals : iterable of iterable of line
        The lines of each peer's journal, of this run, with the lines ``run``.

    Returns
    -------
    waits : list of Stall
        As of :func:`longest`.
    stills : list of StandStill
        As of :func:`all_stood_still`.
    """
    lines = [line for journal in journals for line in journal]
    runs = [line for line in lines if isinstance(line, Run)]
    hosts = {run.host for run in runs}
    live = {p for run in runs for p in (range(run.n) if run.facts is None else run.facts.live)}
    alone = live.difference(*hosts)
    stalls = [line for line in lines if isinstance(line, Stall)]
    views = [line for line in lines if isinstance(line, ViewChange)]
    return longest(stalls), all_stood_still(stalls, [*hosts, *((p,) for p in sorted(alone))], views)


def others(stalls: Iterable[Stall], stills: Sequence[StandStill]) -> list[Stall]:
    """Return the waits that no stand-still of all tells of: those that share no time with any."""
    return [s for s in stalls if not any(w.begin < s.time and s.time - s.seconds < w.end for w in stills)]


def stood_still(still: StandStill, names: Mapping[int, str], *, dated: bool = False) -> str:
    """Return a stand-still in words.

    Parameters
    ----------
    still : StandStill
        The stand-still.
    names : mapping of int to str
        The names of the peers that have one.
    dated : bool
        Whether its times have the date and the zone; default False.
    """
    whom = " and ".join(called(p, names) for p in still.awaited)
    begin, end = (moment(still.begin), moment(still.end)) if dated else (clock(still.begin), clock(still.end))
    was = "were" if len(still.awaited) > 1 else "was"
    return (
        f"all stood still from {begin} to {end} ({still.end - still.begin:.0f} s), "
        f"waiting for {whom}, which {was} {'silent' if still.silent else 'slow'}, after {still.iteration} "
        "iterations"
    )


def moment(at: float) -> str:
    """Return the local date and time of a moment, Unix seconds, with its zone."""
    return _local(at, "%Y-%m-%d %H:%M:%S %Z")


def clock(moment: float) -> str:
    """Return the local time of day of a moment, Unix seconds."""
    return _local(moment, "%H:%M:%S")


def _local(at: float, form: str) -> str:
    """Return a moment in local time; of one that no calendar has, which another site may tell, so much."""
    try:
        return time.strftime(form, time.localtime(at))
    except (OverflowError, OSError, ValueError):
        return "(no time of a calendar)"


def longest(stalls: Iterable[Stall]) -> list[Stall]:
    """Return the longest wait for each peer that a run stood still for, in the order in which they ended.

    Waits at the same time are of one stand-still. A peer that waited itself, only for another one, is not
    whom they waited for: it was named by who had not heard yet of its waiting.
    """
    together: list[list[Stall]] = []
    for stall in sorted(stalls, key=lambda s: s.time):
        if not together or together[-1][-1].time < stall.time - stall.seconds:
            together.append([])
        together[-1].append(stall)
    found: list[Stall] = []
    for group in together:
        waited = {s.peer for s in group}
        known = [s for s in group if s.last not in waited] or group
        by_last = {s.last: s for s in sorted(known, key=lambda s: s.seconds)}
        found += by_last.values()
    return sorted(found, key=lambda s: s.time)


def sentence(stall: Stall, names: Mapping[int, str]) -> str:
    """Return a wait in words; ``names`` has the peers that have a name."""
    was = "was silent" if stall.silent else "was slow"
    if stall.last != stall.awaited:
        was = f"waited itself, in the end for {called(stall.last, names)}"
    who, whom = called(stall.peer, names), called(stall.awaited, names)
    return f"{who} waited {stall.seconds:.0f} s for {whom}, which {was}, after {stall.iteration} iterations"
