"""Calls that are held open: by strangers, by members, without a body or with one of a view to come."""

from __future__ import annotations

import itertools
import logging
import statistics
import threading
import time
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
import pytest

from p2pft_flower.transport import Gossip, Hello, Links, Mailbox, PeerServer, Reply, Status, Terms, endpoint
from p2pft_flower.transport import answers as answering
from p2pft_flower.transport.trust.certificates import target_name
from p2pft_flower.transport.wire.header import HEADER_KEY
from p2pft_flower.transport.wire.p2pft_pb2 import Fetched
from tests.transport.federation import Federation
from tests.transport.wire import PATIENCE, gossip_with, message

TERMS = Terms("run", 8)
METHODS = ("Deliver", "Hello", "Stop", "Gossip", "Fetch")
ANSWERS = {"Gossip": Gossip, "Fetch": Fetched}
HELLO = Hello(run="run", sender=0, receiver=1, length=8, dtype=1, phases=2).SerializeToString()


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    north = Federation(tmp_path_factory.mktemp("north"))
    return {i: north[i] for i in range(4)}


@contextmanager
def serving(own=None):
    """Peer 1 of the run of 0, 1 and 2, which receives from 0 and 2."""
    mailbox = Mailbox(TERMS, [(0, 1), (2, 1)])
    with PeerServer(
        mailbox,
        {1: "127.0.0.1:0"},
        on_gossip=lambda _: Gossip(),
        members=frozenset({0, 1, 2}),
        credentials=own,
    ) as server:
        mailbox.address = server.bound_addresses[1]
        yield mailbox


class Holder:
    """Starts calls and sends no body until it is closed."""

    def __init__(self, address, own=None):
        options = [
            ("grpc.ssl_target_name_override", target_name("north", 1)),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = (
            grpc.insecure_channel(address, options[1:])
            if own is None
            else grpc.secure_channel(address, own.channel(), options)
        )
        self._end = threading.Event()

    def hold(self, method, header=b"x"):
        """Start a call; its answer is what the future returns."""

        def no_body():
            self._end.wait(PATIENCE)
            yield from ()

        call = self._channel.stream_unary(
            f"/p2pft.v2.Exchange/{method}", None, ANSWERS.get(method, Reply).FromString
        )
        return call.future(no_body(), timeout=PATIENCE, metadata=((HEADER_KEY, header),))

    def ask(self, method, body, header=b""):
        call = self._channel.unary_unary(f"/p2pft.v2.Exchange/{method}", None, Reply.FromString)
        return call.future(body, timeout=PATIENCE, metadata=((HEADER_KEY, header),) if header else ())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._channel.close()
        self._end.set()


def exchange(mailbox, links, first, iterations):
    """Peer 0 sends, and peer 1 takes; return the seconds of an iteration, the middle of them all.

    On a machine that is slow for a while a few iterations take long.
    """
    times = [time.monotonic()]
    for k in range(first, first + iterations):
        for phase in range(2):
            links.send(0, k, phase, np.full(8, k, np.float32))
            assert mailbox.take(1, 0, k, phase, PATIENCE).vector[0] == k
        times.append(time.monotonic())
    links.flush(PATIENCE)
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def name(reply):
    return Status.Name(reply.status)


def test_a_certificate_that_is_no_peer_of_the_run_is_answered_before_it_sends_a_body(peers):
    with serving(peers[1]) as mailbox, Holder(mailbox.address, peers[3]) as stranger:
        replies = [stranger.hold(METHODS[k % 5]).result(PATIENCE) for k in range(60)]
        assert name(replies[0]) == "NOT_NEIGHBOUR"
        assert name(replies[-1]) == "THROTTLED"
        assert {name(r) for r in replies} == {"NOT_NEIGHBOUR", "THROTTLED"}
        with Holder(mailbox.address, peers[0]) as neighbour:
            assert name(neighbour.ask("Hello", HELLO).result(PATIENCE)) == "ACCEPTED"


@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain text"])
def test_calls_without_a_body_hold_nobody_up(peers, secure):
    """Over TLS they are a member's; in plain text anybody's on the machine."""
    own = peers if secure else {}
    with (
        serving(own.get(1)) as mailbox,
        Links(TERMS, {1: mailbox.address}, [(0, 1)], timeout=PATIENCE, credentials=own.get(0)) as links,
        Holder(mailbox.address, own.get(2)) as holder,
    ):
        exchange(mailbox, links, 0, 20)
        alone = exchange(mailbox, links, 20, 100)
        for k in range(60):
            holder.hold(METHODS[k % 5])
        held = exchange(mailbox, links, 120, 100)
        assert held < 5 * alone + 0.01
        assert isinstance(gossip_with(links, 1, Gossip(sender=0), PATIENCE), Gossip)


def test_a_member_holds_no_more_than_its_share_and_its_oldest_calls_give_way(peers, monkeypatch):
    monkeypatch.setattr(endpoint, "SMALL_BODY", PATIENCE)
    with serving(peers[1]) as mailbox, Holder(mailbox.address, peers[2]) as member:
        member.ask("Stop", b"").result(PATIENCE)  # over a connection that is there, calls keep their order
        calls = [member.hold("Deliver") for _ in range(10)]
        for call in calls[:8]:
            reply = call.result(PATIENCE)
            assert name(reply) == "THROTTLED"
            assert "newer calls of peer 2 took this one's place" in reply.reason
        assert not any(call.done() for call in calls[8:])
        calls += [member.hold("Deliver") for _ in range(40)]
        assert "nothing is looked at" in calls[-1].result(PATIENCE).reason  # what is held counts


def test_payloads_of_a_view_to_come_hold_nobody_up(peers, monkeypatch):
    monkeypatch.setattr(answering, "_KEPT", PATIENCE)
    later = Terms("run", 8, view=1)
    with (
        serving(peers[1]) as mailbox,
        Links(TERMS, {1: mailbox.address}, [(0, 1)], timeout=PATIENCE, credentials=peers[0]) as links,
        Holder(mailbox.address, peers[2]) as member,
    ):
        for k in range(40):
            header, body = message(later, (2, 1), k, 0)
            member.ask("Deliver", body, header)
        exchange(mailbox, links, 0, 20)
        assert isinstance(gossip_with(links, 1, Gossip(sender=0), PATIENCE), Gossip)


def test_a_body_has_a_deadline(peers, monkeypatch):
    monkeypatch.setattr(endpoint, "SMALL_BODY", 0.05)
    with serving(peers[1]) as mailbox, Holder(mailbox.address, peers[0]) as member:
        for method in METHODS[1:]:
            reply = member.hold(method).result(PATIENCE)
            assert name(reply) == "THROTTLED"
            assert "body has not come within 0.05 s" in reply.reason


def test_what_is_logged_of_a_sender_is_bounded(peers, caplog):
    caplog.set_level(logging.INFO)
    with serving() as mailbox, ExitStack() as stack:
        for _ in range(3):  # in plain text by connection, which are called the same
            holder = stack.enter_context(Holder(mailbox.address))
            for _ in range(400):
                holder.ask("Hello", b"\xff").result(PATIENCE)
    lines = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert 2 <= len(lines) <= 8
    assert "refused a message from ipv4:127.0.0.1: BAD_HEADER" in lines[0]
    assert any("so far" in line for line in lines)
