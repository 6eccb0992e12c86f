"""Real processes, and connections that break."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import threading

import numpy as np
import pytest

from p2pft_flower.transport import ExchangeTimeoutError, Links, Mailbox, PeerServer, Terms, unix_address
from tests.transport.wire import PATIENCE, Host, spawn, weights

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


class CutAnswer:
    """A TCP relay that breaks its first connection when told, so that an answer under way is lost."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [spawn(self._accept)]

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self.connections.append((near, far))
            self._threads += [spawn(lambda a=a, b=b: self._pump(a, b)) for a, b in ((near, far), (far, near))]

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def cut(self, pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in self.connections:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for pair in self.connections:
            for end in pair:
                end.close()


@pytest.mark.parametrize("length", [4, 1_000_000])
def test_a_payload_whose_answer_was_lost_is_sent_again_and_used_once(length):
    terms = Terms("run", length)
    relay = None
    lost = threading.Event()

    class Unlucky(Mailbox):
        async def deliver(self, *message):
            reply = await super().deliver(*message)
            if not lost.is_set():  # taken in, but the connection breaks before the answer leaves
                lost.set()
                relay.cut(relay.connections[0])
            return reply

    mailbox = Unlucky(terms, [(0, 1)])
    with PeerServer(mailbox, {1: "127.0.0.1:0"}) as server:
        relay = CutAnswer(int(server.bound_addresses[1].rpartition(":")[2]))
        with Links(terms, {1: relay.address}, [(0, 1)], timeout=PATIENCE) as links:
            vector = np.arange(length, dtype=np.float32)
            links.send(0, 0, 0, vector)
            links.flush(PATIENCE)
            assert lost.is_set()
            assert mailbox.take(1, 0, 0, 0, PATIENCE).vector.tobytes() == vector.tobytes()
            links.send(0, 0, 1, vector)
            mailbox.take(1, 0, 0, 1, PATIENCE)
            links.flush(PATIENCE)
        relay.close()
    assert mailbox.duplicates == 1
    assert len(relay.connections) == 2
    assert links.bytes_sent == {0: 2 * terms.nbytes}
