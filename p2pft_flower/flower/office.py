"""The coordinator's bulletin of a run, made of the peers' reports, for ``p2pft status`` there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import DataError
from p2pft_flower.flower.run import Run
from p2pft_flower.flower.stalls import StallLog
from p2pft_flower.host.bulletin import BulletinWriter
from p2pft_flower.host.hearsay import report_of
from p2pft_flower.host.standings import Heard, Standings
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.lines import Report, ViewChange
from p2pft_flower.report.status import status_of
from p2pft_flower.transport import Gossip, PeerReport, PeerScores, Scores, Signatures, Signed
from p2pft_flower.typed import decoded

__all__ = ["Office"]

log = logging.getLogger("p2pft_flower")

_INTERVAL = 1.0
"""Seconds between two bulletins."""

_END = 5.0
"""Seconds that the thread has to end."""

_NOBODY = -1
"""The number by which the coordinator is no member."""


class Office:
    """Takes the peers' reports, and writes the coordinator's bulletin each second; a context manager.

    ``_lock`` guards ``_scores`` and ``_views``.

    Parameters
    ----------
    run : str
        The run's identifier.
    config : RunConfig
        The settings.
    n, iterations : int
        Number of peers of the graph, and of iterations.
    hosts : mapping of int to tuple of int
        The peers of each host of the run, by the host's lowest peer.
    names : mapping of int to str
        The names of the peers that have one.
    folder : str
        The folder of the results.
    """

    def __init__(
        self,
        run: str,
        config: RunConfig,
        n: int,
        iterations: int,
        hosts: Mapping[int, tuple[int, ...]],
        names: Mapping[int, str],
        folder: str,
    ) -> None:
        self._hosts, self._iterations = dict(hosts), iterations
        self._member_of = {p: m for m, peers in hosts.items() for p in peers}
        self._standings = Standings(run, _NOBODY, self._hosts, iterations, None)
        self._bulletin = BulletinWriter(run, config, n, iterations, (), self._hosts, names, folder)
        self._lock = threading.Lock()
        self._scores: dict[int, PeerScores] = {}
        self._views: dict[int, ViewChange] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="p2pft-office", daemon=True)

    def __enter__(self) -> Office:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(_END)
        self._bulletin.remove()

    @classmethod
    def of(cls, run: Run) -> Office:
        """Return the office of a run."""
        hosts = {min(h.peers): h.peers for h in run.hosts}
        return cls(run.id, run.config, run.graph.n, run.iterations, hosts, run.names, str(run.folder))

    def check_with(self, signatures: Signatures) -> None:
        """Take only standings and scores that their peers have signed, whoever passes them on to a look."""
        self._standings.check_with(signatures)

    def known(self) -> Gossip:
        """Return how new the standings and scores here are, for a look."""
        return self._standings.known()

    def hear(self, answers: Iterable[Gossip]) -> tuple[list[Report], list[ViewChange]]:
        """Take the peers' answers to a look in; return the evaluations and changes of view that are new.

        An answer has the scores of the peers of that host with their sketches, and those of others without.
        """
        before = {p: s.iteration for p, s in self._evaluated().items()}
        changes: list[ViewChange] = []
        for answer in answers:
            self._standings.hear(answer)
            for scores in answer.own_scores:
                if self._member_of.get(scores.peer) == self._member_of.get(answer.sender, _NOBODY):
                    self._keep(scores)
            told = (self._take_view(line, answer.sender) for line in answer.view_changes)
            changes += [change for change in told if change is not None]
        reports = [report_of(s) for p, s in self._evaluated().items() if s.iteration > before.get(p, -1)]
        return reports, changes

    def _keep(self, scores: PeerScores) -> None:
        if len(scores.sketch) not in (0, sketch.SIZE) or scores.iteration > self._iterations:
            log.warning("scores of peer %d that are none of this run's were left out", scores.peer)
            return
        with self._lock:
            known = self._scores.get(scores.peer)
            if known is None or known.iteration <= scores.iteration:
                self._scores[scores.peer] = scores

    def _evaluated(self) -> dict[int, PeerScores]:
        """Return each peer's last scores: its own word, or, if that is newer, what others have told of it."""
        heard = self._standings.heard().values()
        told = {s.peer: s for h in heard if h.scores is not None for s in h.scores.peers}
        with self._lock:
            for peer, own in self._scores.items():
                if peer not in told or told[peer].iteration <= own.iteration:
                    told[peer] = own
        return dict(sorted(told.items()))

    def _heard(self) -> dict[int, Heard]:
        heard, evaluated = self._standings.heard(), self._evaluated()
        nothing = Heard(None, None, 0.0)
        return {
            m: replace(
                heard.get(m, nothing),
                scores=Scores(member=m, peers=[evaluated[p] for p in peers if p in evaluated]),
            )
            for m, peers in self._hosts.items()
        }

    def take(self, report: PeerReport) -> None:
        """Take a report of one of the run's peers in; from one thread at a time."""
        if report.HasField("standing"):
            record = report.standing.SerializeToString()
            self._standings.hear(Gossip(sender=report.peer, standings=[Signed(record=record)]))
        elif report.view_change:
            self._take_view(report.view_change, report.peer)
        elif not report.note:
            self._take_scores(report)

    def _take_view(self, line: bytes, peer: int) -> ViewChange | None:
        """Take a change of view in; return it if it was not known."""
        try:
            change = decoded(line, ViewChange, f"a change of view by peer {peer}")
        except DataError as error:
            log.warning("a report was left out: %s", error)
            return None
        if not self._member_of.keys() >= {*change.peers, *change.lost, *change.joined}:
            log.warning("a change of view by peer %d that names peers of no run was left out", peer)
            return None
        with self._lock:
            known = self._views.get(change.number)
            # The hosts' changes differ in what each has seen itself of those that are lost.
            if known is None or len(change.why) > len(known.why):
                self._views[change.number] = change
        return change if known is None else None

    def _take_scores(self, report: PeerReport) -> None:
        scores = PeerScores(
            peer=report.peer,
            iteration=report.iteration,
            loss=report.loss,
            accuracy=report.accuracy,
            bytes_sent=report.bytes_sent,
            sketch=report.sketch,
        )
        if report.HasField("accuracy_unseen"):
            scores.accuracy_unseen = report.accuracy_unseen
        self._keep(scores)

    def _run(self) -> None:
        stalls = StallLog()
        try:
            while True:
                with self._lock:
                    views = [self._views[number] for number in sorted(self._views)]
                bulletin = self._bulletin.write(self._heard(), {}, views)
                stalls.note(status_of([bulletin], bulletin.written))
                if self._closed.wait(_INTERVAL):
                    return
        except Exception:
            log.exception("p2pft status will show nothing new here")
