"""A host's part in agreeing on views, in real time: the state machine with a clock and a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from p2pft_flower.agreement.membership import Membership, Phase
from p2pft_flower.errors import Cause
from p2pft_flower.host import records
from p2pft_flower.topology.views import View
from p2pft_flower.transport import EdgeBrokenError, Gossip, Heartbeats, Loss, PeerLostError, ViewChangeError
from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = ["Agreement", "LostContactError", "NewView"]

log = logging.getLogger("p2pft_flower")

_END = 5.0
"""Seconds that the thread has to end."""


class NewView(NamedTuple):
    """A view that this host has come to.

    Attributes
    ----------
    number : int
        The view's number.
    view : View
        Its peers and graph.
    iteration : int
        Iterations that count as completed.
    lost, joined : tuple of int
        Peers that were in this host's last view and are not in this one; and those that were not, or that
        have come back in another life, this host's own among them.
    why : dict of int to str
        What this host has noticed of each lost peer.
    presumed : dict of int to str
        What it presumes of those of which it has noticed nothing; somebody else may have.
    seconds : float
        From when this host stopped iterating until the view was agreed on.
    donor : int or None
        The peer from which this host, which was let in by this view, takes θ; None where it was in before.
    """

    number: int
    view: View
    iteration: int
    lost: tuple[int, ...]
    joined: tuple[int, ...]
    why: dict[int, str]
    seconds: float
    donor: int | None = None
    presumed: Mapping[int, str] = MappingProxyType({})


class LostContactError(Exception):
    """The host is in no view any more, and nobody has taken it in before its deadline."""

    cause = Cause.LOST


class Agreement:
    """Agrees with the other hosts on who goes on; all methods may be called from any thread.

    Parameters
    ----------
    machine : Membership
        This host's state machine.
    iterations : int
        Iterations of the run.
    on_change : callable
        Called once when the view begins to change, with the error that whoever waits is to be woken with.
    interval : float
        Seconds between two looks at the neighbours.
    direct : float
        Seconds for which a word from another host says that it can be reached (run-config ``peer-timeout``).
    clock : callable
        The time in seconds; default time.monotonic.
    """

    def __init__(
        self,
        machine: Membership,
        iterations: int,
        *,
        on_change: Callable[[ViewChangeError], None],
        interval: float,
        direct: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._machine, self._iterations, self._direct = machine, iterations, direct
        self._on_change, self._interval, self._clock = on_change, interval, clock
        self._host = {p: m for m, peers in machine.groups.items() for p in peers}
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._view = machine.view  # that this host works in
        self._installed = machine.view  # whose neighbours are looked after
        self._last = machine.current
        self._spoken: dict[int, float] = {}
        """When each member last spoke to this host itself."""
        self._asked_at: float | None = None
        self._paused_at: float | None = None
        self._excluded_at: float | None = None
        """Since when the others have gone on without this host, and it has not asked to be let in."""
        self._settling = False
        self._why: dict[int, str] = {}
        self._heartbeats: Heartbeats | None = None
        self._neighbours: Callable[[], Iterable[int]] = tuple
        self._closed = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._watch, name="p2pft-agreement", daemon=True)

    def start(self, heartbeats: Heartbeats, neighbours: Callable[[], Iterable[int]]) -> None:
        """Begin to look after the neighbours.

        Parameters
        ----------
        heartbeats : Heartbeats
            Tell whether a neighbour is lost, and carry the news.
        neighbours : callable
            Returns the remote neighbour peers of the present view.
        """
        self._heartbeats, self._neighbours = heartbeats, neighbours
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_END)
            if self._thread.is_alive():
                log.warning("what looks after the other peers has not ended within %g s", _END)

    # For the heartbeats ------------------------------------------------------------------------------

    def tell(self, remote: int) -> pb.Gossip:
        """Return what to tell the host of a remote peer: records, and what this host knows."""
        with self._lock:
            news, known = self._machine.news(self._host[remote]), self._machine.known
        return pb.Gossip(records=map(records.encode, news), known=records.encode_known(known))

    def contacts(self) -> Mapping[int, int]:
        """Return a remote peer of each member to gossip with, and the local peer that speaks to it."""
        with self._lock:
            own = min(self._machine.groups[self._machine.me])
            return {min(self._machine.groups[m]): own for m in self._machine.contacts()}

    def hear(self, gossip: Gossip) -> None:
        """Take in what another host says."""
        groups = self._machine.groups
        heard, known, wrong = [], {}, []
        for message in gossip.records[: len(groups)]:  # one of each member, at most
            try:
                heard.append(records.decode(message, groups, self._iterations))
            except ValueError as error:
                wrong.append(error)
        if (more := len(gossip.records) - len(groups)) > 0:
            wrong.append(ValueError(f"there are {more} more than members"))
        try:
            known = records.decode_known(gossip.known, groups)
        except ValueError as error:
            wrong.append(error)
        if wrong:  # one line, however much there is
            log.warning(
                "of what peer %d says %d of %d records are not used: %s",
                gossip.sender,
                len(gossip.records) - len(heard),
                len(gossip.records),
                wrong[0],
            )
        with self._lock:
            if (speaker := self._host.get(gossip.sender)) is not None:
                self._spoken[speaker] = self._clock()
                self._machine.heard_again(speaker)
                self._machine.hear_known(speaker, known)
            news = self._machine.hear(heard, self._clock())
            self._look(news and self._machine.record.phase is not Phase.RUNNING)

    # For the training --------------------------------------------------------------------------------

    def complete(self, iterations: int) -> None:
        """Note that so many iterations are done.

        Raises
        ------
        ViewChangeError
            When the view changes: the last one does not count.
        """
        with self._lock:
            # Where nothing comes from elsewhere nobody wakes this host: the next view may be there already.
            if self._machine.view != self._view or not self._machine.complete(iterations):
                raise _changing(self._view)

    def settle(self, raise_if_stopped: Callable[[], None], on_excluded: Callable[[], None]) -> NewView:
        """Wait until the next view that this host is in is agreed on, and return it.

        Where the others have gone on without it, it asks to be let in, again and again.

        Parameters
        ----------
        raise_if_stopped : callable
            Called several times a second: raises where the whole run is stopped.
        on_excluded : callable
            Called when this host learns that the others have gone on without it.

        Raises
        ------
        LostContactError
            When there is no agreement before the deadline, or can be none any more, or nobody has let this
            host in.
        """
        with self._lock:
            self._settling = True
        try:
            return self._settle(raise_if_stopped, on_excluded)
        finally:
            with self._lock:
                self._settling = False

    def _settle(self, raise_if_stopped: Callable[[], None], on_excluded: Callable[[], None]) -> NewView:
        while True:
            with self._changed:
                while self._machine.view == self._view and not self._machine.excluded:
                    raise_if_stopped()
                    if self._failure is not None:
                        raise self._failure
                    if why := self._machine.expired or self._machine.stranded:
                        raise LostContactError(why)
                    self._changed.wait(self._interval)
                if not self._machine.excluded:
                    return self._settled()
            on_excluded()  # takes a moment, in which this host still gossips
            with self._lock:
                self._machine.rejoin(self._clock(), self._machine.record.iteration)
                self._asked_at = self._excluded_at = None
                self._nudge()

    def overdue(self) -> str:
        """Return why a host that is busy with something else can be in no view any more; empty where it can.

        :meth:`settle` looks at the deadline itself; a gradient that does not end keeps a host from there.
        """
        with self._lock:
            if self._settling or self._machine.record.phase in (Phase.FINISHED, Phase.LEFT):
                return ""
            if self._machine.expired:
                return self._machine.expired
            waited = 0.0 if self._excluded_at is None else self._clock() - self._excluded_at
            if waited < self._machine.patience:
                return ""
            return (
                "the others have gone on without it, and it was too busy to ask to be let in again for "
                f"{self._machine.patience:g} s"
            )

    def _settled(self) -> NewView:
        machine, now = self._machine, self._clock()
        view, last = machine.neighbourhood(), self._last
        before = {p for m in last.members for p in machine.groups[m]}
        joined = {
            p
            for m in machine.current.members
            if machine.current.incarnation(m) != last.incarnation(m)
            for p in machine.groups[m]
        }
        lost = tuple(sorted(before.difference(view.peers)))
        was_there = machine.view == self._view + 1 and machine.me in last.members and machine.me not in joined
        presumed = {p: self._presume(p) for p in lost if p not in self._why} if was_there else {}
        donors = dict(zip(machine.current.joined, machine.current.donors, strict=True))
        new = NewView(
            machine.view,
            view,
            machine.current.iteration,
            lost,
            tuple(sorted(joined)),
            {p: why for p, why in self._why.items() if p not in view.peers},
            now - (now if self._paused_at is None else self._paused_at),
            donors.get(machine.me),
            presumed,
        )
        self._view, self._last = machine.view, machine.current
        self._asked_at = self._paused_at = None
        self._why = {}
        return new

    def _presume(self, peer: int) -> str:
        """Return why the view that was agreed on is without ``peer``, where this host has not missed it."""
        machine = self._machine
        r = machine.records.get(self._host[peer])
        if r is not None and r.view == self._view and r.phase is Phase.CHANGING:
            return (
                f"peer {peer} was too late for agreeing on view {machine.view}, or the links that work do "
                "not connect it with the others"
            )
        return f"peer {peer} took no part in agreeing on view {machine.view}, and was waited for no longer"

    def finish(self, timeout: float, raise_if_stopped: Callable[[], None]) -> bool:
        """Stay until all others have done all iterations; False where the view changes before.

        Parameters
        ----------
        timeout : float
            Longest stay, in seconds, after the last word from one that still trains: it needs nothing of this
            host any more but its vote where another one is lost.
        raise_if_stopped : callable
            As in :meth:`settle`.
        """
        end = self._clock() + timeout
        with self._changed:
            if self._machine.view != self._view or not self._machine.finish():
                return False
            self._nudge()
            while not self._machine.all_finished and self._clock() < end:
                raise_if_stopped()
                if self._failure is not None:
                    raise self._failure
                if self._machine.record.phase is not Phase.FINISHED:
                    return False
                self._changed.wait(min(self._interval, max(0.0, end - self._clock())))
                still = [self._spoken[m] for m in self._machine.unfinished if m in self._spoken]
                end = max([end, *(spoken + timeout for spoken in still)])
        return True

    def recheck(self) -> None:
        """Look after the neighbours of the view that was settled on and that this host has now installed.

        Wakes whoever waits there, where it has begun to change meanwhile.
        """
        with self._lock:
            self._installed = self._view
            if self._paused_at is not None:
                self._on_change(_changing(self._view))

    def miss(self, loss: PeerLostError) -> None:
        """Note that a peer is lost: the view is to change."""
        with self._lock:
            self._miss(loss)
            self._look(news=True)

    def do_without(self, broken: EdgeBrokenError) -> None:
        """Note that an edge carries no payloads: the next view is to be without it, but with its receiver."""
        with self._lock:
            if broken.edge is not None and self._machine.do_without(broken.edge, self._clock()):
                log.warning("the graph is to do without an edge: %s", broken)
            self._look(news=True)

    def spares(self, least: int) -> bool:
        """Whether the others can go on without this host: a quorum of the view, and ``least`` peers."""
        with self._lock:
            return self._machine.spares(least)

    def leave(self, reason: str) -> None:
        """Note that this host goes; who hears of it need not wait for its silence."""
        with self._lock:
            self._machine.leave(reason)

    # Its own thread ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            while True:
                with self._changed:
                    if self._changed.wait_for(lambda: self._closed, self._interval):
                        return
                    # In a change too: whom all its neighbours miss is not waited for. Between two views the
                    # neighbours are still those of the old one.
                    phases = (Phase.RUNNING, Phase.CHANGING, Phase.FINISHED)
                    there = self._machine.record.phase in phases and self._machine.view == self._installed
                    heartbeats = self._heartbeats
                if there and heartbeats is not None:
                    self._look_after(heartbeats)
                with self._lock:
                    self._reach()
                    self._look(self._machine.tick(self._clock()))
        except Exception as error:
            log.exception("looking after the other peers failed")
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            self._on_change(_changing(self._view))

    def _look_after(self, heartbeats: Heartbeats) -> None:
        """Miss each neighbour that is lost; none of them is waited for."""
        for peer in tuple(self._neighbours()):
            loss = heartbeats.absence(peer)
            with self._lock:
                if self._closed or self._machine.view != self._installed:
                    return  # of another view by now
                if loss is not None:
                    self.miss(loss)

    def _reach(self) -> None:
        """Where this host asks to be let in, tell whom it has spoken with itself."""
        if self._machine.record.phase is not Phase.JOINING:
            return
        now = self._clock()
        if self._asked_at is None:
            self._asked_at = now
        reached = {m for m, when in self._spoken.items() if now - when <= self._direct}
        # What a joining host does not reach is cut out of the next graph: it first tries all of them.
        if reached.issuperset(self._machine.near()) or now - self._asked_at >= self._direct / 2:
            self._machine.reach(reached, now)

    def _miss(self, loss: PeerLostError) -> None:
        member = self._host[loss.lost]
        for peer in self._machine.groups[member]:
            self._why.setdefault(peer, str(loss))
        self._machine.suspect(member, self._clock(), hanging=loss.how is Loss.HANGING)

    def _nudge(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.nudge()

    def _look(self, news: bool) -> None:
        """Act on what the state machine has come to."""
        machine = self._machine
        for member in machine.current.members:
            r = machine.records.get(member)
            if r is not None and r.phase is Phase.LEFT:
                for peer in machine.groups[member]:
                    self._why.setdefault(peer, f"peer {peer} has left: {r.reason}")
        if machine.excluded and self._excluded_at is None:
            self._excluded_at = self._clock()
        changing = machine.record.phase is Phase.CHANGING or machine.view != self._view or machine.excluded
        if changing and self._paused_at is None:
            self._paused_at = self._clock()
            self._on_change(_changing(self._view))
            news = True
        if news:
            self._nudge()
        self._changed.notify_all()


def _changing(view: int) -> ViewChangeError:
    return ViewChangeError(f"view {view} is being followed by another one")
