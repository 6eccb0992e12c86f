"""Translation of records and steps between the agreement's types and the wire's messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from p2pft_flower.agreement.record import (
    NO_BALLOT,
    Age,
    Ballot,
    Composition,
    Edge,
    Phase,
    Proposal,
    Record,
    Step,
    Vote,
)
from p2pft_flower.errors import printable
from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = [
    "MAX_REASON",
    "decode",
    "decode_known",
    "decode_step",
    "encode",
    "encode_known",
    "encode_step",
]

Groups = Mapping[int, tuple[int, ...]]

MAX_REASON = 1024
"""The most characters of the reason why a member has left, since the size of a gossip is limited."""

_MOST = 2**31
"""A number of views that no run reaches."""

_LARGEST = 2**63
"""The highest incarnation, version, or round of a ballot that is read; counting never gets there."""


def encode(record: Record) -> pb.Record:
    """Return ``record`` as the wire's message."""
    promised = None if record.promised == NO_BALLOT else record.promised
    short = replace(record, reason=record.reason[:MAX_REASON])
    return pb.Record(**_fields({**vars(short), "phase": record.phase.value, "promised": promised}))


def decode(message: pb.Record, groups: Groups, iterations: int) -> Record:
    """Return the record that a message holds.

    Parameters
    ----------
    message : p2pft_pb2.Record
        The record, as another host has sent it.
    groups : mapping of int to tuple of int
        The peers of each member that the run began with.
    iterations : int
        Number of iterations of the run; no record may claim more.

    Raises
    ------
    ValueError
        If the record names members or peers that the run does not have, or no honest member writes such a
        record; the message names the fault.
    """
    who = f"a record of member {message.member}"
    proposals = [p for p in (message.accepted, message.proposal) if p.ByteSize()]
    named = [message.member, *message.suspects, *message.hanging, *message.reaches]
    _check_named(who, groups, named, [p for e in message.broken for p in _ends(e)])
    _check_record(who, message, groups, iterations)
    for proposal in proposals:
        _check_ballot(who, proposal.ballot, groups)
        if proposal.HasField("value"):
            _check_view(who, proposal.value, groups, iterations)
            if proposal.value.number != message.view + 1:
                raise ValueError(
                    f"{who} in view {message.view} with a proposal for view {proposal.value.number}"
                )
    if message.phase not in (p.value for p in Phase):
        raise ValueError(f"{who} in phase number {message.phase}")
    return Record(
        member=message.member,
        incarnation=message.incarnation,
        version=message.version,
        view=message.view,
        phase=Phase(message.phase),
        iteration=message.iteration,
        promised=_ballot(message.promised) if message.HasField("promised") else NO_BALLOT,
        accepted=_read_proposal(message.accepted) if message.HasField("accepted") else None,
        proposal=_read_proposal(message.proposal) if message.HasField("proposal") else None,
        suspects=tuple(message.suspects),
        hanging=tuple(message.hanging),
        broken=_read_edges(message.broken),
        reaches=tuple(message.reaches),
        vote=message.vote,
        reason=printable(message.reason[:MAX_REASON])[:MAX_REASON],
    )


def encode_known(known: Mapping[int, Age]) -> pb.Known | None:
    """Return the ages of the records that a member has, as a message; None if there are none."""
    if not known:
        return None
    lives, versions = zip(*known.values(), strict=True)
    return pb.Known(members=known, incarnations=lives, versions=versions)


def decode_known(message: pb.Known, groups: Groups) -> dict[int, Age]:
    """Return the ages of the records that another member has, by author; empty if it has sent none.

    Parameters
    ----------
    message : p2pft_pb2.Known
        The message of another host.
    groups : mapping of int to tuple of int
        The peers of each member that the run began with.

    Raises
    ------
    ValueError
        If an age is missing, or a member is named that the run does not have.
    """
    members, lives, versions = message.members, message.incarnations, message.versions
    if not len(members) == len(lives) == len(versions):
        raise ValueError(
            f"{len(members)} members' records with {len(lives)} incarnations and {len(versions)} versions"
        )
    _check_named("what is said of known records", groups, members, [])
    return dict(zip(members, zip(lives, versions, strict=True), strict=True))


def encode_step(step: Step) -> pb.Step:
    """Return ``step`` as the wire's message."""
    return pb.Step(**_fields(step._asdict()))


def decode_step(message: pb.Step, groups: Groups, iterations: int) -> Step:
    """Return the step that a message holds; its signatures are not checked here.

    Raises
    ------
    ValueError
        If the step names members or peers that the run does not have, or no honest member makes such a step;
        the message names the fault.
    """
    who = f"a step to view {message.value.number}"
    _check_view(who, message.value, groups, iterations)
    _check_ballot(who, message.ballot, groups)
    voters = [v.member for v in message.votes]
    _check_named(who, groups, voters, [])
    _check_ascending(who, "votes", voters)
    votes = tuple(Vote(v.member, v.incarnation, v.signature) for v in message.votes)
    return Step(_read_view(message.value), _ballot(message.ballot), votes)


def _check_named(who: str, groups: Groups, members: Iterable[int], peers: Iterable[int]) -> None:
    known = {p for g in groups.values() for p in g}
    for what, unknown in (("member", set(members).difference(groups)), ("peer", set(peers) - known)):
        if unknown:
            raise ValueError(f"{who} names {what} {min(unknown)}, which the run does not have")


def _check_most(who: str, what: str, most: int, *numbers: int) -> None:
    if max(numbers) > most:
        raise ValueError(f"{who} with the {what} {max(numbers)}, over {most}")


def _check_ascending(who: str, what: str, given: Iterable[Any]) -> None:
    if any(a >= b for a, b in pairwise(given)):
        raise ValueError(f"{who} whose {what} do not ascend")


def _check_edges(who: str, what: str, edges: Iterable[pb.Edge]) -> None:
    _check_ascending(who, what, _read_edges(edges))
    if any(e.sender == e.receiver for e in edges):
        raise ValueError(f"{who} with an edge from a peer to itself")


def _check_ballot(who: str, ballot: pb.Ballot, groups: Groups) -> None:
    _check_most(who, "ballot's round", _LARGEST, ballot.round)
    _check_named(who, groups, [ballot.member], [])


def _check_record(who: str, r: pb.Record, groups: Groups, iterations: int) -> None:
    _check_most(who, "iteration", iterations, r.iteration)
    _check_most(who, "view", _MOST, r.view)
    _check_most(who, "version", _LARGEST, r.version)
    _check_most(who, "incarnation", _LARGEST, r.incarnation)
    _check_ballot(who, r.promised, groups if r.HasField("promised") else {0: ()})
    if r.HasField("accepted") and not r.accepted.HasField("value"):
        raise ValueError(f"{who} that has accepted no view")
    if max(_ballot(r.accepted.ballot), _ballot(r.proposal.ballot)) > _ballot(r.promised):
        raise ValueError(f"{who} with a ballot that is higher than its promise")
    if r.HasField("proposal") and r.proposal.ballot.member != r.member:
        raise ValueError(f"{who} with a ballot of {r.proposal.ballot.member}")
    for what, given in (("suspects", r.suspects), ("hanging", r.hanging), ("reaches", r.reaches)):
        _check_ascending(who, what, given)
    _check_edges(who, "broken", r.broken)
    if r.member in (*r.suspects, *r.hanging):
        raise ValueError(f"{who} that misses itself")


def _check_view(who: str, v: pb.Composition, groups: Groups, iterations: int) -> None:
    if not v.members or len(v.members) != len(v.incarnations) or len(v.joined) != len(v.donors):
        raise ValueError(
            f"{who} with a view of {len(v.members)} members with {len(v.incarnations)} incarnations, and "
            f"{len(v.joined)} that joined with {len(v.donors)} donors"
        )
    _check_named(who, groups, [*v.members, *v.joined], [*v.donors, *(p for e in v.broken for p in _ends(e))])
    _check_most(who, "view", _MOST, v.number)
    _check_most(who, "iteration", iterations, v.iteration)
    _check_most(who, "incarnation", _LARGEST, *v.incarnations)
    _check_ascending(who, "members", v.members)
    _check_ascending(who, "joined", v.joined)
    _check_edges(who, "a view's broken", v.broken)
    if not set(v.members).issuperset(v.joined):
        raise ValueError(f"{who} with a view that others have joined than are in it")


def _ends(edge: pb.Edge) -> Edge:
    return edge.sender, edge.receiver


def _fields(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record, or of a part of one, as fields of a message, under the same names."""
    return {name: _field(name, value) for name, value in told.items()}


def _field(name: str, value: Any) -> Any:
    if name == "broken":
        return [{"sender": j, "receiver": i} for j, i in value]
    if name == "votes":
        return [v._asdict() for v in value]
    return _fields(value._asdict()) if hasattr(value, "_asdict") else value


def _read_edges(edges: Iterable[pb.Edge]) -> tuple[Edge, ...]:
    return tuple(_ends(e) for e in edges)


def _ballot(ballot: pb.Ballot) -> Ballot:
    return Ballot(ballot.round, ballot.member)


def _read_proposal(proposal: pb.Proposal) -> Proposal:
    value = _read_view(proposal.value) if proposal.HasField("value") else None
    return Proposal(_ballot(proposal.ballot), value)


def _read_view(view: pb.Composition) -> Composition:
    return Composition(
        view.number,
        tuple(view.members),
        tuple(view.incarnations),
        _read_edges(view.broken),
        view.iteration,
        tuple(view.joined),
        tuple(view.donors),
    )
