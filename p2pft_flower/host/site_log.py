"""The lines of a site's own log while its peer trains: its scores, whom it waits for, its own pauses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from p2pft_flower.host.long_waits import AT_LEAST, Awaited, LongWait
from p2pft_flower.host.pauses import Pause
from p2pft_flower.keeping.lines import Evaluation
from p2pft_flower.keeping.progress import human_bytes, scored
from p2pft_flower.plan import Plan

__all__ = ["SiteLog"]

log = logging.getLogger("p2pft_flower")


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

    def waits(self, told: Iterable[LongWait]) -> None:
        """Write whom the host waits for unusually long, and that this is over."""
        for wait in told:
            who = self._plan.called(wait.awaited.peer)
            if wait.over:
                line = f"{self._me}: waits no longer for {who}, after {wait.seconds:.0f} s"
                self._write(logging.INFO, line)
            else:
                line = f"{self._me}: has waited {wait.seconds:.0f} s for {who}; {self._why(wait.awaited)}"
                self._write(logging.WARNING, line)

    def paused(self, pause: Pause, now: float) -> None:
        """Write that this process did not run for a while, until ``now``, Unix seconds."""
        since, until = (time.strftime("%H:%M:%S", time.localtime(t)) for t in (now - pause.seconds, now))
        why = "it was suspended, or had no processor or memory to run, or one call held all its threads up"
        if pause.asleep >= AT_LEAST:
            why = f"its machine was suspended for {pause.asleep:.0f} s of it"
        line = (
            f"{self._me}: this process did not run for {pause.seconds:.0f} s, from {since} to {until}: {why}"
        )
        self._write(logging.WARNING, line)

    def _why(self, awaited: Awaited) -> str:
        if awaited.spoken is None:
            return "it has not spoken yet"
        if awaited.spoken > min(AT_LEAST, self._silence / 2):
            return (
                f"silent for {awaited.spoken:.0f} s, and after {self._silence:g} s it is lost (peer-timeout)"
            )
        spoke = f"it last spoke {awaited.spoken:.0f} s ago"
        if not awaited.chain:
            return f"{spoke}: slow, not lost"
        first, last = self._plan.called(awaited.chain[0]), self._plan.called(awaited.chain[-1])
        return f"{spoke}, and waits itself for {first}" + (
            f", and so in the end for {last}" if first != last else ""
        )
