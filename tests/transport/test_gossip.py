"""Gossip, and views that change while the server serves; over real sockets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.transport import (
    Credentials,
    ExchangeError,
    ExchangeRefusedError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    Gossip,
    Hello,
    Links,
    Loss,
    Mailbox,
    OtherViewError,
    PeerLostError,
    PeerServer,
    PeerUnreachableError,
    Pulse,
    Reply,
    Status,
    Stop,
    Terms,
    ViewChangeError,
    unix_address,
)
from p2pft_flower.transport import answers as answering
from p2pft_flower.transport.endpoint import MAX_MEMBERS, gossip_limit
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.header import HEADER_KEY
from tests.transport.federation import Federation
from tests.transport.test_tls import calling
from tests.transport.wire import PATIENCE, gossip_with, message, spawn

VIEWS = [Terms("run", 8, view=v, config="digest") for v in range(3)]
MEMBERS = frozenset(range(4))


class Peer1:
    """Serves peer 1, which receives from 0 and sends to 2; 3 is a member and no neighbour."""

    def __init__(self, address: str, **more) -> None:
        self.heard: list[Gossip] = []
        self.stops: list[Stop] = []
        self.told = [pb.Signed(record=b"by 1")]
        self.mailbox = Mailbox(VIEWS[0], [(0, 1)])
        self.server = PeerServer(
            self.mailbox,
            {1: address},
            out_edges=[(1, 2)],
            on_gossip=self._on_gossip,
            on_stop=self.stops.append,
            members=MEMBERS,
            timeout=PATIENCE,
            **more,
        )
        self.address = self.server.bound_addresses[1]

    def _on_gossip(self, gossip):
        self.heard.append(gossip)
        return Gossip(pulse=Pulse(iteration=17), records=self.told)

    def install(self, view, edges=((0, 1),), out_edges=()):
        """Go on to another view, as the runtime does."""
        old, self.mailbox = self.mailbox, Mailbox(VIEWS[view], edges)
        old.fail(ViewChangeError("peer 9 is lost"))
        self.server.install(self.mailbox, out_edges)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()


@pytest.fixture
def peer(tmp_path):
    with Peer1(unix_address("run", 1, tmp_path)) as peer:
        yield peer


@pytest.fixture
def ask(peer):
    """Call a method with raw bytes, as anybody could."""
    with grpc.insecure_channel(peer.address, options=[("grpc.max_send_message_length", -1)]) as channel:

        def call(method, body, header=None):
            metadata = () if header is None else ((HEADER_KEY, header),)
            unary = channel.unary_unary(f"/p2pft.v2.Exchange/{method}", None, None)
            raw = unary(body, metadata=metadata, timeout=PATIENCE, wait_for_ready=True)
            return (Gossip if method == "Gossip" else Reply).FromString(raw)

        yield call


def links_to(peer, terms=VIEWS[0], edges=((0, 1),), **more):
    return Links(terms, {1: peer.address}, edges, timeout=PATIENCE, **more)


def announce(mailbox, arrived):
    """Set ``arrived`` once the mailbox has answered a payload."""
    deliver = mailbox.deliver

    async def announced(*payload):
        reply = await deliver(*payload)
        arrived.set()
        return reply

    mailbox.deliver = announced


def gossip(**change):
    return Gossip(**({"run": "run", "sender": 0, "receiver": 1} | change))


def name(answer):
    return Status.Name(answer.status)


# Gossip


@pytest.mark.parametrize("sender", [0, 2, 3])
def test_any_member_may_gossip_and_is_answered_by_the_peer_it_called(peer, ask, sender):
    answer = ask("Gossip", gossip(sender=sender, records=[pb.Signed(record=b"by 3")]).SerializeToString())
    assert (name(answer), answer.run, answer.sender, answer.receiver) == ("ACCEPTED", "run", 1, sender)
    assert answer.pulse.iteration == 17
    assert list(answer.records) == peer.told
    assert [(g.sender, [r.record for r in g.records]) for g in peer.heard] == [(sender, [b"by 3"])]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"run": "other"}, "WRONG_RUN", "'other'"),
        ({"sender": 9}, "NOT_NEIGHBOUR", "peer 9, which is no member"),
        ({"receiver": 2}, "NOT_NEIGHBOUR", "peer 2, which is not on this host"),
    ],
)
def test_gossip_of_another_run_by_a_stranger_or_for_somebody_else_is_refused(peer, ask, change, status, says):
    answer = ask("Gossip", gossip(**change).SerializeToString())
    assert name(answer) == status
    assert says in answer.reason
    assert not answer.records
    assert peer.heard == []


def test_garbage_is_no_gossip(peer, ask):
    @settings(max_examples=40, deadline=None)
    @given(body=st.binary(max_size=80))
    def garbage(body):
        assert name(ask("Gossip", body)) in {"BAD_HEADER", "WRONG_RUN"}

    garbage()
    assert peer.heard == []


def test_a_host_that_was_given_no_ear_for_gossip_says_so(tmp_path):
    with (
        PeerServer(Mailbox(VIEWS[0], [(0, 1)]), {1: unix_address("run", 1, tmp_path)}) as server,
        Links(VIEWS[0], server.bound_addresses, [(0, 1)]) as links,
    ):
        answer = gossip_with(links, 1, Gossip(sender=0), PATIENCE)
        assert isinstance(answer, ExchangeRefusedError)
        assert "MISMATCH: this host takes no gossip" in str(answer)


def test_a_member_that_is_no_neighbour_may_stop_but_neither_deliver_nor_greet(peer, ask):
    header, payload = message(VIEWS[0], (3, 1), 0, 0)
    hello = Hello(run="run", sender=3, receiver=1, config="digest", length=8, dtype=1, phases=2)
    stop = Stop(run="run", sender=3, origin=3, cause="OWN")
    answers = [
        ask("Deliver", payload, header),
        ask("Hello", hello.SerializeToString()),
        ask("Stop", stop.SerializeToString()),
    ]
    # Between two views not all have the same neighbours yet, and a stop is for all.
    assert [name(answer) for answer in answers] == ["NOT_NEIGHBOUR", "NOT_NEIGHBOUR", "ACCEPTED"]
    assert [stop.sender for stop in peer.stops] == [3]


def test_a_gossip_longer_than_every_members_record_is_not_read(peer, ask):
    limit = gossip_limit(len(MEMBERS))
    body = gossip(reason="x" * limit).SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        ask("Gossip", body)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peer.heard == []


def test_where_payloads_are_longer_a_gossip_still_is_not(tmp_path):
    mailbox = Mailbox(Terms("run", 1_000_000), [(0, 1)])
    with (
        PeerServer(
            mailbox, {1: unix_address("run", 1, tmp_path)}, on_gossip=lambda _: Gossip(), members=MEMBERS
        ) as server,
        Links(mailbox.terms, server.bound_addresses, [(0, 1)]) as links,
    ):
        answer = gossip_with(links, 1, Gossip(sender=0, reason="x" * 1_000_000), PATIENCE)
    assert isinstance(answer, ExchangeRefusedError)
    assert "WRONG_LENGTH: a gossip of 1000" in str(answer)


def test_a_runtime_that_fails_on_a_gossip_ends_the_run_with_what_it_raised(peer, ask):
    peer.told = "no records"
    answer = ask("Gossip", gossip().SerializeToString())
    assert name(answer) == "STOPPED"
    assert "failed on a Gossip: TypeError" in answer.reason
    with pytest.raises(TypeError):
        peer.mailbox.take(1, 0, 0, 0, PATIENCE)


def largest_record(members):
    """Return a record that names every member wherever it can."""
    everybody = list(range(members))
    view = pb.Composition(
        number=2**31,
        members=everybody,
        incarnations=[2**64 - 1 - i for i in everybody],
        iteration=2**60,
        joined=everybody,
        donors=everybody,
    )
    ballot = pb.Ballot(round=2**60, member=members)
    return pb.Record(
        member=members,
        incarnation=2**60,
        version=2**60,
        view=2**60,
        phase=pb.Record.CHANGING,
        iteration=2**60,
        promised=ballot,
        accepted=pb.Proposal(ballot=ballot, value=view),
        proposal=pb.Proposal(ballot=ballot, value=view),
        suspects=everybody,
        broken=[pb.Edge(sender=i, receiver=members) for i in everybody],
        reaches=everybody,
        vote=b"s" * 72,
        reason="x" * 1024,
    )


def test_the_records_of_1024_members_at_their_largest_fit_into_one_gossip_and_its_answer(tmp_path):
    record = largest_record(MAX_MEMBERS).SerializeToString()
    records = [pb.Signed(record=record, signature=b"s" * 72)] * MAX_MEMBERS
    heard = []

    def on_gossip(message):
        heard.append(len(message.records))
        return Gossip(records=records)

    with (
        PeerServer(
            Mailbox(VIEWS[0], [(0, 1)]),
            {1: unix_address("run", 1, tmp_path)},
            on_gossip=on_gossip,
            members=frozenset(range(MAX_MEMBERS)),
        ) as server,
        Links(VIEWS[0], server.bound_addresses, [(0, 1)]) as links,
    ):
        answer = gossip_with(links, 1, Gossip(sender=0, records=records), PATIENCE)
    assert heard == [MAX_MEMBERS]
    assert isinstance(answer, Gossip), answer
    assert len(answer.records) == MAX_MEMBERS


def test_members_are_gossiped_with_at_once_and_who_is_not_there_holds_nobody_up(peer, tmp_path):
    nobody = unix_address("nobody", 3, tmp_path)
    with Links(VIEWS[0], {1: peer.address, 3: nobody}, [(0, 1)]) as links:
        answers = links.gossip_all({i: Gossip(sender=0, records=peer.told) for i in (3, 1)}, PATIENCE)
    assert [g.run for g in peer.heard] == ["run"]
    assert list(answers) == [3, 1]
    assert isinstance(answers[3], PeerUnreachableError)
    assert nobody in str(answers[3])
    assert answers[1].pulse.iteration == 17


def test_who_gives_up_may_still_gossip_and_who_has_closed_may_not(peer):
    links = links_to(peer)
    links.fail(ExchangeStoppedError("the user stopped the run"))
    assert isinstance(gossip_with(links, 1, Gossip(sender=0), PATIENCE), Gossip)
    links.close()
    assert isinstance(gossip_with(links, 1, Gossip(sender=0), PATIENCE), ExchangeStoppedError)


def test_an_answer_by_somebody_else_is_none(peer):
    with Links(VIEWS[0], {2: peer.address}, [(0, 2)]) as links:
        answer = gossip_with(links, 2, Gossip(sender=0), PATIENCE)
    assert isinstance(answer, ExchangeError)
    assert "peer 2, which is not on this host" in str(answer)


# Over TLS


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def certified(federation):
    return {i: federation[i] for i in range(5)}


@pytest.fixture
def tls_peer(certified):
    with Peer1("127.0.0.1:0", credentials=certified[1]) as peer:
        yield peer


def links_of(peer, credentials, sender):
    return Links(VIEWS[0], {1: peer.address}, [(sender, 1)], timeout=PATIENCE, credentials=credentials)


@pytest.mark.parametrize("sender", [0, 2, 3])
def test_over_tls_any_member_may_gossip(tls_peer, certified, sender):
    with links_of(tls_peer, certified[sender], sender) as links:
        assert gossip_with(links, 1, Gossip(sender=sender), PATIENCE).sender == 1
    assert [g.sender for g in tls_peer.heard] == [sender]


def test_over_tls_a_member_that_is_no_neighbour_delivers_nothing(tls_peer, certified):
    with links_of(tls_peer, certified[3], 3) as links:
        links.send(3, 0, 0, np.zeros(8, np.float32))
        with pytest.raises(ExchangeRefusedError, match="no edge 3 -> 1"):
            links.flush(PATIENCE)


@pytest.mark.parametrize("claims", [0, 4])
def test_over_tls_a_stranger_of_the_federation_gossips_under_no_name(tls_peer, certified, claims):
    with links_of(tls_peer, certified[4], claims) as links:
        answer = gossip_with(links, 1, Gossip(sender=claims), PATIENCE)
    assert isinstance(answer, ExchangeRefusedError)
    assert "NOT_NEIGHBOUR: peer 4 shares no edge" in str(answer)
    assert tls_peer.heard == []


def test_over_tls_nobody_gossips_under_anothers_name(tls_peer, certified):
    with links_of(tls_peer, certified[3], 0) as links:
        answer = gossip_with(links, 1, Gossip(sender=0), PATIENCE)
    assert isinstance(answer, ExchangeRefusedError)
    assert "NOT_AUTHENTIC: a gossip from peer 0 by peer 3" in str(answer)
    assert tls_peer.heard == []


def test_over_tls_who_has_another_federations_certificate_is_not_even_heard(tls_peer, tmp_path):
    with links_of(tls_peer, Federation(tmp_path, "south")[0], 0) as links:
        assert isinstance(gossip_with(links, 1, Gossip(sender=0), PATIENCE), PeerUnreachableError)
    assert tls_peer.heard == []


def test_the_coordinator_may_not_gossip(tls_peer, federation):
    coordinator = Credentials.load(federation.coordinator(), "coordinator")
    with links_of(tls_peer, coordinator, 0) as links:
        answer = gossip_with(links, 1, Gossip(sender=0), PATIENCE)
    assert isinstance(answer, ExchangeRefusedError)
    assert "is heard for a stop or a look with the run's key for it, and for no more" in str(answer)
    assert tls_peer.heard == []


def test_who_has_not_heard_of_a_view_yet_is_not_throttled(tls_peer, certified):
    tls_peer.install(2)
    header, payload = message(VIEWS[1], (0, 1), 0, 0)
    with calling(tls_peer.address, certified[0]) as call:
        assert {name(call("Deliver", payload, header)) for _ in range(100)} == {"WRONG_VIEW"}
        header, payload = message(VIEWS[2], (0, 1), 0, 0)
        assert name(call("Deliver", payload, header)) == "ACCEPTED"


# Changing the view


def test_a_payload_of_the_next_view_is_kept_until_that_is_installed(peer, ask, monkeypatch):
    monkeypatch.setattr(answering, "_KEPT", PATIENCE)
    arrived = threading.Event()
    announce(peer.mailbox, arrived)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(ask, "Deliver", *reversed(message(VIEWS[1], (0, 1), 5, 0)))
        assert arrived.wait(PATIENCE)
        old, peer.mailbox = peer.mailbox, Mailbox(VIEWS[1], [(0, 1)], first_iteration=5)
        old.fail(ViewChangeError("peer 9 is lost"))
        peer.server.install(peer.mailbox, [])
        assert name(early.result(PATIENCE)) == "ACCEPTED"
    assert peer.mailbox.take(1, 0, 5, 0, PATIENCE).vector[0] == 10


def test_a_payload_of_a_view_that_does_not_come_is_answered_later(peer, ask, monkeypatch):
    monkeypatch.setattr(answering, "_KEPT", 0.01)
    assert name(ask("Deliver", *reversed(message(VIEWS[2], (3, 1), 0, 0)))) == "LATER"
    assert not peer.mailbox.refused


def test_a_stranger_cannot_hold_a_worker_with_a_view_to_come(peer, ask, monkeypatch):
    monkeypatch.setattr(answering, "_KEPT", PATIENCE)
    assert name(ask("Deliver", *reversed(message(VIEWS[2], (9, 1), 0, 0)))) == "LATER"


def test_a_server_that_closes_does_not_wait_for_a_view_to_come(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "_KEPT", PATIENCE)
    arrived = threading.Event()
    peer = Peer1(unix_address("run", 1, tmp_path))
    announce(peer.mailbox, arrived)
    links = links_to(peer, VIEWS[1])
    links.send(0, 0, 0, np.zeros(8, np.float32))
    assert arrived.wait(PATIENCE)
    peer.server.close()
    with pytest.raises(OtherViewError, match="LATER"):
        links.flush(PATIENCE)
    links.close()


def test_with_a_view_its_neighbours_change_at_once(peer, ask):
    peer.install(1, edges=[(3, 1)], out_edges=[(1, 0)])
    hello = {"run": "run", "view": 1, "receiver": 1, "config": "digest", "length": 8, "dtype": 1, "phases": 2}
    greeted = {i: name(ask("Hello", Hello(sender=i, **hello).SerializeToString())) for i in (0, 2, 3)}
    assert greeted == {0: "ACCEPTED", 2: "NOT_NEIGHBOUR", 3: "ACCEPTED"}
    assert name(ask("Deliver", *reversed(message(VIEWS[1], (3, 1), 0, 0)))) == "ACCEPTED"
    assert name(ask("Deliver", *reversed(message(VIEWS[1], (0, 1), 0, 0)))) == "NOT_NEIGHBOUR"
    assert name(ask("Deliver", *reversed(message(VIEWS[0], (0, 1), 0, 0)))) == "WRONG_VIEW"


def test_whoever_still_sends_in_the_old_view_learns_that_it_has_ended_and_not_that_the_run_has(peer, ask):
    ask("Deliver", *reversed(message(VIEWS[0], (0, 1), 0, 0)))
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(ask, "Deliver", *reversed(message(VIEWS[0], (0, 1), 0, 1)))  # for room
        peer.mailbox.fail(ViewChangeError("peer 9 is lost"))
        assert name(waits.result(PATIENCE)) == "WRONG_VIEW"
    assert name(ask("Deliver", *reversed(message(VIEWS[0], (0, 1), 0, 1)))) == "WRONG_VIEW"


def test_a_server_goes_on_to_no_view_that_it_was_not_made_for(peer):
    for terms in (Terms("run", 9, view=1), Terms("other", 8, view=1)):
        with pytest.raises(ValueError, match="cannot go on with"):
            peer.server.install(Mailbox(terms, [(0, 1)]), [])


def test_links_go_on_to_a_view_and_leave_the_old_one_behind(peer, tmp_path):
    vector = np.arange(8, dtype=np.float32)
    failures = []
    addresses = {1: peer.address, 2: unix_address("run", 2, tmp_path)}
    with Links(VIEWS[0], addresses, [(0, 1), (0, 2)], on_failure=failures.append) as links:
        links.send(0, 0, 0, vector)  # the one to 2, which is not there, stays under way
        links.fail(ViewChangeError("peer 2 is lost"))
        with pytest.raises(ViewChangeError):
            links.flush(PATIENCE)
        peer.install(1)
        links.install(VIEWS[1], [(0, 1)], [])
        assert links.neighbours == {1: 0}
        links.send(0, 0, 0, vector)
        links.flush(PATIENCE)
        assert peer.mailbox.take(1, 0, 0, 0, PATIENCE).vector.tobytes() == vector.tobytes()
        assert links.bytes_sent == {0: 3 * 32}
    assert failures == []


def test_after_a_stop_links_go_on_to_no_view(peer):
    with links_to(peer) as links:
        links.fail(ViewChangeError("peer 2 is lost"))
        links.fail(ExchangeStoppedError("the user stopped the run"))
        with pytest.raises(ExchangeStoppedError, match="the user"):
            links.install(VIEWS[1], [(0, 1)], [])


def test_a_view_with_a_neighbour_of_unknown_address_is_refused_and_changes_nothing(peer):
    with links_to(peer) as links:
        with pytest.raises(ValueError, match=r"neighbours \[7\]"):
            links.install(VIEWS[1], [(0, 7)], [])
        assert (links.edges.terms, links.neighbours) == (VIEWS[0], {1: 0})


def test_a_host_speaks_once_to_each_remote_neighbour(peer):
    edges_out, edges_in = [(5, 1), (4, 1), (5, 2)], [(2, 4), (3, 5)]
    with Links(VIEWS[0], dict.fromkeys((1, 2, 3), peer.address), edges_out, edges_in) as links:
        assert links.neighbours == {1: 4, 2: 4, 3: 5}
        assert [links.edges.edge_with(i) for i in (1, 2, 3)] == [(4, 1), (2, 4), (3, 5)]
        with pytest.raises(ValueError, match="peer 7 shares no edge"):
            links.edges.edge_with(7)


# Sending again


class Asked:
    """A patience that is at its end when the test says so."""

    def __init__(self) -> None:
        self.times, self.enough = 0, threading.Event()
        self._more = threading.Condition()

    def __call__(self, remote):
        with self._more:
            self.times += 1
            self._more.notify_all()
        return PeerLostError("it is gone", lost=remote, how=Loss.CRASHED) if self.enough.is_set() else None

    def wait_for(self, times):
        with self._more:
            assert self._more.wait_for(lambda: self.times >= times, PATIENCE)


def test_a_payload_to_a_receiver_in_an_earlier_view_is_sent_again_until_it_has_come_there(peer, monkeypatch):
    monkeypatch.setattr(answering, "_KEPT", 0.01)
    patience = Asked()
    with links_to(peer, VIEWS[1], patience=patience) as links:
        links.send(0, 0, 0, np.ones(8, np.float32))
        patience.wait_for(2)
        peer.install(1)
        links.flush(PATIENCE)
        assert peer.mailbox.take(1, 0, 0, 0, PATIENCE).vector[0] == 1
    assert links.bytes_sent == {0: 32}


def test_without_patience_a_receiver_in_an_earlier_view_ends_it(peer, monkeypatch):
    monkeypatch.setattr(answering, "_KEPT", 0.01)
    with links_to(peer, VIEWS[1]) as links:
        links.send(0, 0, 0, np.ones(8, np.float32))
        with pytest.raises(OtherViewError, match="answered LATER: view 1, here it is 0"):
            links.flush(PATIENCE)


def test_a_payload_to_a_receiver_that_is_ahead_waits_for_this_host_to_hear_of_the_view(peer):
    patience = Asked()
    with links_to(peer, patience=patience) as links:
        peer.install(1)
        links.send(0, 0, 0, np.ones(8, np.float32))
        patience.wait_for(2)
        links.install(VIEWS[1], [(0, 1)], [])
        links.send(0, 0, 0, np.ones(8, np.float32))
        links.flush(PATIENCE)
    assert peer.mailbox.pending((0, 1)) == 1


def test_a_payload_whose_calls_time_out_is_sent_again_and_used_once(peer):
    patience = Asked()
    limits = {"timeout": 0.2, "longest": PATIENCE}
    with Links(VIEWS[0], {1: peer.address}, [(0, 1)], **limits, patience=patience) as links:
        for phase in range(2):
            links.send(0, 0, phase, np.full(8, phase, np.float32))  # the second waits for room
        asked = patience.times
        patience.wait_for(asked + 3)
        peer.mailbox.take(1, 0, 0, 0, PATIENCE)
        links.flush(PATIENCE)
        assert peer.mailbox.take(1, 0, 0, 1, PATIENCE).vector[0] == 1
        assert peer.mailbox.pending((0, 1)) == 0


def test_a_payload_to_a_receiver_that_is_not_there_yet_is_sent_again_until_it_is(tmp_path):
    patience = Asked()
    address = unix_address("run", 1, tmp_path)
    with Links(VIEWS[0], {1: address}, [(0, 1)], timeout=0.2, longest=PATIENCE, patience=patience) as links:
        links.send(0, 0, 0, np.ones(8, np.float32))
        patience.wait_for(2)
        with Peer1(address) as peer:
            links.flush(float("inf"))
            assert peer.mailbox.take(1, 0, 0, 0, PATIENCE).vector[0] == 1


def test_the_end_of_patience_is_raised_with_the_place_of_the_payload_and_reported(tmp_path):
    patience, reported, known = Asked(), [], threading.Event()
    address = unix_address("nobody", 1, tmp_path)
    with Links(
        VIEWS[0],
        {1: address},
        [(0, 1)],
        timeout=0.2,
        longest=PATIENCE,
        patience=patience,
        on_failure=lambda error: (reported.append(error), known.set()),
    ) as links:
        links.send(0, 6, 1, np.ones(8, np.float32))
        patience.enough.set()  # nobody waits in `send` or `flush`: it is found out all the same
        assert known.wait(PATIENCE)
        with pytest.raises(
            PeerLostError,
            match=r"peer 0, edge 0 -> 1, iteration 6, phase 1: peer 1 is lost \(crashed\): it is gone",
        ):
            links.flush(PATIENCE)
    assert len(reported) == 1


def test_who_waits_to_send_asks_although_the_call_is_still_under_way(peer):
    patience = Asked()
    with links_to(peer, patience=patience) as links:  # its calls take PATIENCE
        for phase in range(2):
            links.send(0, 0, phase, np.ones(8, np.float32))
        patience.enough.set()
        with pytest.raises(
            PeerLostError, match=r"iteration 0, phase 1: peer 1 is lost \(crashed\): it is gone"
        ):
            links.send(0, 1, 0, np.ones(8, np.float32))


def test_a_patience_that_fails_ends_the_payload_with_what_it_raised(tmp_path):
    def patience(_):
        raise RuntimeError("the heartbeats failed")

    nobody = unix_address("nobody", 1, tmp_path)
    with Links(VIEWS[0], {1: nobody}, [(0, 1)], timeout=0.1, longest=PATIENCE, patience=patience) as links:
        links.send(0, 0, 0, np.ones(8, np.float32))
        with pytest.raises(RuntimeError, match="the heartbeats failed"):
            links.flush(PATIENCE)


def test_a_payload_that_is_refused_is_not_sent_again_whatever_the_patience(peer):
    with links_to(peer, patience=Asked()) as links:
        links.send(0, 0, 0, np.full(8, np.nan, np.float32))
        with pytest.raises(ExchangeRefusedError, match="NOT_FINITE"):
            links.flush(PATIENCE)
    assert peer.mailbox.refused == {"NOT_FINITE": 1}


def test_flush_keeps_its_deadline_whatever_the_patience(tmp_path):
    with Links(
        VIEWS[0],
        {1: unix_address("nobody", 1, tmp_path)},
        [(0, 1)],
        timeout=0.1,
        longest=PATIENCE,
        patience=Asked(),
    ) as links:
        links.send(0, 0, 0, np.ones(8, np.float32))
        with pytest.raises(ExchangeTimeoutError, match=r"deadline 0\.5 s"):
            links.flush(0.5)


def test_a_stop_wakes_who_sends_again_and_leaves_nothing_behind(tmp_path):
    patience = Asked()
    links = Links(
        VIEWS[0],
        {1: unix_address("nobody", 1, tmp_path)},
        [(0, 1)],
        timeout=0.1,
        longest=PATIENCE,
        patience=patience,
    )
    links.send(0, 0, 0, np.ones(8, np.float32))
    woken = []

    def flush():
        try:
            links.flush(float("inf"))
        except ExchangeStoppedError as error:
            woken.append(str(error))

    thread = spawn(flush)
    patience.wait_for(2)
    links.fail(ExchangeStoppedError("the user stopped the run"))
    thread.join(PATIENCE)
    assert woken == ["the user stopped the run"]
    links.close()  # and the threads are looked at after the test
