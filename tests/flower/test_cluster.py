"""What a host on one of several nodes of Ray's cluster decides once it knows where all hosts run."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import Cause, ConfigError, P2PFTError
from p2pft_flower.flower import cluster
from p2pft_flower.flower.cluster import Arrival, Place, addresses_at
from p2pft_flower.plan import Neighbourhood, Plan
from p2pft_flower.transport import ExchangeStoppedError

HERE, THERE = Place("a1", "10.0.0.1", "one"), Place("b2", "10.0.0.2", "two")


def arrival(peers, place, fault="", **facts):
    near = {p: f"unix:/tmp/{p}.sock" for p in peers}
    return Arrival(peers, place, near, f"{place.address}:{7000 + peers[0]}", {"data": "d1", **facts}, fault)


ARRIVALS = [arrival((0, 1), HERE), arrival((2,), HERE), arrival((3, 4), THERE)]


def test_hosts_of_one_node_meet_at_sockets_and_others_at_their_nodes_address():
    known = dict.fromkeys(range(5), "")
    sockets = {p: f"unix:/tmp/{p}.sock" for p in range(5)}
    assert addresses_at(HERE, ARRIVALS, known) == {
        0: sockets[0],
        1: sockets[1],
        2: sockets[2],
        3: "10.0.0.2:7003",
        4: "10.0.0.2:7003",
    }
    assert addresses_at(THERE, ARRIVALS, {2: "", 3: ""}) == {2: "10.0.0.1:7002", 3: sockets[3]}


def plan(folder, **changes):
    config = RunConfig.from_mapping({"topology": "ring:2"})
    own = Neighbourhood(0, {0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})
    made = Plan("7", config, 2, 1, "t", (own,), {0: 1.0, 1: 1.0}, 4, 4, str(folder), register="p2pft-7")
    return replace(made, **changes)


def test_a_node_whose_folder_is_not_the_coordinators_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"Ray's node 10\.0\.0\.2 \(two\) this is not the coordinator's"):
        cluster._require_shared(plan(tmp_path), THERE)
    (tmp_path / ".p2pft-7").touch()
    cluster._require_shared(plan(tmp_path), THERE)


def test_the_node_with_other_data_fails_for_that_and_the_others_for_hearing_of_it():
    odd = arrival((3, 4), THERE, data="d2")
    both = [*ARRIVALS[:2], odd]
    cluster._require_alike(ARRIVALS, ARRIVALS[0])
    with pytest.raises(ConfigError, match=r"data is d2, on Ray's node 10\.0\.0\.1 \(one\) d1: all nodes"):
        cluster._require_alike(both, odd)
    with pytest.raises(ExchangeStoppedError, match=r"peers \[3, 4\] on Ray's node 10\.0\.0\.2") as told:
        cluster._require_alike(both, ARRIVALS[0])
    assert told.value.cause is Cause.HEARSAY


def test_a_fault_of_one_host_ends_the_others_with_its_words():
    with pytest.raises(ExchangeStoppedError, match=r"peers \[2\] on .*: no images"):
        cluster._require_alike([ARRIVALS[0], arrival((2,), HERE, "no images")], ARRIVALS[0])


def test_a_reserved_port_is_nobody_elses_and_a_server_of_ours_can_listen_there():
    with cluster._reserved_port("127.0.0.1") as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.bind(("127.0.0.1", port))
            ours.listen()


def test_without_a_register_a_plan_stays_as_it_is_and_nothing_is_looked_up(tmp_path):
    whole = plan(tmp_path, register="", addresses={0: "unix:/tmp/0.sock"})
    with cluster.met(whole, lambda: pytest.fail("looked up")) as (same, access):
        assert same is whole
        assert (access.insecure, access.also) == (False, "")


def test_one_node_of_ray_is_no_cluster(monkeypatch, tmp_path):
    def nodes(*alive):
        ray = SimpleNamespace(is_initialized=lambda: True, nodes=lambda: [{"Alive": a} for a in alive])
        ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "a1")
        ray.util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1")
        monkeypatch.setitem(sys.modules, "ray", ray)

    nodes(True, False)
    assert cluster.here() is None
    with pytest.raises(P2PFTError, match="one node left"), cluster.met(plan(tmp_path), dict):
        pass
    nodes(True, True)
    place = cluster.here()
    assert (place.node, place.address) == ("a1", "10.0.0.1")
