"""Graphs from names and YAML files."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from p2pft_flower.errors import TopologyError
from p2pft_flower.resources import resource_dir
from p2pft_flower.topology import Graph
from p2pft_flower.topology.files import KEYS
from p2pft_flower.topology.sources import shipped

RING = "edges: [[0, 1], [1, 2], [2, 0]]\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghi")
)
"""Nine lines that stand for 9 to the 9th words."""


def load(folder: Path, text: str) -> Graph:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return Graph.load(path)


def test_every_shipped_graph_loads_by_name_and_says_what_it_is() -> None:
    names = {"complete-4", "directed-ring-4", "exponential-16", "lopsided-4", "paper-4", "ring-4", "star-5"}
    assert names <= set(shipped())
    for name, path in shipped().items():
        graph = Graph.load(name)
        assert graph.name == name
        assert graph.description
        assert graph == Graph.load(path) == Graph.load(str(path))


def test_shipped_graphs_have_the_shapes_that_their_names_say() -> None:
    for name, spec in (
        ("directed-ring-4", "directed-ring:4"),
        ("ring-4", "ring:4"),
        ("complete-4", "complete:4"),
        ("star-5", "star:5:metropolis"),
        ("exponential-16", "exponential:16"),
    ):
        assert Graph.load(name).digest == Graph.load(spec).digest
        assert Graph.load(name).doubly_stochastic
    lopsided = Graph.load("lopsided-4")
    assert lopsided.W.tolist() == [[1, 0, 0, 0.2], [5, 1, 0, 0], [5, 1, 1, 0], [5, 0, 1, 1]]
    assert lopsided.averaging_weights[0] > 0.8
    paper = Graph.load("paper-4")
    assert (paper.n, paper.undirected, paper.doubly_stochastic) == (4, False, False)
    assert paper.peer_names == ("node-1", "node-2", "node-3", "node-4")


def test_every_example_of_the_readme_loads_and_every_key_is_in_it(tmp_path: Path) -> None:
    readme = (resource_dir("topologies") / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", readme, flags=re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        assert load(tmp_path, example).n >= 3
    for key in KEYS:
        assert f"| `{key}` |" in readme
    for name in shipped():
        assert f"`{name}`" in readme


def test_names_addresses_weights_and_self_weights_are_read(tmp_path: Path) -> None:
    graph = load(
        tmp_path,
        """
        peers: [{name: north, address: "10.0.0.1:9000"}, {address: "10.0.0.2:9000"}, lab]
        edges: [[north, lab], [lab, 1, 2.5], [1, north]]
        self-weight: {lab: 3}
        """,
    )
    assert graph.name == "mine"
    assert graph.peer_names == ("north", "1", "lab")
    assert graph.addresses == ("10.0.0.1:9000", "10.0.0.2:9000", None)
    assert graph.W.tolist() == [[1, 1, 0], [0, 1, 2.5], [1, 0, 3]]


def test_edges_adjacency_and_matrix_say_the_same(tmp_path: Path) -> None:
    texts = (
        "name: g\npeers: 3\nedges: [[0, 1], [1, 2, 0.5], [2, 0], [2, 1]]",
        "name: g\npeers: 3\nedges: {0: [1], 1: {2: 0.5}, 2: [0, 1]}",
        "name: g\nweights: [[1, 0, 1], [1, 1, 1], [0, 0.5, 1]]",
        "name: g\npeers: 3\nscheme: explicit\nself-weight: [1, 1, 1]\n"
        "edges: {0: {1: 1}, 1: {2: 0.5}, 2: {0: 1, 1: 1}}",
    )
    first, *others = [load(tmp_path, text) for text in texts]
    assert all(other == first for other in others)


def test_self_weights_default_to_one_and_may_be_one_number_or_a_list(tmp_path: Path) -> None:
    for text, diagonal in (
        ("", [1, 1, 1]),
        ("self-weight: 2", [2, 2, 2]),
        ("self-weight: [1, 2, 3]", [1, 2, 3]),
    ):
        assert load(tmp_path, f"peers: 3\n{RING}{text}").W.diagonal().tolist() == diagonal


def test_undirected_edges_go_both_ways_and_metropolis_averages_them(tmp_path: Path) -> None:
    graph = load(tmp_path, "peers: 3\nundirected: true\nscheme: metropolis\nedges: [[0, 1], [1, 2]]")
    third = 1 / 3
    np.testing.assert_allclose(graph.W, [[2 * third, third, 0], [third, third, third], [0, third, 2 * third]])
    assert graph.doubly_stochastic
    both = load(tmp_path, "peers: 3\nscheme: metropolis\nedges: [[0, 1], [1, 2], [1, 0], [2, 1]]")
    assert both.digest == graph.digest


def test_peers_called_by_numbers_of_their_own_are_known_by_these(tmp_path: Path) -> None:
    graph = load(tmp_path, "peers: [1, 2, 3]\nedges: [[1, 2], [2, 3], [3, 1]]")
    assert graph.edges == ((0, 1), (1, 2), (2, 0))
    with pytest.raises(TopologyError, match="names peer 0, which is not among the peers: 1, 2, 3"):
        load(tmp_path, "peers: [1, 2, 3]\n" + RING)


def test_a_lone_peer_needs_no_edges(tmp_path: Path) -> None:
    assert load(tmp_path, "peers: 1").W.tolist() == [[1]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("peers: 3\nedges: [[0, 1], [1, 2]]", "no path leads from peer 2 to peer 0.*add the edge 2 -> 0"),
        ("peers: [a, b]\nedges: [[a, b]]", "no path leads from peer b to peer a.*add the edge b -> a"),
        (f"peers: [a, b, a]\n{RING}", "peers 0 and 2 are both called 'a'; rename"),
        (f"peers: 0\n{RING}", "peers is 0: a graph has between 1"),
        (f"peers: -2\n{RING}", "peers is -2"),
        ("peers: []", "peers lists 0"),
        (f"peers: 1000000000\n{RING}", "between 1 and 4096"),
        (f"peers: three\n{RING}", "peers is 'three': give their number"),
        (f"peers: true\n{RING}", "peers is True: give their number"),
        (RING, "peers is missing"),
        ("peers: [on, b]\nedges: [[0, 1], [1, 0]]", "peer 0 has the name True.*put it in quotes"),
        ("peers: [{nom: a}, b]", "peer 0 has the unknown key 'nom': use name and address"),
        ("peers: [{address: 90}, b]\nedges: [[0, 1], [1, 0]]", "peer 0 has the address 90"),
        (f"peers: 3\n{RING}edgse: []", "unknown key 'edgse'; did you mean edges.*name, description, peers"),
        (f"peers: 3\n{RING}1: 2", "unknown key 1"),
        (f"peers: 3\n{RING}{RING}", "the key 'edges' is given twice"),
        ("peers: 3\nedges: {0: [1], 1: [2], 0: [2]}", "the key '0' is given twice"),
        (f"peers: 3\n{RING}name: 7", "name is 7, not text: put it in quotes"),
        (f"peers: 3\n{RING}undirected: maybe", "undirected is 'maybe': write true or false"),
        (f"peers: 3\n{RING}scheme: equal", "scheme is 'equal': choose one of uniform, metropolis, explicit"),
        (f"peers: 3\n{RING}scheme: [uniform]", "scheme is .*choose one of"),
        (f"peers: 3\n{RING}scheme: explicit", r"edge 0 -> 1 has no weight.*write \[from, to, weight\]"),
        ("peers: 2\nscheme: uniform\nedges: [[0, 1, 2], [1, 0]]", "edge 0 -> 1 has a weight of its own"),
        (f"peers: 3\n{RING}scheme: metropolis", "edge 0 -> 1 has no reverse: add 1 -> 0, or use"),
        (
            "peers: 2\nundirected: true\nedges: [[0, 1]]\nscheme: metropolis\nself-weight: 1",
            "metropolis sets the self-weights itself: leave self-weight out",
        ),
        ("peers: 2\nedges: [[0, 1, -1], [1, 0]]", "edge 0 -> 1 has the weight -1: give a positive number"),
        ("peers: 2\nedges: [[0, 1, 0], [1, 0]]", "edge 0 -> 1 has the weight 0.*or leave the edge out"),
        ("peers: 2\nedges: [[0, 1, .nan], [1, 0]]", "edge 0 -> 1 has the weight nan"),
        ("peers: 2\nedges: [[0, 1, .inf], [1, 0]]", "edge 0 -> 1 has the weight inf"),
        ("peers: 2\nedges: [[0, 1, 1e-3], [1, 0]]", "weight of edge 0 -> 1 is '1e-3'.*write 1.0e-3"),
        ("peers: 2\nedges: {0: {1: true}, 1: [0]}", "weight of edge 0 -> 1 is True, not a number"),
        ("peers: 2\nedges: [[0, 1], [1, 0], [0, 1]]", "edge 0 -> 1 is given twice: list each edge once"),
        ("peers: 2\nundirected: true\nedges: [[0, 1], [1, 0]]", "edge 1 -> 0 is given twice.*its reverse"),
        ("peers: 2\nedges: [[0, 0], [1, 0]]", "edge 0 -> 0 leads from a peer to itself: set its self-weight"),
        ("peers: 2\nedges: [[0, 1], [1, 2]]", "edge 1 -> 2 names peer 2, which is not among the peers: 0, 1"),
        ("peers: 2\nedges: [[0, 1], [1, true]]", "names peer True"),
        ("peers: 2\nedges: [[0], [1, 0]]", r"edge \[0\] is not a pair"),
        ("peers: 2\nedges: [0, 1]", "edge 0 is not a pair"),
        ("peers: 2\nedges: {0: 1, 1: 0}", "edges of peer 0 are 1: give a list of receivers"),
        ("peers: 2\nedges:", r"edges is None: give a list of \[from, to\]"),
        (f"peers: 3\n{RING}self-weight: 0", "self-weight of peer 0 is missing.*set it, usually to 1"),
        (f"peers: 3\n{RING}self-weight: {{1: 0}}", "self-weight of peer 1 is missing"),
        (f"peers: 3\n{RING}self-weight: -1", "self-weight of peer 0 .* is -1.0"),
        (f"peers: 3\n{RING}self-weight:", "self-weight is None, not a number"),
        (f"peers: 3\n{RING}self-weight: [1, 1]", "self-weight lists 2 for 3 peers"),
        (f"peers: 3\n{RING}self-weight: {{7: 1}}", "self-weight names peer 7"),
        ("weights: [[1, 1], [0, 0]]", "peer 1 receives from nobody"),
        ("weights: [[1, 1], [1]]", r"not an \(n, n\) matrix"),
        ("weights: [[1, 1], [one, 1]]", r"weight W\[1, 0\] is 'one', not a number"),
        ("weights: 3", "weights is not a matrix"),
        ("weights: []", "no peer"),
        ("peers: 3\nweights: [[1, 1], [1, 1]]", "weights has 2 rows for 3 peers"),
        (f"weights: [[1, 1], [1, 1]]\n{RING}", "leave edges out, or weights"),
        ("weights: [[1, 1], [1, 1]]\nself-weight: 1", "leave self-weight out, or weights"),
        ("weights: [[1, 1], [1, 1]]\nscheme: uniform", "weights and scheme: uniform exclude each other"),
        ("just some words", "not a graph: the file has no keys"),
        ("", "not a graph: the file has no keys"),
        ("peers: [1, 2", "not YAML that can be read.*line 1"),
        ("peers: 2\n\tedges: x", "not YAML that can be read.*line 2"),
        ("peers: !!python/object/apply:os.getcwd []", "not YAML that can be read"),
        ("[" * 5000, "not YAML that can be read: more than 16 levels deep.*line 1"),
        ("a: " + "[" * 20 + "]" * 20, "more than 16 levels deep"),
        (LAUGHS, "not YAML that can be read: an alias stands for a list or a mapping.*line 2"),
        ("peers: &p [*p]", "not YAML that can be read: an alias stands for a list"),
        ("peers: 0x" + "f" * 9000, "a whole number of more than 64 bits"),
        ("peers: " + "9" * 9000, "not YAML that can be read"),
        ("peers: 2\nedges: [[0, 1, 1.0e-13], [1, 0]]", "edge 0 -> 1 is 1e-13: give a number from 1e-12"),
        (f"peers: 3\n{RING}self-weight: 1.0e+13", r"self-weight of peer 0 is 1e\+13: give a number from"),
        ('peers: [{address: "a:0"}, b]\nedges: [[0, 1], [1, 0]]', "peer 0 has the address 'a:0'.* from 1 to"),
        ('peers: [{address: "a:65536"}, b]\nedges: [[0, 1], [1, 0]]', "end it with a port from 1 to 65535"),
        ('peers: [{address: "far"}, b]\nedges: [[0, 1], [1, 0]]', "end it with a port from 1 to 65535"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_naming_itself_the_peer_or_edge_and_the_remedy(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(TopologyError) as caught:
        load(tmp_path, text)
    assert re.search(says, str(caught.value), flags=re.DOTALL)
    assert str(caught.value).startswith(str(tmp_path / "mine.yaml"))


def test_an_alias_may_stand_for_a_single_value(tmp_path: Path) -> None:
    graph = load(tmp_path, "peers: 2\nself-weight: &w 0.5\nedges: [[0, 1, *w], [1, 0, *w]]")
    assert (graph.W == 0.5).all()


def test_a_file_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pft_flower.topology.files._LARGEST", 1000)
    with pytest.raises(TopologyError, match=r"mine\.yaml cannot be read: it is larger than 1000 bytes"):
        load(tmp_path, "peers: 2 #" + "x" * 1000)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(TopologyError, match=r"picture\.yaml is not YAML"):
        Graph.load(path)


def test_a_local_file_needs_no_suffix_and_a_shipped_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own-graph", "ring-4"):
        Path(name).write_text("peers: 1", encoding="utf-8")
    assert Graph.load("own-graph").n == 1
    assert Graph.load("ring-4").n == 4
    assert Graph.load("./ring-4").n == 1


@pytest.mark.parametrize(
    ("x", "says"),
    [
        ("directed-rng-4", r"Did you mean directed-ring-4\?.*lopsided-4.*ring:N.*path of a YAML file"),
        ("zzz", "Shipped graphs: complete-4, directed-ring-4"),
        ("", "there is no graph ''"),
        ("no/such.yaml", "there is no file no/such.yaml"),
        ("ring-4.yaml", "the shipped graph is called ring-4"),
        (Path("no-such.yaml"), "there is no file no-such.yaml"),
        (".", "no graph '.'"),
        ("/", "is a folder"),
        ("a\0b", "there is no graph"),
        ("x" * 5000, "there is no graph"),
        ("~nobody-of-this-name/x.yaml", "there is no file"),
        (4, "a graph is a name, a path or a spec such as ring:8, not 4"),
    ],
)
def test_an_unknown_name_or_path_says_what_there_is(
    x: object, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TopologyError, match=says):
        Graph.load(x)  # type: ignore[arg-type]
