"""Graphs that other programs export: GraphML, JSON of networkx, edges as CSV."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from p2pft_flower.cli import app
from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import Graph
from tests.commands import CliRunner

NAMES = ("north", "south", "lab", "10")


def directed(weights: bool = True) -> nx.DiGraph:
    """Four peers; W[i, j] is the weight of the edge j -> i."""
    graph = nx.DiGraph()
    graph.add_nodes_from(NAMES)
    edges = [("north", "south", 2.0), ("south", "lab", 0.5), ("lab", "10", 1.0), ("10", "north", 3.0)]
    for j, i, weight in [*edges, ("north", "lab", 7.0), ("lab", "lab", 4.0)]:
        graph.add_edge(j, i, **({"weight": weight} if weights else {}))
    return graph


EXPECTED = [[1, 0, 0, 3], [2, 1, 0, 0], [7, 0.5, 4, 0], [0, 0, 1, 1]]


def node_link(graph: nx.Graph, key: str) -> str:
    argument = "edges" if "edges" in inspect.signature(nx.node_link_data).parameters else "link"
    return json.dumps(nx.node_link_data(graph, **{argument: key}))


def exported(folder: Path, form: str, graph: nx.Graph) -> Path:
    file = folder / f"mine.{form.rpartition('.')[2]}"
    if form == "graphml":
        nx.write_graphml(graph, file)
    elif form == "adjacency.json":
        file.write_text(json.dumps(nx.adjacency_data(graph)))
    elif form == "csv":
        weights = nx.get_edge_attributes(graph, "weight")
        lines = [f"{j},{i},{weights.get((j, i), '')}" for j, i in graph.edges()]
        file.write_text("\n".join(["source,target,weight", *lines]))
    else:
        file.write_text(node_link(graph, form.partition(".")[0]))
    return file


FORMS = ["graphml", "edges.json", "links.json", "adjacency.json", "csv"]


@pytest.mark.parametrize("form", FORMS)
def test_names_weights_and_directions_are_kept(form: str, tmp_path: Path) -> None:
    graph = Graph.load(exported(tmp_path, form, directed()))
    order = [graph.peer_names.index(name) for name in NAMES]
    assert graph.name == "mine"
    np.testing.assert_array_equal(graph.W[np.ix_(order, order)], EXPECTED)
    if form != "csv":
        assert graph.peer_names == NAMES


@pytest.mark.parametrize("form", FORMS)
def test_edges_without_a_weight_have_1(form: str, tmp_path: Path) -> None:
    graph = Graph.load(exported(tmp_path, form, directed(weights=False)))
    assert set(graph.W.ravel().tolist()) == {0.0, 1.0}
    assert (graph.W > 0).sum() == 9


@pytest.mark.parametrize("form", FORMS[:-1])
def test_an_undirected_graph_is_used_in_both_directions_and_says_so(form: str, tmp_path: Path) -> None:
    drawn = nx.Graph()
    drawn.add_weighted_edges_from([("a", "b", 2.0), ("b", "c", 3.0)])
    graph = Graph.load(exported(tmp_path, form, drawn))
    assert graph.W.tolist() == [[1, 2, 0], [2, 1, 3], [0, 3, 1]]
    assert graph.description == "An undirected graph: each edge of the file is used in both directions."


def test_a_graph_for_several_edges_that_has_none_is_taken_and_its_name_too(tmp_path: Path) -> None:
    for kind in (nx.MultiDiGraph, nx.MultiGraph):
        drawn = kind(name="sites")
        nx.add_cycle(drawn, ["a", "b", "c"])
        graph = Graph.load(exported(tmp_path, "edges.json", drawn))
        assert (graph.name, graph.n) == ("sites", 3)


@pytest.mark.parametrize("key", ["name", "label"])
def test_a_nodes_name_or_label_is_the_peers_name_where_all_have_one_and_an_address_is_kept(
    key: str, tmp_path: Path
) -> None:
    drawn = nx.DiGraph()
    drawn.add_node("n0", **{key: "north", "address": "10.0.0.1:9000"})
    drawn.add_node("n1", **{key: "south"})
    drawn.add_edges_from([("n0", "n1"), ("n1", "n0")])
    graph = Graph.load(exported(tmp_path, "graphml", drawn))
    assert graph.peer_names == ("north", "south")
    assert graph.addresses == ("10.0.0.1:9000", None)
    drawn.nodes["n1"][key] = "north"
    assert Graph.load(exported(tmp_path, "graphml", drawn)).peer_names == ("n0", "n1")


def csv(folder: Path, text: str) -> Graph:
    (folder / "mine.csv").write_text(text, encoding="utf-8")
    return Graph.load(str(folder / "mine.csv"))


def test_a_csv_may_lack_names_of_columns_and_has_numbers_in_their_order(tmp_path: Path) -> None:
    graph = csv(tmp_path, "# who sends to whom\n10,2\n2, 0,  5.5\n\n0,10\n2,2,3\n")
    assert graph.peer_names == ("0", "2", "10")
    assert graph.W.tolist() == [[1, 5.5, 0], [0, 3, 1], [1, 0, 1]]
    named = csv(tmp_path, '\ufeffFrom,ID,Weight,To\n"b, c",1,2,a\na,2,,"b, c"\n')
    assert named.peer_names == ("b, c", "a")
    assert named.W.tolist() == [[1, 1], [2, 1]]


def test_gephis_column_of_types_decides_the_direction(tmp_path: Path) -> None:
    head = "Source,Target,Type,Id,Label,Weight\n"
    both = csv(tmp_path, f"{head}a,b,Undirected,0,,2\nb,c,Undirected,1,,3\n")
    assert both.W.tolist() == [[1, 2, 0], [2, 1, 3], [0, 3, 1]]
    with pytest.raises(
        TopologyError, match=r"line 3: the type is 'directed': write Directed or Undirected, the same"
    ):
        csv(tmp_path, f"{head}a,b,Undirected,0,,2\nb,a,Directed,1,,3\n")
    with pytest.raises(TopologyError, match=r"line 2: the type is 'mutual'"):
        csv(tmp_path, f"{head}a,b,Mutual,0,,2\n")


def test_json_without_nodes_has_the_keys_of_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"peers": 2, "edges": [[0, 1], [1, 0]]}')
    assert Graph.load(tmp_path / "mine.json").n == 2


EDGE = (
    '{"directed": true, "nodes": [{"id": 0}, {"id": 1}], "edges": [{"source": 0, "target": 1, "weight": W}]}'
)
XML = '<?xml version="1.0"?>{}<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{}</graphml>'
GRAPH = '<graph edgedefault="directed"><node id="a"/><node id="b"/>{}</graph>'
LAUGHS = '<!DOCTYPE g [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'

WRONG = {
    "entities": ("graphml", XML.format(LAUGHS, GRAPH.format("")), r"line 1: a document type .* is refused"),
    "no xml": ("graphml", "<graphml>\n<graph", r"it is not XML: .*line 2"),
    "no graph": ("graphml", XML.format("", ""), r"it is not GraphML that networkx reads"),
    "a directed edge among undirected ones": (
        "graphml",
        XML.format(
            "",
            GRAPH.replace("directed", "undirected").format('<edge source="a" target="b" directed="true"/>'),
        ),
        r"directed=true edge found in undirected graph",
    ),
    "an edge to nowhere": (
        "graphml",
        XML.format("", GRAPH.format('<edge source="a" target="c"/>')),
        r"an edge names the node 'c', which is not among the nodes",
    ),
    "a node twice": (
        "graphml",
        XML.format("", GRAPH.format('<node id="a"/>')),
        r"the node 'a' is listed 2 times: keep one",
    ),
    "two edges": (
        "graphml",
        XML.format("", GRAPH.format('<edge source="a" target="b"/>' * 2)),
        r"there are several edges a -> b: join them",
    ),
    "no json": ("json", '{"nodes": [', r"it is not JSON that can be read: .*line 1"),
    "nodes without ids": (
        "json",
        '{"nodes": ["a"], "edges": []}',
        r'nodes: give a list of objects with an "id"',
    ),
    "an id that is a list": (
        "json",
        '{"nodes": [{"id": ["a"]}], "edges": []}',
        r'nodes: .*"id" that is text or',
    ),
    "no edges": ("json", '{"nodes": [{"id": "a"}]}', r'it has nodes, and no "edges" or "links"'),
    "edges without ends": (
        "json",
        '{"nodes": [{"id": 0}], "edges": [{"source": 0}]}',
        r"edges: an entry lacks 'target'",
    ),
    "edges that are none": ("json", '{"nodes": [{"id": 0}], "links": {"a": 1}}', r"links: give a list"),
    "too few lists": (
        "json",
        '{"nodes": [{"id": 0}], "adjacency": []}',
        r"adjacency: give a list, one for each node",
    ),
    "a node of the edges alone": (
        "json",
        '{"nodes": [{"id": 0}], "edges": [{"source": 0, "target": "0"}]}',
        r"an edge names the node '0', which is not among",
    ),
    "a weight that is text": (
        "json",
        EDGE.replace("W", '"much"'),
        r"the weight of edge 0 -> 1 is 'much', not a number",
    ),
    "a weight of 0": (
        "json",
        EDGE.replace("W", "0"),
        r"edge 0 -> 1 has the weight 0: give a positive number",
    ),
    "no way back": ("csv", "a,b\n", r"not strongly connected"),
    "a line that is no edge": (
        "csv",
        "source,target\na,b\nb\n",
        r"line 3: 'b' is no edge: write source,target",
    ),
    "semicolons": ("csv", "a;b\nb;a\n", r"line 1: 'a;b' is no edge: .*with commas between"),
    "too many cells": ("csv", "a,b,1,2\n", r"line 1: 'a,b,1,2' is no edge"),
    "a weight of a line": ("csv", "a,b,x\n", r"the weight of line 1 is 'x', not a number"),
    "an edge twice": ("csv", "a,b\nb,a\na,b\n", r"edge a -> b is given twice"),
    "a self-weight twice": ("csv", "a,b\nb,a\na,a\na,a,2\n", r"edge a -> a is given twice"),
    "an open quote": ("csv", 'a,"b\n', r"it is not CSV that can be read"),
    "nothing": ("csv", "source,target\n", r"it has no edge"),
    "nothing at all": ("csv", "", r"it has no edge"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_told_with_the_file_and_its_place(fault: str, tmp_path: Path) -> None:
    suffix, text, message = WRONG[fault]
    file = tmp_path / f"mine.{suffix}"
    file.write_text(text)
    with pytest.raises(TopologyError, match=rf"^{re.escape(str(file))}: (?s:.*){message}"):
        Graph.load(file)


def test_p2pft_topology_shows_them(tmp_path: Path) -> None:
    drawn = nx.cycle_graph(["a", "b", "c"])
    file = exported(tmp_path, "graphml", drawn)
    shown = CliRunner().invoke(app, ["topology", "show", str(file), "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["digest"] == Graph.load("ring:3").digest
    told = CliRunner().invoke(app, ["topology", "show", str(file)]).stdout
    assert "each edge of the file is used in both directions" in " ".join(told.split())


def test_a_file_in_the_working_directory_that_is_not_there_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TopologyError, match=r"there is no file sites\.graphml"):
        Graph.load("sites.graphml")


LINKS = [{"source": "a", "target": "b", "weight": 1}, {"source": "b", "target": "a", "weight": 2}]


@pytest.mark.parametrize("key", ["edges", "links"])
def test_an_edge_that_json_lists_twice_is_refused_instead_of_the_first_weight_being_lost(key, tmp_path):
    file = tmp_path / "mine.json"
    data = {"directed": True, "multigraph": False, "nodes": [{"id": "a"}, {"id": "b"}], key: LINKS}
    file.write_text(json.dumps(data))
    assert Graph.load(file).W.tolist() == [[1, 2], [1, 1]]
    file.write_text(json.dumps(data | {key: [*LINKS, {"source": "a", "target": "b", "weight": 5}]}))
    with pytest.raises(TopologyError, match=rf"{key}: edge a -> b is listed twice"):
        Graph.load(file)
    file.write_text(json.dumps(data | {"directed": False}))
    with pytest.raises(TopologyError, match=rf"{key}: edge b -> a is listed twice"):
        Graph.load(file)


def test_undirected_edges_with_two_weights_are_refused(tmp_path):
    file = tmp_path / "mine.json"
    rows = [[{"id": 1, "weight": 3}], [{"id": 0, "weight": 1}]]
    file.write_text(json.dumps({"multigraph": False, "nodes": [{"id": 0}, {"id": 1}], "adjacency": rows}))
    with pytest.raises(TopologyError, match=r"edge 1 -> 0 has another weight than 0 -> 1"):
        Graph.load(file)


def test_json_with_two_lists_of_edges_is_refused(tmp_path):
    file = tmp_path / "mine.json"
    data = {"directed": True, "nodes": [{"id": "a"}, {"id": "b"}], "edges": LINKS, "links": LINKS[:1]}
    file.write_text(json.dumps(data))
    with pytest.raises(TopologyError, match=r"it has edges and links: keep the one"):
        Graph.load(file)


def test_node_link_json_whose_attributes_of_the_graph_are_a_list_is_read(tmp_path):
    file = tmp_path / "mine.json"
    data = {"directed": True, "graph": [], "nodes": [{"id": "a"}, {"id": "b"}], "links": LINKS}
    file.write_text(json.dumps(data))
    assert Graph.load(file).name == "mine"


@pytest.mark.parametrize("form", FORMS[:-1])
@pytest.mark.parametrize("name", ["Weight", "WEIGHT"])
def test_a_weight_in_capitals_is_one(form: str, name: str, tmp_path: Path) -> None:
    graph = directed()
    for _, _, data in graph.edges(data=True):
        data[name] = data.pop("weight")
    assert Graph.load(exported(tmp_path, form, graph)).W.tolist() == EXPECTED


def test_an_edge_with_two_weights_is_refused(tmp_path: Path) -> None:
    graph = directed()
    graph.edges["south", "lab"]["Weight"] = 0.5
    assert Graph.load(exported(tmp_path, "graphml", graph)).W.tolist() == EXPECTED
    graph.edges["south", "lab"]["Weight"] = 2.0
    with pytest.raises(TopologyError, match=r"an edge has weight 0.5 and Weight 2.0: keep one of them"):
        Graph.load(exported(tmp_path, "graphml", graph))
