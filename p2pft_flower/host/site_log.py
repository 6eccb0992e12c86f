"""The lines of a site's own log while its peer trains: its scores, and whom it waits for."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

from p2pft_flower.keeping.lines import Evaluation
from p2pft_flower.keeping.progress import human_bytes, scored
from p2pft_flower.plan import Plan

__all__ = ["Awaited", "SiteLog"]

log = logging.getLogger("p2pft_flower")

_USUAL = 10.0
"""Multiple of the usual time of an iteration after which the log says that a peer is waited for."""

_AT_LEAST = 5.0
"""Seconds of waiting of which the log says nothing."""


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


class SiteLog:
    """Writes the lines of one host.

    Parameters
    ----------
    plan : Plan
        The host's part of the run.
    write : callable
        Writes a line; default: into the package's log, as a warning of a peer that is waited for, else as
        information.
    """

    def __init__(self, plan: Plan, write: Callable[[int, str], None] | None = None) -> None:
        self._plan = plan
        self._write = write or (lambda level, line: log.log(level, "%s", line))
        self._me = plan.called(plan.peers[0].peer)
        self._silence = plan.config.runtime.peer_timeout
        self._told: tuple[int, float] | None = None
        """The peer, and since when it is waited for, of the last line."""
        self._looked = -math.inf
        """The time of the last look."""
        self._again = 0.0
        """Seconds of waiting after which there is another line."""

    def evaluated(self, line: Evaluation, rate: float) -> None:
        """Write the scores of a peer; ``rate`` is in iterations a second, 0 if it is not known."""
        iterations, told = self._plan.iterations, {"loss": line.loss, "accuracy": line.accuracy}
        told["accuracy unseen"] = line.accuracy_unseen
        parts = [
            f"{self._plan.called(line.peer)}: iteration {line.iteration}/{iterations}",
            *(f"{what} {value:.3f}" for what, value in told.items() if scored(value) is not None),
            f"sent {human_bytes(line.bytes_sent)}",
        ]
        if (left := iterations - line.iteration) and rate > 0:
            parts.append(f"{left / rate:.0f} s left")
        self._write(logging.INFO, " | ".join(parts))

    def waits(self, awaited: Awaited | None, now: float, rate: float) -> None:
        """Write whom the host waits for if it is unusually long, and again whenever that time has doubled.

        Parameters
        ----------
        awaited : Awaited or None
            The peer that is waited for at ``now``; None if there is none.
        now : float
            The time, by the clock of ``awaited.since``.
        rate : float
            Iterations a second of late; 0 if that is not known.
        """
        stood_still, self._looked = now - self._looked > _AT_LEAST, now
        if stood_still and awaited is not None:  # this process itself: it was suspended, or starts
            return
        if self._told is not None and (awaited is None or self._told != (awaited.peer, awaited.since)):
            peer, since = self._told
            self._write(
                logging.INFO,
                f"{self._me}: waits no longer for {self._plan.called(peer)}, after {now - since:.0f} s",
            )
            self._told = None
        if awaited is None:
            return
        usual = _USUAL / rate if rate > 0 else 0.0
        waited, due = now - awaited.since, self._again if self._told else max(_AT_LEAST, usual)
        if waited < due:
            return
        self._told, self._again = (awaited.peer, awaited.since), 2 * waited
        who = self._plan.called(awaited.peer)
        self._write(logging.WARNING, f"{self._me}: has waited {waited:.0f} s for {who}; {self._why(awaited)}")

    def _why(self, awaited: Awaited) -> str:
        if awaited.spoken is None:
            return "it has not spoken yet"
        if awaited.spoken > min(_AT_LEAST, self._silence / 2):
            return (
                f"silent for {awaited.spoken:.0f} s, and after {self._silence:g} s it is lost (peer-timeout)"
            )
        slow = f"it last spoke {awaited.spoken:.0f} s ago: slow, not lost"
        if not awaited.chain:
            return slow
        first, last = self._plan.called(awaited.chain[0]), self._plan.called(awaited.chain[-1])
        return f"{slow}; it waits for {first}" + (f", and so in the end for {last}" if first != last else "")
