"""Peers that lose one of them and go on exchanging in another view, each when it comes to it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from p2pft_flower.transport import Loss, Mailbox, PeerLostError, Terms, unix_address
from tests.transport.beating import Beating
from tests.transport.wire import PATIENCE

RING = [(0, 1), (1, 2), (2, 3), (3, 0)]
SURVIVORS = [(0, 1), (1, 2), (2, 0)]
BEFORE, AFTER = 4, 6
VIEWS = [Terms("run", 8), Terms("run", 8, view=1)]


class Peer:
    """Mixes x ← (x + what came in) / 2 on a ring, and goes on to the next view when the test lets it."""

    def __init__(self, peer, addresses):
        self.peer, self.x = peer, np.full(8, peer, np.float32)
        self.part = Beating(peer, RING, addresses, silence=1.0)
        self.stopped, self.may_go_on, self.sent = threading.Event(), threading.Event(), threading.Event()
        self.lost: PeerLostError | None = None

    def mix(self, k, edges):
        part = self.part
        part.links.send(self.peer, k, 0, self.x)
        self.sent.set()
        part.links.send(self.peer, k, 1, self.x)
        sender = next(j for j, i in edges if i == self.peer)
        for phase in range(2):
            came = part.mailbox.take(self.peer, sender, k, phase, PATIENCE, part.beats.absence).vector
        self.x = (self.x + came) / 2

    def train(self, done, iterations, edges):
        for k in range(done, iterations):
            self.mix(k, edges)
        self.part.links.flush(PATIENCE)

    def end_view(self, error):
        for old in (self.part.mailbox, self.part.links):
            old.fail(error)

    def survive(self, others):
        """Train until the view ends, wait for leave to go on, and train in the next one."""
        part, start = self.part, self.x
        with pytest.raises(PeerLostError) as caught:
            self.train(BEFORE, 10**9, RING)
        self.lost = caught.value
        self.x = start  # what they agree on in earnest is the business of the layers above
        for peer in others:  # what gossip would tell them
            peer.end_view(caught.value)
        self.sent.clear()
        self.stopped.set()
        assert self.may_go_on.wait(PATIENCE)
        part.mailbox = Mailbox(VIEWS[1], [e for e in SURVIVORS if e[1] == self.peer], first_iteration=BEFORE)
        out = [e for e in SURVIVORS if e[0] == self.peer]
        part.server.install(part.mailbox, out)
        part.links.install(VIEWS[1], out, part.mailbox.edges)
        self.train(BEFORE, AFTER, SURVIVORS)


def mixed(x, edges, iterations):
    for _ in range(iterations):
        x = {i: (x[i] + x[next(j for j, m in edges if m == i)]) / 2 for i in x}
    return x


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_survivors_go_on_in_another_view_in_whatever_order_they_come_to_it(tmp_path, order):
    addresses = {i: unix_address("run", i, tmp_path) for i in range(4)}
    peers = [Peer(i, addresses) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for peer in peers:
            peer.part.beats.start()
        for done in [pool.submit(peer.train, 0, BEFORE, RING) for peer in peers]:
            done.result(PATIENCE)
        x = mixed({i: np.full(8, i, np.float32) for i in range(4)}, RING, BEFORE)
        gone = peers.pop()
        gone.part.__exit__()
        ends = [pool.submit(peer.survive, peers) for peer in peers]
        for peer in peers:
            assert peer.stopped.wait(PATIENCE)
        # Each goes on once the one before it has sent in the new view, to peers that have not come there yet.
        for i in order:
            peers[i].may_go_on.set()
            assert peers[i].sent.wait(PATIENCE)
        for end in ends:
            end.result(PATIENCE)
    assert {(peer.lost.lost, peer.lost.how) for peer in peers} == {(3, Loss.CRASHED)}
    expected = mixed({i: x[i] for i in range(3)}, SURVIVORS, AFTER - BEFORE)
    for peer in peers:
        assert peer.x.tobytes() == expected[peer.peer].tobytes()
        peer.part.__exit__()
    assert list(tmp_path.iterdir()) == []
