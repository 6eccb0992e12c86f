"""Before training: how far a host is prepared, and the stages in which all hosts learn that all are."""

from __future__ import annotations

import math
import threading

from p2pft_flower.host.wires import Wires
from p2pft_flower.transport import Hello, Reply, Status

__all__ = ["Meeting"]

_REMEDY = (
    "is its host running? Peers that wait for each other must run at the same time: set transport = memory, "
    "or give the simulation more CPUs (client-resources-num-cpus, init-args-num-cpus); where preparing takes "
    "long, raise meet-timeout"
)

_KEPT = 1.0
"""Seconds that a hello is kept before it is answered PREPARING; less where meet-timeout is short."""


class Meeting:
    """Answers the neighbours' hellos, from whichever thread, and says hello to them.

    At stage s a neighbour agrees when its own neighbours have agreed to stage s - 1, so a host that has gone
    through s stages knows of all that are s steps away, along edges in either direction.

    Parameters
    ----------
    timeout : float
        Seconds that a neighbour may be silent, or prepare without progress (run-config ``meet-timeout``).
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._changed = threading.Condition()
        self._stage = 0.0
        """Hellos of lower stages are agreed to: 0 while this host prepares."""
        self._progress = 0

    def note_progress(self) -> None:
        """Note that a piece of preparing is done."""
        with self._changed:
            self._progress += 1

    def answer(self, hello: Hello) -> Reply | None:
        """Agree when this host has reached the stage; else say after a moment how far it has come."""
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
        """Wait until all peers of the run are prepared: no peer-timeout may run meanwhile.

        Parameters
        ----------
        wires : Wires or None
            To the neighbours; None where there are none elsewhere.
        stages : int
            How many it takes (:func:`p2pft_flower.plan.greetings`).

        Raises
        ------
        PeerUnreachableError
            When a neighbour is given up.
        ExchangeRefusedError
            When a neighbour has other terms or certificates.
        """
        for stage in range(stages):
            self._reach(stage + 1)
            if wires is not None:
                wires.links.meet(self._timeout, _REMEDY, stage=stage)
        self.end()

    def end(self) -> None:
        """Keep no hello waiting any more: this host is through with it, or ends and is to say so."""
        self._reach(math.inf)

    def _reach(self, stage: float) -> None:
        with self._changed:
            self._stage = max(self._stage, stage)
            self._changed.notify_all()
