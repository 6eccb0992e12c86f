"""Deployed nodes and their addresses: who may take part, and what each is told of the others."""

from __future__ import annotations

import json
import platform
import socket

import pytest
import yaml
from flwr.app import Error, Message

from p2pft_flower.config import RunConfig, config_keys
from p2pft_flower.flower import greeting, messages
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError, with_addresses
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.topology import Graph
from p2pft_flower.transport.trust.authority import create_authority, issue
from tests.flower import engine
from tests.flower.engine import run_app
from tests.flower.test_app import same, tails


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
    configs = [{"peer-id": i, "peer-address": "127.0.0.1:1"} for i in (0, 2, 2, 2, 9)]
    with pytest.raises(RunFailedError) as raised:
        run_app(tmp_path, slots=5, node_configs=configs, iterations=1)
    said = str(raised.value)
    here = f"the SuperNode at 127.0.0.1:1 on {platform.node()}"
    claimed = f"peer 2 is claimed by {here} (node 1001), by {here} (node 1002), by {here} (node 1003)"
    assert claimed in said
    assert f"{here} (node 1004) says peer-id=9, but the graph has the peers 0..3" in said
    assert "Peers there: [0, 2], missing: [1, 3]" in said


class Clock:
    """Stands in for the module ``time``: whoever sleeps makes it later."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class SuperLink:
    """Nodes that come, go and answer as told.

    ``there`` maps a node to the stretch of time in which it is there; ``answers`` to its peer, to the code of
    Flower's error, or to None where it never answers.
    """

    def __init__(self, clock, there, answers):
        self.clock, self.there, self.answers = clock, there, answers
        self.asked, self.greeted = {}, []

    def get_node_ids(self):
        return [node for node, (begin, end) in self.there.items() if begin <= self.clock.now < end]

    def push_messages(self, sent):
        ids = []
        for message in sent:
            node = message.metadata.dst_node_id
            ids.append(f"{node}-{len(self.greeted)}")
            self.greeted.append((self.clock.now, node))
            message.metadata._message_id = ids[-1]
            self.asked[ids[-1]] = message
        return ids

    def pull_messages(self, ids):
        found = []
        for i in ids:
            answer = self.answers[int(i.partition("-")[0])]
            if callable(answer):
                answer = answer(self.clock.now)
            if answer is None:
                continue
            asked = self.asked[i]
            if isinstance(answer, Error):
                reply = Message(answer, reply_to=asked)
            else:
                reply = messages.reply(asked, {"ok": {"peer-id": answer}})
            reply.metadata._reply_to_message_id = i
            found.append(reply)
        return found


ALWAYS = (0.0, 1e9)


def greeted(monkeypatch, there, answers, n=3, **settings):
    clock = Clock()
    monkeypatch.setattr(greeting, "time", clock)
    link = SuperLink(clock, there, answers)
    config = RunConfig.from_mapping({**config_keys(), "meet-timeout": 30.0, **settings})
    found = greeting.greet(link, config, n, pooled=False)
    return {node: answer["peer-id"] for node, answer in found.items()}, link


def test_nodes_that_another_run_holds_are_told_apart_from_missing_ones(monkeypatch):
    """A SuperNode does one thing at a time: node 11 does not come to the greeting."""
    with pytest.raises(RunFailedError, match=r"waiting for peers \[1\].*nodes \[11\] are there and did not"):
        greeted(monkeypatch, {10: ALWAYS, 11: ALWAYS}, {10: 0, 11: None}, n=2)


def test_what_is_waited_for_is_said_again_with_the_time_that_is_left(monkeypatch, caplog):
    caplog.set_level("INFO")
    found, _ = greeted(monkeypatch, {10: ALWAYS, 11: (25, 1e9)}, {10: 0, 11: 1}, n=2)
    assert found == {10: 0, 11: 1}
    waits = [
        record.getMessage() for record in caplog.records if "waiting for peers [1]" in record.getMessage()
    ]
    assert waits[0] == "waiting for peers [1]"
    left = [float(said.split("; ")[1].removesuffix(" s left")) for said in waits[1:]]
    assert left == pytest.approx([20, 10], abs=2)


def test_a_supernode_that_was_restarted_during_the_wait_is_one_node(monkeypatch):
    found, _ = greeted(
        monkeypatch, {1: ALWAYS, 3: (0, 10), 33: (12, 1e9), 2: (20, 1e9)}, {1: 0, 3: 2, 33: 2, 2: 1}
    )
    assert found == {1: 0, 33: 2, 2: 1}


def test_a_node_that_flower_does_not_reach_is_absent_and_does_not_end_a_run_that_can_do_without(monkeypatch):
    gone = Error(5, "node unavailable")
    found, _ = greeted(
        monkeypatch, dict.fromkeys((1, 2, 3), ALWAYS), {1: 0, 2: gone, 3: 2}, **{"min-peers": 2}
    )
    assert found == {1: 0, 3: 2}
    with pytest.raises(RunFailedError, match=r"waiting for peers \[1\].*Node 2: node unavailable"):
        greeted(monkeypatch, dict.fromkeys((1, 2, 3), ALWAYS), {1: 0, 2: gone, 3: 2})


def test_a_node_that_flower_did_not_reach_at_first_is_asked_again(monkeypatch):
    answers = {1: 0, 2: lambda now: 1 if now > 8 else Error(5, "node unavailable"), 3: 2}
    found, _ = greeted(monkeypatch, dict.fromkeys((1, 2, 3), ALWAYS), answers)
    assert found == {1: 0, 2: 1, 3: 2}


def test_an_app_that_breaks_at_a_site_is_told_at_once(monkeypatch):
    with pytest.raises(RunFailedError, match=r"node 2, one of the peers \[1, 2\].*error 2: no torch"):
        greeted(monkeypatch, dict.fromkeys((1, 2, 3), ALWAYS), {1: 0, 2: Error(2, "no torch"), 3: None})


def test_errors_name_peer_and_site_and_are_told_together(tmp_path):
    configs = sites("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    configs[1]["data-dir"] = "/elsewhere"  # no dataset of this run reads it
    configs[2] |= {"certificates": "/c", "insecure": True, "site-name": "south"}
    with pytest.raises(RunFailedError) as raised:
        run_app(tmp_path, slots=3, node_configs=configs, topology="ring:3", iterations=1)
    first, one, two = str(raised.value).splitlines()
    assert first == "2 sites cannot take part:"
    assert one.startswith(f"  peer 1 at 127.0.0.1:2 on {platform.node()}: data-dir = '/elsewhere'")
    assert two.startswith(
        f"  peer 2 (south) at 127.0.0.1:3 on {platform.node()}: certificates and insecure = true"
    )
    assert "node" not in one.partition(": ")[0]


def test_who_comes_late_is_greeted_while_another_node_is_silent(monkeypatch):
    there = {1: ALWAYS, 2: ALWAYS, 3: (5.0, 1e9), 4: (15.0, 1e9)}
    found, link = greeted(monkeypatch, there, {1: 0, 2: None, 3: 1, 4: 2})
    assert found == {1: 0, 3: 1, 4: 2}
    assert [round(when) for when, _ in link.greeted] == [0, 0, 5, 15]


def test_a_silent_node_holds_a_run_up_no_longer_than_its_one_deadline(monkeypatch):
    there = {1: ALWAYS, 2: ALWAYS, 3: (29.0, 1e9)}
    found, link = greeted(monkeypatch, there, {1: 0, 2: None, 3: 2}, **{"min-peers": 2})
    assert found == {1: 0, 3: 2}
    assert link.clock.now == pytest.approx(30 + greeting.ANSWER, abs=1)


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
    configs = [{"peer-id": 0, "peer-address": "127.0.0.1:1"}, {"peer-id": 1}]
    with pytest.raises(Exception, match=r"peer 1 has no address: .*peer-address.*topology ring:2"):
        run_app(tmp_path, slots=2, node_configs=configs, topology="ring:2", iterations=1)


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_each_host_is_told_the_addresses_that_it_may_need_and_no_others(on_failure, tmp_path, monkeypatch):
    """On a directed ring of four: the peer across is a neighbour only where another one may be lost."""
    told = {}
    execute = engine.Engine._execute

    def listening(self, message):
        if message.metadata.message_type == messages.TRAIN_PEERS:
            told[message.metadata.dst_node_id - 1000] = json.loads(messages.unpack(message)["plan"])["plan"]
        return execute(self, message)

    monkeypatch.setattr(engine.Engine, "_execute", listening)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(4)]
    run_app(tmp_path, slots=4, node_configs=sites(*addresses), iterations=1, on_failure=on_failure)
    for peer, plan in told.items():
        near = {(peer - 1) % 4, peer, (peer + 1) % 4}
        assert {int(p) for p in plan["addresses"]} == (near if on_failure == "stop" else {0, 1, 2, 3})
        across = addresses[(peer + 2) % 4]
        assert (across in json.dumps(plan)) == (on_failure == "continue")
    assert sorted(told) == [0, 1, 2, 3]


def test_addresses_may_stand_in_the_topology_alone(tmp_path):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    file = graph_with_addresses(tmp_path, *addresses)
    configs = [{"peer-id": p} for p in range(2)]
    run_app(tmp_path / "d", slots=2, node_configs=configs, topology=str(file), iterations=2)
    run_app(tmp_path / "m", topology="directed-ring:2", iterations=2)
    assert same(tails(tmp_path / "d", 2), tails(tmp_path / "m", 2))


def test_what_is_listened_on_may_differ_from_what_neighbours_connect_to(tmp_path):
    """As in a container: it listens on all its addresses, and is reached at the machine's."""
    create_authority(tmp_path / "authority", "north")
    configs = []
    for p, port in enumerate(free_ports(2)):
        issue(tmp_path / "authority", tmp_path / str(p), p)
        configs.append(
            {
                "peer-id": p,
                "peer-address": f"127.0.0.{2 + p}:{port}",
                "bind-address": f"0.0.0.0:{port}",
                "certificates": str(tmp_path / str(p)),
            }
        )
    run_app(tmp_path / "d", slots=2, node_configs=configs, topology="directed-ring:2", iterations=2)
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
    configs = sites(*(f"[::1]:{port}" for port in ports))
    run_app(tmp_path / "d", slots=2, node_configs=configs, topology="directed-ring:2", iterations=2)
    run_app(tmp_path / "m", topology="directed-ring:2", iterations=2)
    assert same(tails(tmp_path / "d", 2), tails(tmp_path / "m", 2))


@pytest.mark.parametrize("sited", [True, False], ids=["names of sites", "names of the graph"])
def test_values_of_a_column_that_are_the_peers_names_are_asked_for_again_in_their_order(
    sited, monkeypatch, caplog
):
    asked = []

    def greet(_, config, n, *, pooled):
        spec = config.learning.partition
        asked.append((spec, n, pooled))
        told = "by:site=east,north,south" if spec == "by:site" else spec
        sites = ["south", "east", "north"] if sited else [""] * 3
        return {10 + p: {"partition": told, "peer-id": p, "site": s} for p, s in enumerate(sites)}

    monkeypatch.setattr(greeting, "greet", greet)
    named = {} if sited else {"peer_names": ("south", "east", "north")}
    graph = Graph.from_weights(Graph.load("directed-ring:3").W, **named)
    config = RunConfig.from_mapping({"partition": "by:site"})
    with caplog.at_level("INFO"):
        found, answers = greeting.greet_by_names(None, config, graph, pooled=False)
    assert found.learning.partition == "by:site=south,east,north"
    assert asked == [("by:site", 3, False), ("by:site=south,east,north", 3, False)]
    assert {answer["partition"] for answer in answers.values()} == {"by:site=south,east,north"}
    assert "so each peer gets its own: by:site=south,east,north" in caplog.text
    asked.clear()
    assert greeting.greet_by_names(None, found, graph, pooled=False)[0] is found
    assert len(asked) == 1
