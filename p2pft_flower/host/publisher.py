"""A host's word on itself: its standing for others, its bulletin for this machine, a site's log."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

from p2pft_flower.host.bulletin import BulletinWriter
from p2pft_flower.host.long_waits import Awaited, LongWait, LongWaits
from p2pft_flower.host.meeting import Meeting
from p2pft_flower.host.pauses import Pauses
from p2pft_flower.host.site_log import SiteLog
from p2pft_flower.host.standings import Standings, most_edges
from p2pft_flower.host.waits_heard import chain_of, stall_of
from p2pft_flower.host.wires import Wires
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.journal import JournalError
from p2pft_flower.keeping.lines import Evaluation, Stall, ViewChange
from p2pft_flower.plan import Plan
from p2pft_flower.transport import Carried, EdgeTraffic, OwnPulse, PeerScores, Pulse, Standing
from p2pft_flower.typed import encoded

__all__ = ["Publisher"]

log = logging.getLogger("p2pft_flower")

_INTERVAL = 1.0
"""Seconds between two standings of a host in a run of 32 hosts or fewer; with more of them, longer."""

_OF_LATE = 60.0
"""Seconds over which the rate is measured."""

_END = 5.0
"""Seconds that the thread has to end."""

_STALLS = 64
"""The most stalls in a bulletin: the latest."""

_STATES = {
    Pulse.COMPUTING: Standing.COMPUTING,
    Pulse.WAITING: Standing.WAITING,
    Pulse.EVALUATING: Standing.EVALUATING,
    Pulse.PAUSED: Standing.CHANGING,
    Pulse.FINISHED: Standing.FINISHED,
}


class _Rate:
    """Iterations a second of late, within one view."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, int]] = deque()
        self._view = 0

    def note(self, now: float, view: int, done: int) -> None:
        if view != self._view:
            self._past.clear()
            self._view = view
        self._past.append((now, done))
        while now - self._past[0][0] > _OF_LATE and len(self._past) > 2:
            self._past.popleft()

    def begin_anew(self) -> None:
        """Forget what was: a time in which all stood still is no part of the rate."""
        self._past.clear()

    @property
    def value(self) -> float:
        """The rate; 0 before it is known."""
        past = [*self._past]  # another thread adds to it
        if len(past) < 2 or past[-1][0] <= past[0][0]:
            return 0.0
        return max(0.0, (past[-1][1] - past[0][1]) / (past[-1][0] - past[0][0]))


class Publisher:
    """Makes a host's standing each second, in a thread of its own; nothing in the training waits for it.

    The standing goes to the other hosts with the next gossip, and to the observer; all that has been heard of
    others goes into the bulletin, which ``p2pft status`` reads. A fault here is logged, and ends no run.

    Parameters
    ----------
    plan : Plan
        The host's part of the run.
    pulse : OwnPulse
        The host's activity and progress.
    standings : Standings
        The standings of all members.
    wires : callable
        Returns the host's wires; None before they are open, or if it has none.
    views : callable
        Returns the changes of view so far.
    report : callable
        Sends the observer a standing.
    stalled : callable
        Gets each stall when it is over, from this object's thread.
    tells : bool
        Whether the log says how the training gets on, as at a site; in a simulation the coordinator does.
    meeting : Meeting
        The meeting of the neighbours.
    gone : mapping of int to float, optional
        As of :class:`~p2pft_flower.host.bulletin.BulletinWriter`; default: none.
    """

    def __init__(
        self,
        plan: Plan,
        pulse: OwnPulse,
        standings: Standings,
        *,
        wires: Callable[[], Wires | None],
        views: Callable[[], list[ViewChange]],
        report: Callable[[Standing], None],
        stalled: Callable[[Stall], None],
        tells: bool,
        meeting: Meeting,
        gone: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        self._plan, self._pulse, self._standings = plan, pulse, standings
        self._wires, self._views, self._report = wires, views, report
        self._log = SiteLog(plan) if tells else None
        self._meeting = meeting
        self._stalled, self._waits, self._pauses = stalled, LongWaits(), Pauses()
        self._stalls: deque[Stall] = deque(maxlen=_STALLS)
        self._own = tuple(p.peer for p in plan.peers)
        self._hosts = plan.hosts or {self._own[0]: self._own}
        self._member_of = {p: m for m, peers in self._hosts.items() for p in peers}
        self._trains = self._exchanges = False
        self._rate = _Rate()
        self._done = 0
        """Number of iterations that were completed when the present long wait began; now if there is none."""
        self._bulletin = BulletinWriter(
            plan.run,
            plan.config,
            plan.n,
            plan.iterations,
            self._own,
            self._hosts,
            plan.names,
            plan.output_dir,
            gone,
        )
        self._interval = _INTERVAL * max(1.0, len(plan.hosts) / 32)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="p2pft-publisher", daemon=True)

    def start(self) -> None:
        """Begin; the first bulletin is written at once."""
        self._thread.start()

    def will_exchange(self) -> None:
        """Note that the method sends payloads along the graph's edges."""
        self._exchanges = True

    def training_begins(self) -> None:
        """Note that training begins: all neighbours are there, or this host has been let in again."""
        self._trains = True

    def evaluated(self, line: Evaluation, sketched: sketch.Sketch) -> None:
        """Take the scores of one of this host's peers, with the sketch, (128,), of its θ; from any thread."""
        told = PeerScores(
            peer=line.peer,
            iteration=line.iteration,
            loss=math.nan if line.loss is None else line.loss,
            accuracy=math.nan if line.accuracy is None else line.accuracy,
            accuracy_unseen=line.accuracy_unseen,
            bytes_sent=line.bytes_sent,
            sketch=sketched,
        )
        self._standings.score(told)
        if self._log is not None:
            self._log.evaluated(line, self._rate.value)

    def view_changed(self, change: ViewChange) -> None:
        """Take a change of view; from any thread."""
        self._standings.view_changed(encoded(change))

    def close(self) -> None:
        """End the thread, and remove the bulletin: what has come of the run stands in the journals."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(_END)
        self._bulletin.remove()

    def _run(self) -> None:
        try:
            while True:
                self._stand()
                wires = self._wires()
                spoken = {} if wires is None else {p: wires.heartbeats.spoken(p) for p in self._plan.live}
                self._bulletin.write(
                    self._standings.heard(), spoken, self._views(), self._stalls, self._doing
                )
                self._pauses.begin()
                if self._closed.wait(self._interval):
                    return
                pause = self._pauses.end(self._interval)
                if pause is not None:
                    self._rate.begin_anew()
                    if self._log is not None:
                        self._log.paused(pause, time.time())
        except Exception:
            log.exception("p2pft status will show nothing new of peers %s", list(self._own))

    @property
    def _doing(self) -> str:
        """What this host does before it trains, in words; empty once it trains."""
        if self._trains:
            return ""
        return "meeting the others" if self._meeting.begun else "preparing data and model"

    def _stand(self) -> None:
        """Make this host's standing, and give it to all who hear of it."""
        pulse, now, wires = self._pulse.read(), time.monotonic(), self._wires()
        self._rate.note(now, pulse.view, pulse.iteration)
        self._done = pulse.iteration if self._waits.long_since is None else self._done
        awaited = None if wires is None or pulse.activity != Pulse.WAITING else wires.awaited
        standing = Standing(
            incarnation=self._incarnation,
            view=pulse.view,
            iteration=pulse.iteration,
            state=_STATES[pulse.activity] if self._trains else Standing.PREPARING,
            busy=pulse.busy if awaited is None else max(0.0, now - awaited[1]),
            awaited=None if awaited is None else awaited[0],
            rate=0.0 if self._waits.long_since is not None else self._rate.value,
            edges=self._edges({} if wires is None else wires.links.carried()),
        )
        self._standings.stand(standing)
        self._report(standing)
        if wires is None:
            return
        whom = None
        if awaited is not None:
            peer, since = awaited
            chain = chain_of(peer, self._standings.heard(), self._member_of, self._own)
            whom = Awaited(peer, since, wires.heartbeats.spoken(peer), chain)
        told = self._waits.look(whom, now, self._rate.value)
        if self._log is not None:
            self._log.waits(told)
        for wait in told:
            if wait.over:
                self._rate.begin_anew()
                self._note_stall(wait)

    def _note_stall(self, wait: LongWait) -> None:
        stall = stall_of(wait, self._own[0], self._done)
        self._stalls.append(stall)
        try:
            self._stalled(stall)
        except JournalError as error:  # training writes there, too, and decides what follows
            log.warning("%s", error)

    def _edges(self, carried: Mapping[tuple[int, int], Carried]) -> list[EdgeTraffic]:
        """Return the edges of the present view that leave this host's peers, with what they have carried."""
        if not self._exchanges:
            return []
        views = self._views()
        if views:
            leaving = sorted(edge for edge in views[-1].edges if edge[0] in self._own)
        else:
            leaving = [(p.peer, i) for p in self._plan.peers for i in p.out_neighbours]
        told = [(s, r, carried.get((s, r), Carried())) for s, r in leaving[: most_edges(len(self._hosts))]]
        return [
            EdgeTraffic(sender=s, receiver=r, payloads=c.payloads, bytes=c.bytes, seconds=c.seconds)
            for s, r, c in told
        ]

    @property
    def _incarnation(self) -> int:
        wires = self._wires()
        return 0 if wires is None or wires.agreement is None else wires.agreement.incarnation
