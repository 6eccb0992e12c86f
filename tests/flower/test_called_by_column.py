"""Peers are called by the values of ``partition = by:COLUMN``; a warning that all hosts give is told once."""

from __future__ import annotations

import pytest

from p2pft_flower.config import RunConfig
from p2pft_flower.flower.nodes import HostAssignment
from p2pft_flower.flower.preflight import _row
from p2pft_flower.flower.run import Run, _tell_warnings
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View

HOSTS = [HostAssignment(100 + p, (p,), f"10.0.0.{p}:9000") for p in range(2)]


def run(partition="by:center=north,south", **facts):
    graph = facts.pop("graph", Graph.load("ring:2"))
    return Run(
        id="7",
        config=RunConfig(),
        graph=graph,
        view=View.whole(graph),
        folder=None,
        exchanges=True,
        deployed=True,
        hosts=HOSTS,
        images={0: 10, 1: 10},
        classes={0: ["a"], 1: ["a"]},
        class_names=["a"],
        partition=partition,
        versions={},
        iterations=1,
        epoch=1,
        evaluate_every=1,
        **{"pooled": False, **facts},
    )


def test_peers_are_called_by_the_columns_values_in_results_messages_and_preflight():
    held = run()
    assert [held.about(peer).name for peer in (0, 1)] == ["north", "south"]
    assert held.names == {0: "north", 1: "south"}
    hello = {"data": {"0": {"images": 1, "classes": []}}, "certificate": "", "fault": "", "pixels": {}}
    assert _row(held, HOSTS[0], hello)["name"] == "north"


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        ({"site_names": {0: "Ward 3"}}, {0: "Ward 3"}),
        ({"graph": Graph("g", Graph.load("ring:2").W, ("n", "s"))}, {0: "n", 1: "s"}),
        ({"partition": "iid"}, {}),
        ({"pooled": True}, {}),
    ],
)
def test_names_of_sites_and_graphs_count_before_the_columns_values(facts, names):
    assert run(**facts).names == names


def test_a_warning_of_all_hosts_is_told_once_with_the_peers(caplog):
    warnings = [["the table is odd", "peer 0 has no test image"], ["the table is odd", "a file is twice"]]
    told = [{"peer-id": peer, "warnings": of_host} for peer, of_host in enumerate(warnings)]
    _tell_warnings(HOSTS, told)
    assert [record.getMessage() for record in caplog.records] == [
        "peers [0, 1]: the table is odd",
        "peer 0 has no test image",
        "peer 1: a file is twice",
    ]
    caplog.clear()
    _tell_warnings(HOSTS, [{**answer, "peer-id": None} for answer in told])
    assert caplog.records[0].getMessage() == "the table is odd"
