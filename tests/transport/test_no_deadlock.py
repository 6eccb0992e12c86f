"""The proof in p2pft_flower/transport/mailbox.py, tried out on random graphs."""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.transport import Mailbox, Status, Terms
from tests.transport.wire import PATIENCE, deliver, message

TERMS = Terms("run", 2)
POSITIONS = 6


@st.composite
def strongly_connected(draw):
    """A directed ring through all peers in a random order, and any other edges."""
    n = draw(st.integers(2, 8))
    ring = draw(st.permutations(range(n)))
    edges = {(ring[k], ring[(k + 1) % n]) for k in range(n)}
    pairs = [(j, i) for j in range(n) for i in range(n) if i != j]
    return n, sorted(edges | draw(st.sets(st.sampled_from(pairs))))


def live(i, edges, mailboxes, rng, pool):
    """Run peer ``i``; with a ``pool`` its puts stay open while it takes, else each waits for the last."""

    def offer(edge, position):
        reply = deliver(mailboxes[edge[1]], *message(TERMS, edge, position // 2, position % 2), PATIENCE)
        assert reply.status == Status.ACCEPTED

    out = [edge for edge in edges if edge[0] == i]
    into = [edge for edge in edges if edge[1] == i]
    outstanding: dict[tuple[int, int], Future[None]] = {}
    for position in range(POSITIONS):
        for edge in rng.sample(out, len(out)):
            if pool is None:
                offer(edge, position)
                continue
            if edge in outstanding:
                outstanding[edge].result(PATIENCE)
            outstanding[edge] = pool.submit(offer, edge, position)
        for j, _ in rng.sample(into, len(into)):
            received = mailboxes[i].take(i, j, position // 2, position % 2, PATIENCE)
            assert received.vector[0] == position
        sum(range(rng.choice((0, 0, 10, 3000))))  # some peers are slower than others
    for future in outstanding.values():
        future.result(PATIENCE)


@pytest.mark.parametrize("sends", ["one after the other", "all at once"])
@settings(max_examples=25, deadline=None)
@given(graph=strongly_connected(), seed=st.integers(0, 2**32))
def test_peers_with_room_for_one_payload_an_edge_finish_on_any_strongly_connected_graph(sends, graph, seed):
    n, edges = graph
    mailboxes = [Mailbox(TERMS, [edge for edge in edges if edge[1] == i], capacity=1) for i in range(n)]
    with ThreadPoolExecutor(n) as peers, ThreadPoolExecutor(len(edges)) as pool:
        sending = pool if sends == "all at once" else None
        runs = [peers.submit(live, i, edges, mailboxes, random.Random(seed + i), sending) for i in range(n)]
        for run in runs:
            run.result(PATIENCE)
    assert all(mailbox.pending(edge) == 0 for mailbox in mailboxes for edge in mailbox.edges)
