"""Before training: a host's progress in preparing, and the stages by which all learn that all are ready."""

from __future__ import annotations

import logging
import math
import threading

from p2pft_flower.host.wires import Wires
from p2pft_flower.transport import Hello, Reply, Status, ViewChangeError

__all__ = ["Meeting"]

log = logging.getLogger(__name__)

_REMEDY = (
    "is its host running? Peers that wait for each other must run at the same time: set transport = memory, "
    "or give the simulation more CPUs (client-resources-num-cpus, init-args-num-cpus); where preparing takes "
    "long, raise meet-timeout"
)

_KEPT = 1.0
"""Seconds that a hello waits before it is answered with PREPARING; fewer if meet-timeout is short."""


class Meeting:
    """Answers the neighbours' hellos, from any thread, and says hello to them.

    At stage s a neighbour agrees when its own neighbours have agreed to stage s - 1. So a host that has gone
    through s stages knows that all hosts up to s steps away, along edges in either direction, are prepared.

    Parameters
    ----------
    timeout : float
        Seconds that a neighbour may be silent, or prepare without progress (run-config ``meet-timeout``).
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._changed = threading.Condition()
        self._stage = 0.0
        """This host agrees to hellos of lower stages than this one; 0 while it prepares: to none."""
        self._progress = 0

    @property
    def begun(self) -> bool:
        """Whether this host is prepared, and says hello to its neighbours or has met them."""
        with self._changed:
            return self._stage > 0

    def note_progress(self) -> None:
        """Note that a piece of preparing is done."""
        with self._changed:
            self._progress += 1

    def answer(self, hello: Hello) -> Reply | None:
        """Return None, to agree, if this host has passed the hello's stage; wait a moment for that.

        Otherwise return the answer PREPARING with this host's progress.
        """
        kept = min(_KEPT, self._timeout / 4)
        with self._changed:
            if self._changed.wait_for(lambda: self._stage > hello.stage, kept):
                return None
            reason = "model, data or trunk take longer"
            if self._stage > 0:
                reason = "prepared, and waiting for neighbours of its own"
                self._progress += 1  # its own waiting has deadlines
            return Reply(status=Status.PREPARING, reason=reason, progress=self._progress)

    def meet(self, wires: Wires | None, stages: int) -> None:
        """Wait until all peers of the run are prepared, so that no peer-timeout runs before.

        If the view changes meanwhile, somebody has met all others, begun, and been lost since: all are
        prepared.

        Parameters
        ----------
        wires : Wires or None
            The way to the neighbours; None if there are none elsewhere.
        stages : int
            Number of stages (the plan's ``greetings``).

        Raises
        ------
        PeerUnreachableError
            If a neighbour is given up.
        ExchangeRefusedError
            If a neighbour has other terms or certificates.
        """
        try:
            for stage in range(stages):
                self._reach(stage + 1)
                if wires is not None:
                    wires.links.meet(self._timeout, _REMEDY, stage=stage)
        except ViewChangeError as change:
            if wires is None or wires.agreement is None:
                raise
            log.info("the others have begun already: %s", change)
        self.end()

    def end(self) -> None:
        """Let no hello wait any more: all have met, or this host ends and must tell its neighbours."""
        self._reach(math.inf)

    def _reach(self, stage: float) -> None:
        with self._changed:
            self._stage = max(self._stage, stage)
            self._changed.notify_all()
