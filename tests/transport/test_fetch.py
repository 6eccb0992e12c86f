"""A peer that comes to a view without a θ takes one from another peer of that view; over real sockets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from p2pft_flower.transport import (
    ExchangeRefusedError,
    Links,
    Mailbox,
    OtherViewError,
    PeerServer,
    Status,
    Terms,
    ViewChangeError,
    unix_address,
)
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.header import fetched, wrong_vector
from tests.transport.federation import Federation
from tests.transport.wire import PATIENCE

VIEWS = [Terms("run", 8, view=v) for v in range(3)]
THETA = np.arange(8, dtype=np.float32)
MEMBERS = frozenset(range(4))


def nothing():
    pass


def serve(address, view=1, **more):
    return PeerServer(Mailbox(VIEWS[view], [(0, 1)]), {1: address}, members=MEMBERS, **more)


@pytest.fixture
def donor(tmp_path):
    with serve(unix_address("run", 1, tmp_path)) as server:
        yield server


@pytest.fixture
def links(donor):
    with Links(VIEWS[1], donor.bound_addresses, [], [(1, 0)], timeout=PATIENCE) as links:
        yield links


def test_who_is_in_the_view_gets_the_donors_theta(donor, links):
    donor.offer(17, {1: THETA}, [0, 1, 2])
    got = links.fetch(0, 1, nothing)
    assert got.tobytes() == THETA.tobytes()
    assert got.flags.writeable


def test_a_theta_larger_than_any_other_answer_comes_through(tmp_path):
    terms, theta = Terms("run", 300_000), np.ones(300_000, np.float32)
    mailbox = Mailbox(terms, [(0, 1)])
    with (
        PeerServer(mailbox, {1: unix_address("run", 1, tmp_path)}, members=MEMBERS) as server,
        Links(terms, server.bound_addresses, [], [(1, 0)]) as links,
    ):
        server.offer(0, {1: theta}, [0, 1])
        assert links.fetch(0, 1, nothing).tobytes() == theta.tobytes()


def test_a_donor_that_has_not_come_to_the_view_says_later_and_gives_once_it_has(tmp_path):
    with (
        serve(unix_address("run", 1, tmp_path), view=0) as server,
        Links(VIEWS[1], server.bound_addresses, [], [(1, 0)]) as links,
    ):
        with pytest.raises(OtherViewError, match="LATER"):
            links.fetch(0, 1, nothing)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(links.fetch, 0, 1, nothing)
            server.install(Mailbox(VIEWS[1], []), [])
            server.offer(17, {1: THETA}, [0, 1])
            try:
                got = waiting.result(PATIENCE)
            except OtherViewError:  # it asked long before: it asks again
                got = links.fetch(0, 1, nothing)
        assert got.tobytes() == THETA.tobytes()


def test_an_offer_ends_with_its_view_and_when_it_is_withdrawn(donor, links):
    donor.offer(17, {1: THETA}, [0, 1])
    donor.withdraw()
    with pytest.raises(OtherViewError, match="LATER"):
        links.fetch(0, 1, nothing)
    donor.offer(17, {1: THETA}, [0, 1])
    donor.install(Mailbox(VIEWS[2], []), [])
    with pytest.raises(OtherViewError, match="view 1 was followed by view 2"):
        links.fetch(0, 1, nothing)


def test_who_is_not_in_the_view_or_no_member_or_of_another_run_gets_nothing(donor):
    donor.offer(17, {1: THETA}, [0, 1])
    asked = {"run": "run", "view": 1, "sender": 0, "receiver": 1}
    with grpc.insecure_channel(donor.bound_addresses[1]) as channel:
        unary = channel.unary_unary("/p2pft.v2.Exchange/Fetch", None, None)
        for change, status in (
            ({"sender": 3}, "NOT_NEIGHBOUR"),
            ({"sender": 9}, "NOT_NEIGHBOUR"),
            ({"receiver": 2}, "NOT_NEIGHBOUR"),
            ({"run": "other"}, "WRONG_RUN"),
        ):
            raw = unary(pb.Fetch(**(asked | change)).SerializeToString(), timeout=PATIENCE)
            answer = pb.Fetched.FromString(raw)
            assert Status.Name(answer.status) == status, change
            assert answer.vector == b""
        garbage = pb.Fetched.FromString(unary(b"\xff\xff", timeout=PATIENCE))
        assert Status.Name(garbage.status) == "BAD_HEADER"


def test_a_certificate_of_another_peer_gets_nothing(tmp_path):
    north = Federation(tmp_path)
    with serve("127.0.0.1:0", credentials=north[1]) as server:
        server.offer(17, {1: THETA}, [0, 1, 2])
        with Links(VIEWS[1], server.bound_addresses, [], [(1, 0)], credentials=north[0]) as links:
            assert links.fetch(0, 1, nothing).tobytes() == THETA.tobytes()
        with (
            Links(VIEWS[1], server.bound_addresses, [], [(1, 0)], credentials=north[2]) as links,
            pytest.raises(ExchangeRefusedError, match=r"NOT_AUTHENTIC.*a fetch by peer 0"),
        ):
            links.fetch(0, 1, nothing)


def test_another_change_of_view_ends_the_wait_for_a_vector(donor, links):
    links.fail(ViewChangeError("peer 1 is lost"))
    with pytest.raises(ViewChangeError, match="peer 1 is lost"):
        links.fetch(0, 1, nothing)


def _flip(answer):
    answer.vector = bytes([answer.vector[0] ^ 1]) + answer.vector[1:]


def _not_finite(answer):
    answer.CopyFrom(fetched(VIEWS[1], (1, 0), 17, np.full(8, np.nan, np.float32)))


def _short(answer):
    answer.vector = answer.vector[:-4]


def _other(field, value):
    return lambda answer: setattr(answer.header, field, value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_flip, "checksum"),
        (_not_finite, "NaN"),
        (_short, "number of bytes is 28"),
        (_other("run", "other"), "run is 'other'"),
        (_other("view", 2), "view is 2"),
        (_other("sender", 2), "edge"),
        (_other("length", 9), "number of trainable parameters is 9"),
        (_other("dtype", 2), "dtype"),
        (_other("iteration", 18), "checksum"),
    ],
)
def test_a_vector_that_is_not_what_was_asked_for_is_not_used(damage, says):
    answer = fetched(VIEWS[1], (1, 0), 17, THETA)
    assert wrong_vector(VIEWS[1], (1, 0), answer) is None
    damage(answer)
    assert says in wrong_vector(VIEWS[1], (1, 0), answer)
