"""When a run stood still, and for whom: made of the long waits that its peers tell of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from p2pft_flower.errors import called
from p2pft_flower.keeping.lines import Stall

__all__ = ["longest", "sentence"]


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
