"""Lines in the coordinator's log while a run stands still: whom the others wait for, and its end."""

from __future__ import annotations

import logging

from p2pft_flower.errors import printable
from p2pft_flower.report.status import PeerStatus, RunStatus

__all__ = ["StallLog"]

log = logging.getLogger("p2pft_flower")

_AFTER = 10.0
"""Seconds for which a peer must be silent before a line tells of it."""


class StallLog:
    """Writes one line when a peer has been slow or silent for a while, and one when it is no longer."""

    def __init__(self) -> None:
        self._told: dict[int, PeerStatus] = {}

    def note(self, status: RunStatus) -> None:
        """Take the newest state of the run."""
        for peer in status.peers:
            before = self._told.get(peer.peer)
            stalls = peer.state == "slow" or (peer.state == "silent" and (peer.since or 0.0) >= _AFTER)
            if stalls and (before is None or before.state != peer.state):
                been = "is slow" if peer.state == "slow" else f"has been silent for {peer.since:.0f} s"
                log.warning("%s %s%s", peer.called, been, f": {printable(peer.why)}" if peer.why else "")
                self._told[peer.peer] = peer
            elif peer.state not in ("slow", "silent") and before is not None:
                del self._told[peer.peer]
                if peer.state not in ("lost", "ended"):  # the change of view has a line of its own
                    log.info("%s is %s no longer", peer.called, before.state)
