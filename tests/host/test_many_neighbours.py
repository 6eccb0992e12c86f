"""Hosts whose peers have thousands of neighbours at other hosts meet and train as others do."""

from __future__ import annotations

import numpy as np

from p2pft_flower.topology import Graph
from p2pft_flower.transport import unix_address

from .hosts import run_together
from .quadratic import Quadratics, plans, thetas


def test_two_hosts_with_sixteen_hundred_pairs_of_neighbours_meet(tmp_path, short):
    graph, halves = Graph.load("complete:80"), [list(range(40)), list(range(40, 80))]
    addresses = {p: unix_address("test", p, short) for p in range(80)}
    problems = [Quadratics(), Quadratics()]
    results = run_together(plans(graph, halves, addresses, tmp_path / "two", iterations=1), problems)
    assert [str(r) for r in results if isinstance(r, Exception)] == []

    whole = [Quadratics()]
    run_together(plans(graph, [list(range(80))], {}, tmp_path / "one", iterations=1), whole)
    np.testing.assert_array_equal(thetas(problems), thetas(whole))
