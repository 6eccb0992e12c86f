"""A peer that does nothing but beat."""

from __future__ import annotations

import threading

from p2pft_flower.transport import Gossip, Heartbeats, Links, Mailbox, OwnPulse, PeerServer, Terms
from p2pft_flower.transport.wire.p2pft_pb2 import Signed
from tests.transport.wire import PATIENCE

TERMS = Terms("run", 8)


class Beating:
    """A peer with mailbox, server, links and heartbeats, which tells of itself and keeps what it hears."""

    def __init__(self, peer, edges, addresses, credentials=None, silence=PATIENCE, insecure=False) -> None:
        self.peer, self.records, self.heard = peer, [Signed(record=b"by %d" % peer)], []
        self.news = threading.Condition()
        self.own = OwnPulse()
        out, into = [e for e in edges if e[0] == peer], [e for e in edges if e[1] == peer]
        self.links = Links(
            TERMS, addresses, out, into, credentials=credentials, insecure=insecure, patience=self._patience
        )
        self.beats = Heartbeats(
            self.links, silence, 1800.0, pulse=self.own.read, tell=self._tell, hear=self._hear
        )
        self.mailbox = Mailbox(TERMS, into)
        self.server = PeerServer(
            self.mailbox,
            {peer: addresses[peer]},
            out_edges=out,
            on_gossip=self.beats.answer,
            members=frozenset(addresses),
            credentials=credentials,
            insecure=insecure,
        )

    def _patience(self, remote):
        return self.beats.absence(remote)

    def _tell(self, _) -> Gossip:
        return Gossip(records=self.records)

    def _hear(self, gossip) -> None:
        with self.news:
            self.heard.append(gossip)
            self.news.notify_all()

    def wait_until(self, true) -> None:
        with self.news:
            assert self.news.wait_for(lambda: any(true(g) for g in self.heard), PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.beats.close()
        self.server.close()
        self.links.close()
