from __future__ import annotations

import logging
import re
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.algorithms.codecs import make_codec
from p2pft_flower.transport import (
    ExchangeStoppedError,
    ExchangeTimeoutError,
    Loss,
    Mailbox,
    PeerLostError,
    Status,
    Terms,
    ViewChangeError,
)
from tests.transport.wire import PATIENCE, deliver, message

TERMS = Terms("run", 4, view=3)
EDGES = [(1, 0), (2, 0)]


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox(TERMS, EDGES)


def name(reply) -> str:
    return Status.Name(reply.status)


def put(mailbox: Mailbox, iteration: int, phase: int, edge=(1, 0), timeout=PATIENCE, **other) -> str:
    vector = other.pop("vector", None)
    return name(deliver(mailbox, *message(mailbox.terms, edge, iteration, phase, vector, **other), timeout))


def still_works(mailbox: Mailbox) -> None:
    """The good next message is taken in and handed out, bit for bit."""
    vector = np.array([1.5, -0.0, 3e-45, 2.0], np.float32)
    assert put(mailbox, 0, 0, vector=vector, share=0.125) == "ACCEPTED"
    received = mailbox.take(0, 1, 0, 0, PATIENCE)
    assert received.vector.tobytes() == vector.tobytes()
    assert received.share == 0.125
    assert not received.vector.flags.writeable


BAD = {
    "wrong run": ("WRONG_RUN", {"run": "other"}),
    "an earlier view": ("WRONG_VIEW", {"view": 2}),
    "sender is no neighbour": ("NOT_NEIGHBOUR", {"sender": 7}),
    "receiver is not here": ("NOT_NEIGHBOUR", {"receiver": 5}),
    "the edge goes the other way": ("NOT_NEIGHBOUR", {"sender": 0, "receiver": 1}),
    "wrong dtype": ("WRONG_DTYPE", {"dtype": 2}),
    "unknown dtype": ("WRONG_DTYPE", {"dtype": 77}),
    "payload too short": ("WRONG_LENGTH", {"vector": np.zeros(3, np.float32)}),
    "payload too long": ("WRONG_LENGTH", {"vector": np.zeros(5, np.float32)}),
    "payload empty": ("WRONG_LENGTH", {"vector": np.zeros(0, np.float32)}),
    "header tells another length": ("WRONG_LENGTH", {"length": 5}),
    "NaN": ("NOT_FINITE", {"vector": np.array([0, np.nan, 0, 0], np.float32)}),
    "infinity": ("NOT_FINITE", {"vector": np.array([0, 0, 0, -np.inf], np.float32)}),
    "share above one": ("BAD_SHARE", {"share": 1.5}),
    "share below zero": ("BAD_SHARE", {"share": -0.1}),
    "share is NaN": ("BAD_SHARE", {"share": np.nan}),
    "phase beyond the last": ("FAR_OFF", {"phase": 2}),
    "a phase too early": ("FAR_OFF", {"phase": 1}),
    "an iteration too early": ("FAR_OFF", {"iteration": 1}),
    "far-off iteration": ("FAR_OFF", {"iteration": 2**63}),
}


@pytest.mark.parametrize(("cause", "change"), BAD.values(), ids=BAD.keys())
def test_a_bad_message_is_refused_and_counted_and_changes_nothing(mailbox, cause, change):
    change = dict(change)
    vector = change.pop("vector", None)
    for _ in range(2):
        assert name(deliver(mailbox, *message(TERMS, (1, 0), 0, 0, vector, **change), 0)) == cause
    assert mailbox.refused == {cause: 2}
    assert [mailbox.pending(edge) for edge in EDGES] == [0, 0]
    still_works(mailbox)


def test_a_header_that_is_none_is_refused(mailbox):
    for raw in (b"\xff\xff", b"\x0a\x05ab"):
        assert name(deliver(mailbox, raw, bytes(16), 0)) == "BAD_HEADER"
    assert mailbox.refused == {"BAD_HEADER": 2}
    still_works(mailbox)


@settings(deadline=None)
@given(
    header=st.binary(max_size=80),
    payload=st.one_of(st.binary(max_size=24), st.binary(min_size=16, max_size=16)),
)
def test_garbage_never_crashes_the_mailbox_or_gets_in(header, payload):
    mailbox = Mailbox(TERMS, EDGES)
    reply = deliver(mailbox, header, payload, 0)
    assert name(reply) in {"BAD_HEADER", "WRONG_LENGTH", "CORRUPT"}
    assert mailbox.refused.total() == 1
    assert [mailbox.pending(edge) for edge in EDGES] == [0, 0]
    still_works(mailbox)


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_message_never_gets_in(data):
    mailbox = Mailbox(TERMS, EDGES)
    parts = [bytearray(part) for part in message(TERMS, (1, 0), 0, 0)]
    part = data.draw(st.sampled_from(parts))
    for at in data.draw(st.sets(st.integers(0, 8 * len(part) - 1), min_size=1, max_size=3)):
        part[at // 8] ^= 1 << at % 8
    reply = deliver(mailbox, bytes(parts[0]), bytes(parts[1]), 0)
    assert name(reply) in {"BAD_HEADER", "CORRUPT"}
    assert mailbox.pending((1, 0)) == 0
    still_works(mailbox)


def test_a_repetition_of_the_last_payload_is_taken_for_done_and_not_used_twice(mailbox):
    assert put(mailbox, 0, 0) == "ACCEPTED"
    assert put(mailbox, 0, 0) == "DUPLICATE"  # while it waits
    mailbox.take(0, 1, 0, 0, PATIENCE)
    assert put(mailbox, 0, 0) == "DUPLICATE"  # after it was taken
    assert mailbox.duplicates == 2
    assert mailbox.pending((1, 0)) == 0
    assert mailbox.refused == {}
    assert put(mailbox, 0, 1) == "ACCEPTED"
    assert put(mailbox, 0, 0) == "FAR_OFF"  # a replay of an older one


def test_the_same_position_with_other_content_is_refused(mailbox):
    assert put(mailbox, 0, 0, share=0.5) == "ACCEPTED"
    assert put(mailbox, 0, 0, share=0.25) == "CONFLICT"
    assert mailbox.take(0, 1, 0, 0, PATIENCE).share == 0.5


def test_a_sender_waits_while_the_inbox_is_full_and_until_it_is_taken_from(mailbox):
    assert put(mailbox, 0, 0) == "ACCEPTED"
    assert put(mailbox, 0, 1, timeout=0.01) == "BUSY"
    assert mailbox.pending((1, 0)) == 1
    assert put(mailbox, 0, 0, edge=(2, 0)) == "ACCEPTED"  # other edges are not held up
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(put, mailbox, 0, 1)
        mailbox.take(0, 1, 0, 0, PATIENCE)
        assert waiting.result(PATIENCE) == "ACCEPTED"
    assert mailbox.take(0, 1, 0, 1, PATIENCE).vector[0] == 1


def test_capacity_says_how_many_payloads_wait():
    mailbox = Mailbox(TERMS, EDGES, capacity=3)
    assert [put(mailbox, k // 2, k % 2, timeout=0) for k in range(4)] == ["ACCEPTED"] * 3 + ["BUSY"]


def test_of_two_calls_with_the_same_payload_the_older_gives_way(mailbox):
    put(mailbox, 0, 0)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(put, mailbox, 0, 1) for _ in range(2)]
        done, waiting = wait(calls, PATIENCE, FIRST_COMPLETED)
        assert [call.result() for call in done] == ["SUPERSEDED"]
        mailbox.take(0, 1, 0, 0, PATIENCE)
        assert [call.result(PATIENCE) for call in waiting] == ["ACCEPTED"]
    assert mailbox.refused == {}


def test_a_resumed_run_starts_at_its_iteration():
    mailbox = Mailbox(TERMS, EDGES, first_iteration=5)
    assert put(mailbox, 4, 1) == "FAR_OFF"
    assert put(mailbox, 5, 0) == "ACCEPTED"
    assert mailbox.take(0, 1, 5, 0, PATIENCE).vector[0] == 10


def test_a_deadline_names_peer_edge_iteration_phase_and_seconds(mailbox):
    put(mailbox, 0, 0)
    mailbox.take(0, 1, 0, 0, PATIENCE)
    put(mailbox, 0, 1, run="other")
    with pytest.raises(ExchangeTimeoutError) as caught:
        mailbox.take(0, 1, 0, 1, 0.02)
    error = caught.value
    assert (error.peer, error.edge, error.iteration, error.phase, error.deadline) == (0, (1, 0), 0, "1", 0.02)
    for part in ("peer 0", "edge 1 -> 0", "iteration 0", "phase 1", "0.02 s", "1 x WRONG_RUN"):
        assert part in str(error)


def test_only_the_next_payload_of_an_edge_from_another_host_can_be_asked_for(mailbox):
    with pytest.raises(ValueError, match="phase 1 asked for, but iteration 0, phase 0 is next"):
        mailbox.take(0, 1, 0, 1, 0)
    with pytest.raises(ValueError, match="edge 0 -> 1"):
        mailbox.take(1, 0, 0, 0, 0)


def test_a_failure_wakes_takers_and_senders_and_stays(mailbox):
    put(mailbox, 0, 0)
    with ThreadPoolExecutor(2) as pool:
        taker = pool.submit(mailbox.take, 0, 2, 0, 0, PATIENCE)
        sender = pool.submit(put, mailbox, 0, 1)
        mailbox.fail(ExchangeStoppedError("peer 7 gave up"))
        mailbox.fail(ExchangeStoppedError("a later reason"))
        for call in (taker, sender):
            with pytest.raises(ExchangeStoppedError, match="peer 7 gave up"):
                call.result(PATIENCE)
    for call in (lambda: mailbox.take(0, 1, 0, 0, 0), lambda: put(mailbox, 0, 1, edge=(2, 0))):
        with pytest.raises(ExchangeStoppedError, match="peer 7 gave up"):
            call()


def test_refusals_are_logged_once_for_each_cause_and_edge(mailbox, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(3):
        put(mailbox, 0, 0, run="other")
        put(mailbox, 0, 0, view=1)
        put(mailbox, 0, 0, edge=(2, 0), view=1)
        for stranger in (5, 6):
            put(mailbox, 0, 0, edge=(stranger, 0))
    assert len(caplog.records) == 4
    assert "edge 1 -> 0" in caplog.text
    assert mailbox.refused == {"WRONG_RUN": 3, "WRONG_VIEW": 6, "NOT_NEIGHBOUR": 6}


def test_a_payload_of_a_later_view_is_no_fault_and_changes_nothing(mailbox):
    assert put(mailbox, 0, 0, view=4) == "LATER"
    assert mailbox.refused == {}
    assert mailbox.pending((1, 0)) == 0
    still_works(mailbox)


def test_a_taker_waits_on_as_long_as_there_is_patience_with_the_sender(mailbox):
    asked = []

    def patience(sender):
        asked.append(sender)
        if len(asked) == 2:
            put(mailbox, 0, 0)

    assert mailbox.take(0, 1, 0, 0, float("inf"), patience).vector[0] == 0
    assert asked == [1, 1]


def test_what_ends_the_patience_is_raised_with_the_place_that_waited(mailbox):
    put(mailbox, 0, 0)
    mailbox.take(0, 1, 0, 0, PATIENCE)

    def patience(sender):
        return PeerLostError("it is gone", lost=sender, how=Loss.CRASHED, deadline=7.0)

    says = "peer 0, edge 1 -> 0, iteration 0, phase 1, deadline 7 s: peer 1 is lost (crashed): it is gone"
    with pytest.raises(PeerLostError, match=re.escape(says)) as caught:
        mailbox.take(0, 1, 0, 1, PATIENCE, patience)
    assert (caught.value.lost, caught.value.how) == (1, Loss.CRASHED)


def test_a_payload_that_came_before_its_sender_was_found_to_be_lost_counts(mailbox):
    def patience(sender):
        put(mailbox, 0, 0)
        return PeerLostError("it is gone", lost=sender, how=Loss.CRASHED)

    assert mailbox.take(0, 1, 0, 0, PATIENCE, patience).vector[0] == 0


def test_the_deadline_holds_whatever_the_patience(mailbox):
    with pytest.raises(ExchangeTimeoutError, match=r"deadline 0\.01 s"):
        mailbox.take(0, 1, 0, 0, 0.01, lambda _: None)


def test_the_end_of_a_view_gives_way_to_the_end_of_the_run_and_not_the_other_way_round(mailbox):
    mailbox.fail(ViewChangeError("peer 3 is lost"))
    mailbox.fail(ViewChangeError("peer 4 is lost"))
    with pytest.raises(ViewChangeError, match="peer 3"):
        mailbox.take(0, 1, 0, 0, 0)
    mailbox.fail(ExchangeStoppedError("the user stopped the run"))
    mailbox.fail(ViewChangeError("peer 5 is lost"))
    with pytest.raises(ExchangeStoppedError, match="the user"):
        mailbox.take(0, 1, 0, 0, 0)


# --- encoded payloads ---

Q4 = Terms("run", length=300, codec="q4", most_bytes=make_codec("q4").most_bytes(300, np.dtype("f4")))


def encoded(change=lambda payload: payload, **other):
    """Return a mailbox of encoded payloads, and its answer to one of them."""
    payload = change(make_codec("q4").encode(np.linspace(-1, 1, 300, dtype=np.float32)))
    box = Mailbox(Q4, [(1, 0)], codec=make_codec("q4"))
    header, body = message(Q4, (1, 0), 0, 0, np.frombuffer(payload, np.uint8), **{"codec": "q4", **other})
    return box, deliver(box, header, body, PATIENCE)


def test_an_encoded_payload_is_handed_out_decoded():
    box, reply = encoded()
    assert name(reply) == "ACCEPTED"
    vector = box.take(0, 1, 0, 0, PATIENCE).vector
    assert (vector.shape, vector.dtype) == ((300,), np.float32)
    np.testing.assert_allclose(vector, np.linspace(-1, 1, 300), atol=0.08)


@pytest.mark.parametrize(
    ("cause", "change", "other"),
    [
        ("WRONG_LENGTH", lambda payload: payload + b"\0" * 2000, {}),
        ("WRONG_LENGTH", lambda payload: payload[:-1], {}),
        ("WRONG_LENGTH", lambda payload: payload[:4] + b"\xff" * 150, {}),
        ("WRONG_DTYPE", lambda payload: payload, {"codec": "q3"}),
        ("WRONG_DTYPE", lambda payload: payload, {"codec": ""}),
        ("WRONG_LENGTH", lambda payload: payload, {"length": 301}),
        ("MISMATCH", lambda payload: payload, {"step": 0.5}),
        ("NOT_FINITE", lambda payload: b"\x80\x7f" + payload[2:], {}),
    ],
    ids=[
        "too long",
        "too short",
        "no level",
        "another codec",
        "no codec",
        "another length",
        "another step",
        "infinite scale",
    ],
)
def test_an_encoded_payload_that_no_neighbour_sends_is_refused_and_changes_nothing(cause, change, other):
    box, reply = encoded(change, **other)
    assert name(reply) == cause
    assert box.refused == {cause: 1}
    assert box.pending((1, 0)) == 0


def test_a_payload_that_says_it_is_encoded_is_refused_where_none_is(mailbox):
    header, payload = message(mailbox.terms, (1, 0), 0, 0, codec="q4")
    assert name(deliver(mailbox, header, payload, PATIENCE)) == "WRONG_DTYPE"
    still_works(mailbox)


def test_a_payload_of_two_vectors_has_twice_as_many_numbers():
    box = Mailbox(Terms("run", 4, vectors=2), [(1, 0)])
    assert box.terms.payload_bytes == 2 * box.terms.nbytes
    for numbers, cause in ((4, "WRONG_LENGTH"), (8, "ACCEPTED")):
        header, payload = message(box.terms, (1, 0), 0, 0, np.ones(numbers, np.float32), length=numbers)
        assert name(deliver(box, header, payload, PATIENCE)) == cause


# Tables, which come before the vectors of some iterations

TABLES = Terms("run", 4, phases=4, rounds=2, table=6, view=3)


def table(box, iteration, phase, values=(1, 2, 3, 4, 5, 6), **other):
    sent = np.asarray(values, other.pop("kind", np.float64))
    return put(box, iteration, phase, vector=sent, **{"length": 6, "dtype": 2, **other})


def test_rounds_of_tables_come_before_the_vectors_and_only_in_iterations_that_have_some():
    box = Mailbox(TABLES, EDGES, first_iteration=1, tables=lambda k: k != 2)
    values = np.array([1.0, 1e-300, -0.0, 2**53, 0.1, 6.0])
    for iteration, phase in ((1, 0), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 0)):
        assert put(box, iteration, (phase + 1) % 4, vector=np.zeros(4, np.float32)) != "ACCEPTED"
        if phase < 2:
            assert table(box, iteration, phase, values) == "ACCEPTED"
            assert box.take(0, 1, iteration, phase, PATIENCE).vector.tobytes() == values.tobytes()
        else:
            assert put(box, iteration, phase) == "ACCEPTED"
            assert box.take(0, 1, iteration, phase, PATIENCE).vector.dtype == np.float32
    with pytest.raises(ValueError, match="iteration 3, phase 0 asked for, but iteration 3, phase 1 is next"):
        box.take(0, 1, 3, 0, PATIENCE)


def test_tables_go_along_edges_that_carry_no_vector_in_their_iteration():
    box = Mailbox(TABLES, EDGES, turns=[[(1, 0)], EDGES], tables=lambda k: k == 2)
    for iteration, phase in ((1, 2), (1, 3), (2, 0), (2, 1), (3, 2)):
        put_there = table if phase < 2 else put
        assert put_there(box, iteration, phase, edge=(2, 0)) == "ACCEPTED"
        box.take(0, 2, iteration, phase, PATIENCE)


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        ("WRONG_LENGTH", {"values": (1, 2, 3, 4, 5)}),
        ("WRONG_LENGTH", {"values": np.zeros(4), "kind": np.float32}),  # as long as a vector
        ("WRONG_LENGTH", {"length": 4}),
        ("WRONG_DTYPE", {"dtype": 1}),
        ("NOT_FINITE", {"values": (1, 2, 3, 4, 5, np.nan)}),
        ("WRONG_DTYPE", {"codec": "q4"}),
        ("WRONG_VIEW", {"view": 2}),
    ],
    ids=str,
)
def test_a_wrong_table_is_refused_and_changes_nothing(cause, change):
    box = Mailbox(TABLES, EDGES, tables=lambda _: True)
    assert table(box, 0, 0, **change) == cause
    assert table(box, 0, 0) == "ACCEPTED"


def test_a_table_in_the_place_of_a_vector_is_refused():
    box = Mailbox(TABLES, EDGES)
    assert table(box, 0, 2) == "WRONG_LENGTH"
    assert put(box, 0, 2) == "ACCEPTED"


def test_a_table_of_a_later_view_with_more_rounds_is_no_fault():
    """Whoever adopts a view first sends its tables to those that have not, and shall send them again."""
    box = Mailbox(replace(TABLES, phases=3, rounds=1), EDGES, tables=lambda _: True)
    assert table(box, 0, 1, view=4) == "LATER"


def test_a_table_is_a_plain_payload_beside_encoded_vectors():
    terms = replace(Q4, phases=2, rounds=1, table=6)
    box = Mailbox(terms, [(1, 0)], codec=make_codec("q4"), tables=lambda _: True)
    assert table(box, 0, 0) == "ACCEPTED"
    assert box.take(0, 1, 0, 0, PATIENCE).vector.tolist() == [1, 2, 3, 4, 5, 6]


# Edges that carry something in some iterations only


def test_an_edge_takes_the_payloads_of_its_own_iterations_and_no_others():
    mailbox = Mailbox(TERMS, EDGES, turns=[[(1, 0)], EDGES, []], first_iteration=2)
    assert put(mailbox, 2, 0) == "FAR_OFF"  # nobody sends anything then
    assert put(mailbox, 3, 0, edge=(2, 0)) == "FAR_OFF"
    vectors = np.arange(40, dtype=np.float32).reshape(10, 4)
    for iteration in (3, 4, 6, 7):
        for phase in (0, 1):
            vector = vectors[iteration] + phase
            assert put(mailbox, iteration, phase, vector=vector) == "ACCEPTED"
            assert put(mailbox, iteration, phase, vector=vector) == "DUPLICATE"
            assert put(mailbox, iteration, phase, vector=vector + 1) == "CONFLICT"
            np.testing.assert_array_equal(mailbox.take(0, 1, iteration, phase, PATIENCE).vector, vector)
    assert put(mailbox, 4, 0, edge=(2, 0)) == "ACCEPTED"
    with pytest.raises(ValueError, match="iteration 5, phase 0 asked for, but iteration 4, phase 0 is next"):
        mailbox.take(0, 2, 5, 0, PATIENCE)


def test_an_edge_that_never_carries_anything_is_the_callers_mistake():
    with pytest.raises(ValueError, match="edge 2 -> 0 carries nothing in any turn"):
        Mailbox(TERMS, EDGES, turns=[[(1, 0)]])


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.data())
def test_no_schedule_lets_nodes_wait_for_each_other_for_ever(n, data):
    """Nodes that put all and then take all of a position finish, with room for one payload an edge."""
    pairs = [(j, i) for j in range(n) for i in range(n) if i != j]
    turns = data.draw(st.lists(st.sets(st.sampled_from(pairs)), min_size=1, max_size=4))
    edges = set().union(*turns)
    slow = data.draw(st.lists(st.integers(0, n - 1), max_size=3))
    boxes = [Mailbox(TERMS, {e for e in edges if e[1] == i}, turns=turns) for i in range(n)]

    def node(i):
        offered, replies = {}, []
        for iteration in range(6):
            turn = sorted(turns[iteration % len(turns)])
            for phase in range(TERMS.phases):
                for edge in turn:
                    if edge[0] == i:
                        if edge in offered:  # accepted before the next put of the edge begins
                            replies.append(offered.pop(edge).result(PATIENCE))
                        offered[edge] = pool.submit(put, boxes[edge[1]], iteration, phase, edge)
                        if i in slow:
                            replies.append(offered.pop(edge).result(PATIENCE))
                for j, receiver in turn:
                    if receiver == i:
                        boxes[i].take(i, j, iteration, phase, PATIENCE)
        return replies + [one.result(PATIENCE) for one in offered.values()]

    with ThreadPoolExecutor(n) as nodes, ThreadPoolExecutor(len(pairs)) as pool:
        for replies in nodes.map(node, range(n)):
            assert set(replies) <= {"ACCEPTED"}
