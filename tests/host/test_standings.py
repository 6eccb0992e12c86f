"""Standings and scores for people: they spread, the newest holds, and no member speaks for another."""

from __future__ import annotations

import math

import pytest

from p2pft_flower.host.standings import Standings, most_edges
from p2pft_flower.transport import Credentials, EdgeTraffic, Gossip, PeerScores, Scores, Signed, Standing
from p2pft_flower.transport.trust.authority import create_authority, issue

GROUPS = {m: (m,) for m in range(3)}
BAD = "of its gossip are not used"


def member(me, groups=GROUPS, signatures=None, clock=lambda: 0.0):
    return Standings("run", me, groups, 100, signatures, clock)


def standing(iteration=7, **fields):
    return Standing(iteration=iteration, state=Standing.COMPUTING, rate=2.0, **fields)


def gossip(speaker, sender, listener, receiver):
    """Let one member tell another one all that is new to that; return what was told."""
    told = Gossip(sender=sender)
    speaker.tell(receiver, told)
    listener.hear(told)
    return told


def iterations(one):
    return {m: h.standing.iteration for m, h in one.heard().items() if h.standing is not None}


def test_a_standing_reaches_those_who_are_no_neighbours_and_a_newer_one_replaces_it():
    zero, one, two = member(0), member(1), member(2)
    for done in (7, 9):
        zero.stand(standing(done))
        gossip(zero, 0, one, 1)
        gossip(one, 1, two, 2)
        assert iterations(two) == {0: done}


def test_what_the_other_has_is_not_told_again_and_what_it_lacks_is():
    zero, one = member(0), member(1)
    zero.stand(standing())
    lost = Gossip(sender=0)
    zero.tell(1, lost)  # it never arrives
    assert len(gossip(zero, 0, one, 1).standings) == 1
    gossip(one, 1, zero, 0)  # says what it has
    assert not gossip(zero, 0, one, 1).standings
    again = member(1)  # started again, it has nothing any more
    gossip(again, 1, zero, 0)
    assert len(gossip(zero, 0, again, 1).standings) == 1
    assert iterations(again) == {0: 7}


def test_a_later_life_replaces_an_earlier_one_that_had_told_more():
    zero, one = member(0), member(1)
    for _ in range(5):
        zero.stand(standing(50))
    gossip(zero, 0, one, 1)
    later = member(0)
    later.stand(standing(3, incarnation=1))
    gossip(later, 0, one, 1)
    assert iterations(one) == {0: 3}


def test_scores_come_with_those_of_all_peers_of_the_host_and_say_since_when_nothing_was_heard():
    now = [0.0]
    groups = {0: (0, 1), 2: (2,)}
    zero, two = member(0, groups), member(2, groups, clock=lambda: now[0])
    for peer in (1, 0):
        zero.score(PeerScores(peer=peer, iteration=8, loss=math.nan, accuracy=0.5))
    zero.stand(standing())
    gossip(zero, 1, two, 2)  # whichever of its peers speaks
    now[0] = 4.0
    heard = two.heard()[0]
    assert [s.peer for s in heard.scores.peers] == [0, 1]
    assert heard.since == 4.0


def test_a_sketch_of_a_peers_vector_does_not_leave_its_host_by_gossip():
    zero, one = member(0), member(1)
    zero.score(PeerScores(peer=0, iteration=8, loss=1.0, accuracy=0.5, sketch=[1.0] * 128))
    zero.stand(standing())
    told = gossip(zero, 0, one, 1)
    (scores,) = Scores.FromString(told.scores[0].record).peers
    assert (scores.accuracy, list(scores.sketch)) == (0.5, [])
    assert not one.heard()[0].scores.peers[0].sketch
    assert len(zero.heard()[0].scores.peers[0].sketch) == 128
    (own,) = zero.answer(Gossip()).own_scores
    assert len(own.sketch) == 128


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("federation")
    create_authority(root / "ca", "ours")
    for p in range(3):
        issue(root / "ca", root / str(p), p)
    return root


def signatures(folders, me):
    return Credentials.load(folders / str(me)).signatures()


def test_with_certificates_a_standing_passed_on_is_checked_against_its_author_and_no_other(folders, caplog):
    zero, one, two = (member(m, signatures=signatures(folders, m)) for m in range(3))
    zero.stand(standing())
    gossip(zero, 0, one, 1)
    gossip(one, 1, two, 2)
    assert iterations(two) == {0: 7}
    forged = Gossip(sender=1)
    one.stand(standing(9))
    one.tell(2, forged)
    (note,) = [s for s in forged.standings if Standing.FromString(s.record).member == 1]
    lie = Standing.FromString(note.record)
    lie.member, lie.version = 0, 99
    two.hear(Gossip(sender=1, standings=[Signed(record=lie.SerializeToString(), signature=note.signature)]))
    assert iterations(two) == {0: 7}
    assert "is not signed with its key" in caplog.text


def test_the_coordinator_checks_what_the_peer_that_it_looks_at_passes_on(folders, caplog):
    issue(folders / "ca", folders / "office", "coordinator")
    zero, one = (member(m, signatures=signatures(folders, m)) for m in range(2))
    office = member(-1)
    office.check_with(Credentials.load(folders / "office", "coordinator").checked_signatures())
    zero.stand(standing())
    zero.score(PeerScores(peer=0, iteration=7, loss=1.0, accuracy=0.5))
    zero.stand(standing(8))
    one.stand(standing(9))
    gossip(zero, 0, one, 1)
    first = one.answer(office.known())
    first.sender = 1
    office.hear(first)
    assert iterations(office) == {0: 8, 1: 9}
    assert office.heard()[0].scores.peers[0].accuracy == 0.5
    assert not caplog.records
    zero.stand(standing(10))
    gossip(zero, 0, one, 1)
    again = one.answer(office.known())
    assert len(first.certificates) == 2
    assert not again.certificates, "it has them"
    lie = Standing.FromString(again.standings[0].record)
    lie.iteration = 99
    again.standings[0].record = lie.SerializeToString()
    office.hear(again)
    assert iterations(office) == {0: 8, 1: 9}
    assert "is not signed with its key" in caplog.text


def test_a_peer_that_came_back_with_a_renewed_certificate_is_believed_by_the_coordinator(tmp_path):
    create_authority(tmp_path / "ca", "ours")
    for name, holder in (("old", 0), ("new", 0), ("office", "coordinator")):
        issue(tmp_path / "ca", tmp_path / name, holder)
    office = member(-1)
    office.check_with(Credentials.load(tmp_path / "office", "coordinator").checked_signatures())
    for life, folder in enumerate(("old", "new")):
        zero = member(0, signatures=Credentials.load(tmp_path / folder).signatures())
        zero.stand(standing(7 + life, incarnation=life))
        office.hear(zero.answer(office.known()))
        assert iterations(office) == {0: 7 + life}


FAULTS = {
    "of nobody": (Standing, {"member": 7}),
    "of the one that is told": (Standing, {"member": 2}),
    "beyond the plan": (Standing, {"iteration": 101}),
    "in no state": (Standing, {"state": 0}),
    "in a state that is none": (Standing, {"state": 99}),
    "for ever": (Standing, {"busy": math.inf}),
    "since never": (Standing, {"busy": math.nan}),
    "backwards": (Standing, {"rate": -1.0}),
    "waiting for nobody": (Standing, {"awaited": 9}),
    "with another's edge": (Standing, {"edges": [EdgeTraffic(sender=1, receiver=0)]}),
    "with an edge to nobody": (Standing, {"edges": [EdgeTraffic(sender=0, receiver=9)]}),
    "with an edge to itself": (Standing, {"edges": [EdgeTraffic(sender=0, receiver=0)]}),
    "with an edge twice": (Standing, {"edges": [EdgeTraffic(sender=0, receiver=1)] * 2}),
    "with edges that descend": (
        Standing,
        {"edges": [EdgeTraffic(sender=0, receiver=2), EdgeTraffic(sender=0, receiver=1)]},
    ),
    "with bytes without a payload": (Standing, {"edges": [EdgeTraffic(sender=0, receiver=1, bytes=7)]}),
    "with payloads without number": (
        Standing,
        {"edges": [EdgeTraffic(sender=0, receiver=1, payloads=2**60)]},
    ),
    "with a payload that never ends": (
        Standing,
        {"edges": [EdgeTraffic(sender=0, receiver=1, payloads=1, seconds=math.inf)]},
    ),
    "with a payload before it was sent": (
        Standing,
        {"edges": [EdgeTraffic(sender=0, receiver=1, payloads=1, seconds=-1.0)]},
    ),
    "scores of others": (Scores, {"peers": [PeerScores(peer=1, accuracy=0.5)]}),
    "scores twice": (Scores, {"peers": [PeerScores(peer=0), PeerScores(peer=0)]}),
    "scores beyond the plan": (Scores, {"peers": [PeerScores(peer=0, iteration=101)]}),
    "scores over one": (Scores, {"peers": [PeerScores(peer=0, accuracy=1.5)]}),
    "unseen below zero": (Scores, {"peers": [PeerScores(peer=0, accuracy_unseen=-0.5)]}),
    "a sketch for everybody": (Scores, {"peers": [PeerScores(peer=0, sketch=[1.0] * 128)]}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_note_that_no_honest_member_writes_is_refused_and_counted(fault, caplog):
    kind, fields = FAULTS[fault]
    usual = {"member": 0, "version": 1}
    if kind is Standing:
        usual |= {"iteration": 7, "state": Standing.COMPUTING}
    note = Signed(record=kind(**{**usual, **fields}).SerializeToString())
    two = member(2)
    two.hear(
        Gossip(
            sender=0, standings=[note] if kind is Standing else (), scores=[note] if kind is Scores else ()
        )
    )
    assert two.heard() == {}
    assert BAD in caplog.text
    good = Signed(record=kind(**usual).SerializeToString())
    two.hear(
        Gossip(
            sender=0, standings=[good] if kind is Standing else (), scores=[good] if kind is Scores else ()
        )
    )
    assert set(two.heard()) == {0}


def test_a_standing_with_more_edges_than_any_host_tells_of_is_refused(caplog):
    members = {m: (m,) for m in range(100)}
    two = member(2, members)
    assert most_edges(len(members)) == 32
    for edges in (33, 32):
        assert two.heard() == {}
        told = [EdgeTraffic(sender=0, receiver=1 + k) for k in range(edges)]
        note = Standing(member=0, version=1, state=Standing.COMPUTING, edges=told)
        two.hear(Gossip(sender=0, standings=[Signed(record=note.SerializeToString())]))
    assert len(two.heard()[0].standing.edges) == 32
    assert "with 33 edges, over 32" in caplog.text


def test_bytes_that_are_no_note_are_refused(caplog):
    two = member(2)
    two.hear(Gossip(sender=0, standings=[Signed(record=b"\xff\xff\xff")]))
    assert two.heard() == {}
    assert BAD in caplog.text
