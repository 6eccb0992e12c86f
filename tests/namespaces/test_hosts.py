"""Peers on hosts of their own, over mutual TLS: what works, and what each kind of stranger gets to see."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from p2pft_flower.algorithms import simulate
from p2pft_flower.lab.supervisor import Functions
from p2pft_flower.transport.trust import authority, certificates
from tests.host.quadratic import GRAPH, Peer, Quadratics, plans
from tests.namespaces.network import PRELOADED, Network, missing
from tests.namespaces.peer import main as peer_main

WHY_NOT = missing()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "network namespaces can be made")

ITERATIONS = 20

PATIENCE = 200.0
"""Seconds after which a peer will say nothing; only a broken one takes that long."""


@pytest.fixture
def federation(tmp_path):
    """A CA, and a folder with certificates for each of four peers."""
    authority.create_authority(tmp_path / "ca", "clinics")
    for peer in range(4):
        authority.issue(tmp_path / "ca", tmp_path / f"peer-{peer}", peer, [Network.address(peer)])
    return tmp_path


def addresses() -> dict[int, str]:
    return {p: f"{Network.address(p)}:9000" for p in range(4)}


class Sites:
    """Four peers to be started on a network's hosts; their plans and certificates can be changed before."""

    def __init__(self, net: Network, folder, **settings):
        self.net, self.folder = net, folder
        all_plans = plans(
            GRAPH,
            [[0], [1], [2], [3]],
            addresses(),
            folder / "out",
            iterations=ITERATIONS,
            **{"meet-timeout": 120.0, "peer-timeout": 120.0} | settings,
        )
        self.plans = dict(enumerate(all_plans))
        self.processes = Functions(PRELOADED)
        self.certificates = {p: folder / f"peer-{p}" for p in range(4)}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.processes.__exit__(*error)

    def start(self, *peers: int) -> None:
        """Start peers; let them run once all could: how long that takes is none of the run's deadlines."""
        for peer in peers:
            words = self.net.name(peer), self.plans[peer].to_json(), self.certificates[peer]
            self.processes.start(peer, peer_main, *words)
        for peer in peers:
            assert self.heard(peer) == "ready"
        for peer in peers:
            self.processes.pipe(peer).send("go")

    def heard(self, peer: int):
        """Return what a peer says next."""
        assert self.processes.pipe(peer).poll(PATIENCE), f"peer {peer} says nothing"
        return self.processes.pipe(peer).recv()

    def through_a_man_in_the_middle(self, untouched: str) -> None:
        """Let what peer 0 sends to peer 1 pass a relay on the fifth host, which alters it."""
        relay = f"{Network.address(4)}:9000"
        self.plans[0] = replace(self.plans[0], addresses={**self.plans[0].addresses, 1: relay})
        process = self.net.start(4, "-m", "tests.namespaces.relay", relay, addresses()[1], untouched)
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"

    def run(self, peers=range(4)) -> dict[int, dict]:
        """Return how each peer ended."""
        self.start(*peers)
        return {peer: self.heard(peer)[0] for peer in peers}


@pytest.fixture(scope="module")
def expected() -> dict[int, dict]:
    """What the same peers find in memory."""
    gradients = [Peer(p).gradient for p in range(4)]
    found = simulate("p2pft", GRAPH, gradients, Quadratics.theta0, alpha=0.1, iterations=ITERATIONS)
    return {p: {"theta": hashlib.sha256(t.tobytes()).hexdigest()} for p, t in enumerate(found.theta)}


def test_late_and_lost_packets_change_nothing(federation, expected):
    with Network(4) as net, Sites(net, federation) as sites:
        for host in range(4):
            if why := net.shape(host, "delay", "10ms", "5ms", "loss", "1%"):
                pytest.skip(why)
        assert sites.run() == expected


def test_a_host_that_cannot_be_reached_at_the_start_is_named_by_its_neighbours(federation):
    with Network(4) as net, Sites(net, federation, **{"meet-timeout": 4.0}) as sites:
        net.cut(2)
        ended = sites.run()
    for peer in (0, 1, 3):  # the neighbours of peer 2, in either direction
        assert ended[peer]["kind"] in ("PeerUnreachableError", "ExchangeStoppedError")
    unreachable = [e["error"] for e in ended.values() if e["kind"] == "PeerUnreachableError"]
    assert any("could not meet" in e and "10.77.0.3:9000" in e for e in unreachable), ended


def test_an_expired_certificate_is_fatal_at_its_owner_with_file_and_remedy(federation, monkeypatch):
    past = datetime.now(UTC) - timedelta(days=30)
    with monkeypatch.context() as clock:
        clock.setattr(certificates, "utc_now", lambda: past)
        authority.issue(federation / "ca", federation / "old", 1, [], days=7)
    with Network(4) as net, Sites(net, federation, **{"meet-timeout": 4.0}) as sites:
        sites.certificates[1] = federation / "old"
        ended = sites.run()
    assert "expired" in ended[1]["error"]
    assert str(federation / "old") in ended[1]["error"]
    assert "p2pft certs renew" in ended[1]["error"]
    assert all("theta" not in e for e in ended.values())


def test_certificates_of_another_peer_are_fatal_with_file_and_remedy(federation):
    with Network(4) as net, Sites(net, federation, **{"meet-timeout": 4.0}) as sites:
        sites.certificates[1] = federation / "peer-3"
        ended = sites.run([1])
    assert "not for peer 1" in ended[1]["error"]
    assert str(federation / "peer-3") in ended[1]["error"]


def test_a_peer_of_another_federation_is_named_at_once_by_those_that_meet_it(federation):
    authority.create_authority(federation / "other-ca", "clinics")  # even of the same name
    authority.issue(federation / "other-ca", federation / "other", 1, [Network.address(1)])
    # The deadline is longer than the test may take.
    with Network(4) as net, Sites(net, federation, **{"meet-timeout": 280.0}) as sites:
        sites.certificates[1] = federation / "other"
        ended = sites.run()
    errors = [e["error"] for e in ended.values()]
    assert len(errors) == 4
    assert any("certificate" in e and "10.77.0.2:9000" in e for e in errors), errors


def test_a_member_of_the_federation_that_is_no_neighbour_is_refused_and_disturbs_nobody(federation, expected):
    authority.issue(federation / "ca", federation / "stranger", 7, [])
    with Network(5) as net, Sites(net, federation) as sites:
        sites.start(0)
        said = net.finish(
            net.start(4, "-m", "tests.namespaces.stranger", str(federation / "stranger"), "10.77.0.1:9000")
        )
        assert json.loads(said[0]) == {"Hello": "NOT_NEIGHBOUR", "Stop": "NOT_NEIGHBOUR"}, said
        ended = sites.run([1, 2, 3])
        first, warnings = sites.heard(0)
        assert {0: first, **ended} == expected
        assert "peer 7 shares no edge with this host" in warnings


def test_four_hosts_over_tls_find_the_same_theta_as_one_process_also_where_bytes_are_passed_on(
    federation, expected
):
    with Network(5) as net, Sites(net, federation) as sites:
        sites.through_a_man_in_the_middle(untouched="inf")
        assert sites.run() == expected


def test_whoever_alters_bytes_of_the_handshake_stops_the_run_by_edge(federation):
    with Network(5) as net, Sites(net, federation, **{"meet-timeout": 5.0}) as sites:
        sites.through_a_man_in_the_middle(untouched="0")
        ended = sites.run()
    assert all("error" in e for e in ended.values()), ended
    assert any("edge 0 -> 1" in e["error"] for e in ended.values()), ended


def test_whoever_alters_payloads_is_never_believed(federation, expected):
    """Each connection breaks after a few payloads; a new one brings what was lost, or the run stops."""
    with Network(5) as net, Sites(net, federation) as sites:
        sites.through_a_man_in_the_middle(untouched="8000")
        ended = sites.run()
    assert all(e == expected[p] for p, e in ended.items() if "theta" in e), ended
    assert all("edge 0 -> 1" in e["error"] for e in ended.values() if "error" in e), ended
