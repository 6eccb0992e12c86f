"""Real processes, and connections that break."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest

from p2pft_flower.lab.relay import relayed
from p2pft_flower.transport import ExchangeTimeoutError, Links, Mailbox, PeerServer, Terms, unix_address
from tests.transport.wire import PATIENCE, Host, weights

TERMS = Terms("run", 5000)
EDGES = [(0, 1), (1, 0), (1, 2), (2, 0)]
ADDRESSES_OF = {0: (0, 2), 1: (1,)}  # which host runs which peers


def start():
    return {i: np.random.default_rng(i).standard_normal(TERMS.length).astype(np.float32) for i in range(3)}


def one_process(host, addresses, pipe):
    """Run one of the two hosts, and send home what its peers end with."""
    part = Host.open(TERMS, ADDRESSES_OF[host], EDGES, addresses)
    try:
        part.connect(addresses, timeout=PATIENCE)
        pipe.send({i: x.tobytes() for i, x in part.run(start(), *weights(3, EDGES), 20).items()})
    finally:
        part.close()


def process(target, *args):
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=target, args=(*args, there), daemon=True)
    child.start()
    there.close()
    return child, here


def ended(*children):
    for child in children:
        child.join(PATIENCE)
    return [child.exitcode for child in children]


def test_two_processes_over_a_unix_socket_get_what_one_gets_in_memory(tmp_path):
    addresses = {i: unix_address("run", i, tmp_path) for i in range(3)}
    children, pipes = zip(*(process(one_process, host, addresses) for host in (0, 1)), strict=True)
    apart = {}
    for pipe in pipes:
        assert pipe.poll(PATIENCE)
        apart |= pipe.recv()
        pipe.close()
    assert ended(*children) == [0, 0]
    for child in children:
        child.close()
    together = Host.open(TERMS, range(3), EDGES, dict.fromkeys(range(3), "127.0.0.1:0"))
    together.connect({})
    memory = together.run(start(), *weights(3, EDGES), 20)
    together.close()
    assert apart == {i: x.tobytes() for i, x in memory.items()}
    assert list(tmp_path.iterdir()) == []


def send_once_and_wait(addresses, pipe):
    with Links(TERMS, addresses, [(0, 1)], timeout=PATIENCE) as links:
        links.send(0, 0, 0, start()[0])
        links.flush(PATIENCE)
        pipe.send("sent")
        pipe.recv()


def test_a_neighbour_that_is_killed_is_missed_by_name(tmp_path):
    mailbox = Mailbox(TERMS, [(0, 1)])
    with PeerServer(mailbox, {1: unix_address("run", 1, tmp_path)}) as server:
        child, pipe = process(send_once_and_wait, server.bound_addresses)
        assert pipe.poll(PATIENCE)
        assert pipe.recv() == "sent"
        child.kill()
        child.join(PATIENCE)
        child.close()
        pipe.close()
        assert mailbox.take(1, 0, 0, 0, PATIENCE).vector.tobytes() == start()[0].tobytes()
        with pytest.raises(ExchangeTimeoutError, match="peer 1, edge 0 -> 1, iteration 0, phase 1"):
            mailbox.take(1, 0, 0, 1, 0.1)


@pytest.mark.parametrize("length", [4, 1_000_000])
def test_a_payload_whose_answer_was_lost_is_sent_again_and_used_once(length):
    terms = Terms("run", length)
    lost = threading.Event()

    class Unlucky(Mailbox):
        async def deliver(self, *message):
            reply = await super().deliver(*message)
            if not lost.is_set():  # taken in, but the connection breaks before the answer leaves
                lost.set()
                relay.sever(*range(relay.connections))
            return reply

    mailbox = Unlucky(terms, [(0, 1)])
    with (
        PeerServer(mailbox, {1: "127.0.0.1:0"}) as server,
        relayed(server.bound_addresses[1]) as relay,
        Links(terms, {1: relay.address}, [(0, 1)], timeout=PATIENCE) as links,
    ):
        vector = np.arange(length, dtype=np.float32)
        links.send(0, 0, 0, vector)
        links.flush(PATIENCE)
        assert lost.is_set()
        assert mailbox.take(1, 0, 0, 0, PATIENCE).vector.tobytes() == vector.tobytes()
        links.send(0, 0, 1, vector)
        mailbox.take(1, 0, 0, 1, PATIENCE)
        links.flush(PATIENCE)
    assert mailbox.duplicates == 1
    assert relay.connections > 1
    assert links.bytes_sent == {0: 2 * terms.nbytes}
