"""Members' records as they travel: between :mod:`.membership` and the wire's messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from p2pft_flower.agreement.membership import NO_BALLOT, Age, Ballot, Edge, NextView, Phase, Proposal, Record
from p2pft_flower.errors import printable
from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = ["MAX_REASON", "decode", "decode_known", "encode", "encode_known"]

MAX_REASON = 1024
"""Characters of the reason why a member has left: the size of a gossip is limited."""

_MOST = 2**31
"""No run has so many views, no view so many ballots."""

_LARGEST = 2**63
"""Incarnations and versions are counted."""


def encode(record: Record) -> pb.Record:
    """Return ``record`` as the wire's message."""
    message = pb.Record(
        member=record.member,
        incarnation=record.incarnation,
        version=record.version,
        view=record.view,
        phase=record.phase.name,
        iteration=record.iteration,
        suspects=record.suspects,
        hanging=record.hanging,
        broken=_edges(record.broken),
        reaches=record.reaches,
        reason=record.reason[:MAX_REASON],
    )
    if record.promised != NO_BALLOT:
        message.promised.CopyFrom(pb.Ballot(round=record.promised.round, member=record.promised.member))
    if record.accepted is not None:
        message.accepted.CopyFrom(_proposal(record.accepted))
    if record.proposal is not None:
        message.proposal.CopyFrom(_proposal(record.proposal))
    if record.installed is not None:
        message.installed.CopyFrom(_view(record.installed))
    return message


def decode(message: pb.Record, groups: Mapping[int, tuple[int, ...]], iterations: int) -> Record:
    """Return the record that a message holds.

    Parameters
    ----------
    message : p2pft_pb2.Record
        What another host says.
    groups : mapping of int to tuple of int
        The peers of each member that the run began with.
    iterations : int
        Iterations of the run: nobody has completed more.

    Raises
    ------
    ValueError
        When it is none of this run's, or no member writes such a one, with what is wrong.
    """
    views = [v for v in (message.installed, message.accepted.value, message.proposal.value) if v.members]
    named = [message.member, *message.suspects, *message.hanging, *message.reaches]
    _check("member", [*named, *(m for v in views for m in (*v.members, *v.joined))], groups)
    peers = [p for edges in (message.broken, *(v.broken for v in views)) for e in edges for p in _ends(e)]
    _check("peer", [*peers, *(p for v in views for p in v.donors)], {p for g in groups.values() for p in g})
    if message.phase not in (p.value for p in Phase):
        raise ValueError(f"a record of member {message.member} in phase number {message.phase}")
    _check_numbers(message, views, iterations)
    _check_lists(message, views)
    return Record(
        member=message.member,
        incarnation=message.incarnation,
        version=message.version,
        view=message.view,
        phase=Phase[pb.Record.Phase.Name(message.phase)],
        iteration=message.iteration,
        promised=_ballot(message.promised) if message.HasField("promised") else NO_BALLOT,
        accepted=_read_proposal(message.accepted) if message.HasField("accepted") else None,
        proposal=_read_proposal(message.proposal) if message.HasField("proposal") else None,
        suspects=tuple(message.suspects),
        hanging=tuple(message.hanging),
        broken=_read_edges(message.broken),
        reaches=tuple(message.reaches),
        installed=_read_view(message.installed) if message.HasField("installed") else None,
        reason=printable(message.reason[:MAX_REASON])[:MAX_REASON],
    )


def encode_known(known: Mapping[int, Age]) -> pb.Known | None:
    """Return how new the records are that a member knows, as a message; None where it says nothing."""
    if not known:
        return None
    lives, versions = zip(*known.values(), strict=True)
    return pb.Known(members=known, incarnations=lives, versions=versions)


def decode_known(message: pb.Known, groups: Collection[int]) -> dict[int, Age]:
    """Return how new the records are that another member knows; empty where it says nothing.

    Parameters
    ----------
    message : p2pft_pb2.Known
        What another host says.
    groups : collection of int
        The members that the run began with.

    Raises
    ------
    ValueError
        When it does not say it of all that it names, or names others.
    """
    members, lives, versions = message.members, message.incarnations, message.versions
    if not len(members) == len(lives) == len(versions):
        raise ValueError(
            f"{len(members)} members' records with {len(lives)} incarnations and {len(versions)} versions"
        )
    _check("member", members, groups)
    return dict(zip(members, zip(lives, versions, strict=True), strict=True))


def _check(what: str, named: Iterable[int], known: Iterable[int]) -> None:
    if unknown := sorted(set(named).difference(known)):
        raise ValueError(f"a record names {what} {unknown[0]}, which the run does not have")


def _check_numbers(message: pb.Record, views: Sequence[pb.NextView], iterations: int) -> None:
    who = f"a record of member {message.member}"
    ballots = [message.promised, message.accepted.ballot, message.proposal.ballot]
    bounds = [
        ("iteration", iterations, [message.iteration, *(v.iteration for v in views)]),
        ("view", _MOST, [message.view]),
        ("ballot's round", _MOST, [b.round for b in ballots]),
        ("version", _LARGEST, [message.version]),
        ("incarnation", _LARGEST, [message.incarnation, *(n for v in views for n in v.incarnations)]),
    ]
    for what, most, numbers in bounds:
        if max(numbers) > most:
            raise ValueError(f"{who} with the {what} {max(numbers)}, over {most}")
    if message.HasField("installed") != (message.view > 0):
        raise ValueError(f"{who} in view {message.view} that does not say what it is")
    if message.HasField("proposal") and message.proposal.ballot.member != message.member:
        raise ValueError(f"{who} with a ballot of {message.proposal.ballot.member}")


def _check_lists(message: pb.Record, views: Sequence[pb.NextView]) -> None:
    who = f"a record of member {message.member}"
    lists: list[tuple[str, Sequence[Any]]] = [
        ("suspects", message.suspects),
        ("hanging", message.hanging),
        ("reaches", message.reaches),
        ("broken", _read_edges(message.broken)),
        *(("members", v.members) for v in views),
        *(("joined", v.joined) for v in views),
        *(("a view's broken", _read_edges(v.broken)) for v in views),
    ]
    for what, given in lists:
        if any(a >= b for a, b in pairwise(given)):
            raise ValueError(f"{who} whose {what} do not ascend")
    edges = [e for _, given in lists for e in given if isinstance(e, tuple)]
    if any(j == i for j, i in edges):
        raise ValueError(f"{who} with an edge from a peer to itself")
    if message.member in (*message.suspects, *message.hanging):
        raise ValueError(f"{who} that misses itself")
    if any(not set(v.members).issuperset(v.joined) for v in views):
        raise ValueError(f"{who} with a view that others have joined than are in it")


def _ends(edge: pb.Edge) -> Edge:
    return edge.sender, edge.receiver


def _edges(edges: tuple[Edge, ...]) -> list[pb.Edge]:
    return [pb.Edge(sender=j, receiver=i) for j, i in edges]


def _read_edges(edges: Iterable[pb.Edge]) -> tuple[Edge, ...]:
    return tuple(_ends(e) for e in edges)


def _ballot(ballot: pb.Ballot) -> Ballot:
    return Ballot(ballot.round, ballot.member)


def _proposal(proposal: Proposal) -> pb.Proposal:
    ballot = pb.Ballot(round=proposal.ballot.round, member=proposal.ballot.member)
    return pb.Proposal(ballot=ballot, value=None if proposal.value is None else _view(proposal.value))


def _read_proposal(proposal: pb.Proposal) -> Proposal:
    return Proposal(
        _ballot(proposal.ballot), _read_view(proposal.value) if proposal.HasField("value") else None
    )


def _view(view: NextView) -> pb.NextView:
    return pb.NextView(
        members=view.members,
        incarnations=view.incarnations,
        broken=_edges(view.broken),
        iteration=view.iteration,
        joined=view.joined,
        donors=view.donors,
    )


def _read_view(view: pb.NextView) -> NextView:
    members, lives = tuple(view.members), tuple(view.incarnations)
    joined, donors = tuple(view.joined), tuple(view.donors)
    if not members or len(members) != len(lives) or len(joined) != len(donors):
        raise ValueError(
            f"a view of {len(members)} members with {len(lives)} incarnations, and {len(joined)} that joined "
            f"with {len(donors)} donors"
        )
    return NextView(members, lives, _read_edges(view.broken), view.iteration, joined, donors)
