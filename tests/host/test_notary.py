"""What a member that lies can make others believe of itself, of third ones, and of decisions."""

from __future__ import annotations

import pytest

from p2pft_flower.agreement import member
from p2pft_flower.agreement.events import Heard
from p2pft_flower.agreement.record import Ballot, Composition, Phase, Proposal, Record, Step, Vote
from p2pft_flower.agreement.rules import Rules
from p2pft_flower.agreement.state import State, begin
from p2pft_flower.host.notary import Notary
from p2pft_flower.topology import Graph
from p2pft_flower.transport import Credentials
from p2pft_flower.transport.trust.authority import create_authority, issue
from p2pft_flower.transport.wire import p2pft_pb2 as pb

GROUPS = {m: (m,) for m in range(3)}
RULES = Rules(Graph.load("complete:3"), GROUPS, 1.0, 10.0)
NEXT = Composition(1, (0, 1), (0, 0), iteration=7)
ACCEPTED = Proposal(Ballot(1, 0), NEXT)
RECORD = Record(
    1,
    0,
    version=4,
    phase=Phase.CHANGING,
    iteration=7,
    promised=Ballot(1, 0),
    accepted=ACCEPTED,
    suspects=(2,),
    broken=((1, 2), (2, 1)),
    reaches=(0,),
    hanging=(0,),
    reason="r",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Certificates of peers 0 to 2 of one federation, and of peer 1 of another one."""
    made = {}
    for name, peers in (("ours", range(3)), ("theirs", (1,))):
        root = tmp_path_factory.mktemp(name)
        create_authority(root / "ca", name)
        for p in peers:
            issue(root / "ca", root / str(p), p)
            made[name, p] = root / str(p)
    return made


@pytest.fixture
def notary(folders):
    def make(me, federation="ours", run="run"):
        signatures = Credentials.load(folders[federation, me]).signatures()
        return Notary(run, me, GROUPS, 100, signatures)

    return make


def state(me, record=None, **others):
    """Return a member's state that says ``record``, and knows ``others``."""
    made = begin(RULES, me)
    return State(RULES, record or made.record, RULES.first, **others)


def written(notary, record=RECORD, run="run"):
    """Return what member 1 tells of itself."""
    return notary(record.member, run=run).write(state(1, record), 0)


def test_what_a_member_says_comes_as_it_was_said_and_is_passed_on_by_others(notary):
    said = written(notary)
    middle, end = notary(0), notary(2)
    heard, wrong = middle.read(said, 1)
    assert not wrong
    (record,) = heard.records
    assert record.vote
    assert (record.member, record.accepted, record.suspects) == (1, ACCEPTED, (2,))
    of_zero = state(0, Record(0, 0, phase=Phase.CHANGING), records={1: record}, known={2: {}})
    heard, wrong = end.read(middle.write(of_zero, 2), 0)
    assert not wrong
    assert {r.member for r in heard.records} == {0, 1}
    assert record in heard.records


def fields(kind):
    return [field.name for field in kind.DESCRIPTOR.fields]


@pytest.mark.parametrize("name", fields(pb.Record))
def test_no_field_of_anothers_record_can_be_changed(notary, name):
    said = written(notary, RECORD if name != "proposal" else Record(1, 0, proposal=Proposal(Ballot(1, 1))))
    record = pb.Record.FromString(said.records[0].record)
    value = getattr(record, name)
    if isinstance(value, int):
        setattr(record, name, value + 1)
    else:
        assert value  # there is something to take away
        record.ClearField(name)
    said.records[0].record = record.SerializeToString()
    heard, wrong = notary(0).read(said, 2)
    assert heard.records == ()
    assert len(wrong) == 1


@pytest.mark.parametrize(
    "record",
    [
        Record(1, 9, phase=Phase.JOINING),  # a later life
        Record(1, 0, version=9, phase=Phase.FINISHED, iteration=100),
        Record(1, 0, version=9, phase=Phase.LEFT, reason="gone"),
    ],
    ids=str,
)
def test_a_record_of_another_member_that_one_signs_itself_is_not_used(notary, record):
    forger = notary(2)
    said = forger.write(state(2), 0)
    (mine,) = said.records
    mine.record = b"" if record is None else forge(record)
    mine.signature = forger._sign(forger._statement(mine.record))
    heard, (error,) = notary(0).read(said, 2)
    assert heard.records == ()
    assert str(error) == "a record of member 1 that is not signed with its key"


def forge(record):
    from p2pft_flower.host.records import encode

    return encode(record).SerializeToString()


def test_a_record_of_another_run_is_not_used(notary):
    heard, wrong = notary(0).read(written(notary, run="another"), 1)
    assert heard.records == ()
    assert wrong


def test_a_certificate_of_another_federation_proves_nothing(notary):
    said = notary(1, "theirs").write(state(1, RECORD), 0)
    heard, wrong = notary(0).read(said, 1)
    assert heard.records == ()
    assert "a certificate for peer 1 of federation 'theirs', no peer of federation 'ours'" in str(wrong[0])


def decided(notary):
    """Return how members 0 and 1 have decided on view 1, as member 1 tells it."""
    of_zero = Record(0, 0, version=3, phase=Phase.CHANGING, promised=Ballot(1, 0), accepted=ACCEPTED)
    one = notary(1)
    (heard,) = one.read(notary(0).write(state(0, of_zero), 1), 0)[0].records
    step = Step(NEXT, Ballot(1, 0), (Vote(0, 0, heard.vote), Vote(1, 0)))
    return one.write(state(1, Record(1, 0, view=1), steps=(step,)), 2)


def test_a_decided_view_comes_with_the_votes_that_prove_it(notary):
    heard, wrong = notary(2).read(decided(notary), 1)
    assert not wrong
    after, _ = member.step(state(2), heard, 0.0)
    assert after.newest == NEXT
    assert after.excluded  # it is not in it


@pytest.mark.parametrize("name", fields(pb.Composition))
def test_no_field_of_a_decided_view_can_be_changed(notary, name):
    said = decided(notary)
    value = said.steps[0].value
    changes = {
        "members": [0, 2],
        "incarnations": [0, 1],
        "broken": [pb.Edge(sender=0, receiver=1)],
        "joined": [1],
        "donors": [0],
    }
    if name in ("joined", "donors"):
        value.joined[:], value.donors[:] = [1], [0]
    elif name in changes:
        value.ClearField(name)
        getattr(value, name).extend(changes[name])
    else:
        setattr(value, name, getattr(value, name) + 1)
    heard, wrong = notary(2).read(said, 1)
    assert heard.steps == ()
    assert "that is not signed with its key" in str(wrong[0])


@pytest.mark.parametrize(
    "forge",
    [
        lambda step: setattr(step.ballot, "round", 9),
        lambda step: setattr(step.votes[0], "incarnation", 1),
        lambda step: setattr(step.votes[1], "member", 2),
        lambda step: step.votes[0].ClearField("signature"),
        lambda step: setattr(step.votes[0], "signature", step.votes[1].signature),
    ],
)
def test_no_vote_can_be_used_for_anything_else(notary, forge):
    said = decided(notary)
    forge(said.steps[0])
    heard, wrong = notary(2).read(said, 1)
    assert heard.steps == ()
    assert "that is not signed with its key" in str(wrong[0])


def test_a_vote_alone_decides_nothing(notary):
    said = decided(notary)
    del said.steps[0].votes[0]
    heard, wrong = notary(2).read(said, 1)
    assert not wrong
    after, effects = member.step(state(2), heard, 0.0)
    assert (after.newest, after.phase) == (RULES.first, Phase.RUNNING)
    assert not any(isinstance(e, type(None)) for e in effects)


def test_without_certificates_whoever_can_connect_is_believed():
    plain = [Notary("run", m, GROUPS, 100, None) for m in range(3)]
    heard, wrong = plain[0].read(plain[1].write(state(1, RECORD), 0), 1)
    assert not wrong
    assert heard == Heard((RECORD,), (), 1, heard.known)
