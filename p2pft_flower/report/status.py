"""The state of a run while it lasts: who is slow, who is lost, is the result at risk, when is it done.

It is made of the bulletins of this machine's processes (:mod:`p2pft_flower.keeping.bulletins`): at a site
what its host knows from gossip, at the coordinator what the peers report, in a simulation both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import msgspec

from p2pft_flower.agreement.quorum import is_quorum
from p2pft_flower.errors import called
from p2pft_flower.keeping.bulletins import Bulletin, PeerNow
from p2pft_flower.keeping.lines import Stall, ViewChange
from p2pft_flower.report.stand_stills import StandStill, all_stood_still, longest

__all__ = ["PeerStatus", "RunStatus", "hosts_of", "knows_most", "reason_of", "status_of"]

_QUIET = 5.0
"""Seconds without a word after which a neighbour counts as silent, unless ``peer-timeout`` is short."""

_SPEAKS = 3.0
"""Seconds without a word after which a peer is called slow no more; each tells its state every second."""

_BETWEEN = ("changing", "preparing", "unknown")
"""States in which a peer trains in no view."""

_USUAL = 10.0
"""Multiple of the usual time of an iteration after which a peer that is waited for counts as slow."""


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one peer.

    Attributes
    ----------
    peer : int
        The peer.
    name : str
        Its name; empty if it has none.
    state : str
        ``lost``, ``ended`` (its process was killed), ``stopped`` (of a run that is over), ``silent``,
        ``slow``, or what it does, as in :class:`~p2pft_flower.keeping.bulletins.PeerNow`; ``unknown`` before
        anything was heard of it.
    since : float or None
        Seconds for which it has been in this state; None if that is not known.
    why : str
        The reason, in words; empty if there is nothing to explain.
    iteration : int
        Number of iterations that it has completed, as far as it is known.
    rate : float
        Iterations a second, of late; 0 if it is not known.
    awaited : int or None
        The peer whose payload it waits for.
    contact : float or None
        Seconds since its last word, by any way; None if there was none.
    evaluated, loss, accuracy, accuracy_unseen, bytes_sent
        As in :class:`~p2pft_flower.keeping.bulletins.PeerNow`.
    """

    peer: int
    name: str
    state: str
    since: float | None
    why: str
    iteration: int
    rate: float
    awaited: int | None
    contact: float | None
    evaluated: int | None
    loss: float | None
    accuracy: float | None
    accuracy_unseen: float | None
    bytes_sent: int

    @property
    def called(self) -> str:
        """The peer's number, with its name."""
        return called(self.peer, {self.peer: self.name} if self.name else {})


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a run.

    Attributes
    ----------
    run : str
        The run's identifier.
    from_gossip : bool
        Whether a peer of this machine knows all this; False: the coordinator, from the peers' reports.
    peers : tuple of PeerStatus
        All peers, ascending.
    iteration, iterations : int
        Number of iterations that each training peer has completed, and of the run.
    view : int
        The number of the present view.
    views : tuple of ViewChange
        The changes of view.
    stalls : tuple of Stall
        When peers waited unusually long, and for whom; what is over.
    stand_stills : tuple of StandStill
        When all hosts of the view waited, and for whom, as far as the waits that are known here show it.
    consensus_error : float or None
        An estimate of the peers' distance from their mean, after their last evaluation.
    left : float or None
        Seconds to the end at the present rate; None if that is not known.
    at_risk : bool
        Whether the result may lack a peer's part, or never come.
    risk : str
        The sentence on that.
    folder : str
        The run's folder on this machine.
    """

    run: str
    from_gossip: bool
    peers: tuple[PeerStatus, ...]
    iteration: int
    iterations: int
    view: int
    views: tuple[ViewChange, ...]
    stalls: tuple[Stall, ...]
    stand_stills: tuple[StandStill, ...]
    consensus_error: float | None
    left: float | None
    at_risk: bool
    risk: str
    folder: str


def status_of(bulletins: Sequence[Bulletin], now: float) -> RunStatus:
    """Return the state of one run.

    Parameters
    ----------
    bulletins : sequence of Bulletin
        The bulletins of the run's processes on this machine; at least one.
    now : float
        The time, Unix seconds.
    """
    best = knows_most(bulletins)
    told = _newest(bulletins, now)
    slow = _slow(told, best)
    peers = tuple(_peer_status(p, told[p], bulletins, best, slow, now) for p in told)
    training = [p for p in peers if p.peer in best.live and p.state not in ("lost", "ended")]
    # Who is about to take a view up, as one that comes back, has not yet what it goes on from.
    done = min((p.iteration for p in training if p.state not in _BETWEEN), default=None)
    if done is None:
        done = min((p.iteration for p in training if p.state != "unknown"), default=None)
    if done is None:  # as where a peer is about to come back: so far the run was at least when it was lost
        done = max((p.iteration for p in peers), default=0)
    at_risk, risk = _risk(best, peers)
    stalls = _stalls(bulletins)
    apart = [b for b in bulletins if b.consensus_error is not None]  # the coordinator's: it has the sketches
    return RunStatus(
        run=best.run,
        from_gossip=bool(best.own),
        peers=peers,
        iteration=done,
        iterations=best.iterations,
        view=_view(best),
        views=best.views,
        stalls=tuple(longest(stalls)),
        stand_stills=tuple(all_stood_still(stalls, hosts_of(best), best.views)),
        consensus_error=None if not apart else max(apart, key=lambda b: b.written).consensus_error,
        left=_left([p for p in peers if p.peer in best.live], best.iterations - done),
        at_risk=at_risk,
        risk=risk,
        folder=best.folder,
    )


def knows_most(bulletins: Sequence[Bulletin]) -> Bulletin:
    """Return the bulletin of the process that knows most of the run: it lives, and is in the newest view.

    Of several, one that has seen more views: a process that came back has not seen those before.
    """
    return max(bulletins, key=lambda b: (b.alive, _view(b), len(b.views), bool(b.own), b.written))


def _stalls(bulletins: Sequence[Bulletin]) -> list[Stall]:
    """Return the waits of all hosts: of those of this machine by their own word, of others once each.

    Each process here has heard of the others' waits by itself; the one that has heard of most tells them.
    """
    here = {p for b in bulletins for p in b.own}
    own = [s for b in bulletins for s in b.stalls if s.peer in b.own]
    return own + max(([s for s in b.stalls if s.peer not in here] for b in bulletins), key=len)


def _view(bulletin: Bulletin) -> int:
    """Return the number of the view that a process is in."""
    return bulletin.views[-1].number if bulletin.views else 0


def hosts_of(bulletin: Bulletin) -> tuple[tuple[int, ...], ...]:
    """Return the peers of each host; of an earlier version's bulletin, which has none, each peer alone."""
    return bulletin.hosts or tuple((p.peer,) for p in bulletin.peers)


def _newest(bulletins: Sequence[Bulletin], now: float) -> dict[int, PeerNow]:
    """Return what is known of each peer, ascending, from the bulletin with its latest news, as of ``now``."""
    known: dict[int, list[PeerNow]] = {}
    for b in bulletins:
        passed = max(0.0, now - b.written)
        for p in b.peers:
            heard = None if p.heard is None else p.heard + passed
            spoken = None if p.spoken is None else p.spoken + passed
            aged = msgspec.structs.replace(p, heard=heard, spoken=spoken, busy=p.busy + (heard or 0.0))
            known.setdefault(p.peer, []).append(aged)
    newest = {}
    for peer, told in sorted(known.items()):
        latest = min(told, key=lambda p: math.inf if p.heard is None else p.heard)
        if latest.evaluated is None:  # a process that begins anew does not know the scores of the one before
            latest = _scored_as(latest, max(told, key=lambda p: p.evaluated or 0))
        spoken = min((p.spoken for p in told if p.spoken is not None), default=None)
        newest[peer] = msgspec.structs.replace(latest, spoken=spoken)
    return newest


def _scored_as(now: PeerNow, scored: PeerNow) -> PeerNow:
    """Return ``now`` with the scores of ``scored``."""
    keys = ("evaluated", "loss", "accuracy", "accuracy_unseen", "bytes_sent")
    return msgspec.structs.replace(now, **{key: getattr(scored, key) for key in keys})


def _quiet(now: PeerNow, best: Bulletin) -> float | None:
    """Return the seconds for which nothing was heard of a peer, if that is unusual; None if it is not.

    A peer that has finished has gone, and says nothing more.
    """
    if now.state == "finished":
        return None
    quiet = now.spoken if now.spoken is not None else now.heard
    # News of a peer that is no neighbour comes by others, from each to the next with a beat.
    patience = min(_QUIET, best.silence / 2) + (0 if now.spoken is not None or now.heard is None else best.n)
    return quiet if quiet is not None and quiet > patience else None


def _contact(now: PeerNow) -> float | None:
    """Return the seconds since a peer's last word, by any way; None if there was none."""
    return min((s for s in (now.heard, now.spoken) if s is not None), default=None)


def _slow(told: dict[int, PeerNow], best: Bulletin) -> dict[int, tuple[int, float]]:
    """Return who waits unusually long for each slow peer, and for how long; the longest of several.

    If a peer waits for one that waits itself, the last of this chain is the slow one. What a silent peer
    said last is no news.
    """
    slow: dict[int, tuple[int, float]] = {}
    awaits = {p: now.awaited for p, now in told.items() if p in best.live and _quiet(now, best) is None}
    for p, awaited in awaits.items():
        now = told[p]
        if awaited is None or now.busy < max(_QUIET, _USUAL / now.rate if now.rate else 0):
            continue
        root, seen = awaited, {p}
        while root not in seen and (further := awaits.get(root)) is not None:
            seen.add(root)
            root = further
        # Words of different ages can seem to wait for each other: then nobody is the one. And who has not
        # spoken of late is no slow peer, but perhaps one that will be silent.
        speaks = (_contact(told[root]) or 0.0) <= _SPEAKS
        if root not in seen and speaks and (root not in slow or slow[root][1] < now.busy):
            slow[root] = p, now.busy
    return slow


def _peer_status(
    peer: int,
    now: PeerNow,
    bulletins: Sequence[Bulletin],
    best: Bulletin,
    slow: dict[int, tuple[int, float]],
    time_now: float,
) -> PeerStatus:
    contact = _contact(now)
    own = next((b for b in bulletins if peer in b.own), None)
    since: float | None = now.busy
    state, why = now.state or "unknown", ""
    quiet = _quiet(now, best)
    if peer not in best.live:
        change = next((v for v in reversed(best.views) if peer in v.lost), None)
        state = "lost"
        gone = next((b.gone[peer] for b in (best, *bulletins) if peer in b.gone), None)
        since = _gone_for(contact, change, time_now) if gone is None else max(0.0, time_now - gone)
        why = "" if change is None else reason_of(bulletins, change, peer)
        if own is not None and own.alive and since is not None and time_now - own.begun < since:
            why = "; ".join(filter(None, (why, _coming_back(own, time_now))))
    elif own is not None and not own.alive:
        state, since = "ended", time_now - own.written
        why = f"its process {own.pid} here was killed, or its machine was started again"
    elif quiet is not None:
        state, since = "silent", quiet
        why = f"lost after {best.silence:g} s without a word (peer-timeout)" if best.on_failure else ""
        if own is not None and time_now - own.begun < quiet:  # it is not the process that has fallen silent
            why = "; ".join(filter(None, (_coming_back(own, time_now), why)))
        elif own is not None:
            why = "; ".join(filter(None, (f"its process {own.pid} here lives, but stands still", why)))
    elif peer in slow:
        waiting, seconds = slow[peer]
        spoke = "" if contact is None else f"; it spoke {contact:.0f} s ago, so it is not lost yet"
        why = f"{called(waiting, best.names)} has waited {seconds:.0f} s for it{spoke}"
        state = "slow"
    elif state == "preparing":
        why = now.doing
    elif now.awaited is not None:
        why = f"for {called(now.awaited, best.names)}"
    return PeerStatus(
        peer=peer,
        name=best.names.get(peer, ""),
        state=state,
        since=None if since is None or state == "unknown" else max(0.0, since),  # a clock may be set back
        why=why,
        iteration=now.iteration,
        rate=now.rate,
        awaited=now.awaited,
        contact=contact,
        evaluated=now.evaluated,
        loss=now.loss,
        accuracy=now.accuracy,
        accuracy_unseen=now.accuracy_unseen,
        bytes_sent=now.bytes_sent,
    )


def _coming_back(own: Bulletin, now: float) -> str:
    """Return since when a new process of this machine asks to be let in."""
    return f"it has been coming back for {now - own.begun:.0f} s (p2pft rejoin, process {own.pid})"


def _gone_for(contact: float | None, change: ViewChange | None, now: float) -> float | None:
    """Return the seconds since a lost peer's last word, which came before the others agreed on its loss."""
    agreed = None if change is None else now - change.time
    return agreed if contact is None or agreed is None else max(contact, agreed)


def reason_of(bulletins: Sequence[Bulletin], change: ViewChange, peer: int) -> str:
    """Return why a peer was lost; of what the processes here have seen, always the same that says most."""
    told = [v for b in bulletins for v in b.views if v.number == change.number]
    seen = {v.why[peer] for v in told if peer in v.why} or {v.presumed.get(peer, "") for v in told}
    return max(seen, key=lambda reason: (len(reason), reason))


def _left(training: Sequence[PeerStatus], iterations: int) -> float | None:
    """Return the seconds to the end; peers go in step, so the slowest one's rate is that of all.

    None if that is not known, as while they wait for one that is slow, silent or gone: then they stand still.
    """
    if iterations == 0:
        return 0.0
    if any(p.state in ("slow", "silent", "ended") for p in training):
        return None
    rates = [p.rate for p in training if p.state not in ("unknown", "preparing", "finished")]
    return iterations / min(rates) if rates and min(rates) > 0 else None


def _risk(best: Bulletin, peers: Sequence[PeerStatus]) -> tuple[bool, str]:
    """Tell whether the result is at risk, and why, in a sentence."""
    gone = [p.called for p in peers if p.peer not in best.live]
    killed = [p.called for p in peers if p.state == "ended" and p.peer in best.live]
    silent = [p.called for p in peers if p.state == "silent"]
    there = len(best.live) - sum(p.state == "ended" and p.peer in best.live for p in peers)
    if all(p.state == "unknown" for p in peers):
        return False, "Nothing has been heard of the peers yet."
    parts = []
    if gone and all(p.state == "unknown" for p in peers if p.peer in best.live):
        return True, (
            f"The result is at risk: {_listed(gone)} {_is(gone)} gone, and nothing has been heard of the "
            "other peers yet."
        )
    if gone:
        parts.append(
            f"{_listed(gone)} {_is(gone)} gone: {there} of {best.n} peers go on, and learn nothing more from "
            f"the images there unless p2pft rejoin brings {'it' if len(gone) == 1 else 'them'} back"
        )
    if killed:
        parts.append(
            f"{_listed(killed)} {'was' if len(killed) == 1 else 'were'} killed: the others wait, and know of "
            f"it after {best.silence:g} s without a word (peer-timeout)"
        )
    if silent:
        parts.append(f"{_listed(silent)} {_is(silent)} silent")
    if best.on_failure == "stop":
        parts.append("the loss of any peer ends the run (on-failure = stop)")
    spare = _spare(best, {p.peer for p in peers if p.state == "ended"})
    # Views change only once the peers train.
    begins = not best.views and all(p.state in ("preparing", "unknown") for p in peers)
    if begins and best.on_failure in ("continue", "wait"):
        parts.append("until all peers train, the loss of any one ends the run")
        spare = 1
    elif best.on_failure in ("continue", "wait"):
        more = "more " if gone or killed else ""
        what = "host" if any(len(host) > 1 for host in hosts_of(best)) else "peer"
        several = f"one {more}{what}" if spare == 1 else f"{spare} {more}{what}s at once"
        parts.append(
            f"one {more}loss may end the run" if spare < 1 else f"the run would bear the loss of {several}"
        )
    at_risk = bool(gone or killed or silent or best.on_failure == "stop" or (best.on_failure and spare < 1))
    if not parts:
        return False, "The result is not at risk: no peer waits for another."
    return at_risk, f"The result is {'at risk' if at_risk else 'not at risk'}: {'; '.join(parts)}."


def _spare(best: Bulletin, killed: Set[int]) -> int:
    """Return how many members could be lost at once, whichever they are, and the others go on.

    These must be a quorum of the view, in which those count that were killed and are not lost yet, and have
    ``min-peers`` peers. A member is a host, with all its peers.
    """
    members = {min(host): live for host in hosts_of(best) if (live := set(host).intersection(best.live))}
    there = sorted(m for m, peers in members.items() if not peers <= killed)
    sizes = sorted(len(members[m]) for m in there)
    for lost in range(len(there)):
        rest = there[lost:]  # the worst case: a half without the lowest member is no quorum
        if not is_quorum(rest, members) or sum(sizes[: len(rest)]) < max(1, best.min_peers):
            return lost - 1
    return len(there) - 1


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
