"""Graphs whose weights change with the iteration."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.errors import ConfigError, TopologyError
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import base, one_peer_exponential, scheduled
from p2pft_flower.topology.views import View

RING = Graph.load("directed-ring-4")


def product(turns):
    return reduce(lambda done, W: W @ done, turns)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [*range(1, 26), 36, 50, 97])
def test_a_base_graph_takes_the_exact_mean_in_one_period_with_no_more_than_k_neighbours(n, k):
    turns = base(n, k)
    np.testing.assert_allclose(product(turns), 1 / n, atol=1e-14)
    for W in turns:
        np.testing.assert_array_equal(W, W.T)
        np.testing.assert_allclose(W.sum(axis=0), 1.0)
        assert W.diagonal().min() > 0
        assert np.count_nonzero(W, axis=1).max() <= k + 1
    digits = int(np.log(n) / np.log(k + 1) + 1e-9)
    assert len(turns) <= 2 * digits + 2  # the paper's bound


@pytest.mark.parametrize("n", [2, 3, 5, 8, 16, 21])
def test_one_peer_exponential_has_one_neighbour_and_is_exact_for_powers_of_two(n):
    turns = one_peer_exponential(n)
    assert len(turns) == (n - 1).bit_length()
    for W in turns:
        assert np.count_nonzero(W, axis=0).tolist() == np.count_nonzero(W, axis=1).tolist() == [2] * n
    exact = np.abs(product(turns) - 1 / n).max() < 1e-15
    assert exact == (n & (n - 1) == 0)


def test_a_schedule_keeps_peers_and_has_the_edges_of_all_turns():
    named = Graph.from_weights(RING.W, peer_names=["a", "b", "c", "d"], addresses=[None, "h:1", None, "h:2"])
    graph = scheduled(named, "one-peer-exponential")
    assert (graph.peer_names, graph.addresses) == (named.peer_names, named.addresses)
    assert graph.period == 2
    assert graph.in_neighbours(0) == (2, 3)
    assert [graph.turn(k).senders(0) for k in range(4)] == [(0, 3), (0, 2), (0, 3), (0, 2)]
    assert graph.lead == 2 * graph.diameter
    assert scheduled(named, "static") is scheduled(named, " static ") is named
    np.testing.assert_array_equal(RING.turn(7).A, RING.A)


def test_a_graph_with_turns_survives_json_and_has_a_digest_of_its_own():
    graph = scheduled(RING, "base:1")
    assert Graph.from_dict(graph.to_dict()) == graph
    mean = Graph.from_weights(graph.W, name=graph.name)
    assert mean.digest != graph.digest
    parts = graph.to_dict()
    parts["turns"] = parts["turns"][::-1]
    assert Graph.from_dict(parts).digest != graph.digest
    parts["weights"][0][0] += 1.0
    with pytest.raises(TopologyError, match="not the mean of those of the turns"):
        Graph.from_dict(parts)


def test_trackers_tend_to_a_cycle_that_each_turn_passes_on():
    rng = np.random.default_rng(0)
    turns = [np.eye(4) + np.roll(np.eye(4), jump, 0) * rng.uniform(0.2, 3, (4, 1)) for jump in (1, 2, 3)]
    graph = RING.in_turn(turns, "lopsided in turn")
    for k in range(3):
        turn = graph.turn(k)
        assert turn.tracker_weights.sum() == pytest.approx(4)
        np.testing.assert_allclose(turn.B @ turn.tracker_weights, turn.next_weights, atol=1e-12)
        np.testing.assert_allclose(turn.next_weights, graph.turn(k + 1).tracker_weights, atol=1e-12)
    assert not graph.doubly_stochastic


def test_files_and_specs_take_turns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("name: one\npeers: 4\nedges: [[0, 1], [2, 3]]\n")
    other.write_text("name: other\npeers: 4\nedges: [[1, 2], [3, 0]]\n")
    graph = scheduled(RING, f"{one},{other}")
    assert [graph.turn(k).receivers(0) for k in (0, 1)] == [(0, 1), (0,)]
    assert set(graph.edges) == set(RING.edges)
    assert scheduled(RING, "ring:4, complete:4").period == 2
    with pytest.raises(TopologyError, match="not strongly connected"):
        scheduled(RING, f"{one}")
    named = Graph.from_weights(RING.W, peer_names=["a", "b", "c", "d"])
    (tmp_path / "swapped.yaml").write_text("name: s\npeers: [b, a, c, d]\nedges: [[a, b], [b, a]]\n")
    with pytest.raises(TopologyError, match=r"its peers are b, a, c, d, those of the topology .* a, b, c, d"):
        scheduled(named, str(tmp_path / "swapped.yaml"))


@pytest.mark.parametrize(
    ("spec", "error", "told"),
    [
        ("base:0", ConfigError, "base:K needs a whole number K"),
        ("base:x", ConfigError, "base:K needs a whole number K"),
        ("static,ring-4", ConfigError, "static is no graph of a list; give it alone"),
        ("ring-4,m:turns", ConfigError, "m:turns is no graph of a list"),
        ("ring:4,,ring:4", ConfigError, "graphs separated by commas"),
        ("one-peer", TopologyError, "there is no graph 'one-peer'"),
        ("ring:5,ring:4", TopologyError, "turn 0: the weights are those of 5 peers, not of 4"),
    ],
)
def test_a_schedule_that_is_none_is_refused_by_name(spec, error, told):
    with pytest.raises(error, match="schedule-graph = ") as refused:
        scheduled(RING, spec)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        ("return [graph.W, graph.W.T]", None, ""),
        ("return 3", TopologyError, "it returned int, not the weights of each iteration"),
        ("return []", TopologyError, "there is no turn"),
        ("return [graph.W] * 300", TopologyError, "300 turns: at most 256"),
        ("return [graph.W, graph.W * 0]", TopologyError, "turn 1: peer 0 sends to nobody, not even itself"),
        ("return [graph.W[:2]]", TopologyError, "turn 0: the weights have shape"),
        ("return 1 / 0", ConfigError, "ZeroDivisionError"),
        ("yield graph.W", TopologyError, "it returned generator, not the weights of each iteration"),
    ],
)
def test_a_schedule_of_ones_own_is_checked_turn_by_turn(body, error, told, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"def mine(graph):\n    {body}\n")
    if error is None:
        assert scheduled(RING, f"{file}:mine").period == 2
        return
    with pytest.raises(error, match="schedule-graph = ") as refused:
        scheduled(RING, f"{file}:mine")
    assert told in str(refused.value)


@settings(deadline=None, max_examples=150)
@given(
    n=st.integers(2, 9),
    spec=st.sampled_from(["one-peer-exponential", "base:1", "base:2", "matchings"]),
    data=st.data(),
)
def test_whoever_is_missing_and_whatever_breaks_the_rest_holds_together_over_a_period(n, spec, data):
    ring = Graph.load(f"directed-ring:{n}")
    if spec == "matchings":  # edges that take turns one by one: no path within a turn
        edges = [np.eye(n) + np.outer(np.eye(n)[(j + 1) % n], np.eye(n)[j]) for j in range(n)]
        graph = ring.in_turn(edges, "one edge at a time")
    else:
        graph = scheduled(ring, spec)
    missing = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    view = View.without(graph, missing)
    assert set(view.peers) == set(range(n)) - missing
    assert view.graph.period == graph.period
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] != e[1])
    broken = data.draw(st.sets(pairs, max_size=4))
    cut = View.without(graph, missing, broken)
    for k in range(graph.period):
        turn = cut.graph.turn(k)
        np.testing.assert_allclose(turn.A.sum(axis=1), 1.0)
        np.testing.assert_allclose(turn.B.sum(axis=0), 1.0)
        used = {(cut.peers[j], cut.peers[i]) for i in range(len(cut.peers)) for j in turn.senders(i)}
        assert broken.isdisjoint(used)


def test_one_peer_exponential_without_a_peer_still_has_one_neighbour_at_most():
    graph = scheduled(Graph.load("directed-ring:8"), "one-peer-exponential")
    rest = View.without(graph, [3]).graph
    assert rest.doubly_stochastic
    assert all(len(rest.turn(k).senders(i)) <= 2 for k in range(3) for i in range(7))


@pytest.mark.parametrize("missing", [[0], [2, 5], [1, 3, 6]])
def test_a_symmetric_schedule_stays_symmetric_and_doubly_stochastic_whoever_is_missing(missing):
    rest = View.without(scheduled(Graph.load("ring:7"), "base:2"), missing).graph
    assert rest.symmetric
    assert rest.doubly_stochastic


def test_a_single_turn_is_no_turn_also_after_a_loss():
    alone = scheduled(Graph.load("ring-4"), "ring-4")
    assert (alone.period, alone.turns) == (1, ())
    np.testing.assert_array_equal(
        View.without(alone, [0]).graph.W, View.without(Graph.load("ring-4"), [0]).graph.W
    )
