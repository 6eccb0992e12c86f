"""Mixing on a host that has all neighbours itself, with products that several receivers share."""

from __future__ import annotations

import numpy as np
import pytest

from p2pft_flower.algorithms.seam import Both, Columns, Rows, combine
from p2pft_flower.host import mixing
from p2pft_flower.plan import Neighbourhood
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled
from p2pft_flower.topology.views import View

SIZE = 70_000  # more than a block of the sums


def of(spec, turns="static", k=0):
    graph = Graph.load(spec)
    view = View.whole(graph if turns == "static" else scheduled(graph, turns))
    return {p: Neighbourhood.of(view, p).at(k) for p in range(graph.n)}


def expected(kind, places, vectors):
    def terms(i):
        return ((places[i].row[j], places[j].column[i], vectors[j]) for j in sorted(places[i].row))

    return {i: combine(kind, terms(i)) for i in places}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", [Rows, Columns, Both])
@pytest.mark.parametrize(
    "graph",
    [
        ("exponential:8",),
        ("star:6",),
        ("lopsided-4",),
        ("complete:2",),
        ("exponential:8", "one-peer-exponential", 1),
    ],
    ids=str,
)
def test_the_sums_are_those_of_each_receiver_alone_bit_by_bit(graph, kind, threads, monkeypatch):
    monkeypatch.setattr(mixing, "MANY", 0)
    places, rng = of(*graph), np.random.default_rng(0)
    vectors = {p: rng.standard_normal(SIZE).astype(np.float32) for p in places}
    found = mixing.mixed_here(kind, places, vectors, threads)
    assert list(found) == list(places)
    for peer, vector in expected(kind, places, vectors).items():
        assert found[peer].dtype == np.float32
        np.testing.assert_array_equal(found[peer].view(np.uint32), vector.view(np.uint32))


@pytest.mark.parametrize(
    ("graph", "kind", "times"),
    [("exponential:8", Rows, 8), ("exponential:8", Columns, 8), ("star:6", Columns, 6), ("star:6", Rows, 0)],
)
def test_a_vector_is_multiplied_once_for_all_receivers_if_they_weigh_it_alike(
    graph, kind, times, monkeypatch
):
    multiplied, product = [], mixing.product
    monkeypatch.setattr(mixing, "product", lambda *of: multiplied.append(of) or product(*of))
    places = of(graph)
    mixing.mixed_here(kind, places, {p: np.ones(3, np.float32) for p in places}, 1)
    assert len(multiplied) == times


def test_what_is_mixed_is_no_vector_of_a_peer():
    alone = {0: Neighbourhood(0, {0: 1.0}, {0: 1.0})}
    vectors = {0: np.ones(3, np.float32)}
    for kind in (Rows, Columns):
        assert not np.shares_memory(mixing.mixed_here(kind, alone, vectors, 1)[0], vectors[0])
