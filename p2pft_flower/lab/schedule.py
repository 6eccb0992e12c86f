"""The faults, their peers and times, drawn from a seed, so that a run that failed can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from p2pft_flower.agreement.quorum import is_quorum

__all__ = ["Event", "Kind", "draw", "leaves_quorum"]

GAP = (1.0, 6.0)
"""Seconds from one event to the next, at least and at most: changes of view are met while under way."""

_TRIES = 20


class Kind(Enum):
    """Kinds of faults."""

    KILL = "kill"
    """SIGKILL of a peer, which is started again later and joins."""
    KILL_TWO = "kill two"
    """SIGKILL of two peers at once, which are started again later and join."""
    PAUSE = "pause"
    """SIGSTOP of a peer, and SIGCONT well within ``peer-timeout``."""
    LONG_PAUSE = "long pause"
    """SIGSTOP of a peer, and SIGCONT after the others have gone on."""
    CUT = "cut"
    """The link between two neighbours carries nothing, in neither direction; mended later."""


VICTIMS = {Kind.KILL: 1, Kind.KILL_TWO: 2, Kind.PAUSE: 1, Kind.LONG_PAUSE: 1, Kind.CUT: 2}

LASTS = {
    Kind.KILL: (0.25, 3.0),  # it may be back before the others miss it
    Kind.KILL_TWO: (0.25, 3.0),
    Kind.PAUSE: (0.1, 0.5),
    Kind.LONG_PAUSE: (1.5, 4.0),
    Kind.CUT: (1.5, 4.0),
}
"""The shortest and the longest time that a fault of each kind lasts, in multiples of ``peer-timeout``."""


@dataclass(frozen=True)
class Event:
    """One fault.

    Attributes
    ----------
    at : float
        Seconds after all peers have begun to train; a fault that would leave no quorum is done later.
    kind : Kind
        The kind of the fault.
    peers : tuple of int
        The peers to which the fault is done, ascending; of a cut, the two ends of the link.
    lasts : float
        Seconds until the fault is undone.
    """

    at: float
    kind: Kind
    peers: tuple[int, ...]
    lasts: float


def leaves_quorum(sure: Iterable[int], victims: Iterable[int], candidates: Iterable[int]) -> bool:
    """Tell whether a quorum is left of every view that may be agreed on meanwhile.

    Parameters
    ----------
    sure : iterable of int
        Peers of the present view to which nothing was done since all peers of the view iterated: they will be
        in the next view.
    victims : iterable of int
        Peers to which the next fault is to be done.
    candidates : iterable of int
        All peers that the present or the next view may have: the view's peers, and peers that may be let in.
    """
    return is_quorum(set(sure) - set(victims), candidates)


def draw(
    seed: int, peers: int, links: Sequence[tuple[int, int]], seconds: float, timeout: float
) -> list[Event]:
    """Return the events of ``seconds``, ascending in time; equal arguments give equal events.

    At any time, the peers to which nothing is being done are a quorum of all peers.

    Parameters
    ----------
    seed : int
        The seed of all draws.
    peers : int
        Number of peers.
    links : sequence of (int, int)
        Pairs of neighbours.
    seconds : float
        Length of the schedule.
    timeout : float
        ``peer-timeout`` in seconds.
    """
    rng = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    events: list[Event] = []
    at = rng.uniform(*GAP)
    while at < seconds:
        hurt = {p for e in events if e.at + e.lasts >= at for p in e.peers}
        for _ in range(_TRIES):  # if too many are down already, the next moment is tried
            kind = rng.choice(list(Kind))
            whole = sorted(set(range(peers)) - hurt)
            free = [pair for pair in links if hurt.isdisjoint(pair)]
            lasts = timeout * rng.uniform(*LASTS[kind])
            if len(whole) < VICTIMS[kind] or (kind is Kind.CUT and not free):
                continue
            chosen = rng.choice(free) if kind is Kind.CUT else rng.sample(whole, VICTIMS[kind])
            if leaves_quorum(whole, chosen, range(peers)):
                events.append(Event(at, kind, tuple(sorted(chosen)), lasts))
                break
        at += rng.uniform(*GAP)
    return events
