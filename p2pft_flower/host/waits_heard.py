"""The unusually long waits of other hosts, made of what their standings tell while they last."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from p2pft_flower.host.long_waits import AT_LEAST, Awaited, LongWait, LongWaits
from p2pft_flower.host.standings import Heard
from p2pft_flower.keeping.lines import Stall
from p2pft_flower.transport import Standing

__all__ = ["WaitsHeard", "awaited_by", "chain_of", "stall_of"]

_MOST = 64
"""The most waits that are kept: the latest."""

_WAITS = 2.0
"""Seconds for which a peer must have waited, by its own word, to be part of a chain of those that wait."""


def awaited_by(standing: Standing | None) -> int | None:
    """Return the peer whose payload a member waits for; None if it waits for none."""
    return standing.awaited if standing is not None and standing.HasField("awaited") else None


def chain_of(
    peer: int, heard: Mapping[int, Heard], member_of: Mapping[int, int], waiting: Collection[int]
) -> tuple[int, ...]:
    """Return whom ``peer`` waits for, whom that one waits for, and so on, as far as is known.

    Parameters
    ----------
    peer : int
        The peer.
    heard : mapping of int to Heard
        What is known of each member.
    member_of : mapping of int to int
        The member whose host runs each peer.
    waiting : collection of int
        The peers of the host that waits for ``peer``; the chain ends before it comes back to them.
    """
    seen = [peer]
    while (there := heard.get(member_of[seen[-1]])) is not None:
        further = awaited_by(there.standing)
        if further is None or further in seen or further in waiting:
            break
        # It said so long after it had begun to wait: a peer that is gone has said so as it always does.
        if there.standing is None or there.standing.busy < _WAITS:
            break
        seen.append(further)
    return tuple(seen[1:])


@dataclass
class _Member:
    """What is remembered of one member.

    Attributes
    ----------
    waits : LongWaits
        Its long waits.
    standing : Standing or None
        Its newest standing.
    awaited : Awaited or None
        The peer that it waited for then; None if for none.
    quiet : float
        The most seconds for which nothing new was heard of that peer during the wait.
    came : float
        The time at which its newest standing came.
    done : int
        The number of iterations that it had completed when its present long wait began.
    """

    waits: LongWaits = field(default_factory=LongWaits)
    standing: Standing | None = None
    awaited: Awaited | None = None
    quiet: float = 0.0
    came: float = -math.inf
    done: int = 0


class WaitsHeard:
    """Finds the long waits of other hosts by looking at their standings, about once a second.

    Parameters
    ----------
    hosts : mapping of int to tuple of int
        The peers of each host of the run, by the host's lowest peer.
    own : collection of int
        The peers of this process, whose waits it knows better by itself.
    """

    def __init__(self, hosts: Mapping[int, tuple[int, ...]], own: Collection[int]) -> None:
        self._member_of = {p: m for m, peers in hosts.items() for p in peers}
        self._hosts = {m: peers for m, peers in hosts.items() if not {*peers} & {*own}}
        self._members = {m: _Member() for m in self._hosts}
        self._over: deque[Stall] = deque(maxlen=_MOST)

    @property
    def over(self) -> tuple[Stall, ...]:
        """The waits that are over, by the time when this was heard."""
        return tuple(self._over)

    def look(self, heard: Mapping[int, Heard], now: float) -> None:
        """Take in what was ``heard``, by member (the lowest peer of each host), as it is at ``now``.

        ``now`` is in seconds of a monotonic clock.
        """
        for m in self._hosts:
            there = heard.get(m)
            if there is None or there.standing is None:
                continue
            if there.since > AT_LEAST + len(self._member_of):  # each edge on the way may take a second
                self._members[m] = _Member()  # what it said last is no news: perhaps it is gone
                continue
            before = self._members[m].standing
            if before is None or _age(before) != _age(there.standing):
                self._look_at(m, there.standing, heard, now)

    def _look_at(self, m: int, standing: Standing, heard: Mapping[int, Heard], now: float) -> None:
        """Take a new standing in; it holds for the time at which it came, since it says nothing of later."""
        member, peer, came = self._members[m], awaited_by(standing), now - heard[m].since
        last, before = member.awaited, member.standing
        awaited, quiet = None, 0.0
        if peer is not None and peer in self._member_of:
            # One that was silent meanwhile, as when it was suspended, has not waited all the time.
            since = came if came - member.came > AT_LEAST else came - standing.busy
            of = heard.get(self._member_of[peer])
            quiet = math.inf if of is None else of.since
            if before is not None and last is not None and last.peer == peer and _goes_on(before, standing):
                since, quiet = last.since, max(quiet, member.quiet)
            chain = chain_of(peer, heard, self._member_of, self._hosts[m])
            awaited = Awaited(peer, since, None if of is None else of.since, chain)
        if member.waits.long_since is None:
            member.done = standing.iteration
        for wait in member.waits.look(awaited, came, standing.rate):
            if wait.over and last is not None:
                stall = stall_of(wait, m, member.done)
                silent = member.quiet > AT_LEAST  # then what it said of its own waiting is no news
                whom = last.chain[-1] if last.chain and not silent else last.peer
                self._over.append(msgspec.structs.replace(stall, last=whom, silent=silent))
        member.standing, member.awaited, member.quiet, member.came = standing, awaited, quiet, came


def _age(standing: Standing) -> tuple[int, int]:
    return standing.incarnation, standing.version


def _goes_on(before: Standing, now: Standing) -> bool:
    """Return whether a member that waited for a peer, and does, has waited for it all the while.

    News may come late, so that the beginning of a wait seems to move.
    """
    same = (before.view, before.iteration) == (now.view, now.iteration)
    return same and now.busy >= before.busy


def stall_of(wait: LongWait, member: int, done: int) -> Stall:
    """Return a wait that is over as a line of a journal.

    Parameters
    ----------
    wait : LongWait
        The wait.
    member : int
        The host that waited: its lowest peer.
    done : int
        The number of iterations that it had completed.
    """
    of = wait.awaited
    return Stall(
        peer=member,
        iteration=done,
        awaited=of.peer,
        last=of.chain[-1] if of.chain else of.peer,
        silent=of.spoken is None or of.spoken > AT_LEAST,
        seconds=wait.seconds,
    )
