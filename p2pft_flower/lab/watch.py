"""Checks of the promises that peers must keep all the time, made on the journals that the peers write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.invariants import TrackerSums
from p2pft_flower.keeping.lines import (
    AnyLine,
    Evaluation,
    Failed,
    Run,
    Trace,
    ViewChange,
    read_line,
)
from p2pft_flower.lab.schedule import Event, Kind
from p2pft_flower.topology import Graph

__all__ = ["Check", "Fault", "Loss", "Violation", "Watch"]

SURPLUS = 1e-4
"""The largest Σ τ − Σ g that counts as rounding, relative to its largest term."""

DEVIATION = 0.1
"""The largest distance of a θ_i from the mean, relative to the mean's norm, at which peers agree:
mini-batches and a constant learning rate keep them apart by some hundredths of it."""


class Check(Enum):
    """The promises that are checked."""

    INVARIANT = "Σ τ = Σ g over the peers of each view, after each iteration"
    VIEWS = "views of one number are the same everywhere"
    ONE_RUN = "no two views go on at once, and nobody iterates in a view that is without it"
    LOSSES = "whoever is left out, somebody says why"
    KILLS = "every kill is noticed, and who was killed is let in again"
    PROGRESS = "a quorum goes on"
    PROCESSES = "no peer gives up, and none is left running"
    AGREEMENT = "at the end all peers are in one view, train, and agree"


class Violation(NamedTuple):
    """A promise that did not hold; ``what`` says in words what was found instead."""

    check: Check
    what: str


@dataclass(frozen=True)
class Fault:
    """A fault that was done.

    Attributes
    ----------
    event : Event
        The event of the schedule.
    time : float
        The time at which it was done, Unix seconds.
    view : int
        The newest view in any log at that time.
    """

    event: Event
    time: float
    view: int


class Score(NamedTuple):
    """One peer's evaluation: accuracy 0..1, loss, and the sketch of its θ, (128,)."""

    accuracy: float
    loss: float
    sketch: npt.NDArray[np.float32]


class _Known(NamedTuple):
    """A view, as the first log that tells of the view has it; edges are (sender, receiver)."""

    peers: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    iteration: int


class Loss(NamedTuple):
    """A lost peer: it is in the view before ``view``, not in ``view``; ``why`` is the reason, in words."""

    view: int
    peer: int
    why: str


@dataclass
class _Seen:
    """The state of one peer, as far as the peer's log has been read."""

    offset: int = 0
    """Bytes of the log that have been read."""
    view: int | None = 0
    """The newest view in the log; None in a later life that has written of no view yet."""
    iteration: int = 0
    """The last iteration that the peer completed."""
    traced: int | None = None
    """The view in which the peer completed its last iteration."""
    fresh: int = 0
    """Iterations completed since the last mark."""
    last: float = 0.0
    """The time of its last completed iteration, Unix seconds."""
    scores: dict[int, Score] = field(default_factory=dict)
    error: str = ""
    """The reason for which the peer gave up; empty if it has not."""


class Watch:
    """Reads the peers' logs as they grow, and checks the promises.

    Parameters
    ----------
    graph : Graph
        The whole graph.
    folder : Path
        The run's folder.

    Attributes
    ----------
    violations : list of Violation
        Promises that did not hold.
    worst : float
        The largest Σ τ − Σ g of a view after an iteration, relative to its largest term.
    sums : int
        Iterations of a view for which Σ τ − Σ g was computed.
    """

    def __init__(self, graph: Graph, folder: Path) -> None:
        self._peers, self._folder = range(graph.n), folder
        self._seen = {p: _Seen() for p in self._peers}
        self._sums = TrackerSums(self._peers)
        self._views = {0: _Known(tuple(self._peers), graph.edges, 0)}
        self._told: dict[int, dict[int, ViewChange]] = defaultdict(dict)
        """By view and peer: the line on the view in the peer's log."""
        self._reached: dict[int, int] = defaultdict(int)
        """The highest iteration completed in each view."""
        self._first: dict[int, float] = {}
        """The time at which the first iteration of each view was completed, Unix seconds."""
        self._times: dict[int, list[float]] = defaultdict(list)
        self.violations: list[Violation] = []
        self.worst, self.sums = 0.0, 0
        self._summed: set[int] = set()
        """Views in which Σ τ − Σ g was computed."""

    # Reading -----------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Read the lines that were written since the last call, and check them.

        Raises
        ------
        DataError
            When a line is damaged.
        """
        for peer, seen in self._seen.items():
            path = self._folder / "peers" / f"peer-{peer}.jsonl"
            if not path.is_file():
                continue
            with path.open("rb") as file:
                file.seek(seen.offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]  # the end of a line may still be on its way, or torn
            seen.offset += len(whole)
            for line in whole.splitlines(keepends=True):
                self.take(read_line(line, path))

    def take(self, line: AnyLine) -> None:
        """Process one line of a peer's log."""
        seen = self._seen[line.peer]
        match line:
            case Run():
                seen.view = 0 if seen.last == 0.0 else None  # a later life is in no view yet
            case ViewChange():
                self._take_view(line, seen)
            case Trace():
                self._take_trace(line, seen)
            case Failed():
                seen.error = line.error
            case Evaluation(accuracy=accuracy, loss=loss) if accuracy is not None and loss is not None:
                score = Score(accuracy, loss, sketch.decode(line.sketch))
                seen.scores = {**dict(list(seen.scores.items())[-20:]), line.iteration: score}

    def _take_view(self, line: ViewChange, seen: _Seen) -> None:
        number, peer = line.number, line.peer
        self._told[number].setdefault(peer, line)
        # A peer that comes back writes again of views that its earlier life has seen.
        seen.view = number if seen.view is None else max(number, seen.view)
        here = _Known(line.peers, line.edges, line.iteration)
        known = self._views.setdefault(number, here)
        for key, one, other in zip(here._fields, here, known, strict=True):
            if _in_order(one) != _in_order(other):
                self.violated(
                    Check.VIEWS, f"view {number}: {key} is {one} in peer {peer}'s log, {other} in others'"
                )
        try:
            self._sums.note_view(line, f"peer {peer}'s log")
        except DataError as error:
            self.violated(Check.VIEWS, str(error))
        for view in [v for v in self._views if v <= number]:
            self._look_for_two_runs(view)

    def _take_trace(self, line: Trace, seen: _Seen) -> None:
        view, peer = line.view, line.peer
        seen.iteration, seen.traced, seen.last = line.iteration, view, line.time
        seen.fresh += 1
        self._times[peer].append(line.time)
        # A peer that was behind, or was let in, also writes a trace of the view's beginning.
        if view in self._views and line.iteration > self._views[view].iteration:
            self._first[view] = min(line.time, self._first.get(view, line.time))
        self._reached[view] = max(line.iteration, self._reached[view])
        if view not in self._views:
            self.violated(Check.ONE_RUN, f"peer {peer} iterates in view {view}, of which no log tells")
        elif peer not in self._views[view].peers:
            self.violated(Check.ONE_RUN, f"peer {peer} iterates in view {view}, which is without it")
        elif view != seen.view:  # it goes on beside the view that it has adopted, or was not let in
            where = "none" if seen.view is None else f"view {seen.view}"
            self.violated(
                Check.ONE_RUN, f"peer {peer} iterates in view {view}, its log says it is in {where}"
            )
        self._look_for_two_runs(view)
        surplus = self._sums.note_trace(line)
        if surplus is not None:
            self.sums += 1
            self._summed.add(surplus.view)
            self.worst = max(self.worst, surplus.relative)
            if not surplus.relative <= SURPLUS:  # NaN is no agreement either
                self.violated(
                    Check.INVARIANT,
                    f"view {surplus.view}, iteration {surplus.iteration}: Σ τ − Σ g is "
                    f"{surplus.relative:.1e} of its largest term",
                )

    def _look_for_two_runs(self, view: int) -> None:
        """Check that ``view`` does not go on beside a later one; it may be ahead by its number of peers."""
        if view not in self._views:
            return
        later = min((v for v in self._views if v > view), default=None)
        if later is None:
            return
        if self._reached[view] > self._views[later].iteration + len(self._views[view].peers):
            self.violated(
                Check.ONE_RUN,
                f"view {view} came to iteration {self._reached[view]}, though view {later} begins after "
                f"{self._views[later].iteration}",
            )

    def violated(self, check: Check, what: str) -> None:
        """Note, once, that the promise ``check`` did not hold: ``what`` says what was found."""
        if Violation(check, what) not in self.violations:
            self.violations.append(Violation(check, what))

    # Where the run is --------------------------------------------------------------------------------

    @property
    def newest(self) -> int:
        """The newest view in any log."""
        return max(self._views)

    @property
    def members(self) -> frozenset[int]:
        """The peers of the newest view."""
        return frozenset(self._views[self.newest].peers)

    @property
    def iteration(self) -> int:
        """The most iterations that any peer has completed."""
        return max(seen.iteration for seen in self._seen.values())

    @property
    def last(self) -> float:
        """The time at which a peer of the newest view last completed an iteration, Unix seconds."""
        return max(self._seen[p].last for p in self.members)

    def mark(self) -> None:
        """Count completed iterations anew, since a fault was done or undone."""
        for seen in self._seen.values():
            seen.fresh = 0

    @property
    def settled(self) -> bool:
        """Whether the n peers of the newest view iterate in it, each over 2 n times since :meth:`mark`."""
        return all(
            self._seen[p].traced == self.newest and self._seen[p].fresh > 2 * len(self.members)
            for p in self.members
        )

    def error_of(self, peer: int) -> str:
        """Return the reason for which ``peer`` gave up; empty if it has not."""
        return self._seen[peer].error

    def scores(self) -> tuple[int, dict[int, Score]] | None:
        """Return the last iteration of the newest view of which all its peers have scores, and these by peer.

        None if there is none; iterations before the view began do not count.
        """
        begin = self._views[self.newest].iteration
        each = [{k for k in self._seen[p].scores if k > begin} for p in self.members]
        if not (common := set.intersection(*each)):
            return None
        last = max(common)
        return last, {p: self._seen[p].scores[last] for p in sorted(self.members)}

    # What can be said at the end ---------------------------------------------------------------------

    def seconds_to_next(self, fault: Fault) -> float | None:
        """Return the seconds from ``fault`` to the next iteration; None if the run did not have to recover.

        The next iteration is the first one of the first later view that accounts for the fault; after a short
        pause it is the next one of the paused peer.
        """
        event = fault.event
        if event.kind is Kind.PAUSE:
            later = (t for t in self._times[event.peers[0]] if t > fault.time)
            return min((t - fault.time for t in later), default=None)
        for number in sorted(v for v in self._first if v > fault.view):
            if self._first[number] > fault.time and self._accounts_for(number, event):
                return self._first[number] - fault.time
        return None

    def _accounts_for(self, number: int, event: Event) -> bool:
        view, joined = self._views[number], self._joined(number)
        if event.kind is Kind.CUT:
            a, b = event.peers
            return (a, b) not in view.edges and (b, a) not in view.edges
        return all(p not in view.peers or p in joined for p in event.peers)

    def _joined(self, number: int) -> set[int]:
        return {p for line in self._told[number].values() for p in line.joined}

    def check_losses(self) -> None:
        """Check that some log has a reason for each peer that was lost from one view to the next."""
        numbers = sorted(self._views)
        for before, number in pairwise(numbers):
            lost = set(self._views[before].peers) - set(self._views[number].peers)
            # The log of a host that missed a view has the reasons with the next view.
            why = {p for line in self._told[number].values() for p in {**line.presumed, **line.why}}
            for peer in sorted(lost):
                if peer not in why:
                    self.violated(Check.LOSSES, f"view {number} is without peer {peer}, and nobody says why")

    def check_kills(self, kills: Iterable[tuple[int, int]]) -> None:
        """Check that every killed peer was let in again, which also shows that its loss was noticed.

        Parameters
        ----------
        kills : iterable of (int, int)
            Each killed peer, with the newest view when it was killed.
        """
        for peer, view in kills:
            if not any(peer in self._joined(v) for v in self._told if v > view):
                self.violated(
                    Check.KILLS, f"peer {peer}, killed in view {view}, was let in again by no later view"
                )

    def deviation(self) -> float | None:
        """Return the largest ‖θ_i − θ̄‖ / ‖θ̄‖ after the iteration of :meth:`scores`; None if there is none.

        The norms are those of sketches, which differ by some percent from those of θ
        (:mod:`p2pft_flower.keeping.sketch`).
        """
        if (last := self.scores()) is None:
            return None
        thetas = np.stack([score.sketch for score in last[1].values()]).astype(np.float64)
        mean = thetas.mean(axis=0)
        return float(np.linalg.norm(thetas - mean, axis=1).max() / np.linalg.norm(mean))

    def check_agreement(self) -> None:
        """Check that the newest view has all peers, that they agree, and that its trackers were summed."""
        if self.newest not in self._summed:
            self.violated(Check.INVARIANT, f"no iteration of view {self.newest} could be looked at")
        if missing := sorted(set(self._peers) - self.members):
            self.violated(Check.AGREEMENT, f"at the end view {self.newest} is without the peers {missing}")
        deviation = self.deviation()
        if deviation is None:
            self.violated(Check.AGREEMENT, f"not all peers of view {self.newest} were scored alike")
        elif not deviation <= DEVIATION:
            self.violated(
                Check.AGREEMENT, f"the peers are {deviation:.2f} of the mean's norm apart, not {DEVIATION:g}"
            )

    def unprovoked(self, faults: Sequence[Fault], slack: float) -> list[Loss]:
        """Return each time that a view was without a peer of the one before to which nothing had been done.

        Such a peer was too slow for too long on this machine, or links were cut so that no graph connects
        all.

        Parameters
        ----------
        faults : sequence of Fault
            The faults that were done.
        slack : float
            Seconds after the end of a fault within which the fault may still be the cause of a loss.
        """
        numbers, losses = sorted(self._views), list[Loss]()
        for before, number in pairwise(numbers):
            told = min((line.time for line in self._told[number].values()), default=0.0)
            hurt = {
                p for f in faults for p in f.event.peers if f.time <= told <= f.time + f.event.lasts + slack
            }
            lost = set(self._views[before].peers) - set(self._views[number].peers)
            for peer in sorted(lost - hurt):
                lines = self._told[number].values()
                whys = [*(line.why.get(peer) for line in lines), *(line.presumed.get(peer) for line in lines)]
                losses.append(Loss(number, peer, next((why for why in whys if why), "nobody says why")))
        return losses


def _in_order(value: Any) -> Any:
    """Return a tuple (of peers or edges, whose order in a log means nothing) sorted, else the value."""
    return sorted(value) if isinstance(value, tuple) else value
