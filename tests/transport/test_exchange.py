"""Hosts that exchange over real sockets."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from p2pft_flower.transport import (
    Carried,
    ExchangeRefusedError,
    ExchangeTimeoutError,
    Links,
    Mailbox,
    PeerServer,
    Terms,
    unix_address,
)
from p2pft_flower.transport.traffic import Traffic
from tests.transport.federation import Federation
from tests.transport.wire import PATIENCE, Host, spawn, weights


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("federation"))


def exchange(hosts_peers, edges, terms, start, iterations, addresses, federation=None):
    """Run the hosts in a thread each and return every peer's last vector."""
    A, B = weights(len(start), edges)
    tls = [{} if federation is None else {"credentials": federation[peers[0]]} for peers in hosts_peers]
    hosts = [
        Host.open(terms, peers, edges, addresses, **own) for peers, own in zip(hosts_peers, tls, strict=True)
    ]
    bound = {i: address for host in hosts for i, address in host.server.bound_addresses.items()}
    try:
        for host, own in zip(hosts, tls, strict=True):
            host.connect(bound, timeout=PATIENCE, **own)
        with ThreadPoolExecutor(len(hosts)) as pool:
            runs = [pool.submit(host.run, start, A, B, iterations) for host in hosts]
            ends = {i: x for run in runs for i, x in run.result(PATIENCE).items()}
        sent = {i: n for host in hosts for i, n in host.links.bytes_sent.items()}
    finally:
        for host in hosts:
            host.close()
    return ends, sent


def graph(n, seed):
    rng = random.Random(seed)
    ring = rng.sample(range(n), n)
    edges = {(ring[k], ring[(k + 1) % n]) for k in range(n)}
    return sorted(edges | {(j, i) for j in range(n) for i in range(n) if i != j and rng.random() < 0.3})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wire", ["unix", "tcp", "tls"])
def test_vectors_are_bit_identical_to_in_memory_over(wire, dtype, tmp_path, federation):
    terms, edges = Terms("run", 1001, dtype), graph(8, 1)
    numbers = np.random.default_rng(0)
    start = {i: numbers.standard_normal(terms.length).astype(terms.numpy_dtype) for i in range(8)}
    A, B = weights(8, edges)
    memory, _ = exchange([range(8)], edges, terms, start, 10, dict.fromkeys(range(8), "127.0.0.1:0"))
    addresses = {i: unix_address("run", i, tmp_path) if wire == "unix" else "127.0.0.1:0" for i in range(8)}
    split = [(i,) for i in range(8)] if wire == "tls" else [(0, 3), (1,), (2, 4, 5, 6, 7)]
    wired, sent = exchange(split, edges, terms, start, 10, addresses, federation if wire == "tls" else None)
    for i in range(8):
        assert wired[i].tobytes() == memory[i].tobytes()
    dense = np.linalg.matrix_power(B @ A, 10) @ np.stack([start[i] for i in range(8)])
    np.testing.assert_allclose(np.stack([wired[i] for i in range(8)]), dense, atol=1e-5)
    home = {i: peers for peers in split for i in peers}
    remote = [(j, i) for j, i in edges if home[j] != home[i]]
    assert sum(sent.values()) == len(remote) * 20 * terms.nbytes
    assert list(tmp_path.iterdir()) == []  # sockets and their folder are gone


@pytest.fixture
def pair(tmp_path):
    """Edge 0 -> 1 between two hosts: (links of 0, mailbox of 1)."""
    terms = Terms("run", 8)
    mailbox = Mailbox(terms, [(0, 1)])
    with (
        PeerServer(mailbox, {1: unix_address("run", 1, tmp_path)}) as server,
        Links(terms, server.bound_addresses, [(0, 1)], timeout=PATIENCE) as links,
    ):
        mailbox.addresses = server.bound_addresses
        yield links, mailbox


@pytest.mark.parametrize("wire", ["unix", "tcp"])
def test_what_the_edges_have_carried_adds_up_to_what_was_sent(wire, tmp_path):
    terms = Terms("run", 100)
    address = "127.0.0.1:0" if wire == "tcp" else unix_address("run", 1, tmp_path)
    mailbox = Mailbox(terms, [(0, 1)])
    with (
        PeerServer(mailbox, {1: address}) as server,
        Links(terms, server.bound_addresses, [(0, 1)], timeout=PATIENCE) as links,
    ):
        assert links.carried() == {}
        for k, phase in ((0, 0), (0, 1), (1, 0)):
            links.send(0, k, phase, np.zeros(100, np.float32), {1: 1.0})
            mailbox.take(1, 0, k, phase, PATIENCE)
        links.flush(PATIENCE)
        carried = links.carried()
    assert carried.keys() == {(0, 1)}
    told = carried[0, 1]
    assert (told.payloads, told.bytes) == (3, 3 * terms.nbytes)
    assert 0 < told.seconds < PATIENCE


def test_a_host_may_have_thousands_of_neighbours(tmp_path):
    edges = [(there, here) for there in range(80, 160) for here in range(80)]
    addresses = {here: unix_address("run", here, tmp_path) for here in range(80)}
    with PeerServer(Mailbox(Terms("run", 8), edges), addresses) as server:
        assert server.bound_addresses.keys() == addresses.keys()


def test_the_time_of_a_payload_follows_the_latest_payloads_and_edges_stay_apart():
    traffic = Traffic()
    for seconds in [1.0] * 100 + [5.0] * 100:
        traffic.note((0, 1), 7, seconds)
    traffic.note((1, 0), 9, 2.0)
    carried = traffic.carried()
    assert carried[0, 1].seconds == pytest.approx(5.0, abs=0.01)
    assert carried[1, 0] == Carried(1, 9, 2.0)


def test_a_vector_may_be_changed_once_it_is_sent(pair):
    links, mailbox = pair
    vector = np.arange(8, dtype=np.float32)
    links.send(0, 0, 0, vector, {1: 0.25})
    vector[:] = -1
    received = mailbox.take(1, 0, 0, 0, PATIENCE)
    assert received.vector.tolist() == list(range(8))
    assert received.share == 0.25
    links.flush(PATIENCE)


def test_a_full_inbox_holds_the_sender_until_it_is_taken_from(pair):
    links, mailbox = pair
    vector = np.zeros(8, np.float32)
    links.send(0, 0, 0, vector)
    links.flush(PATIENCE)
    links.send(0, 0, 1, vector)  # waits for room in the inbox
    with pytest.raises(ExchangeTimeoutError, match=r"edge 0 -> 1, iteration 0, phase 1, deadline 0\.1 s"):
        links.flush(0.1)
    third = threading.Event()
    thread = spawn(lambda: (links.send(0, 1, 0, vector), third.set()))
    mailbox.take(1, 0, 0, 0, PATIENCE)
    assert third.wait(PATIENCE)
    thread.join(PATIENCE)
    for k, phase in ((0, 1), (1, 0)):
        mailbox.take(1, 0, k, phase, PATIENCE)
    links.flush(PATIENCE)
    assert links.bytes_sent == {0: 3 * 32}


def test_a_receiver_that_never_takes_runs_into_the_senders_deadline(pair):
    _, mailbox = pair
    vector = np.zeros(8, np.float32)
    links, _ = pair
    links.send(0, 0, 0, vector)
    links.flush(PATIENCE)
    with Links(mailbox.terms, mailbox.addresses, [(0, 1)], timeout=0.3) as links:
        links.send(0, 0, 1, vector)
        with pytest.raises(
            ExchangeTimeoutError, match=r"peer 0, edge 0 -> 1, iteration 0, phase 1, deadline 0\.3 s"
        ):
            links.send(0, 1, 0, vector)


def test_a_payload_out_of_order_is_refused_with_the_place_that_is_next(pair):
    links, mailbox = pair
    links.send(0, 4, 0, np.zeros(8, np.float32))
    with pytest.raises(ExchangeRefusedError, match=r"FAR_OFF.*iteration 0, phase 0 is next"):
        links.flush(PATIENCE)
    assert mailbox.refused == {"FAR_OFF": 1}


@pytest.mark.parametrize(
    ("vector", "shares", "says"),
    [
        (np.zeros(7, np.float32), None, r"\(7,\)"),
        (np.zeros((8, 1), np.float32), None, r"\(8, 1\)"),
        (np.zeros(8, np.float64), None, "float64"),
        (np.zeros(8, np.float32), {2: 0.5}, r"sends nothing to \[2\]"),
    ],
)
def test_what_does_not_fit_is_not_sent(pair, vector, shares, says):
    links, _ = pair
    with pytest.raises(ValueError, match=says):
        links.send(0, 0, 0, vector, shares)
    assert links.bytes_sent == {0: 0}


def test_a_payload_beyond_grpcs_default_limit_passes(tmp_path):
    terms = Terms("run", 1_800_000)
    vector = np.random.default_rng(0).standard_normal(terms.length).astype(np.float32)
    mailbox = Mailbox(terms, [(0, 1)])
    with (
        PeerServer(mailbox, {1: unix_address("run", 1, tmp_path)}) as server,
        Links(terms, server.bound_addresses, [(0, 1)], timeout=PATIENCE) as links,
    ):
        links.send(0, 0, 0, vector)
        assert mailbox.take(1, 0, 0, 0, PATIENCE).vector.tobytes() == vector.tobytes()
        links.flush(PATIENCE)


@pytest.mark.large
def test_a_payload_of_350_mb_passes(tmp_path):
    terms = Terms("run", 87_500_000)
    vector = np.arange(terms.length, dtype=np.float32)
    mailbox = Mailbox(terms, [(0, 1)])
    with (
        PeerServer(mailbox, {1: unix_address("run", 1, tmp_path)}) as server,
        Links(terms, server.bound_addresses, [(0, 1)], timeout=200.0) as links,
    ):
        links.send(0, 0, 0, vector)
        assert np.array_equal(mailbox.take(1, 0, 0, 0, 200.0).vector, vector)
        links.flush(PATIENCE)
