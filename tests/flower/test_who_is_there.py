"""Deployed nodes and their addresses: who may take part, and what each is told of the others."""

from __future__ import annotations

import json
import socket

import pytest
import yaml

from p2pft_flower.flower import messages
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError, with_addresses
from p2pft_flower.topology import Graph
from p2pft_flower.transport.certificates import create_authority, issue
from tests.flower import engine
from tests.flower.engine import run_app
from tests.flower.test_app import free_ports, same, tails


def sites(*addresses):
    return [{"peer-id": p, "peer-address": a} for p, a in enumerate(addresses)]


def graph_with_addresses(tmp_path, *addresses):
    n = len(addresses)
    file = tmp_path / "sites.yaml"
    peers = [{"name": f"site-{p}", "address": a} if a else f"site-{p}" for p, a in enumerate(addresses)]
    file.write_text(yaml.safe_dump({"peers": peers, "edges": [[p, (p + 1) % n] for p in range(n)]}))
    return file


def hosts(*addresses):
    return [HostAssignment(1000 + p, (p,), a) for p, a in enumerate(addresses)]


def test_all_that_is_wrong_with_the_nodes_is_told_at_once(tmp_path):
    nodes = [{"peer-id": i, "peer-address": "127.0.0.1:1"} for i in (0, 2, 2, 2, 9)]
    with pytest.raises(RunFailedError) as raised:
        run_app(tmp_path, slots=5, node_configs=nodes, iterations=1)
    said = str(raised.value)
    assert "peer 2 is claimed by nodes 1001, 1002 and 1003" in said
    assert "node 1004 says peer-id=9, but the graph has the peers 0..3" in said
    assert "Peers there: [0, 2], missing: [1, 3]" in said


def test_nodes_that_another_run_holds_are_told_apart_from_missing_ones(tmp_path, monkeypatch):
    """A SuperNode does one thing at a time: node 1001 does not come to the greeting."""
    collect = engine.make_server_app.__globals__["nodes"].collect

    def held(grid, sent, timeout, grace):
        return collect(grid, [m for m in sent if m.metadata.dst_node_id != 1001], timeout, grace)

    monkeypatch.setattr("p2pft_flower.flower.nodes.collect", held)
    nodes = sites("127.0.0.1:1", "127.0.0.1:2")
    with pytest.raises(
        RunFailedError, match=r"waiting for peers \[1\].*nodes \[1001\] are there and did not"
    ):
        run_app(tmp_path, slots=2, node_configs=nodes, topology="ring:2", iterations=1, meet_timeout=0.5)


def test_a_node_config_completes_the_addresses_of_the_topology():
    graph = Graph.from_weights([[1, 1], [1, 1]], addresses=["10.0.0.1:9000", None])
    assert [h.address for h in with_addresses(hosts("", "10.0.0.2:9000"), graph)] == [
        "10.0.0.1:9000",
        "10.0.0.2:9000",
    ]


def test_the_same_address_in_another_form_is_no_contradiction():
    graph = Graph.from_weights([[1, 1], [1, 1]], addresses=["tcp:10.0.0.1:9000", None])
    assert with_addresses(hosts("10.0.0.1:9000", ""), graph)[0].address == "10.0.0.1:9000"


def test_addresses_that_contradict_each_other_are_both_named():
    graph = Graph.from_weights([[1, 1], [1, 1]], name="north-south", addresses=["10.0.0.1:9000", None])
    expected = r"peer 0 is at 10\.0\.0\.9:9000 by .*node-config.* and at 10\.0\.0\.1:9000 by the topology nor"
    with pytest.raises(RunFailedError, match=expected):
        with_addresses(hosts("10.0.0.9:9000", "10.0.0.2:9000"), graph)


def test_two_peers_at_one_address_are_refused():
    graph = Graph.from_weights([[1, 1], [1, 1]])
    with pytest.raises(RunFailedError, match=r"peers 0 and 1 both are at 10\.0\.0\.1:9000"):
        with_addresses(hosts("10.0.0.1:9000", "10.0.0.1:9000"), graph)


def test_a_peer_without_any_address_is_named(tmp_path):
    nodes = [{"peer-id": 0, "peer-address": "127.0.0.1:1"}, {"peer-id": 1}]
    with pytest.raises(Exception, match=r"peer 1 has no address: .*peer-address.*topology ring:2"):
        run_app(tmp_path, slots=2, node_configs=nodes, topology="ring:2", iterations=1)


def test_each_host_is_told_its_neighbours_addresses_and_no_others(tmp_path, monkeypatch):
    """On a directed ring of four nobody learns where the peer across is."""
    told = {}
    execute = engine.Engine._execute

    def listening(self, message):
        if message.metadata.message_type == messages.TRAIN_PEERS:
            told[message.metadata.dst_node_id - 1000] = json.loads(messages.unpack(message)["plan"])
        return execute(self, message)

    monkeypatch.setattr(engine.Engine, "_execute", listening)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(4)]
    run_app(tmp_path, slots=4, node_configs=sites(*addresses), iterations=1)
    for peer, plan in told.items():
        neighbours = {(peer - 1) % 4, peer, (peer + 1) % 4}
        assert {int(p) for p in plan["addresses"]} == neighbours
        across = addresses[(peer + 2) % 4]
        assert across not in json.dumps(plan)
    assert sorted(told) == [0, 1, 2, 3]


def test_addresses_may_stand_in_the_topology_alone(tmp_path):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    file = graph_with_addresses(tmp_path, *addresses)
    nodes = [{"peer-id": p} for p in range(2)]
    run_app(tmp_path / "d", slots=2, node_configs=nodes, topology=str(file), iterations=2)
    run_app(tmp_path / "m", topology="directed-ring:2", iterations=2)
    assert same(tails(tmp_path / "d", 2), tails(tmp_path / "m", 2))


def test_what_is_listened_on_may_differ_from_what_neighbours_connect_to(tmp_path):
    """As in a container: it listens on all its addresses, and is reached at the machine's."""
    create_authority(tmp_path / "authority", "north")
    nodes = []
    for p, port in enumerate(free_ports(2)):
        issue(tmp_path / "authority", tmp_path / str(p), p)
        nodes.append(
            {
                "peer-id": p,
                "peer-address": f"127.0.0.{2 + p}:{port}",
                "bind-address": f"0.0.0.0:{port}",
                "certificates": str(tmp_path / str(p)),
            }
        )
    run_app(tmp_path / "d", slots=2, node_configs=nodes, topology="directed-ring:2", iterations=2)
    run_app(tmp_path / "m", topology="directed-ring:2", iterations=2)
    assert same(tails(tmp_path / "d", 2), tails(tmp_path / "m", 2))


def _has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6: this machine has no ::1")
def test_peers_meet_over_ipv6(tmp_path):
    listening = [socket.create_server(("::1", 0), family=socket.AF_INET6) for _ in range(2)]
    ports = [s.getsockname()[1] for s in listening]
    for s in listening:
        s.close()
    nodes = sites(*(f"[::1]:{port}" for port in ports))
    run_app(tmp_path / "d", slots=2, node_configs=nodes, topology="directed-ring:2", iterations=2)
    run_app(tmp_path / "m", topology="directed-ring:2", iterations=2)
    assert same(tails(tmp_path / "d", 2), tails(tmp_path / "m", 2))
