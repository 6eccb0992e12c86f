"""What has been carried along each edge that leaves a host, and how long its payloads take, for people."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from p2pft_flower.transport.mailbox import Edge

__all__ = ["Carried", "Traffic"]

_OF_LATE = 16
"""The payloads over which, roughly, the time of a delivery is averaged."""


@dataclass(frozen=True)
class Carried:
    """The payloads that an edge's receiver has taken in.

    Attributes
    ----------
    payloads, bytes : int
        Their number, and their bytes together, since this process began.
    seconds : float
        Time from the start of sending until a payload was taken in, as a moving mean; waiting for a receiver
        that still works at an earlier iteration is part of it.
    """

    payloads: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Traffic:
    """Counts the payloads of each edge; any thread may call any method. ``_lock`` guards ``_edges``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._edges: dict[Edge, Carried] = {}

    def note(self, edge: Edge, size: int, seconds: float) -> None:
        """Note that a payload of ``size`` bytes was taken in, ``seconds`` after the start of sending it."""
        with self._lock:
            known = self._edges.get(edge, Carried())
            count = known.payloads + 1
            mean = known.seconds + (seconds - known.seconds) / min(count, _OF_LATE)
            self._edges[edge] = Carried(count, known.bytes + size, mean)

    def carried(self) -> dict[Edge, Carried]:
        """Return what each edge has carried, of those that have carried anything."""
        with self._lock:
            return dict(self._edges)
