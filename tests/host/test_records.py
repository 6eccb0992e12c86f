"""What a host takes from others' records."""

from __future__ import annotations

import pytest

from p2pft_flower.agreement.record import Ballot, Composition, Phase, Proposal, Record, Step, Vote
from p2pft_flower.host.records import (
    MAX_REASON,
    decode,
    decode_known,
    decode_step,
    encode,
    encode_known,
    encode_step,
)
from p2pft_flower.transport.wire.p2pft_pb2 import Known

GROUPS = {0: (0, 1), 2: (2,), 3: (3,)}
VIEW = Composition(2, (0, 2), (0, 7), ((1, 2), (2, 1)), 40, (2,), (1,))
RECORD = Record(
    2,
    7,
    version=3,
    view=1,
    phase=Phase.CHANGING,
    iteration=41,
    promised=Ballot(2, 2),
    accepted=Proposal(Ballot(1, 0), VIEW),
    proposal=Proposal(Ballot(2, 2)),
    suspects=(3,),
    hanging=(0,),
    broken=((2, 3),),
    reaches=(0,),
    vote=b"signed",
    reason="why",
)
STEP = Step(VIEW, Ballot(3, 2), (Vote(0, 0, b"one"), Vote(2, 7)))


def test_a_record_comes_as_it_was_sent():
    assert decode(encode(RECORD), GROUPS, 50) == RECORD


def test_a_reason_is_one_short_line_whatever_was_sent():
    message = encode(RECORD)
    message.reason = "a line\nanother" + "x" * 10 * MAX_REASON
    reason = decode(message, GROUPS, 50).reason
    assert reason.startswith("a line\\nanother")
    assert len(reason) == MAX_REASON


def test_a_long_reason_is_cut_before_it_is_sent():
    assert len(encode(Record(0, 0, reason="x" * 10 * MAX_REASON)).reason) == MAX_REASON


def _accepted(record, **fields):
    for name, value in fields.items():
        getattr(record.accepted.value, name)[:] = value


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda r: setattr(r, "member", 1), "member 1"),  # a peer of member 0
        (lambda r: r.suspects.append(9), "member 9"),
        (lambda r: r.hanging.append(4), "member 4"),
        (lambda r: r.reaches.append(5), "member 5"),
        (lambda r: r.broken.add(sender=2, receiver=6), "peer 6"),
        (lambda r: _accepted(r, members=[0, 8]), "member 8"),
        (lambda r: _accepted(r, joined=[8]), "member 8"),
        (lambda r: _accepted(r, donors=[11]), "peer 11"),
        (lambda r: r.accepted.value.broken.add(sender=12, receiver=0), "peer 12"),
    ],
)
def test_what_names_somebody_whom_the_run_does_not_have_is_no_record(harm, what):
    message = encode(RECORD)
    harm(message)
    with pytest.raises(ValueError, match=f"names {what}, which the run does not have"):
        decode(message, GROUPS, 50)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda r: setattr(r, "iteration", 51), "the iteration 51, over 50"),
        (lambda r: setattr(r.accepted.value, "iteration", 10**9), "the iteration 1000000000, over 50"),
        (lambda r: setattr(r.accepted.value, "iteration", 51), "the iteration 51, over 50"),
        (lambda r: setattr(r, "view", 2**32), "the view 4294967296"),
        (lambda r: setattr(r.promised, "round", 2**63 + 1), "the ballot's round"),
        (lambda r: setattr(r.accepted.ballot, "round", 3), "a ballot that is higher than its promise"),
        (lambda r: setattr(r.proposal.ballot, "round", 2**60), "a ballot that is higher than its promise"),
        (lambda r: r.accepted.ClearField("value"), "that has accepted no view"),
        (lambda r: setattr(r, "version", 2**63 + 1), "the version"),
        (lambda r: setattr(r, "incarnation", 2**63 + 1), "the incarnation"),
        (lambda r: r.accepted.value.incarnations.__setitem__(0, 2**63 + 1), "the incarnation"),
        (lambda r: setattr(r, "view", 0), "in view 0 with a proposal for view 2"),
        (lambda r: setattr(r.accepted.value, "number", 9), "in view 1 with a proposal for view 9"),
        (lambda r: setattr(r.proposal.ballot, "member", 0), "with a ballot of 0"),
        (lambda r: r.suspects.append(0), "whose suspects do not ascend"),
        (lambda r: r.reaches.append(0), "whose reaches do not ascend"),
        (lambda r: r.broken.add(sender=0, receiver=1), "whose broken do not ascend"),
        (lambda r: r.broken.add(sender=3, receiver=3), "an edge from a peer to itself"),
        (lambda r: _accepted(r, members=[2, 0]), "whose members do not ascend"),
        (lambda r: _accepted(r, joined=[3]), "that others have joined than are in it"),
        (lambda r: r.hanging.__setitem__(0, 2), "that misses itself"),
    ],
)
def test_what_no_member_writes_is_no_record(harm, what):
    message = encode(RECORD)
    harm(message)
    with pytest.raises(ValueError, match=what):
        decode(message, GROUPS, 50)


def test_a_phase_that_nobody_knows_is_no_record():
    message = encode(RECORD)
    message.phase = 77
    with pytest.raises(ValueError, match="phase number 77"):
        decode(message, GROUPS, 50)


def test_a_view_whose_lists_do_not_fit_is_no_record():
    message = encode(RECORD)
    message.accepted.value.incarnations.append(1)
    with pytest.raises(ValueError, match="2 members with 3 incarnations"):
        decode(message, GROUPS, 50)


def test_how_new_the_known_records_are_comes_as_it_was_sent():
    known = {0: (0, 3), 7: (1795324472489512700, 1)}
    assert decode_known(Known.FromString(encode_known(known).SerializeToString()), {0: (), 7: ()}) == known
    assert encode_known({}) is None
    assert decode_known(Known(), {}) == {}


def test_who_does_not_say_how_new_a_record_is_says_nothing():
    with pytest.raises(ValueError, match="2 members' records with 1 incarnations and 2 versions"):
        decode_known(Known(members=[1, 2], incarnations=[0], versions=[4, 4]), {1: (), 2: ()})


def test_a_step_comes_as_it_was_sent():
    assert decode_step(encode_step(STEP), GROUPS, 50) == STEP


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda m: setattr(m.value, "iteration", 51), "the iteration 51, over 50"),
        (lambda m: setattr(m.ballot, "member", 1), "names member 1"),
        (lambda m: setattr(m.ballot, "round", 2**63 + 1), "the ballot's round"),
        (lambda m: setattr(m.votes[0], "member", 1), "names member 1"),
        (lambda m: m.votes.add(member=2), "whose votes do not ascend"),
        (lambda m: m.value.members.append(2), "with a view of 3 members with 2 incarnations"),
        (lambda m: m.ClearField("value"), "with a view of 0 members"),
    ],
)
def test_what_no_quorum_decides_is_no_step(harm, what):
    message = encode_step(STEP)
    harm(message)
    with pytest.raises(ValueError, match=what):
        decode_step(message, GROUPS, 50)
