"""Graphs from specs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import Graph
from p2pft_flower.topology.generators import GENERATORS

sizes = st.integers(2, 14)
seeds = st.integers(0, 10**6)
undirected = st.one_of(
    st.builds("{}:{}".format, st.sampled_from(["ring", "complete", "star", "line"]), sizes),
    st.builds("grid:{}x{}".format, st.integers(1, 4), st.integers(1, 4)),
    st.builds("erdos-renyi:{}:{}:{}".format, sizes, st.sampled_from([0.6, 0.8, 1]), seeds),
)
directed = st.one_of(
    st.builds("{}:{}".format, st.sampled_from(["directed-ring", "exponential"]), sizes),
    st.builds("random-directed:{}:{}:{}".format, st.integers(4, 14), st.just(3), seeds),
)


@settings(deadline=None, max_examples=60)
@given(undirected | directed)
def test_generated_graphs_are_strongly_connected_with_weights_one(spec: str) -> None:
    graph = Graph.load(spec)
    assert graph.name == spec
    assert nx.is_strongly_connected(graph.to_networkx())
    assert set(np.unique(graph.W)) <= {0.0, 1.0}
    assert (graph.W.diagonal() == 1).all()


@settings(deadline=None, max_examples=40)
@given(undirected)
def test_metropolis_makes_every_undirected_graph_doubly_stochastic(spec: str) -> None:
    plain, graph = Graph.load(spec), Graph.load(f"{spec}:metropolis")
    assert plain.undirected
    assert graph.undirected
    assert graph.doubly_stochastic
    assert graph.edges == plain.edges
    np.testing.assert_allclose(graph.A, graph.B, atol=1e-12)
    np.testing.assert_allclose(graph.A, graph.W, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(undirected | directed)
def test_a_spec_always_gives_the_same_graph(spec: str) -> None:
    assert Graph.load(spec).digest == Graph.load(spec).digest


def test_every_example_in_the_list_of_generators_works() -> None:
    for kind, generator in GENERATORS.items():
        graph = Graph.load(generator.example)
        assert generator.form.startswith(kind)
        assert graph.undirected == generator.undirected


def test_each_kind_has_the_edges_that_its_name_says() -> None:
    assert Graph.load("directed-ring:4").edges == ((0, 1), (1, 2), (2, 3), (3, 0))
    assert Graph.load("line:3").edges == ((0, 1), (1, 0), (1, 2), (2, 1))
    assert Graph.load("star:3").edges == ((0, 1), (0, 2), (1, 0), (2, 0))
    assert Graph.load("ring:5").in_neighbours(0) == (1, 4)
    assert Graph.load("grid:3x4").out_neighbours(5) == (1, 4, 6, 9)
    assert Graph.load("complete:5").diameter == 1
    assert Graph.load("exponential:16").out_neighbours(15) == (0, 1, 3, 7)
    assert Graph.load("exponential:6").out_neighbours(0) == (1, 2, 4)
    drawn = Graph.load("random-directed:16:3:7")
    assert all(len(drawn.out_neighbours(j)) == 3 for j in range(16))


def test_regular_graphs_are_doubly_stochastic_with_weights_one_and_the_others_are_not() -> None:
    for spec in ("ring:8", "directed-ring:8", "complete:8", "exponential:16", "exponential:11"):
        assert Graph.load(spec).doubly_stochastic, spec
    for spec in ("star:8", "line:8", "grid:3x4", "erdos-renyi:16:0.3:7", "random-directed:16:3:7"):
        assert not Graph.load(spec).doubly_stochastic, spec


def test_another_seed_draws_another_graph() -> None:
    assert Graph.load("erdos-renyi:16:0.3:7").digest != Graph.load("erdos-renyi:16:0.3:8").digest
    assert Graph.load("random-directed:16:3:7").digest != Graph.load("random-directed:16:3:8").digest


def test_an_erdos_renyi_graph_whose_first_draw_is_not_connected_is_drawn_again() -> None:
    assert not nx.is_connected(nx.gnp_random_graph(16, 0.1, seed=1))
    assert Graph.load("erdos-renyi:16:0.15:1").n == 16


@pytest.mark.parametrize("spec", ["complete:1", "line:1", "grid:1x1", "exponential:1", "erdos-renyi:1:0.5:0"])
def test_one_peer_is_legal_where_the_kind_allows_it(spec: str) -> None:
    assert Graph.load(spec).n == 1


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ring", r"0 argument\(s\), not 1: write ring:N, for instance ring:8"),
        ("ring:8:9", r"2 argument\(s\), not 1"),
        ("ring:1", "a ring needs at least 2 peers; complete:1"),
        ("directed-ring:1", "needs at least 2 peers"),
        ("star:1", "needs at least 2 peers"),
        ("ring:0", "0 peers: between 1 and 4096"),
        ("ring:-3", "'-3' is not a whole number"),
        ("ring:eight", "'eight' is not a whole number.*write ring:N"),
        ("complete:1000000", "between 1 and 4096"),
        ("grid:3", "not rows x columns.*write grid:RxC"),
        ("grid:0x4", "0 peers"),
        ("erdos-renyi:16:0.3", "write erdos-renyi:N:P:SEED"),
        ("erdos-renyi:16:1.5:7", "not a probability"),
        ("erdos-renyi:16:nan:7", "not a probability"),
        ("erdos-renyi:64:0.001:7", "none of 200 graphs .* raise the probability from 0.001 to about 0.1"),
        ("random-directed:16:16:7", "an out-degree is between 1 and 15, not 16"),
        ("random-directed:16:1:7", "raise the out-degree from 1 to 4, or use directed-ring:16"),
        ("random-directed:1:1:7", "at least 2 peers"),
        ("directed-ring:8:metropolis", "directed-ring is directed: leave :metropolis out"),
        ("rnig:8", r"no generator 'rnig'; did you mean ring:N\?.*exponential:N"),
        ("one-peer-exponential:16", "set schedule-graph = .one-peer-exponential., alone; exponential:N"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_with_the_right_form(spec: str, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        Graph.load(spec)


def test_the_probability_that_a_refusal_suggests_works() -> None:
    with pytest.raises(TopologyError) as caught:
        Graph.load("erdos-renyi:32:0.01:3")
    enough = str(caught.value).split("to about ")[1].split()[0]
    assert Graph.load(f"erdos-renyi:32:{enough}:3").n == 32
