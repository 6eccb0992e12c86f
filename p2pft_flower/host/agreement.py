"""A host's part in agreeing on views, in real time: one member's state with a clock and a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from p2pft_flower.agreement import gossip
from p2pft_flower.agreement.events import (
    Completed,
    Effect,
    Event,
    Finished,
    Heard,
    Left,
    Missed,
    Reached,
    Rejoining,
    TimePassed,
    Useless,
)
from p2pft_flower.agreement.member import step
from p2pft_flower.agreement.record import Phase
from p2pft_flower.agreement.state import State
from p2pft_flower.errors import Cause
from p2pft_flower.host.notary import Notary
from p2pft_flower.topology.views import View
from p2pft_flower.transport import (
    EdgeBrokenError,
    Gossip,
    Heartbeats,
    Loss,
    PeerLostError,
    Refusals,
    Status,
    ViewChangeError,
)

__all__ = ["Agreement", "LostContactError", "NewView"]

log = logging.getLogger("p2pft_flower")

_END = 5.0
"""Seconds to wait for the thread to end."""


class NewView(NamedTuple):
    """A view that this host has adopted.

    Attributes
    ----------
    number : int
        The view's number.
    view : View
        The view's peers and graph.
    iteration : int
        Number of iterations that count as completed.
    lost : tuple of int
        Peers that were in this host's last view and are not in this one, ascending.
    joined : tuple of int
        Peers of this view that were not in the last one, or are in it in another incarnation, ascending. This
        host's own peers may be among them.
    why : dict of int to str
        By lost peer, this host's first observation that the peer is lost.
    presumed : dict of int to str
        By lost peer of which this host has observed nothing, its presumption of the reason; another host may
        have an observation.
    seconds : float
        Seconds from the moment when this host stopped iterating until it took this view up.
    donor : int or None
        The peer from which this host takes θ, if this view has let it in; None if it was in the last view.
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
    """The host is in no view, and no view with it was agreed on before the deadline, or ever can be."""

    cause = Cause.LOST


class Agreement:
    """Agrees with the other hosts on the next view; all methods may be called from any thread.

    One lock, which every method takes, guards all fields.

    Parameters
    ----------
    state : State
        The first state of this host as a member of the run.
    notary : Notary
        The notary, which writes and reads gossip.
    on_change : callable
        Called when the view begins to change, with an error that wakes all threads that wait.
    interval : float
        Seconds between two looks at the neighbours.
    direct : float
        Seconds for which a host counts as reached after its last word to this host; default 10 (a run gives
        ``peer-timeout``).
    clock : callable
        Returns the time in seconds; default time.monotonic.
    """

    def __init__(
        self,
        state: State,
        notary: Notary,
        *,
        on_change: Callable[[ViewChangeError], None],
        interval: float,
        direct: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._notary, self._direct = state, notary, direct
        self._on_change, self._interval, self._clock = on_change, interval, clock
        self._refusals = Refusals()
        self._member_of = {p: m for m, peers in state.rules.groups.items() for p in peers}
        self._changed = threading.Condition(threading.RLock())
        self._settled = state.view
        """The last view that :meth:`settle` has returned."""
        self._installed = True
        """Whether the host works in the settled view, and looks after the neighbours in this view."""
        self._spoken: dict[int, float] = {}
        """The time at which each member last spoke to this host itself."""
        self._paused_at: float | None = None
        self._contradicted_at: float | None = None
        """The time at which this host learned that two views with one number were decided."""
        self._why: dict[int, str] = {}
        self._heartbeats: Heartbeats | None = None
        self._neighbours: Callable[[], Iterable[int]] = tuple
        self._closed = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._watch, name="p2pft-agreement", daemon=True)

    def start(self, heartbeats: Heartbeats, neighbours: Callable[[], Iterable[int]]) -> None:
        """Start the thread that looks after the neighbours.

        Parameters
        ----------
        heartbeats : Heartbeats
            The heartbeats, which notice lost neighbours and carry the gossip.
        neighbours : callable
            Returns the remote neighbours in the present view.
        """
        with self._changed:
            self._heartbeats, self._neighbours = heartbeats, neighbours
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait for its end, 5 s at most."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_END)
            if self._thread.is_alive():
                log.warning("what looks after the other peers has not ended within %g s", _END)

    # For the heartbeats ------------------------------------------------------------------------------

    def tell(self, remote: int) -> Gossip:
        """Return the gossip for the host of a remote peer."""
        with self._changed:
            return self._notary.write(self._state, self._member_of[remote])

    def contacts(self) -> Mapping[int, int]:
        """Return the members to gossip with, each by its lowest peer, and the local peer that gossips."""
        with self._changed:
            return dict.fromkeys(gossip.contacts(self._state), self._state.me)  # named by its lowest peer

    def hear(self, message: Gossip) -> None:
        """Take in another host's gossip; parts with a fault are logged and not used."""
        with self._changed:
            speaker = self._member_of.get(message.sender)
            heard, wrong = self._notary.read(message, speaker)
            if wrong:
                what = f"{len(wrong)} parts of its gossip are not used; the first: {wrong[0]}"
                self._refusals.note(f"from peer {message.sender}", Status.BAD_HEADER, what)
            if speaker is not None:
                self._spoken[speaker] = self._clock()
            self._take_in(heard)

    # For the training --------------------------------------------------------------------------------

    def complete(self, iterations: int) -> None:
        """Note that ``iterations`` iterations are done.

        Raises
        ------
        ViewChangeError
            If the view changes or has changed: the last iteration does not count.
        """
        with self._changed:
            # If nothing comes from other hosts, nobody wakes this one: the next view may be there already.
            if self._moved or not self._state.trains:
                raise self._view_change()
            self._take_in(Completed(iterations))

    def settle(self, raise_if_stopped: Callable[[], None], on_excluded: Callable[[], None]) -> NewView:
        """Wait until a next view that has this host in it is agreed on, and return this view.

        If the others have gone on without this host, it asks to be let in, again and again.

        Parameters
        ----------
        raise_if_stopped : callable
            Called after each event, and at least once an ``interval``; raises if this host ends.
        on_excluded : callable
            Called each time that this host learns that the others have gone on without it.

        Raises
        ------
        LostContactError
            If there is no agreement before the deadline, or can be none any more, if two views with one
            number were decided, or if nobody has let this host in.
        Exception
            The error of ``raise_if_stopped``, or the error that has ended the thread of this object.
        """
        while True:
            with self._changed:
                while not (self._moved or self._state.excluded):
                    raise_if_stopped()
                    if self._failure is not None:
                        raise self._failure
                    if why := self._state.hopeless:
                        raise LostContactError(why)
                    self._changed.wait(self._interval)
                if self._state.contradiction is not None:
                    raise LostContactError(self._state.expired)
                if not self._state.excluded:
                    return self._new_view()
                if self._state.expired:
                    raise LostContactError(self._state.expired)
            on_excluded()  # takes a moment, in which this host still gossips
            with self._changed:
                self._take_in(Rejoining(self._state.record.iteration))

    @property
    def incarnation(self) -> int:
        """The incarnation of this host as a member."""
        with self._changed:
            return self._state.record.incarnation

    def overdue(self) -> str:
        """Return the reason why this host can no longer be in any view; empty if it still can.

        A host whose gradient does not end never reaches :meth:`settle`, which looks at the deadline itself.
        """
        with self._changed:
            since = self._contradicted_at  # it gives up by itself when its gradient is done
            soon = since is not None and self._clock() - since < self._state.rules.patience
            return "" if soon or self._state.phase in (Phase.FINISHED, Phase.LEFT) else self._state.expired

    def alone_for(self) -> float | None:
        """Return for how many seconds this host has asked to be let in without a word from another member.

        None if it does not ask.
        """
        with self._changed:
            if self._state.phase is not Phase.JOINING:
                return None
            now = self._clock()
            since = now if self._state.joining_since is None else self._state.joining_since
            return now - max([since, *self._spoken.values()])

    @property
    def _moved(self) -> bool:
        """Whether there is a later view than the last one that :meth:`settle` has returned."""
        return self._state.view != self._settled

    def _new_view(self) -> NewView:
        """Return the view that this host has adopted, compared with the view that it was in before."""
        last, here, rules = self._settled, self._state.view, self._state.rules
        view = rules.view(here.members, here.broken)
        joined = rules.peers(m for m in here.members if here.incarnation(m) != last.incarnation(m))
        lost = tuple(sorted(rules.peers(last.members).difference(view.peers)))
        me = self._state.me
        was_there = (
            here.number == last.number + 1 and me in last.members and not joined.issuperset(rules.groups[me])
        )
        now = self._clock()
        why = {p: why for p, why in self._why.items() if p not in view.peers}
        why |= {p: revoked for p in lost if p not in why and (revoked := self._revoked(p))}
        new = NewView(
            here.number,
            view,
            here.iteration,
            lost,
            tuple(sorted(joined)),
            why,
            now - (now if self._paused_at is None else self._paused_at),
            here.donor(me),
            {p: self._presume(p) for p in lost if p not in why} if was_there else {},
        )
        self._settled, self._installed, self._why = here, False, {}
        # The view may change again by now: `recheck` notices that.
        changes = self._state.phase is Phase.CHANGING or self._state.excluded
        self._paused_at = now if changes else None
        return new

    def _revoked(self, peer: int) -> str:
        """Return why nobody may speak with ``peer`` whose certificate was revoked; empty if it was not."""
        return "" if self._heartbeats is None else self._heartbeats.revoked(peer)

    def _presume(self, peer: int) -> str:
        """Return the likely reason why the new view is without ``peer``, which this host has not missed."""
        number, r = self._state.view.number, self._state.records.get(self._member_of[peer])
        if r is not None and r.view == self._settled.number and r.phase is Phase.CHANGING:
            return (
                f"peer {peer} was too late for agreeing on view {number}, or the links that work do "
                "not connect it with the others"
            )
        return f"peer {peer} took no part in agreeing on view {number}, and was waited for no longer"

    def finish(self, timeout: float, raise_if_stopped: Callable[[], None]) -> bool:
        """Wait until all other members have done all iterations.

        Parameters
        ----------
        timeout : float
            Seconds to wait after the last message of a member that still trains. Such a member needs this
            host only for its vote, if another member is lost.
        raise_if_stopped : callable
            Called after each event, and at least once an ``interval``; raises if this host ends.

        Returns
        -------
        bool
            False if the view changes first; True if all have finished, or ``timeout`` is over.

        Raises
        ------
        LostContactError
            If two views with one number were decided.
        """
        with self._changed:
            end = self._clock() + timeout
            if self._moved or not self._state.trains:
                return False
            self._take_in(Finished())
            while not self._state.all_finished and self._clock() < end:
                raise_if_stopped()
                if self._failure is not None:
                    raise self._failure
                if self._state.phase is not Phase.FINISHED:
                    return False
                if self._state.contradiction is not None:
                    break
                self._changed.wait(min(self._interval, max(0.0, end - self._clock())))
                still = [self._spoken[m] for m in self._state.unfinished if m in self._spoken]
                end = max([end, *(spoken + timeout for spoken in still)])
            if self._state.contradiction is not None:
                raise LostContactError(self._state.expired)
        return True

    def recheck(self) -> None:
        """Begin to look after the neighbours in the view that this host has installed.

        If this view has begun to change meanwhile, wake all threads that wait in it.
        """
        with self._changed:
            self._installed = True
            if self._paused_at is not None:
                self._on_change(self._view_change())

    def miss(self, loss: PeerLostError) -> None:
        """Note that a peer is lost, so that the view changes."""
        with self._changed:
            member = self._member_of[loss.lost]
            for peer in self._state.rules.groups[member]:
                self._why.setdefault(peer, loss.reason)
            self._take_in(Missed(member, loss.how is Loss.HANGING))

    def do_without(self, broken: EdgeBrokenError) -> None:
        """Note that an edge carries no payloads: the next view keeps its receiver, but not the edge.

        An error that names no edge is ignored.
        """
        with self._changed:
            if broken.edge is None:
                return
            before = self._state.useless
            self._take_in(Useless(broken.edge))
            if self._state.useless != before:
                log.warning("the graph is to do without an edge: %s", broken)

    def spares(self, least: int) -> bool:
        """Tell whether the others can go on without this host: a quorum with ``least`` peers or more."""
        with self._changed:
            return self._state.spares(least)

    def leave(self, reason: str) -> None:
        """Note that this host leaves; gossip tells the others, which need not wait until it is silent."""
        with self._changed:
            self._take_in(Left(reason))

    # Its own thread ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            while True:
                with self._changed:
                    if self._changed.wait_for(lambda: self._closed, self._interval):
                        return
                    # In a change too: a member that all its neighbours miss is not waited for. Between two
                    # views the neighbours are still those of the old one.
                    phases = (Phase.RUNNING, Phase.CHANGING, Phase.FINISHED)
                    looks = self._state.phase in phases and self._installed and not self._moved
                    heartbeats = self._heartbeats
                if looks and heartbeats is not None:
                    self._look_after(heartbeats)
                with self._changed:
                    self._reach()
                    self._take_in(TimePassed())
        except Exception as error:
            log.exception("looking after the other peers failed")
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            self._on_change(self._view_change())

    def _look_after(self, heartbeats: Heartbeats) -> None:
        """Note each neighbour that is lost, without waiting for any of them."""
        for peer in tuple(self._neighbours()):
            loss = heartbeats.absence(peer)
            with self._changed:
                if self._closed or not self._installed or self._moved:
                    return  # the neighbours are of an earlier view by now
                if loss is not None:
                    self.miss(loss)

    def _reach(self) -> None:
        """While this host asks to be let in, note the members that have spoken to it directly."""
        if self._state.phase is not Phase.JOINING:
            return
        now, since = self._clock(), self._state.joining_since
        reached = {m for m, when in self._spoken.items() if now - when <= self._direct}
        # The next graph is without the edges to members that a joining host does not reach, so it first tries
        # to reach all its neighbours.
        tried = since is not None and now - since >= self._direct / 2
        if tried or reached.issuperset(gossip.near(self._state)):
            self._take_in(Reached(tuple(sorted(reached))))

    def _take_in(self, event: Event) -> None:
        """Go to the state after ``event``, and carry out its effects."""
        self._state, effects = step(self._state, event, self._clock())
        if self._state.contradiction is not None and self._contradicted_at is None:
            self._contradicted_at = self._clock()
        self._note_departures()
        for effect in effects:
            match effect:
                case Effect.TELL:
                    # While it trains, others pass on the news of members that change; a host that leaves
                    # gossips with all itself.
                    trains = isinstance(event, Heard) and self._state.phase is Phase.RUNNING
                    if not trains and not isinstance(event, Left):
                        self._nudge()
                case Effect.PAUSE:
                    if self._paused_at is None:
                        self._paused_at = self._clock()
                        self._on_change(self._view_change())
                        self._nudge()
        self._changed.notify_all()

    def _note_departures(self) -> None:
        for member in self._state.view.members:
            r = self._state.records.get(member)
            if r is not None and r.phase is Phase.LEFT:
                for peer in self._state.rules.groups[member]:
                    self._why.setdefault(peer, f"it has left: {r.reason}")

    def _nudge(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.nudge()

    def _view_change(self) -> ViewChangeError:
        return ViewChangeError(f"view {self._settled.number} is being followed by another one")
