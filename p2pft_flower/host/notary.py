"""Gossip with proofs of authorship: authors sign their records and votes, which are checked before use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from p2pft_flower.agreement import gossip
from p2pft_flower.agreement.events import Heard
from p2pft_flower.agreement.record import Age, Proposal, Record, Step
from p2pft_flower.agreement.state import State
from p2pft_flower.host import records
from p2pft_flower.transport import MOST_CERTIFICATES, Signatures
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.parsing import parse

__all__ = ["Notary"]

_MOST_STEPS = 64
"""Steps of one gossip that are read; the others are ignored."""

Message = TypeVar("Message")
Read = TypeVar("Read")


class Notary:
    """Writes and reads one member's gossip. Not to be used by several threads at once.

    Parameters
    ----------
    run : str
        The run's identifier.
    me : int
        The number of this member.
    groups : mapping of int to tuple of int
        The peers of each member that the run begins with.
    iterations : int
        Number of iterations of the run; no record may claim more.
    signatures : Signatures or None
        The signatures of this member's only peer. None without certificates: then nothing is signed, and
        every caller that can connect is believed.
    """

    def __init__(
        self,
        run: str,
        me: int,
        groups: Mapping[int, tuple[int, ...]],
        iterations: int,
        signatures: Signatures | None,
    ) -> None:
        self._run, self._me, self._groups, self._iterations = run, me, groups, iterations
        self._signatures = signatures
        self._signed: dict[int, tuple[Age, pb.Signed]] = {}
        """By member, the age of the newest record read, and this record as its author has signed it."""

    def write(self, state: State, other: int) -> pb.Gossip:
        """Return the gossip for the member ``other``."""
        news, steps = gossip.news(state, other), gossip.steps(state, other)
        return pb.Gossip(
            records=[self._passed_on(r) for r in news],
            steps=[records.encode_step(self._with_own_votes(s)) for s in steps],
            known=records.encode_known(gossip.known(state)),
            certificates=self._certificates(
                [r.member for r in news] + [v.member for s in steps for v in s.votes]
            ),
        )

    def read(self, message: pb.Gossip, speaker: int | None) -> tuple[Heard, list[ValueError]]:
        """Decode a gossip message and check its signatures.

        Parameters
        ----------
        message : p2pft_pb2.Gossip
            The message.
        speaker : int or None
            The member whose host sent the message; None if the sender belongs to no member.

        Returns
        -------
        tuple of Heard and list of ValueError
            The parts that pass all checks, and an error for each part that is dropped.
        """
        wrong: list[ValueError] = []
        most = len(self._groups)
        if self._signatures is not None:
            _each(message.certificates[: MOST_CERTIFICATES * most], self._signatures.learn, wrong)
        if (more := len(message.records) - most) > 0:
            wrong.append(ValueError(f"there are {more} records more than members"))
        heard = _each(message.records[:most], self._record, wrong)
        steps = _each(message.steps[:_MOST_STEPS], self._step, wrong)
        known = _each([message.known], lambda m: records.decode_known(m, self._groups), wrong)
        return Heard(tuple(heard), tuple(steps), speaker, known[0] if known else {}), wrong

    def _passed_on(self, record: Record) -> pb.Signed:
        if record.member != self._me:
            return self._signed[record.member][1]
        content = records.encode(self._with_own_vote(record)).SerializeToString()
        return pb.Signed(record=content, signature=self._sign(self._statement(content)))

    def _with_own_vote(self, record: Record) -> Record:
        if record.accepted is None:
            return record
        ballot = self._ballot_paper(record.accepted, record.member, record.incarnation)
        return replace(record, vote=self._sign(ballot))

    def _with_own_votes(self, step: Step) -> Step:
        proposal = Proposal(step.ballot, step.value)
        votes = (
            v._replace(signature=self._sign(self._ballot_paper(proposal, v.member, v.incarnation)))
            if v.member == self._me and not v.signature
            else v
            for v in step.votes
        )
        return step._replace(votes=tuple(votes))

    def _record(self, signed: pb.Signed) -> Record:
        record = records.decode(parse(pb.Record, signed.record), self._groups, self._iterations)
        who = f"a record of member {record.member}"
        self._check(who, record.member, self._statement(signed.record), signed.signature)
        if record.accepted is not None:
            paper = self._ballot_paper(record.accepted, record.member, record.incarnation)
            self._check(f"{who} with a vote", record.member, paper, record.vote)
        if record.member not in self._signed or record.age > self._signed[record.member][0]:
            self._signed[record.member] = record.age, signed
        return record

    def _step(self, message: pb.Step) -> Step:
        step = records.decode_step(message, self._groups, self._iterations)
        proposal = Proposal(step.ballot, step.value)
        for vote in step.votes:
            paper = self._ballot_paper(proposal, vote.member, vote.incarnation)
            who = f"a step to view {step.value.number} with a vote of member {vote.member}"
            self._check(who, vote.member, paper, vote.signature)
        return step

    def _check(self, who: str, member: int, content: bytes, signature: bytes) -> None:
        if self._signatures is None:
            return
        peers = self._groups[member]
        if len(peers) != 1 or not self._signatures.is_by(peers[0], content, signature):
            raise ValueError(f"{who} that is not signed with its key")

    def _sign(self, content: bytes) -> bytes:
        return b"" if self._signatures is None else self._signatures.sign(content)

    def _statement(self, record: bytes) -> bytes:
        return b"\0".join((b"p2pft record", self._run.encode(), record))

    def _ballot_paper(self, proposal: Proposal, member: int, incarnation: int) -> bytes:
        statement = ["vote", self._run, proposal.value, proposal.ballot, member, incarnation]
        return json.dumps(statement, separators=(",", ":")).encode()

    def _certificates(self, members: Iterable[int]) -> list[bytes]:
        if self._signatures is None:
            return []
        return [
            c for m in sorted(set(members)) for p in self._groups[m] for c in self._signatures.certificates(p)
        ]


def _each(
    messages: Iterable[Message], read: Callable[[Message], Read], wrong: list[ValueError]
) -> list[Read]:
    """Return the results of ``read`` for the messages; add the ValueErrors that it raises to ``wrong``."""
    made = []
    for message in messages:
        try:
            made.append(read(message))
        except ValueError as error:
            wrong.append(error)
    return made
