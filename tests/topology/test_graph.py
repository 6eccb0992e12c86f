"""A graph, its two matrices, its figures, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import Graph

LOPSIDED = [[1, 0, 0, 0.2], [5, 1, 0, 0], [5, 1, 1, 0], [5, 0, 1, 1]]


@st.composite
def strongly_connected_weights(draw: st.DrawFn) -> np.ndarray:
    """Any pattern and weights around a directed cycle through all peers in a drawn order."""
    n = draw(st.integers(1, 9))
    weight = st.floats(1e-3, 1e3)
    W = np.array(draw(st.lists(st.just(0.0) | weight, min_size=n * n, max_size=n * n))).reshape(n, n)
    order = draw(st.permutations(range(n)))
    for j, i in zip(order, [*order[1:], order[0]], strict=True):
        W[i, j] = draw(weight)
    np.fill_diagonal(W, draw(st.lists(weight, min_size=n, max_size=n)))
    return W


@settings(deadline=None, max_examples=60)
@given(strongly_connected_weights())
def test_rows_of_A_and_columns_of_B_sum_to_one(W: np.ndarray) -> None:
    graph = Graph.from_weights(W)
    np.testing.assert_allclose(graph.A.sum(axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(graph.B.sum(axis=0), 1, rtol=0, atol=1e-12)
    assert ((graph.A > 0) == (W > 0)).all()
    assert ((graph.B > 0) == (W > 0)).all()
    assert graph.A.dtype == graph.B.dtype == graph.W.dtype == np.float64


@settings(deadline=None, max_examples=60)
@given(strongly_connected_weights())
def test_neighbours_ascend_and_are_the_zero_pattern_of_W(W: np.ndarray) -> None:
    graph = Graph.from_weights(W)
    for i in range(graph.n):
        assert graph.in_neighbours(i) == tuple(j for j in range(graph.n) if j != i and W[i, j] > 0)
        assert graph.out_neighbours(i) == tuple(k for k in range(graph.n) if k != i and W[k, i] > 0)
    assert graph.edges == tuple((j, i) for j in range(graph.n) for i in graph.out_neighbours(j))


@settings(deadline=None, max_examples=60)
@given(strongly_connected_weights())
def test_averaging_weights_are_what_A_keeps_and_uniform_where_it_is_doubly_stochastic(W: np.ndarray) -> None:
    graph = Graph.from_weights(W)
    assert 0 <= graph.second_modulus_A < 1
    assert 0 <= graph.second_modulus_B < 1
    np.testing.assert_allclose(graph.averaging_weights @ graph.A, graph.averaging_weights, atol=1e-9)
    assert graph.averaging_weights.sum() == pytest.approx(1)
    if graph.doubly_stochastic:
        np.testing.assert_allclose(graph.averaging_weights, 1 / graph.n, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(strongly_connected_weights())
def test_a_graph_survives_json_bit_for_bit(W: np.ndarray) -> None:
    graph = Graph.from_weights(W, name="g", addresses=[f"10.0.0.{i}:1" for i in range(len(W))])
    back = Graph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert back == graph
    assert hash(back) == hash(graph)
    assert back.digest == graph.digest
    assert (back.A == graph.A).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 7), st.data())
def test_an_unconnected_graph_names_a_pair_without_a_path_and_enough_such_edges_connect_it(
    n: int, data: st.DataObject
) -> None:
    cells = data.draw(st.lists(st.booleans(), min_size=n * n, max_size=n * n))
    W = np.array(cells, dtype=float).reshape(n, n)
    np.fill_diagonal(W, 1)
    for _ in range(2 * n):
        try:
            Graph.from_weights(W)
        except TopologyError as error:
            words = str(error).split("no path leads from peer ")[1].split(",")[0].split(" to peer ")
            start, end = map(int, words)
            assert np.linalg.matrix_power(W, n)[end, start] == 0
            W[end, start] = 1  # do as it says
        else:
            return
    pytest.fail("the suggested edges never connect the graph")


def test_W_i_j_is_what_i_gives_to_what_comes_from_j() -> None:
    graph = Graph.from_weights(LOPSIDED)
    assert graph.edges == ((0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (3, 0))
    assert graph.in_neighbours(0) == (3,)
    assert graph.out_neighbours(0) == (1, 2, 3)
    np.testing.assert_allclose(graph.A[1], [5 / 6, 1 / 6, 0, 0])
    np.testing.assert_allclose(graph.B[:, 0], [1 / 16, 5 / 16, 5 / 16, 5 / 16])


def test_a_doubly_stochastic_W_equals_A_and_B() -> None:
    W = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]])
    graph = Graph.from_weights(W)
    assert graph.doubly_stochastic
    assert (graph.A == W).all()
    assert (graph.B == W).all()
    assert not Graph.from_weights(LOPSIDED).doubly_stochastic


def test_figures_of_a_directed_ring_are_known_in_closed_form() -> None:
    graph = Graph.load("directed-ring:6")
    assert graph.diameter == 5
    assert graph.second_modulus_A == pytest.approx(abs(1 + np.exp(2j * np.pi / 6)) / 2)
    assert graph.spectral_gap == pytest.approx(1 - graph.second_modulus_B)
    assert not graph.undirected
    assert Graph.load("ring:6").undirected


def test_a_single_peer_is_a_graph() -> None:
    graph = Graph.from_weights([[1]])
    assert (graph.n, graph.edges, graph.diameter, graph.spectral_gap) == (1, (), 0, 1.0)
    assert graph.doubly_stochastic
    assert graph.in_neighbours(0) == graph.out_neighbours(0) == ()
    assert graph.averaging_weights == pytest.approx([1])


def test_a_graph_cannot_be_changed_and_does_not_share_the_callers_array() -> None:
    W = np.array(LOPSIDED, dtype=float)
    graph = Graph.from_weights(W)
    W[0, 3] = 7
    assert graph.W[0, 3] == 0.2
    for matrix in (graph.W, graph.A, graph.B):
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.name = "other"  # type: ignore[misc]


def test_the_digest_depends_on_the_weights_only() -> None:
    graph = Graph.from_weights(LOPSIDED)
    assert graph.digest == Graph.from_weights(LOPSIDED, name="x", peer_names=list("abcd")).digest
    assert graph.digest == Graph.load("lopsided-4").digest
    ones = np.ones((2, 2))
    assert Graph.from_weights(ones).digest != Graph.from_weights(2 * ones).digest
    signed = np.array([[1.0, -0.0, 1.0], [1.0, 1.0, -0.0], [-0.0, 1.0, 1.0]])
    assert Graph.from_weights(signed).digest == Graph.load("directed-ring:3").digest
    # a fixed value: peers of different machines and versions must agree
    assert Graph.load("directed-ring-4").digest.startswith("f25692b9008a288a")


def test_networkx_sees_the_same_edges_weights_and_names() -> None:
    graph = Graph.from_weights(LOPSIDED, peer_names=list("abcd"))
    other = graph.to_networkx()
    assert tuple(sorted(other.edges)) == graph.edges
    assert other.edges[3, 0]["weight"] == 0.2
    assert other.nodes[2] == {"name": "c", "address": None, "self_weight": 1.0}


@pytest.mark.parametrize(
    ("W", "says"),
    [
        ([[1, 1], [-1, 1]], r"edge 0 -> 1 \(W\[1, 0\]\) is -1.0.*positive number"),
        ([[1, float("nan")], [1, 1]], r"edge 1 -> 0 .* is nan.*positive number"),
        ([[1, 1], [float("inf"), 1]], r"edge 0 -> 1 .* is inf.*positive number"),
        ([[-1, 1], [1, 1]], r"self-weight of peer 0 .* is -1.0"),
        ([[1, 1], [0, 0]], r"peer 1 receives from nobody.*row 1.*self-weight W\[1, 1\]"),
        ([[1, 0], [1, 0]], r"peer 1 sends to nobody.*column 1.*self-weight W\[1, 1\]"),
        ([[1, 1], [1, 0]], r"self-weight of peer 1 is missing.*set it, usually to 1"),
        ([[1, 0], [1, 1]], r"no path leads from peer 1 to peer 0.*add the edge 1 -> 0$"),
        (np.eye(3), r"no path leads from peer 0 to peer 1.*add the edge 0 -> 1 \(the first of at least 3"),
        ([[1e300, 1e-300], [1, 1]], r"1e-300 of edge 1 -> 0 vanishes.*scale"),
        ([[1e308, 1e308], [1e308, 1e308]], r"vanishes.*scale"),
        ([[1, 1, 1], [1, 1, 1]], r"shape \(2, 3\).*one row and one column a peer"),
        ([1, 2, 3], r"shape \(3,\)"),
        ([[1, 1], [1]], r"not an \(n, n\) matrix.*n rows of n"),
        ([], r"no peer.*n >= 1"),
        (np.zeros((0, 0)), r"no peer.*n >= 1"),
        ([["a", "b"], ["c", "d"]], r"dtype.*real numbers"),
        ([[1j, 1], [1, 1]], r"dtype complex128.*real numbers"),
        (None, r"shape \(\)"),
    ],
)  # fmt: skip
def test_unusable_weights_are_refused_naming_peer_or_edge_and_remedy(W: object, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        Graph.from_weights(W)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"peer_names": ["a", "a"]}, "peers 0 and 1 are both called 'a'; rename"),
        ({"peer_names": ["a"]}, "not 2: give one name a peer"),
        ({"peer_names": "ab"}, "not 2: give one name a peer"),
        ({"peer_names": ["a", ""]}, "peer 1 has the name ''"),
        ({"peer_names": ["a", "b\n"]}, "peer 1 has the name"),
        ({"addresses": ["x:1"]}, "1 addresses for 2 peers"),
        ({"addresses": ["x:1", "y 1"]}, "peer 1 has the address 'y 1'"),
        ({"name": ""}, "graph's name is ''"),
    ],
)
def test_unusable_names_and_addresses_are_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        Graph.from_weights([[1, 1], [1, 1]], **given)  # type: ignore[arg-type]


def test_errors_call_peers_by_their_names() -> None:
    with pytest.raises(TopologyError, match=r"from peer south to peer north.*add the edge south -> north"):
        Graph.from_weights([[1, 0], [1, 1]], peer_names=["north", "south"])


def test_the_constructor_and_from_dict_check_as_well() -> None:
    with pytest.raises(TopologyError, match="self-weight of peer 0 is missing"):
        Graph("g", np.array([[0.0, 1.0], [1.0, 1.0]]))
    with pytest.raises(TopologyError, match="'addresses' is missing"):
        Graph.from_dict({"name": "g", "weights": [[1]], "peer_names": ["0"]})


@pytest.mark.parametrize("i", [-1, 4])
def test_there_are_no_neighbours_of_a_peer_that_is_not_there(i: int) -> None:
    graph = Graph.load("directed-ring-4")
    with pytest.raises(TopologyError, match=f"no peer {i}: .* peers 0 to 3"):
        graph.in_neighbours(i)


def test_the_topology_package_loads_neither_torch_nor_grpc_nor_flower_nor_matplotlib() -> None:
    code = (
        "import sys; from p2pft_flower.topology import Graph; Graph.load('ring-4').diameter; "
        "print(sorted({'torch', 'grpc', 'flwr', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
