"""What hosts tell of a change of view that they have agreed on."""

from __future__ import annotations

import pytest

from p2pft_flower.agreement.record import Ballot, Record, Step, Vote
from p2pft_flower.agreement.rules import Rules
from p2pft_flower.agreement.state import begin, join
from p2pft_flower.host.agreement import Agreement, LostContactError
from p2pft_flower.host.notary import Notary
from p2pft_flower.host.records import encode, encode_step
from p2pft_flower.topology import Graph
from p2pft_flower.transport import Gossip, Loss, PeerLostError, ViewChangeError
from p2pft_flower.transport.wire.p2pft_pb2 import Signed

TWO = Graph.load("ring:2")
RING = Graph.load("directed-ring:4")


class Quiet:
    """Heartbeats that miss nobody."""

    def nudge(self):
        pass

    def revoked(self, peer):
        return ""


def made(me, graph=RING, *, joins=0, iterations=10**6, round_time=0.2, patience=60.0, **times):
    """Return member ``me``'s agreement, not started; in its incarnation ``joins`` it asks to be let in."""
    groups = {p: (p,) for p in range(graph.n)}
    rules = Rules(graph, groups, round_time, patience)
    state = join(rules, me, joins) if joins else begin(rules, me)
    notary = Notary("run", me, groups, iterations, None)
    times = {"interval": 0.02, "direct": 0.4} | times
    return Agreement(state, notary, on_change=lambda change: None, **times)


def agreement(me, graph=RING, **how):
    it = made(me, graph, **how)
    it.start(Quiet(), tuple)
    return it


def gossip(hosts):
    """Let each host hear all others."""
    for sender, one in hosts.items():
        for receiver, other in hosts.items():
            if receiver != sender:
                gossip = one.tell(receiver)
                gossip.sender, gossip.receiver = sender, receiver
                other.hear(gossip)


def test_who_is_left_out_though_nobody_had_missed_it_yet_is_named_with_a_reason():
    # Peer 3 has just been suspended when peer 2, which was started again, has the view change.
    hosts = {0: agreement(0), 1: agreement(1), 2: agreement(2, joins=7)}
    try:
        views = {p: hosts[p].settle(lambda: gossip(hosts), lambda: None) for p in (0, 1, 2)}
    finally:
        for host in hosts.values():
            host.close()
    for p in (0, 1):
        assert (views[p].view.peers, views[p].lost, views[p].joined) == ((0, 1, 2), (3,), (2,))
        assert (
            views[p].presumed[3] == "peer 3 took no part in agreeing on view 1, and was waited for no longer"
        )
    assert (views[2].why, views[2].presumed) == ({}, {})  # it does not know what was before


def test_who_is_left_out_for_a_revoked_certificate_is_named_with_that_by_all_who_have_the_list():
    hosts = {0: agreement(0), 1: agreement(1), 2: agreement(2, joins=7)}
    hosts[0]._heartbeats.revoked = {3: "revoked: the certificate of peer 3"}.get
    try:
        views = {p: hosts[p].settle(lambda: gossip(hosts), lambda: None) for p in (0, 1, 2)}
    finally:
        for host in hosts.values():
            host.close()
    assert (views[0].why, views[0].presumed) == ({3: "revoked: the certificate of peer 3"}, {})
    assert "took no part" in views[1].presumed[3], "it has no list yet"


def test_a_host_is_spared_where_the_others_are_a_quorum_and_enough():
    lowest, other = (made(p, TWO) for p in (0, 1))
    assert not lowest.spares(1)  # half of two, without the lowest, is no quorum
    assert other.spares(1)
    assert not other.spares(2)
    four = agreement(1)
    try:
        assert four.spares(3)
        assert not four.spares(4)
        four.miss(PeerLostError("silent", lost=3, how=Loss.SILENT, peer=1, edge=(3, 1)))
        assert four.spares(2)  # 0 and 2 of four, with the lowest
        four.miss(PeerLostError("silent", lost=0, how=Loss.SILENT, peer=1, edge=(0, 1)))
        assert not four.spares(1)
    finally:
        four.close()


def test_who_iterates_alone_completes_nothing_in_a_view_that_another_one_has_followed():
    # Nothing comes from elsewhere, so no payload that is missing tells its training that the other is back.
    alone, other = agreement(0, TWO), agreement(1, TWO, joins=7)
    told = []
    try:
        alone.miss(PeerLostError("silent", lost=1, how=Loss.SILENT, peer=0, edge=(1, 0)))
        assert alone.settle(lambda: None, lambda: None).view.peers == (0,)
        alone.complete(1)
        alone._on_change = told.append
        other.settle(lambda: gossip({0: alone, 1: other}), lambda: None)
        assert told  # it trains, and nobody waits who could be woken
        with pytest.raises(ViewChangeError):
            alone.complete(2)
        assert not alone.finish(60.0, lambda: None)
        new = alone.settle(lambda: None, lambda: None)
    finally:
        alone.close()
        other.close()
    assert (new.view.peers, new.joined, new.iteration) == ((0, 1), (1,), 1)


def test_hosts_that_have_gone_on_in_two_parts_give_up_when_they_hear_of_each_other():
    five = Graph.load("complete:5")
    parts = [{p: agreement(p, five) for p in part} for part in ((0, 1, 4), (2, 3, 4))]  # peer 4 is in both
    try:
        for part in parts:
            for p, host in part.items():
                for away in {*range(5)} - part.keys():
                    host.miss(PeerLostError("silent", lost=away, how=Loss.SILENT, peer=p, edge=(away, p)))
            for host in part.values():
                assert host.settle(lambda part=part: gossip(part), lambda: None).view.peers == tuple(part)
        met = {0: parts[0][0], 2: parts[1][2]}
        for host in met.values():
            host.recheck()
            host.complete(1)
        gossip(met)
        gossip(met)
        for host in met.values():
            assert host.overdue() == "", "it is not too busy"
            with pytest.raises(ViewChangeError):
                host.complete(2)
            assert not host.finish(60.0, lambda: None)
            with pytest.raises(LostContactError, match="view 1 was decided twice"):
                host.settle(lambda: None, lambda: None)
        done = parts[0][1]
        done.recheck()
        with pytest.raises(LostContactError, match="view 1 was decided twice"):
            done.finish(60.0, lambda: gossip({0: met[0], 1: done}))
    finally:
        for part in parts:
            for host in part.values():
                host.close()


def test_who_learns_of_both_views_before_it_has_taken_up_one_gives_up_instead_of_waiting():
    five = Graph.load("complete:5")
    hosts = {p: agreement(p, five) for p in (0, 1)}
    first = hosts[0]._state.rules.first
    votes = tuple(Vote(m, 0) for m in range(5))
    steps = [Step(first._replace(number=1, iteration=k), Ballot(k, k), votes) for k in (1, 2)]
    try:
        hosts[0].miss(PeerLostError("silent", lost=4, how=Loss.SILENT, peer=0, edge=(4, 0)))  # it pauses
        for host in hosts.values():
            host.hear(Gossip(sender=2, steps=map(encode_step, steps)))
            with pytest.raises(ViewChangeError):
                host.complete(1)
            with pytest.raises(LostContactError, match="view 1 was decided twice"):
                host.settle(lambda: None, lambda: None)
    finally:
        for host in hosts.values():
            host.close()


def test_a_busy_host_that_knows_of_two_views_has_its_patience_to_end_by_itself():
    now = [0.0]
    five = Graph.load("complete:5")
    host = made(0, five, patience=60.0, clock=lambda: now[0])
    first, votes = host._state.rules.first, tuple(Vote(m, 0) for m in range(5))
    steps = [Step(first._replace(number=1, iteration=k), Ballot(k, k), votes) for k in (1, 2)]
    host.hear(Gossip(sender=2, steps=map(encode_step, steps)))
    now[0] = 59.0
    assert host.overdue() == ""
    now[0] = 60.0
    assert "view 1 was decided twice" in host.overdue(), "its gradient does not end"


class Silence:
    """Heartbeats by which all remote peers are lost."""

    def absence(self, peer):
        return PeerLostError(f"peer {peer} is lost", lost=peer, how=Loss.CRASHED, peer=0)

    def nudge(self):
        return


def test_who_falls_silent_while_the_view_changes_is_missed_too():
    agreement = made(0, round_time=1e3, patience=1e6, interval=0.01)
    agreement.miss(
        PeerLostError("silent", lost=3, how=Loss.SILENT, peer=0, edge=(3, 0))
    )  # it changes already
    agreement.start(Silence(), lambda: (1,))
    with agreement._changed:
        assert agreement._changed.wait_for(lambda: 1 in agreement._state.record.suspects, 60)
    agreement.close()
    assert agreement._state.record.suspects == (1, 3)


def test_of_a_flood_of_wrong_records_few_lines_are_logged_and_nothing_is_used(caplog):
    agreement = made(0, Graph.load("ring:4"), iterations=100)
    record = Signed(record=encode(Record(1, 1, iteration=101)).SerializeToString())
    for _ in range(30):
        agreement.hear(Gossip(sender=1, records=[record] * 30_000))
    first, tenth = caplog.messages
    assert first == (
        "refused a message from peer 1: BAD_HEADER: 5 parts of its gossip are not used; the first: there are "
        "29996 records more than members (logged once)"
    )
    assert tenth == "refused 10 messages from peer 1 so far, the last one: BAD_HEADER"
    assert agreement._state.records == {}
