"""The bulletin of a process, made of what it has heard of the members of its run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import DataError
from p2pft_flower.host.history import History
from p2pft_flower.host.standings import Heard
from p2pft_flower.host.waits_heard import WaitsHeard, awaited_by
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.bulletins import (
    Bulletin,
    EdgeNow,
    PeerNow,
    bulletin_path,
    discard_old,
    read_bulletin,
    write_bulletin,
)
from p2pft_flower.keeping.lines import Stall, ViewChange
from p2pft_flower.keeping.processes import start_mark
from p2pft_flower.keeping.progress import scored
from p2pft_flower.transport import Standing

__all__ = ["BulletinWriter"]

log = logging.getLogger("p2pft_flower")

_VIEWS = 64
"""The most changes of view in a bulletin."""


class BulletinWriter:
    """Writes the bulletins of one process of a run; a file that cannot be written ends nothing.

    Parameters
    ----------
    run : str
        The run's identifier.
    config : RunConfig
        The settings.
    n, iterations : int
        Number of peers of the graph, and of iterations.
    own : tuple of int
        The peers of this process, ascending; empty: the coordinator.
    hosts : mapping of int to tuple of int
        The peers of each host of the run, by the host's lowest peer.
    names : mapping of int to str
        The names of the peers that have one.
    folder : str
        The run's folder on this machine.
    gone : mapping of int to float, optional
        The peers that are in no view as this process begins, and the time, Unix seconds, of the last word of
        each from before it was lost; default: none.
    """

    def __init__(
        self,
        run: str,
        config: RunConfig,
        n: int,
        iterations: int,
        own: tuple[int, ...],
        hosts: Mapping[int, tuple[int, ...]],
        names: Mapping[int, str],
        folder: str,
        gone: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        self._run, self._config, self._n, self._iterations = run, config.runtime, n, iterations
        self._own, self._hosts, self._names, self._folder = own, hosts, dict(names), folder
        self._all = tuple(sorted(p for peers in hosts.values() for p in peers))
        self._mark = start_mark(os.getpid())
        self._path, self._unwritten = bulletin_path(own[0] if own else None), False
        before = self._before()
        self._begun = time.time() if before is None else before.begun
        self._reached = {} if before is None else {p.peer: p.iteration for p in before.peers}
        """The most iterations that each peer is known to have completed."""
        self._error: float | None = None
        self._history = History(self._all)
        self._waits = WaitsHeard(hosts, own)
        self._first = tuple(p for p in self._all if p not in gone)
        self._last_words = dict(gone)
        """The time of the last word of each peer; of a peer that is in no view, from before it was lost."""
        discard_old(run, own)

    def write(
        self,
        heard: Mapping[int, Heard],
        spoken: Mapping[int, float | None],
        views: Sequence[ViewChange],
        stalls: Iterable[Stall] = (),
        doing: str = "",
    ) -> Bulletin:
        """Replace the bulletin, and return it.

        Parameters
        ----------
        heard : mapping of int to Heard
            What is known of each member.
        spoken : mapping of int to (float or None)
            Seconds since each neighbour last spoke to this process.
        views : sequence of ViewChange
            The changes of view so far.
        stalls : iterable of Stall
            The stalls of this process's peers so far; default: none.
        doing : str
            What this process's peers do before they train, in words; default: nothing that is told.
        """
        live = tuple(views[-1].peers) if views else self._first
        self._history.hear(heard)
        apart = self._consensus(heard, live)
        self._note_words(heard, spoken, live)
        self._waits.look(heard, time.monotonic())
        bulletin = Bulletin(
            run=self._run,
            n=self._n,
            iterations=self._iterations,
            own=self._own,
            names=self._names,
            live=live,
            on_failure=self._config.on_failure if len(self._hosts) > 1 else "",
            min_peers=self._config.min_peers,
            silence=self._config.peer_timeout,
            folder=self._folder,
            pid=os.getpid(),
            started=self._mark,
            begun=self._begun,
            written=time.time(),
            peers=tuple(
                self._not_set_back(_peer_now(p, heard.get(m), spoken.get(p)), live)
                if p not in self._own
                else self._not_set_back(_peer_now(p, heard.get(m), None, doing), live)
                for p, m in sorted((p, m) for m, peers in self._hosts.items() for p in peers)
            ),
            views=tuple(views[-_VIEWS:]),
            stalls=(*stalls, *self._waits.over),
            consensus_error=apart,
            edges=_edges(heard, live, views),
            history=self._history.scores,
            apart=self._history.apart,
            hosts=tuple(sorted(self._hosts.values())),
            gone={p: at for p, at in sorted(self._last_words.items()) if p not in live},
            name=self._config.name,
        )
        try:
            write_bulletin(self._path, bulletin)
        except OSError as error:
            if not self._unwritten:
                log.warning(
                    "p2pft status will not show this run: %s cannot be written (%s)", self._path, error
                )
            self._unwritten = True
        return bulletin

    def remove(self) -> None:
        """Remove the bulletin: what has come of the run stands in journals and results."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed (%s)", self._path, error)

    def _before(self) -> Bulletin | None:
        """Return the bulletin of this process in this run from before there was a host, if there is one."""
        try:
            before = read_bulletin(self._path)
        except (OSError, DataError):  # none, or that of a process that was killed
            return None
        return before if (before.run, before.started) == (self._run, self._mark) else None

    def _not_set_back(self, now: PeerNow, live: Collection[int]) -> PeerNow:
        """Return what is known of a peer; one in no view has completed what it had before it was lost.

        Its next process says 0 until it is let in.
        """
        most = self._reached[now.peer] = max(now.iteration, self._reached.get(now.peer, 0))
        return now if now.peer in live else msgspec.structs.replace(now, iteration=most)

    def _note_words(
        self, heard: Mapping[int, Heard], spoken: Mapping[int, float | None], live: Sequence[int]
    ) -> None:
        """Note when each live peer spoke last; a lost one speaks, too, when its next process begins."""
        now = time.time()
        for member, peers in self._hosts.items():
            there = heard.get(member)
            heard_of = None if there is None or there.standing is None else there.since
            for p in set(peers).intersection(live):
                passed = [s for s in (heard_of, spoken.get(p)) if s is not None]
                if passed:
                    self._last_words[p] = now - min(passed)

    def _consensus(self, heard: Mapping[int, Heard], live: tuple[int, ...]) -> float | None:
        """Return the consensus error of the newest iteration of which all live peers' sketches are here."""
        there = {s.peer: s for h in heard.values() if h.scores is not None for s in h.scores.peers}
        if all(p in there and there[p].sketch for p in live) and len({there[p].iteration for p in live}) == 1:
            self._error = sketch.consensus_error([np.array(there[p].sketch, np.float32) for p in live])
            self._history.note_apart(there[live[0]].iteration, self._error)
        return self._error


def _edges(
    heard: Mapping[int, Heard], live: Sequence[int], views: Sequence[ViewChange]
) -> tuple[EdgeNow, ...]:
    """Return the edges of the present view, as far as members or the change of view have told of them."""
    standings = [h.standing for h in heard.values() if h.standing is not None]
    told = {
        (e.sender, e.receiver): EdgeNow(e.sender, e.receiver, e.payloads, e.bytes, e.seconds)
        for standing in standings
        for e in standing.edges
    }
    if views:
        # A member may not have come to this view yet, and one that has come may have left edges out.
        return tuple(told.get(edge, EdgeNow(*edge)) for edge in sorted(views[-1].edges))
    return tuple(edge for ends, edge in sorted(told.items()) if {*ends} <= {*live})


def _peer_now(peer: int, heard: Heard | None, spoken: float | None, doing: str = "") -> PeerNow:
    standing = None if heard is None else heard.standing
    there = [] if heard is None or heard.scores is None else heard.scores.peers
    scores = next((s for s in there if s.peer == peer), None)
    told: dict[str, Any] = {}
    if heard is not None and standing is not None:
        told = {
            "state": Standing.State.Name(standing.state).lower(),
            "view": standing.view,
            "iteration": standing.iteration,
            "busy": standing.busy,
            "awaited": awaited_by(standing),
            "rate": standing.rate,
            "heard": heard.since,
        }
    if scores is not None:
        told |= {
            "evaluated": scores.iteration,
            "loss": scored(scores.loss),
            "accuracy": scored(scores.accuracy),
            "accuracy_unseen": scores.accuracy_unseen if scores.HasField("accuracy_unseen") else None,
            "bytes_sent": scores.bytes_sent,
        }
    return PeerNow(peer=peer, spoken=spoken, doing=doing, **told)
