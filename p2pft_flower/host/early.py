"""The bulletin of a process that has its plan, and reads its data: before there is a host."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from p2pft_flower.host.bulletin import BulletinWriter
from p2pft_flower.host.standings import Heard
from p2pft_flower.keeping.absence import last_word
from p2pft_flower.plan import Plan
from p2pft_flower.transport import Standing

__all__ = ["EarlyBulletin"]

log = logging.getLogger("p2pft_flower")

_INTERVAL = 1.0
"""Seconds between two bulletins."""

_END = 5.0
"""Seconds that the thread has to end."""


class EarlyBulletin:
    """Writes a process's bulletin each second until its host does; a context manager, which removes it.

    Parameters
    ----------
    plan : Plan
        The process's part of the run.
    joining : bool
        Whether the peers were started again while the others train; default False.
    """

    def __init__(self, plan: Plan, *, joining: bool = False) -> None:
        own = tuple(p.peer for p in plan.peers)
        words = {p: last_word(Path(plan.output_dir), p, plan.run) for p in own} if joining else {}
        known = {p: word for p, word in words.items() if word is not None}
        self._member, self._begun = own[0], time.monotonic()
        self._done = max((word.iteration for word in known.values()), default=0)
        self._bulletin = BulletinWriter(
            plan.run,
            plan.config,
            plan.n,
            plan.iterations,
            own,
            plan.hosts or {own[0]: own},
            plan.names,
            plan.output_dir,
            {p: word.time for p, word in known.items()},
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="p2pft-early", daemon=True)

    def __enter__(self) -> EarlyBulletin:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._bulletin.remove()

    def close(self) -> None:
        """Write no more: from here on the host writes this process's bulletin."""
        self._closed.set()
        self._thread.join(_END)

    def _run(self) -> None:
        try:
            while True:
                busy = time.monotonic() - self._begun
                own = Standing(state=Standing.PREPARING, iteration=self._done, busy=busy)
                self._bulletin.write({self._member: Heard(own, None, 0.0)}, {}, [], doing="reading data")
                if self._closed.wait(_INTERVAL):
                    return
        except Exception:
            log.exception("p2pft status will show nothing of peer %d before its host begins", self._member)
