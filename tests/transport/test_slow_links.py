"""Links that are slow, lose what is large, alter it, or lead to a host that ends; over real sockets."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from p2pft_flower.lab.relay import relayed
from p2pft_flower.transport import (
    EdgeBrokenError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    Links,
    Mailbox,
    PeerServer,
    Terms,
    ViewChangeError,
    answers,
    payloads,
    unix_address,
)
from p2pft_flower.transport.payloads import Carrier
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from tests.transport.wire import PATIENCE

EDGE = (0, 1)
SMALL = Terms("run", 8)
LARGE = Terms("run", 250_000)
"""A megabyte."""


class CountingCarrier(Carrier):
    async def deliver(self, payload, call):
        with self.news:
            self.calls.append(call.deadline)
            self.news.notify_all()
        return await super().deliver(payload, call)


class Counting(Links):
    """Counts the calls of payloads, and keeps the deadline of each."""

    def __init__(self, terms, address, **more):
        self.calls, self.news = [], threading.Condition()
        more = {"patience": lambda _: None} | more
        super().__init__(terms, {1: address}, [EDGE], **more)
        self._sending._carrier = CountingCarrier(**vars(self._sending._carrier))
        for name in ("calls", "news"):
            object.__setattr__(self._sending._carrier, name, getattr(self, name))

    def wait_for(self, calls):
        with self.news:
            assert self.news.wait_for(lambda: len(self.calls) >= calls, PATIENCE)


@contextmanager
def receiver(terms, address="127.0.0.1:0", **more):
    mailbox = Mailbox(terms, [EDGE])
    with PeerServer(mailbox, {1: address}, members=frozenset({0, 1}), **more) as server:
        yield mailbox, server


def vector(terms, number=1):
    return np.full(terms.length, number, np.float32)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


# A link that is slow


def test_a_payload_that_takes_longer_than_a_call_gets_longer_calls_and_the_next_one_too(caplog):
    with (
        receiver(LARGE) as (mailbox, server),
        relayed(server.bound_addresses[1], rate=2**16 / 0.05) as link,
        Counting(LARGE, link.address, timeout=0.25, longest=PATIENCE) as links,
    ):
        links.send(0, 0, 0, vector(LARGE))
        assert mailbox.take(1, 0, 0, 0, PATIENCE).vector[-1] == 1
        links.flush(PATIENCE)
        first = list(links.calls)
        assert len(first) > 1
        assert first == [0.25 * 2**k for k in range(len(first))]
        links.send(0, 0, 1, vector(LARGE, 2))
        assert mailbox.take(1, 0, 0, 1, PATIENCE).vector[-1] == 2
        links.flush(PATIENCE)
        assert links.calls[len(first)] == first[-1]
    (told,) = [w for w in warnings(caplog) if "edge 0 -> 1 is slow" in w]
    for part in ("1 MB", "within 0.25 s", "less than 32 Mbit/s", "up to 60 s (hang-timeout)"):
        assert part in told


def test_a_call_has_no_more_time_than_the_longest_however_often_it_takes(monkeypatch):
    with (
        receiver(SMALL) as (_, server),
        relayed(server.bound_addresses[1], alter=lambda *_: b"") as relay,
        Counting(SMALL, relay.address, timeout=0.2, longest=0.5) as links,
    ):
        # By this clock a call takes its deadline, and nothing else takes any time.
        monkeypatch.setattr(payloads, "time", SimpleNamespace(monotonic=lambda: sum(links.calls)))
        links.send(0, 0, 0, vector(SMALL))
        with pytest.raises(EdgeBrokenError):
            links.flush(PATIENCE)
        assert links.calls == [0.2, 0.4, 0.5]


def test_a_receiver_that_has_no_room_is_no_slow_link(caplog, tmp_path, monkeypatch):
    address, take_in, waited = unix_address("run", 1, tmp_path), answers.Answers._take_in, []

    async def hurried(self, call, *more):  # as if the caller waited for no more than a second
        return await take_in(self, SimpleNamespace(left=lambda: 1.0), *more)

    monkeypatch.setattr(answers.Answers, "_take_in", hurried)
    with (
        receiver(SMALL, address) as (mailbox, _),
        Counting(SMALL, address, timeout=PATIENCE, longest=2 * PATIENCE) as links,
    ):
        deliver = mailbox.deliver

        async def noted(messages, timeout, *more):
            waited.append(timeout)
            return await deliver(messages, timeout, *more)

        mailbox.deliver = noted
        links.send(0, 0, 0, vector(SMALL))
        links.send(0, 0, 1, vector(SMALL))  # waits for room in the inbox, longer than a call
        links.wait_for(3)
        for phase in range(2):
            mailbox.take(1, 0, 0, phase, PATIENCE)
        links.flush(PATIENCE)
        assert set(links.calls) == {PATIENCE}
    assert max(waited) <= 0.9, "a tenth of a call's time is left for the answer"
    assert not any("0 -> 1 is slow" in w for w in warnings(caplog))


def test_silence_of_the_receiver_itself_is_not_held_against_the_link(caplog):
    with (
        receiver(SMALL) as (_, server),
        relayed(server.bound_addresses[1], alter=lambda *_: b"") as relay,
        Counting(
            SMALL, relay.address, timeout=0.05, longest=PATIENCE, speaks=lambda peer: peer != 1
        ) as links,
    ):
        links.send(0, 0, 0, vector(SMALL))
        links.wait_for(4)
        assert set(links.calls) == {0.05}
    assert warnings(caplog) == []


# A link that carries no payload


def test_an_edge_that_swallows_payloads_is_given_up_with_the_place_the_deadline_and_a_remedy():
    failures = []
    with (
        receiver(SMALL) as (_, server),
        relayed(server.bound_addresses[1], alter=lambda *_: b"") as relay,
        Counting(SMALL, relay.address, timeout=0.1, longest=0.2, on_failure=failures.append) as links,
    ):
        links.send(0, 5, 1, vector(SMALL))
        with pytest.raises(EdgeBrokenError) as caught:
            links.flush(PATIENCE)
        assert failures == [caught.value]
    assert (caught.value.edge, caught.value.iteration, caught.value.deadline) == (EDGE, 5, 0.4)
    for part in (
        "peer 0, edge 0 -> 1, iteration 5, phase 1, deadline 0.4 s",
        "this edge is broken, though peer 1 speaks",
        "32 bytes has not got through",
        "DEADLINE_EXCEEDED",
        "MTU",
        "raise hang-timeout",
    ):
        assert part in str(caught.value)


def test_an_edge_that_alters_every_payload_is_given_up_as_broken():
    def alter(number, passed, data):
        return data.replace(vector(LARGE).tobytes()[:16], bytes(16))

    with (
        receiver(LARGE) as (mailbox, server),
        relayed(server.bound_addresses[1], alter=alter) as relay,
        Counting(LARGE, relay.address, timeout=PATIENCE) as links,
    ):
        links.send(0, 0, 0, vector(LARGE))
        with pytest.raises(EdgeBrokenError, match=r"edge 0 -> 1, iteration 0.*altered 10 times"):
            links.flush(PATIENCE)
        assert mailbox.refused == {"CORRUPT": 10}


def test_the_time_in_which_the_sender_itself_was_stopped_is_not_held_against_the_link(tmp_path, monkeypatch):
    address = unix_address("run", 1, tmp_path)
    with Counting(SMALL, address, timeout=0.2, longest=PATIENCE) as links:
        # By this clock an hour passes in each call, which has 0.2 s.
        monkeypatch.setattr(payloads, "time", SimpleNamespace(monotonic=lambda: 3600.0 * len(links.calls)))
        links.send(0, 0, 0, vector(SMALL))
        links.wait_for(3)
        with receiver(SMALL, address) as (mailbox, _):
            assert mailbox.take(1, 0, 0, 0, PATIENCE).vector[-1] == 1
            links.flush(PATIENCE)


# A receiver that ends, and calls that fail in no known way


def test_where_views_change_a_payload_to_a_host_that_ends_is_sent_again_until_there_is_another_view(
    tmp_path, monkeypatch
):
    address, failures = unix_address("run", 1, tmp_path), []
    with (
        receiver(SMALL, address) as (mailbox, server),
        Counting(SMALL, address, timeout=PATIENCE, views_change=True, on_failure=failures.append) as links,
    ):
        # By this clock a call takes longer than an edge is tried that carries nothing.
        clock = SimpleNamespace(monotonic=lambda: 3 * PATIENCE * len(links.calls))
        monkeypatch.setattr(payloads, "time", clock)
        mailbox.fail(ExchangeStoppedError("peer 1 leaves"))
        links.send(0, 0, 0, vector(SMALL))
        links.wait_for(4)
        assert failures == []
        later = Terms("run", 8, view=1)
        links.fail(ViewChangeError("peer 1 has left and come back"))
        links.install(later, [EDGE], [])
        new = Mailbox(later, [EDGE])
        server.install(new, [])
        links.send(0, 0, 0, vector(SMALL, 7))
        assert new.take(1, 0, 0, 0, PATIENCE).vector[0] == 7
        links.flush(PATIENCE)
        assert failures == []


def test_where_views_never_change_a_host_that_ends_ends_its_senders(tmp_path):
    address = unix_address("run", 1, tmp_path)
    with receiver(SMALL, address) as (mailbox, _), Counting(SMALL, address, timeout=PATIENCE) as links:
        mailbox.fail(ExchangeStoppedError("peer 1 leaves"))
        links.send(0, 0, 0, vector(SMALL))
        with pytest.raises(ExchangeStoppedError, match="peer 1 leaves"):
            links.flush(PATIENCE)


@contextmanager
def failing(*codes):
    """A server whose first answers to payloads are ``codes``, and whose later ones are ACCEPTED."""
    left = list(codes)

    def deliver(request, context):
        if left:
            context.abort(left.pop(0), "as the test has it")
        return pb.Reply(status=pb.ACCEPTED).SerializeToString()

    handlers = {"Deliver": grpc.unary_unary_rpc_method_handler(deliver)}
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("p2pft.v2.Exchange", handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait(PATIENCE)


CODES = [
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
]


def test_where_views_change_a_call_that_fails_in_no_known_way_is_made_again(caplog):
    with failing(*CODES) as address, Counting(SMALL, address, timeout=PATIENCE, views_change=True) as links:
        links.send(0, 0, 0, vector(SMALL))
        links.flush(PATIENCE)
        assert len(links.calls) == 1 + len(CODES)
    (told,) = warnings(caplog)
    assert "INTERNAL: as the test has it" in told


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_where_views_never_change_it_ends_the_run(code):
    with failing(code) as address, Counting(SMALL, address, timeout=PATIENCE) as links:
        links.send(0, 0, 0, vector(SMALL))
        with pytest.raises(Exception, match=rf"edge 0 -> 1, iteration 0.*{code.name}"):
            links.flush(PATIENCE)


# Fetching


def test_a_fetch_that_takes_longer_than_its_deadline_has_longer_the_next_time():
    with (
        receiver(LARGE) as (_, server),
        relayed(server.bound_addresses[1], rate=2**16 / 0.05) as link,
        Links(LARGE, {1: link.address}, [], [(1, 0)], timeout=0.2, longest=PATIENCE) as links,
    ):
        server.offer(3, {1: vector(LARGE)}, [0, 1])
        deadlines = []
        while True:
            try:
                got = links.fetch(0, 1, lambda: None)
                break
            except ExchangeTimeoutError as error:
                deadlines.append(error.deadline)
        assert got[-1] == 1
        assert deadlines
        assert deadlines == [0.2 * 2**k for k in range(len(deadlines))]
