"""A storm: peers that train, faults that are done to them, and a report of the checks that held."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pft_flower.errors import P2PFTError
from p2pft_flower.lab.federation import Federation, plan_peers
from p2pft_flower.lab.ports import free_addresses
from p2pft_flower.lab.relay import Link, Relays
from p2pft_flower.lab.schedule import Event, Kind, draw, leaves_quorum
from p2pft_flower.lab.watch import Check, Fault, Loss, Violation, Watch
from p2pft_flower.topology import Graph

__all__ = ["SCHEMA", "Report", "Storm"]

SCHEMA = "p2pft.chaos/1"

PEER_TIMEOUT = 4.0
"""``peer-timeout`` in seconds: each loss costs this time, and a few minutes must see many losses."""

PATIENCE = 60.0
"""Seconds without any iteration, though a quorum was left alone, after which the run counts as stuck."""

SETTINGS = {
    "peer-timeout": PEER_TIMEOUT,
    "hang-timeout": PATIENCE,
    "rejoin-deadline": 3 * PATIENCE,  # peers shall not give up before this command does
    "meet-timeout": 3 * PATIENCE,
}

_TICK = 0.05
_STATUS_EVERY = 4.0


@dataclass
class Report:
    """A storm's faults, and the checks that held or did not.

    Attributes
    ----------
    seed, seconds : int, float
        The storm's seed and the length in seconds; both decide the events.
    graph : str
        The graph's name.
    peers : int
        Number of the graph's peers.
    folder : Path
        The folder of the logs.
    faults : list of Fault
        The faults that were done.
    to_next : list of float or None
        Seconds from each fault to the next iteration; None if the run did not stop for the fault.
    views, iterations, sums : int
        Numbers of changes of view, of iterations that a peer completed, and of iterations after which
        Σ τ − Σ g was computed.
    surplus : float
        The largest Σ τ − Σ g, relative to the largest term of the sum.
    unprovoked : list of Loss
        Each time that a view was without a peer to which nothing had been done.
    deviation : float or None
        The peers' largest relative distance from their mean at the end; None if not all were scored.
    accuracy, loss : dict of int to float
        Each peer's accuracy (0..1) and loss, all after the last iteration with scores of all peers.
    violations : list of Violation
        Checks that did not hold.
    interrupted : bool
        Whether somebody ended the storm early.
    """

    seed: int
    seconds: float
    graph: str
    peers: int
    folder: Path
    faults: list[Fault] = field(default_factory=list)
    to_next: list[float | None] = field(default_factory=list)
    views: int = 0
    iterations: int = 0
    sums: int = 0
    surplus: float = 0.0
    unprovoked: list[Loss] = field(default_factory=list)
    deviation: float | None = None
    accuracy: dict[int, float] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    interrupted: bool = False

    @property
    def held(self) -> bool:
        """Whether the storm came to its end, and all checks held."""
        return not self.violations and not self.interrupted

    def times(self, kind: Kind) -> list[float]:
        """Return the seconds to the next iteration, for each fault of ``kind`` that stopped the run."""
        pairs = zip(self.faults, self.to_next, strict=True)
        return [s for fault, s in pairs if fault.event.kind is kind and s is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can carry."""
        done = list(zip(self.faults, self.to_next, strict=True))
        each = {kind: self.times(kind) for kind in Kind}
        return {
            "schema": SCHEMA,
            "held": self.held,
            "interrupted": self.interrupted,
            "seed": self.seed,
            "seconds": self.seconds,
            "graph": self.graph,
            "peers": self.peers,
            "peer-timeout": PEER_TIMEOUT,
            "folder": str(self.folder),
            "faults": [
                {
                    "kind": fault.event.kind.value,
                    "peers": list(fault.event.peers),
                    "time": fault.time,
                    "lasts": fault.event.lasts,
                    "view": fault.view,
                    "seconds-to-next-iteration": s,
                }
                for fault, s in done
            ],
            "by-kind": {
                kind.value: {
                    "count": sum(fault.event.kind is kind for fault in self.faults),
                    "median": statistics.median(times) if times else None,
                    "max": max(times, default=None),
                }
                for kind, times in each.items()
            },
            "changes-of-view": self.views,
            "iterations": self.iterations,
            "iterations-checked": self.sums,
            "largest-relative-surplus": self.surplus,
            "left-out-unprovoked": [loss._asdict() for loss in self.unprovoked],
            "largest-relative-deviation": self.deviation,
            "accuracy": {str(p): a for p, a in self.accuracy.items()},
            "loss": {str(p): loss for p, loss in self.loss.items()},
            "violations": [{"check": v.check.value, "what": v.what} for v in self.violations],
        }


class Storm:
    """Peers of one run on this machine, and faults drawn from a seed.

    Parameters
    ----------
    graph : Graph
        The graph over which the peers train.
    seconds : float
        Length of the time with faults, in seconds.
    seed : int
        The seed from which the faults are drawn.
    folder : Path
        The folder for all that the peers write.
    tell : callable
        Called with a line of text for each event, and for the state from time to time.
    """

    def __init__(
        self, graph: Graph, seconds: float, seed: int, folder: Path, tell: Callable[[str], None]
    ) -> None:
        self._graph, self._seconds, self._folder, self._tell = graph, seconds, folder, tell
        links = sorted({(min(e), max(e)) for e in graph.edges})
        self._events = draw(seed, graph.n, links, seconds, PEER_TIMEOUT)
        self._watch = Watch(graph, folder)
        self._report = Report(seed, seconds, graph.name, graph.n, folder)
        self._under_way: list[tuple[float, Event]] = []
        """The faults that are not undone yet, each with the time to undo it, on the monotonic clock."""
        self._sure: frozenset[int] = frozenset()
        self._doubtful: set[int] = set()
        """Peers to which something was done since all peers of the view last iterated."""
        self._links: dict[tuple[int, ...], Link] = {}
        self._begin = self._done = self._shown = 0.0

    def run(self) -> Report:
        """Start the peers, do the faults, undo them all, end the peers, and return the report.

        A Ctrl-C ends the storm in good order; a second one ends it at once.

        Raises
        ------
        P2PFTError
            When a peer ends, or not all train, before the first fault.
        """
        addresses = free_addresses(self._graph.n)
        cuts = {(e.peers[0], e.peers[1]) for e in self._events if e.kind is Kind.CUT}
        plans = plan_peers(self._folder.name, self._graph, SETTINGS, addresses, self._folder)
        with Relays() as relays:
            self._links = {pair: relays.link(addresses, *pair) for pair in sorted(cuts)}
            routes = {pair: at for link in self._links.values() for pair, at in link.routes.items()}
            with Federation(plans, routes) as federation:
                try:
                    self._start(federation)
                    self._rage(federation)
                    self._calm(federation)
                except KeyboardInterrupt:
                    self._report.interrupted = True
                    self._tell("interrupted: ending all peers")
                self._end(federation)
        return self._conclude(federation)

    def _start(self, federation: Federation) -> None:
        for peer in range(self._graph.n):
            federation.start(peer)
        end = time.monotonic() + 3 * PATIENCE
        while not self._watch.settled:
            for peer, code in federation.ended().items():
                raise P2PFTError(
                    f"peer {peer} ended before anything was done to it (exit code {code}): see "
                    f"{self._folder / f'peer-{peer}.log'}"
                )
            if time.monotonic() > end:
                raise P2PFTError(
                    f"the peers do not train after {3 * PATIENCE:g} s: see {self._folder}; is this machine "
                    "too busy or too small for as many? Give fewer --peers"
                )
            time.sleep(_TICK)
            self._watch.poll()
        self._begin = time.monotonic()
        self._tell(f"all {self._graph.n} peers train; faults for {self._seconds:g} s")

    def _rage(self, federation: Federation) -> None:
        waiting, late = list(self._events), 0.0
        while (now := time.monotonic() - self._begin) < self._seconds and not self._look(federation):
            self._undo(federation, time.monotonic())
            if waiting and now >= waiting[0].at + late and self._may(waiting[0]):
                late = max(late, now - waiting[0].at)  # later faults keep their distances
                self._do(waiting.pop(0), federation)
            time.sleep(_TICK)

    def _calm(self, federation: Federation) -> None:
        """Undo all faults, and wait until all peers train in one view and were scored in it."""
        if self._watch.violations:
            return
        self._undo(federation, float("inf"))
        self._say("no more faults; waiting until all peers train in one view")
        end = time.monotonic() + 3 * PATIENCE
        while not self._look(federation) and time.monotonic() < end:  # the report says what is missing then
            if self._watch.settled and len(self._watch.members) == self._graph.n and self._watch.scores():
                return
            time.sleep(_TICK)

    def _look(self, federation: Federation) -> bool:
        """Read the new lines of the peers' logs, and return whether some check does not hold."""
        watch, now = self._watch, time.monotonic()
        watch.poll()
        if watch.settled:
            self._sure, self._doubtful = watch.members, set()
        for peer, code in federation.ended().items():
            watch.poll()
            watch.violated(
                Check.PROCESSES,
                f"peer {peer} gave up (exit code {code}): {watch.error_of(peer) or 'it does not say why'}; "
                f"see {self._folder / f'peer-{peer}.log'}",
            )
        idle = time.time() - max(watch.last, self._done)
        if idle > PATIENCE:
            watch.violated(
                Check.PROGRESS,
                f"no iteration of view {watch.newest} for {idle:.0f} s, though the peers "
                f"{sorted(self._sure)} of {sorted(watch.members)} were let alone",
            )
        if now - self._shown >= _STATUS_EVERY:
            self._show()
        return bool(watch.violations)

    def _may(self, event: Event) -> bool:
        """Tell whether ``event`` may be done: the victims are unhurt, and any next view keeps a quorum."""
        hurt = {p for _, e in self._under_way for p in e.peers}
        down = {p for _, e in self._under_way if e.kind is not Kind.CUT for p in e.peers}
        candidates = self._watch.members | self._doubtful | (set(range(self._graph.n)) - down)
        return hurt.isdisjoint(event.peers) and leaves_quorum(self._sure, event.peers, candidates)

    def _do(self, event: Event, federation: Federation) -> None:
        self._watch.poll()
        self._report.faults.append(Fault(event, time.time(), self._watch.newest))
        who = " and ".join(map(str, event.peers))
        match event.kind:
            case Kind.KILL | Kind.KILL_TWO:
                federation.kill(*event.peers)
                what = f"killed {who}; back in {event.lasts:.1f} s"
            case Kind.PAUSE | Kind.LONG_PAUSE:
                federation.pause(event.peers[0])
                what = f"stopped {who} (SIGSTOP) for {event.lasts:.1f} s"
            case Kind.CUT:
                self._links[event.peers].cut()
                what = f"cut the link of {who} for {event.lasts:.1f} s"
        self._under_way.append((time.monotonic() + event.lasts, event))
        self._sure -= set(event.peers)
        self._doubtful.update(event.peers)
        self._disturbed()
        self._say(what)

    def _undo(self, federation: Federation, now: float) -> None:
        """Undo the faults whose time is over at ``now``."""
        for until, event in [item for item in self._under_way if item[0] <= now]:
            self._under_way.remove((until, event))
            who = " and ".join(map(str, event.peers))
            match event.kind:
                case Kind.KILL | Kind.KILL_TWO:
                    for peer in event.peers:
                        federation.start(peer, joining=True)
                    self._say(f"started {who} again")
                case Kind.PAUSE | Kind.LONG_PAUSE:
                    federation.resume(event.peers[0])
                    self._say(f"let {who} go on (SIGCONT)")
                case Kind.CUT:
                    self._links[event.peers].mend()
                    self._say(f"mended the link of {who}")
            self._disturbed()

    def _disturbed(self) -> None:
        self._watch.mark()
        self._done = time.time()

    def _end(self, federation: Federation) -> None:
        """End all peers, and note each peer that does not end, or ends with an exit code other than 0."""
        kills = (Kind.KILL, Kind.KILL_TWO)  # they need not come back to be ended
        self._under_way = [item for item in self._under_way if item[1].kind not in kills]
        self._undo(federation, float("inf"))
        codes = federation.stop("the storm is over")
        self._watch.poll()
        if self._report.interrupted or self._watch.violations:
            return
        for peer, code in codes.items():
            if code != 0:
                how = "does not end" if code is None else f"ended with exit code {code}"
                log = self._folder / f"peer-{peer}.log"
                self._watch.violated(
                    Check.PROCESSES, f"told that the run is over, peer {peer} {how}: see {log}"
                )

    def _conclude(self, federation: Federation) -> Report:
        report, watch = self._report, self._watch
        if left := federation.alive:
            watch.violated(Check.PROCESSES, f"the processes of the peers {left} are left running")
        if not report.interrupted and not watch.violations:  # else they never had the time
            kills = (Kind.KILL, Kind.KILL_TWO)
            watch.check_kills(
                (p, f.view) for f in report.faults if f.event.kind in kills for p in f.event.peers
            )
            watch.check_agreement()
        watch.check_losses()
        report.to_next = [watch.seconds_to_next(fault) for fault in report.faults]
        report.views, report.iterations = watch.newest, watch.iteration
        report.sums, report.surplus = watch.sums, watch.worst
        report.unprovoked = watch.unprovoked(report.faults, 3 * PEER_TIMEOUT)
        report.deviation = watch.deviation()
        if (scores := watch.scores()) is not None:
            report.accuracy = {p: score.accuracy for p, score in scores[1].items()}
            report.loss = {p: score.loss for p, score in scores[1].items()}
        report.violations = list(watch.violations)
        return report

    def _say(self, what: str) -> None:
        self._tell(f"[{time.monotonic() - self._begin:6.1f} s] {what}")

    def _show(self) -> None:
        watch, self._shown = self._watch, time.monotonic()
        self._say(
            f"view {watch.newest}: peers {' '.join(map(str, sorted(watch.members)))}; iteration "
            f"{watch.iteration}; Σ τ − Σ g at most {watch.worst:.0e}"
        )
