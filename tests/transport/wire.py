"""What the transport's tests share: hand-made messages, and a host that runs its peers in lock-step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from p2pft_flower.transport import (
    ExchangeError,
    Gossip,
    Links,
    Mailbox,
    PayloadHeader,
    PeerServer,
    Reply,
    Terms,
)
from p2pft_flower.transport.bodies import Body
from p2pft_flower.transport.wire.header import checksum

Edge = tuple[int, int]
PATIENCE = 60.0  # seconds; only a broken test waits that long


def message(
    terms: Terms, edge: Edge, iteration: int, phase: int, vector: np.ndarray | None = None, /, **other: Any
) -> tuple[bytes, bytes]:
    """Return header and payload with a fitting checksum, whatever the header's fields in ``other`` say."""
    if vector is None:
        vector = np.full(terms.length, iteration * terms.phases + phase, terms.numpy_dtype)
    payload = vector.tobytes()
    fields = {
        "run": terms.run,
        "view": terms.view,
        "sender": edge[0],
        "receiver": edge[1],
        "iteration": iteration,
        "phase": phase,
        "length": terms.length,
        "dtype": terms.wire_dtype,
        "share": 0.5,
    }
    header = PayloadHeader(**(fields | other))
    header.checksum = checksum(header, xxhash.xxh3_64_intdigest(payload))
    return header.SerializeToString(), payload


def deliver(mailbox: Mailbox, header: bytes, payload: bytes, timeout: float) -> Reply:
    """Deliver one payload, as the server does, and return the answer."""
    (reply,) = asyncio.run(mailbox.deliver([(header, Body(payload))], timeout))
    return reply


def gossip_with(links: Links, remote: int, told: Gossip, timeout: float) -> Gossip | ExchangeError:
    """Gossip with one member and return its answer, or why there is none."""
    return links.gossip_all({remote: told}, timeout)[remote]


def spawn(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def no_threads_but(before: Iterable[threading.Thread]) -> list[str]:
    """Give threads that are ending time to end, and return the names of those that do not."""
    before = set(before)
    # gRPC's own thread ends when its last channel and server have been collected; the network's helpers end
    # with the network, which may be older than this test.
    others = ["_poll_wrapper"]
    if "p2pft-network" in {t.name for t in before}:
        others.append("asyncio_")
    new = set(threading.enumerate()) - before
    left = {t for t in new if not any(name in t.name for name in others)}
    for thread in left:
        thread.join(PATIENCE)
    return [thread.name for thread in left if thread.is_alive()]


@dataclass
class Host:
    """A host with its three parts, wired for ``edges`` of the whole graph."""

    terms: Terms
    peers: tuple[int, ...]
    edges: list[Edge]
    mailbox: Mailbox
    server: PeerServer
    links: Links | None = None

    @classmethod
    def open(
        cls,
        terms: Terms,
        peers: Iterable[int],
        edges: Iterable[Edge],
        addresses: Mapping[int, str],
        **more: Any,
    ):
        peers = tuple(sorted(peers))
        edges = sorted(edges)
        into = [(j, i) for j, i in edges if i in peers and j not in peers]
        out = [(j, i) for j, i in edges if j in peers and i not in peers]
        mailbox = Mailbox(terms, into)
        server = PeerServer(mailbox, {i: addresses[i] for i in peers}, out_edges=out, **more)
        return cls(terms, peers, edges, mailbox, server)

    def connect(self, addresses: Mapping[int, str], **more: Any) -> Links:
        out = [(j, i) for j, i in self.edges if j in self.peers and i not in self.peers]
        self.links = Links(self.terms, addresses, out, self.mailbox.edges, **more)
        return self.links

    def run(
        self, start: Mapping[int, np.ndarray], A: np.ndarray, B: np.ndarray, iterations: int
    ) -> dict[int, Any]:
        """Mix x ← A x, then x ← B x, ``iterations`` times; sums in ascending order of the sender."""
        assert self.links is not None
        self.links.meet(PATIENCE)
        x = {i: start[i] for i in self.peers}
        for k in range(iterations):
            for phase, W in enumerate((A, B)):
                for i in self.peers:
                    remote = [m for j, m in self.edges if j == i and m not in self.peers]
                    shares = {m: float(W[m, i]) for m in remote} if phase else None
                    self.links.send(i, k, phase, x[i], shares)
                x = {i: self._mix(i, k, phase, x, W) for i in self.peers}
        self.links.flush(PATIENCE)
        return x

    def _mix(self, i: int, k: int, phase: int, x: Mapping[int, np.ndarray], W: np.ndarray) -> np.ndarray:
        total = np.zeros(self.terms.length, self.terms.numpy_dtype)
        for j in sorted({i, *(j for j, m in self.edges if m == i)}):
            if j in self.peers:
                vector, weight = x[j], W[i, j]
            else:
                vector, share = self.mailbox.take(i, j, k, phase, PATIENCE)
                weight = share if phase else W[i, j]
            total += self.terms.numpy_dtype.type(weight) * vector
        return total

    def close(self) -> None:
        if self.links is not None:
            self.links.close()
        self.server.close()


def weights(n: int, edges: Iterable[Edge]) -> tuple[np.ndarray, np.ndarray]:
    """Return A (rows add to one) and B (columns add to one) of a graph with unit weights and self-weights."""
    W = np.eye(n)
    for j, i in edges:
        W[i, j] = 1 + (i + 2 * j) % 3
    return W / W.sum(1, keepdims=True), W / W.sum(0)
