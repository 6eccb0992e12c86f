"""Members' records as they travel: between :mod:`.membership` and the wire's messages."""

from __future__ import annotations

from p2pft_flower.runtime.membership import NO_BALLOT, Ballot, Edge, NextView, Phase, Proposal, Record
from p2pft_flower.transport import p2pft_pb2 as pb

__all__ = ["decode", "encode"]


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
        reason=record.reason,
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


def decode(message: pb.Record) -> Record:
    """Return the record that a message holds.

    Raises
    ------
    ValueError
        When it is none, with what is wrong.
    """
    if message.phase not in (p.value for p in Phase):
        raise ValueError(f"a record of member {message.member} in phase number {message.phase}")
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
        reason=message.reason,
    )


def _edges(edges: tuple[Edge, ...]) -> list[pb.Edge]:
    return [pb.Edge(sender=j, receiver=i) for j, i in edges]


def _read_edges(edges: object) -> tuple[Edge, ...]:
    return tuple((e.sender, e.receiver) for e in edges)  # type: ignore[attr-defined]


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
