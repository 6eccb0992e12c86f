"""θ of whole runs stays what it was, bit for bit, however the inside is rebuilt.

The runs are quadratics in NumPy, added and multiplied one number at a time: what they come to is the same on
every machine. ``golden.json`` holds SHA-256 of every peer's last θ; ``python -m benchmarks.golden`` holds
whole models to digests of one machine.

A change that is meant to change what a run computes writes the file anew:
``P2PFT_GOLDEN=write pytest -n 0 tests/host/test_golden.py`` and says so in CHANGELOG.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from p2pft_flower.host.host import PeerFailedError
from p2pft_flower.host.wires import Access
from p2pft_flower.learning.device_vectors import VectorDevice
from p2pft_flower.topology import Graph
from p2pft_flower.transport import unix_address

from ..transport.federation import Federation as Certificates
from .hosts import ALONE, FOLDED, run_together, tcp, train, unix, until
from .quadratic import GRAPH, Quadratics, plans, thetas
from .test_keeper import going_on, keeping, run_all

DIGESTS = Path(__file__).with_name("golden.json")


@pytest.fixture(autouse=True, params=["NumPy's arrays", "vectors on a device"])
def where(request, monkeypatch):
    """Where the peers' vectors are; torch's CPU stands for an accelerator."""
    placed = []

    class Device(VectorDevice):
        def place(self, vector):
            placed.append(vector)
            return super().place(vector)

    if request.param == "vectors on a device":
        monkeypatch.setattr(Quadratics, "vector_device", Device("cpu"), raising=False)
    yield
    assert bool(placed) is (request.param == "vectors on a device")


def assert_golden(name, theta):
    """Hold θ of all peers, (n, q) float32, to the digest of ``name``."""
    assert theta.dtype == np.float32
    digest = hashlib.sha256(theta.astype("<f4").tobytes()).hexdigest()
    known = json.loads(DIGESTS.read_text())
    if os.environ.get("P2PFT_GOLDEN") == "write":
        DIGESTS.write_text(json.dumps(known | {name: digest}, indent=2, sort_keys=True) + "\n")
        return
    assert digest == known[name], f"θ of {name} is not what it was"


# --- without faults: one digest for all ways of exchanging ---


@pytest.mark.parametrize("algorithm", ["p2pft", "dgd"])
def test_theta_of_lopsided_4_is_what_it_was_in_memory_over_unix_sockets_and_over_tcp(
    algorithm, tmp_path, short
):
    for name, hosts, addresses in (
        ("memory", [[0, 1, 2, 3]], {}),
        ("unix", FOLDED, unix(short)),
        ("tcp", ALONE, tcp()),
    ):
        theta, _ = train(tmp_path / name, hosts, addresses, algorithm=algorithm)
        assert_golden(f"lopsided-4 {algorithm}", theta)


def test_theta_is_what_it_was_over_tls(tmp_path):
    certificates = Certificates(tmp_path / "certificates")
    problems = [Quadratics() for _ in range(4)]
    results = run_together(
        plans(GRAPH, ALONE, tcp(), tmp_path / "run"),
        problems,
        [Access(credentials=certificates[p]) for p in range(4)],
    )
    assert [r for r in results if isinstance(r, Exception)] == []
    assert_golden("lopsided-4 p2pft", thetas(problems))


def test_theta_of_16_peers_on_two_hosts_is_what_it_was(tmp_path, short):
    graph = Graph.load("exponential:16")
    addresses = {p: unix_address("test", p, short) for p in range(16)}
    halves = [list(range(8)), list(range(8, 16))]
    problems = [Quadratics() for _ in halves]
    results = run_together(plans(graph, halves, addresses, tmp_path), problems)
    assert [r for r in results if isinstance(r, Exception)] == []
    assert_golden("exponential:16", thetas(problems))


def test_theta_of_a_resumed_run_is_what_it_was(tmp_path):
    whole = run_all(keeping(tmp_path / "whole"))
    assert_golden("lopsided-4 p2pft", whole)
    with pytest.raises(PeerFailedError):
        run_all(keeping(tmp_path / "first"), [Quadratics(fail_at={1: 11})])
    assert_golden("lopsided-4 p2pft", run_all(going_on(tmp_path / "rest", tmp_path / "first")))


# --- with a loss, and with a peer that comes back ---


def test_theta_of_those_who_go_on_without_a_peer_and_of_all_when_it_is_back_is_what_it_was(federation):
    net = federation(tcp(), iterations=120, **{"peer-timeout": 8.0})
    net.all_there.set()
    released = threading.Event()
    arrived = {p: threading.Event() for p in (0, 1, 3)}

    def hook(peer, drawn):
        if peer == 2 and drawn == 30:
            # As far as they can go while it waits here: two are in iteration 29, one is in the next.
            until(lambda: [net.problems[p].built[p].drawn for p in (0, 1, 3)] == [31, 32, 31])
            raise ValueError("no more images")
        if peer != 2 and net.hosts[peer]._iteration == 80:
            arrived[peer].set()
            assert released.wait(60)

    runs = [net.start(p, hook=hook) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    assert all(there.wait(60) for there in arrived.values())
    assert_golden(
        "directed-ring:4 without peer 2 from iteration 30",
        np.stack([np.asarray(net.hosts[p]._training.completed.states[p].theta) for p in (0, 1, 3)]),
    )
    runs[2] = net.start(2, joining=True)
    until(lambda: all(net.view_of(p) == 2 for p in (0, 1, 3)))
    released.set()
    for run in runs:
        run.result(60)
    assert_golden("directed-ring:4 with peer 2 back", np.stack([net.kept(p) for p in range(4)]))
