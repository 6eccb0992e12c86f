"""What remains of a graph when peers are missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from tests.topology.test_graph import strongly_connected_weights


@settings(deadline=None, max_examples=200)
@given(strongly_connected_weights(), st.data())
def test_whoever_is_missing_the_rest_is_strongly_connected_and_keeps_its_edges(W, data):
    graph = Graph.from_weights(W)  # Graph refuses what is not strongly connected
    missing = data.draw(st.sets(st.integers(0, graph.n - 1), max_size=graph.n - 1))
    view = View.without(graph, missing)
    assert set(view.peers) == set(range(graph.n)) - missing
    live = list(view.peers)
    kept = graph.W[np.ix_(live, live)]
    assert (kept <= view.graph.W).all()
    for peer in view.peers:
        assert sum(view.row(peer).values()) == pytest.approx(1.0)
        assert sum(view.column(peer).values()) == pytest.approx(1.0)


def test_a_ring_without_a_peer_is_a_ring_with_the_same_weights():
    view = View.without(Graph.load("directed-ring:6"), [2, 3])
    assert view.peers == (0, 1, 4, 5)
    np.testing.assert_array_equal(view.graph.W, Graph.load("directed-ring:4").W)
    assert list(view.row(4)) == [1, 4]
    assert list(view.column(1)) == [1, 4]
    assert view.added_to(Graph.load("directed-ring:6")) == ((1, 4),)


def test_where_the_rest_is_connected_no_edge_is_added():
    graph = Graph.load("complete:5")
    np.testing.assert_array_equal(View.without(graph, [4]).graph.W, graph.W[:4, :4])


def test_what_came_from_the_missing_peer_is_dealt_to_those_it_heard():
    W = np.eye(4)
    W[1, 0], W[3, 1], W[3, 2], W[2, 0], W[0, 3] = 1, 2, 6, 1, 4  # 0 → 1, 2 → 3 → 0
    view = View.without(Graph.from_weights(W), [3])
    assert view.graph.W[0].tolist() == [1, 4 * 2 / 8, 4 * 6 / 8]


def test_nobody_left_and_unknown_peers_are_refused():
    graph = Graph.load("directed-ring-4")
    with pytest.raises(TopologyError, match="none of the 4 peers"):
        View.without(graph, range(4))
    with pytest.raises(TopologyError, match="no peer 7"):
        View.without(graph, [7])
    with pytest.raises(TopologyError, match="peer 2 is not in this view"):
        View.without(graph, [2]).row(2)


def test_nobody_missing_is_the_graph_itself():
    graph = Graph.load("directed-ring-4")
    assert View.without(graph, []) == View.whole(graph) == View((0, 1, 2, 3), graph)


@settings(deadline=None, max_examples=200)
@given(strongly_connected_weights(), st.data())
def test_whatever_breaks_a_view_is_strongly_connected_and_uses_no_broken_edge(W, data):
    graph = Graph.from_weights(W)
    missing = data.draw(st.sets(st.integers(0, graph.n - 1), max_size=graph.n - 1))
    pairs = st.tuples(st.integers(0, graph.n - 1), st.integers(0, graph.n - 1)).filter(lambda e: e[0] != e[1])
    broken = data.draw(st.sets(pairs)) if graph.n > 1 else set()
    view = View.without(graph, missing, broken)
    assert set(view.peers).isdisjoint(missing)
    Graph.from_weights(view.graph.W)  # refuses what is not strongly connected
    assert broken.isdisjoint((view.peers[j], view.peers[i]) for j, i in view.graph.edges)


def test_a_directed_ring_whose_edge_breaks_goes_on_as_a_line_in_both_directions():
    view = View.without(Graph.load("directed-ring:4"), [], [(0, 1)])
    assert view.peers == (0, 1, 2, 3)
    assert list(view.row(0)) == [0, 3]  # nothing comes from 1: its link with 0 does not work
    assert list(view.row(3)) == [0, 2, 3]


def test_an_edge_that_breaks_both_ways_is_no_loss_where_others_connect_the_peers():
    view = View.without(Graph.load("ring:4"), [], [(0, 1), (1, 0)])
    assert view.peers == (0, 1, 2, 3)
    assert list(view.row(0)) == [0, 3]


def test_who_can_be_reached_by_nobody_is_left_out_of_the_view():
    view = View.without(Graph.load("ring:4"), [], [(0, 1), (1, 0), (0, 3), (3, 0)])
    assert view.peers == (1, 2, 3)
