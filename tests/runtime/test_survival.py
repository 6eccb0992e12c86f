"""Hosts that go on when one of them is lost: the same view everywhere, Σ τ = Σ g, the survivors' optimum."""

from __future__ import annotations

import numpy as np

from p2pft_flower.runtime.host import PeerFailedError
from p2pft_flower.runtime.journal import read_journal
from p2pft_flower.topology import Graph

from .quadratic import Peer, Quadratics, plans
from .test_host import run_together, short, tcp, unix  # noqa: F401

RING = Graph.load("directed-ring:4")


def best(*peers):
    return np.mean([Peer(p).minimiser for p in peers], axis=0)


def views(folder, peer):
    return [e for e in read_journal(folder / "peers" / f"peer-{peer}.jsonl") if e["event"] == "view"]


def test_when_a_peers_own_code_fails_the_others_go_on_to_their_optimum(tmp_path):
    problems = [Quadratics(fail_at={2: 30}) for _ in range(4)]
    settings = {"iterations": 300, "survive": True, "peer-timeout": 4.0}
    results = run_together(plans(RING, [[0], [1], [2], [3]], tcp(), tmp_path, **settings), problems)
    assert isinstance(results[2], PeerFailedError)
    for p in (0, 1, 3):
        assert not isinstance(results[p], Exception), results[p]
        (view,) = views(tmp_path, p)
        assert view["peers"] == [0, 1, 3]
        assert [1, 3] in view["edges"]
        assert view["lost"] == [2]
        assert np.abs(problems[p].built[p].kept - best(0, 1, 3)).max() < 0.3
