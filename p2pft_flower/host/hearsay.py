"""What a host has heard of peers that came back: their new processes answer no coordinator at their end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from p2pft_flower.host.standings import Standings
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.lines import Report
from p2pft_flower.transport import PeerScores
from p2pft_flower.typed import Count, PeerNumber

__all__ = ["HeardOf", "heard_of", "report_of"]


class HeardOf(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has heard of a peer of another host.

    Attributes
    ----------
    peer : int
        The peer.
    iteration : int
        The most iterations that it has told to have completed.
    stopped : bool
        Whether it was stopped: it has taken a stop, or has sent one.
    report : Report or None
        Its last evaluation, without a sketch; None if none was heard of.
    """

    peer: PeerNumber
    iteration: Count = 0
    stopped: bool = False
    report: Report | None = None


def heard_of(
    standings: Standings,
    peers: Iterable[int],
    hosts: Mapping[int, tuple[int, ...]],
    stopped: Collection[int],
) -> list[HeardOf]:
    """Return what was heard of some peers.

    Parameters
    ----------
    standings : Standings
        The standings and scores of all members.
    peers : iterable of int
        The peers.
    hosts : mapping of int to tuple of int
        The peers of each host of the run, by the host's lowest peer.
    stopped : collection of int
        Peers of hosts that were stopped.
    """
    heard, member = standings.heard(), {p: m for m, of in hosts.items() for p in of}
    found = []
    for p in sorted(peers):
        there = heard.get(member[p])
        scores = () if there is None or there.scores is None else there.scores.peers
        last = next((s for s in scores if s.peer == p), None)
        standing = None if there is None else there.standing
        found.append(
            HeardOf(
                peer=p,
                iteration=max(standing.iteration if standing else 0, last.iteration if last else 0),
                stopped=not set(hosts[member[p]]).isdisjoint(stopped),
                report=None if last is None else report_of(last),
            )
        )
    return found


def report_of(scores: PeerScores) -> Report:
    """Return scores that were told by gossip or to a look as a report."""
    return Report(
        peer=scores.peer,
        iteration=scores.iteration,
        loss=scores.loss,
        accuracy=scores.accuracy,
        accuracy_unseen=scores.accuracy_unseen if scores.HasField("accuracy_unseen") else None,
        sketch=sketch.encode(scores.sketch) if scores.sketch else None,
        bytes_sent=scores.bytes_sent,
    )
