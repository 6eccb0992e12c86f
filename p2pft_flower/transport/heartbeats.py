"""Heartbeats between neighbours, and the rule that distinguishes a slow peer from a lost one.

Each host gossips with each host that has neighbours of its peers, in both directions of the edges, every
min(1 s, silence / 8), on connections apart from those of payloads. A gossip carries a *pulse*: the host's
activity, and a number that changes whenever it got further. A caller that waits for a peer asks
`Heartbeats.absence`, which answers None as long as there is a point in waiting:

silent
    Nothing has been heard of the peer for ``silence`` seconds (run-config ``peer-timeout``): no gossip of its
    own, no answer to ours, no payload. One fresh connection to its address is tried then, for 2 s in all,
    and the answer of the operating system tells the cases apart. Nobody waits for it: until it is there, the
    peer is not lost yet.

    - refused, or no such socket: *crashed*, nothing listens there any more;
    - taken: *silent*, its process is stopped (SIGSTOP) or hangs as a whole, its machine takes connections;
      but *cut off* if there is no TLS, such as for want of a valid certificate: the reason is then named;
    - none, or no way there, or no word from the name service: *cut off*, its address cannot be reached: the
      link or the machine is down.

hanging
    The peer speaks, is at COMPUTING or EVALUATING, and its number of progress has been seen to be the same
    for longer than 20 × the longest time that it has ever been the same at this activity, but no less than
    ``silence`` and no more than ``hang`` seconds (run-config ``hang-timeout``); ``hang`` before there was any
    such time. If ``hang`` is less than ``silence``, ``silence`` counts. More than silence / 2 seconds between
    two of its pulses count as one beat: it may have been suspended, and then it could not get further.

revoked
    Its certificate was revoked while this host ran, and it has not been heard of since: it cannot be, as long
    as it has no new one. This is noticed at once.

A peer that is WAITING, PAUSED or FINISHED does not hang: those that it waits for may. Time is
`time.monotonic`, so nobody is lost because a clock was set. A host that did not run itself for more than
silence / 2 (SIGSTOP, a laptop that slept) has heard nobody meanwhile, through no fault of theirs: from when
it runs again, it grants all of them ``silence`` seconds anew.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.knock import begin_attempt, knock
from p2pft_flower.transport.links import Links
from p2pft_flower.transport.pulse import Clock
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import (
    ExchangeError,
    ExchangeStoppedError,
    Loss,
    OtherRunError,
    PeerLostError,
    RevokedError,
)

__all__ = ["Heartbeats"]

log = logging.getLogger(__name__)

_TIMES_SLOWEST = 20.0
"""Multiple of its longest time without progress that a peer may take to get further; then it hangs."""

_END = 5.0
"""Seconds that the thread has to end."""

_BUSY = {pb.Pulse.COMPUTING: "computing", pb.Pulse.EVALUATING: "evaluating"}
"""Activities at which a peer can hang, in words."""


@dataclass
class _Remote:
    """One remote neighbour's state, as far as it is known; guarded by the heartbeats' lock."""

    heard: float
    """Time at which the neighbour was last heard of, by this host's clock."""
    pulsed: float
    """Time at which the neighbour's last pulse came."""
    moved: float
    """Time at which the last pulse with progress came."""
    pulse: pb.Pulse | None = None
    failure: str = ""
    """The problem, in words, of the last gossip with the neighbour; empty if that did not fail."""
    attempt: Future[tuple[Loss, str]] | None = None
    """The connection attempt of this silence; None again when the neighbour is heard of."""
    met: float = -math.inf
    """Time at which the neighbour's last gossip came."""


class Heartbeats(Closing):
    """Gossips with every remote neighbour of the links' view, and decides which of them are lost.

    A context manager; `start` it when the server listens. ``_lock`` guards all that is known of the remote
    peers, the sets of those to be gossiped with, and ``_failure``.

    Parameters
    ----------
    links : Links
        The way to the neighbours; a view installed there is followed from the next beat on.
    contacts : callable, optional
        Returns further remote members to gossip with, and the local peer that speaks to each; whether these
        are lost is not judged.
    silence : float
        Seconds without a word after which a neighbour is lost (run-config ``peer-timeout``).
    hang : float
        Most seconds that a neighbour may compute without getting further (run-config ``hang-timeout``).
    pulse : callable
        Returns this host's pulse: `OwnPulse.read`.
    tell : callable
        Given a remote peer, returns the gossip for that peer, to which the pulse is added here. Called in any
        thread; must return soon.
    hear : callable
        Gets every gossip that comes in, and the answers to this host's gossip, in a thread of the server or
        in that of the heartbeats; must return soon.
    clock : callable
        The time in seconds; default time.monotonic, which no setting of the wall clock moves.
    on_failure : callable, optional
        Gets the error that ended the heartbeats, in their thread or the network's; must return at once.
        Default: only `absence` raises it.
    host_of : callable
        Given a remote peer, returns the peer by which its host is called: a word from one peer of a host
        counts for all peers of that host. Default: each peer has a host of its own.
    attempt : callable
        Given the address of a silent peer, returns how the peer was lost, and the observation in words;
        called in a thread of its own, must come to an end; default `knock`.

    Attributes
    ----------
    interval : float
        Seconds between two beats.
    """

    def __init__(
        self,
        links: Links,
        silence: float,
        hang: float,
        *,
        pulse: Callable[[], pb.Pulse],
        tell: Callable[[int], pb.Gossip],
        hear: Callable[[pb.Gossip], None],
        contacts: Callable[[], Mapping[int, int]] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        clock: Clock = time.monotonic,
        host_of: Callable[[int], int] = lambda peer: peer,
        attempt: Callable[[str], tuple[Loss, str]] = knock,
    ) -> None:
        self.interval = min(1.0, silence / 8)
        self._links, self._silence, self._hang = links, silence, hang
        self._pulse, self._tell, self._hear, self._contacts = pulse, tell, hear, contacts
        self._clock, self._attempt, self._host_of = clock, attempt, host_of
        self._lock = threading.Lock()
        self._remotes: dict[int, _Remote] = {}
        self._ran = clock()
        self._wanted: dict[int, bool] = {}
        """The members to gossip with next, and whether also if there is no news for them."""
        self._under_way: set[int] = set()
        self._elsewhere: set[int] = set()
        """The members whose last answer was that they are of another run."""
        # Answers to be heard; None: there is something to send, or to end.
        self._inbox: SimpleQueue[pb.Gossip | None] = SimpleQueue()
        self._closed = threading.Event()
        self._on_failure = on_failure
        self._attempts: list[Future[tuple[Loss, str]]] = []
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="p2pft-heartbeats", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def nudge(self) -> None:
        """Gossip at once with all neighbours for which there are new records; do not wait for the answers."""
        targets = self._targets()
        with self._lock:
            self._wanted |= dict.fromkeys(targets.keys() - self._wanted.keys(), False)
        self._inbox.put(None)

    def heard(self, remote: int) -> None:
        """Note that a message, such as a payload, came from a remote peer."""
        with self._lock:
            self._note_heard(remote)

    def speaks(self, remote: int) -> bool:
        """Return whether a remote peer was heard of within the last ``silence`` / 2 seconds."""
        with self._lock:
            known = self._remotes.get(self._host_of(remote))
            return known is not None and self._clock() - known.heard < self._silence / 2

    def spoken(self, remote: int) -> float | None:
        """Return the seconds since a remote peer was last heard of; None if it is no neighbour, or before."""
        with self._lock:
            known = self._remotes.get(self._host_of(remote))
            return None if known is None or known.pulse is None else self._clock() - known.heard

    def elsewhere(self, remote: int) -> bool:
        """Return whether the last answer to gossip with a remote peer was that it is of another run."""
        with self._lock:
            return self._host_of(remote) in self._elsewhere

    def answer(self, gossip: pb.Gossip) -> pb.Gossip:
        """Take a member's gossip in and return the answer; for `PeerServer`."""
        self._take(gossip)
        self._hear(gossip)
        return self._message(gossip.sender)

    def pulse_of(self, remote: int) -> pb.Pulse | None:
        """Return the last pulse of a remote neighbour; None before there was one."""
        with self._lock:
            known = self._remotes.get(self._host_of(remote))
            return None if known is None else known.pulse

    def absence(self, remote: int) -> PeerLostError | None:
        """Return the error of a lost neighbour, by the module's rule; None as long as it is not lost.

        None also for a peer that is no neighbour in the links' present view. Returns at once: one connection
        is tried in each silence, in the background, and until its result is there, for 2 s at most, the
        answer is None.

        Raises
        ------
        Exception
            The error that ended the heartbeats or the connection attempt, if one did: without these nobody
            can be judged.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
        try:
            edge = self._links.edges.edge_with(remote)
        except ValueError:  # another view was installed since it was asked for
            return None
        with self._lock:
            now = self._clock()
            self._notice_a_pause(now)
            known = self._known(self._host_of(remote))
            silent = now - known.heard >= self._silence
            hanging = None if silent else self._hanging(known)
            if silent and known.attempt is None:
                known.attempt = begin_attempt(
                    self._links.address_of(remote), self._attempt, partial(self._links.no_tls_with, remote)
                )
                self._attempts.append(known.attempt)
            attempt = known.attempt
            revoked = self._revocation(remote, known)
        limit: float | None = None
        if revoked is not None:
            if now - revoked[0] < 2 * self.interval:  # a neighbour with a new certificate has not spoken yet
                return None
            how, problem = Loss.REVOKED, revoked[1]
        elif hanging is not None:
            how, (limit, problem) = Loss.HANGING, hanging
        elif not silent or attempt is None or not attempt.done():
            return None
        else:
            how, what = attempt.result()
            with self._lock:
                if known.attempt is not attempt:  # it was heard of meanwhile
                    return None
                since = self._clock() - known.heard
                problem = f"{what}; nothing was heard from it for {since:.0f} s"
                log.debug("what was last known of peer %d: %s", remote, _last(known))
            limit = self._silence
        return PeerLostError(
            problem,
            lost=remote,
            how=how,
            peer=edge[0] if remote == edge[1] else edge[1],
            edge=edge,
            deadline=limit,
        )

    def revoked(self, remote: int) -> str:
        """Return why a peer is refused whose certificate was revoked while this host ran; empty of others.

        Empty also if it was heard of since, with a new certificate.
        """
        with self._lock:
            revoked = self._revocation(remote, self._remotes.get(self._host_of(remote)))
        return "" if revoked is None else f"{Loss.REVOKED.value}: {revoked[1]}"

    def _revocation(self, remote: int, known: _Remote | None) -> tuple[float, str] | None:
        """Return when a peer's certificate was revoked, and a sentence; None of a peer that has a later one.

        Gossip that comes after the list proves a later certificate, as the server refuses the revoked one.
        What was under way proves nothing: gossip may be for a moment, a payload until it is taken.
        """
        revoked = self._links.revoked(remote)
        if revoked is None or (known is not None and known.met > revoked[0] + self.interval / 2):
            return None
        return revoked

    def beat(self) -> None:
        """Gossip with all neighbours but those that still must answer; the thread does so each interval."""
        neighbours = self._targets()
        with self._lock:
            self._notice_a_pause(self._clock())
            for gone in self._remotes.keys() - neighbours.keys():
                del self._remotes[gone]
            for remote in neighbours:
                self._known(remote)
            self._wanted |= dict.fromkeys(neighbours, True)
        self._send_due()

    def close(self) -> None:
        """Stop beating; gossip that is under way is answered, or cancelled when the links close."""
        self._closed.set()
        self._inbox.put(None)
        with self._lock:
            attempts = [*self._attempts]
        if self._thread.is_alive():
            self._thread.join(_END)
            if self._thread.is_alive():
                log.warning("the heartbeats have not ended within %g s: what hears gossip is busy", _END)
        wait(attempts, _END)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self.beat()
                self._hear_until(time.monotonic() + self.interval)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Note ``error`` and tell ``on_failure``: a host that cannot beat would wait for ever."""
        log.error("the heartbeats failed: %s: %s", type(error).__name__, error)
        with self._lock:
            self._failure = self._failure or error
        if self._on_failure is not None:
            self._on_failure(error)

    def _hear_until(self, next_beat: float) -> None:
        while (
            not self._closed.is_set() and (left := next_beat - time.monotonic()) > 0
        ):  # however full the inbox is
            with self._lock:
                self._notice_a_pause(self._clock())
            try:
                gossip = self._inbox.get(timeout=left)
            except Empty:
                return
            if gossip is None:
                self._send_due()
            else:
                self._hear(gossip)

    def _targets(self) -> dict[int, int]:
        """Return the local peer that speaks to each host to gossip with, by one peer of that host."""
        further = {} if self._contacts is None else self._contacts()
        neighbours = self._links.neighbours
        hosts = {self._host_of(remote): local for remote, local in reversed(neighbours.items())}
        return {**further, **hosts}

    def _message(self, remote: int) -> pb.Gossip:
        message = self._tell(remote)
        message.pulse.CopyFrom(self._pulse())
        return message

    def _send_due(self) -> None:
        neighbours = self._targets()
        with self._lock:
            now = neighbours.keys() & (self._wanted.keys() - self._under_way)
            due = {remote for remote in now if self._wanted[remote]}
            self._wanted = {r: always for r, always in self._wanted.items() if r in self._under_way}
            self._under_way |= now
        if self._closed.is_set():
            return
        for remote in sorted(now):
            message = self._message(remote)
            if remote not in due and not message.records and not message.steps:
                with self._lock:
                    self._under_way.discard(remote)
                continue
            message.sender = neighbours[remote]
            try:
                # If a link is cut, an answer never comes: try again within the silence.
                future = self._links.start_gossip(remote, message, self._silence / 4)
            except ExchangeStoppedError:  # the links are closed, and with them this ends
                return
            future.add_done_callback(partial(self._answered, remote))

    def _answered(self, remote: int, future: Future[pb.Gossip | ExchangeError]) -> None:
        """Note the outcome of a gossip (in the network's thread, which must not call ``hear`` itself)."""
        try:
            answer = future.result()
        except CancelledError:  # the links were closed
            return
        except Exception as error:
            self._fail(error)
            return
        if isinstance(answer, pb.Gossip):
            self._take(answer)
        with self._lock:
            self._under_way.discard(remote)
            more = remote in self._wanted
            if isinstance(answer, OtherRunError):
                self._elsewhere.add(remote)
            else:
                self._elsewhere.discard(remote)
            if isinstance(answer, ExchangeError) and (known := self._remotes.get(remote)) is not None:
                known.failure = answer.problem
        if isinstance(answer, pb.Gossip):
            self._inbox.put(answer)
        if more:
            self._inbox.put(None)
        if isinstance(answer, RevokedError):  # nobody will take anything from this host any more
            self._fail(answer)

    def _take(self, gossip: pb.Gossip) -> None:
        """Note that the sender of ``gossip`` was heard of, and the sender's progress."""
        with self._lock:
            if (known := self._note_heard(gossip.sender)) is None:
                return
            known.failure, known.met = "", known.heard
            if not gossip.HasField("pulse"):
                return
            before, since = known.pulse, known.heard - known.pulsed
            known.pulse, known.pulsed = gossip.pulse, known.heard
            if before is None or _place(before) != _place(gossip.pulse):
                known.moved = known.heard
            elif since > self._silence / 2:
                known.moved += since - self.interval

    def _note_heard(self, remote: int) -> _Remote | None:
        known = self._remotes.get(self._host_of(remote))
        if known is not None:
            known.heard, known.attempt = self._clock(), None
        return known

    def _known(self, remote: int) -> _Remote:
        now = self._clock()
        return self._remotes.setdefault(remote, _Remote(now, now, now))

    def _notice_a_pause(self, now: float) -> None:
        """Grant every neighbour a fresh silence if this host itself has not run for a while."""
        if now - self._ran > self._silence / 2:
            for known in self._remotes.values():
                known.heard = known.pulsed = known.moved = now
                known.attempt = None
        self._ran = now

    def _hanging(self, known: _Remote) -> tuple[float, str] | None:
        """Return the limit, in seconds, and the observation if a neighbour hangs; None if it does not."""
        pulse = known.pulse
        if pulse is None or (doing := _BUSY.get(pulse.activity)) is None:
            return None
        usual = _TIMES_SLOWEST * pulse.slowest if pulse.slowest > 0 else self._hang
        limit = max(self._silence, min(usual, self._hang))
        # As seen: its progress since its last pulse is not known.
        stuck = known.pulsed - known.moved
        if stuck <= limit:
            return None
        longest = f", for which it has taken {pulse.slowest:.3g} s at most" if pulse.slowest > 0 else ""
        return limit, (
            f"it hangs in its own computation: {doing} since {pulse.busy:.0f} s, without getting further for "
            f"{stuck:.0f} s{longest}; it has completed {pulse.iteration} iterations"
        )


def _place(pulse: pb.Pulse) -> tuple[int, int, int, int]:
    return pulse.view, pulse.iteration, pulse.activity, pulse.progress


def _last(known: _Remote) -> str:
    """Return the last known state of a peer, in words."""
    told = "nothing" if known.pulse is None else f"it had completed {known.pulse.iteration} iterations"
    return told + (f"; the last try to reach it said: {known.failure}" if known.failure else "")
