"""Who can reconstruct whose gradients: against proofs by hand, rational arithmetic and recorded messages."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from p2pft_flower.algorithms.p2pft import P2PFT
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import Draw
from p2pft_flower.algorithms.simulation import simulate
from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import Graph
from p2pft_flower.topology.audit import audit, values_found
from p2pft_flower.topology.schedule import scheduled

K = 4
ALL = tuple(range(K + 1))
SMALL = ("directed-ring:3", "directed-ring:4", "ring:5", "star:4", "lopsided-4", "random-directed:5:2:1")


# Proofs by hand


def test_of_two_peers_each_finds_all_of_the_other() -> None:
    """It has all that the other one mixes: its own payloads, and the other's."""
    graph = Graph.load("complete:2")
    for a in (0, 1):
        found = audit(graph, [a], K)
        assert (found.attackers, found.gradients, found.steady) == ((a,), {1 - a: ALL}, (1 - a,))
        assert values_found(graph, [a]) == (1 - a,)


@pytest.mark.parametrize("spec", ["complete:5", "star:6"])
def test_who_receives_all_that_a_peer_mixes_finds_all_of_it(spec: str) -> None:
    """θ_j and τ_j follow from the payloads that j mixed, and then j's own payload gives g_j."""
    graph = Graph.load(spec)
    found = audit(graph, [0], K)  # of a star, peer 0 is the centre
    assert found.gradients == dict.fromkeys(range(1, graph.n), ALL)
    assert found.steady == values_found(graph, [0]) == tuple(range(1, graph.n))


@pytest.mark.parametrize("spec", SMALL)
def test_the_first_two_gradients_of_a_peer_are_its_first_two_payloads(spec: str) -> None:
    """θ^0 − α g^0, of which all know θ^0, and τ^0 + g^1 − g^0 = g^1."""
    graph = Graph.load(spec)
    for a in range(graph.n):
        gradients = audit(graph, [a], K).gradients
        for j in graph.in_neighbours(a):
            assert gradients[j][:2] == (0, 1)


def test_a_leaf_of_a_star_cannot_tell_the_other_leaves_apart() -> None:
    """Exchange the gradients of two other leaves: the centre, all that it hears, sends the same."""
    graph = Graph.load("star:5")
    found = audit(graph, [1], K)
    assert set(found.gradients) == {0}
    assert found.steady == values_found(graph, [1]) == (0,)
    # Of three leaves, two that collude are left with one other, and with all that the centre mixes but it.
    assert audit(Graph.load("star:4"), [1, 2], K).steady == (0, 3)
    assert audit(graph, [1, 2], K).steady == (0,)


def test_weights_that_differ_by_rounding_only_count_as_equal() -> None:
    """Else leaves of a star could be told apart by the last bit of a weight, which nobody can in practice."""
    W = np.eye(4)
    W[0, 1:] = 0.3, 0.1 + 0.2, 0.3
    W[1:, 0] = 0.3
    assert W[0, 1] != W[0, 2]
    found = audit(Graph.from_weights(W), [3], K)
    assert found.steady == (0,)
    assert set(found.gradients) == {0}


@pytest.mark.parametrize("n", [3, 4, 5, 7])
def test_in_a_directed_ring_steady_gradients_are_found_by_everybody(n: int) -> None:
    """B is a circulant with n different eigenvalues, and no eigenvector is zero at the one that is heard."""
    graph = Graph.load(f"directed-ring:{n}")
    for a in range(n):
        others = tuple(u for u in range(n) if u != a)
        assert audit(graph, [a], K).steady == others
        assert values_found(graph, [a]) == others


def test_in_a_directed_ring_free_gradients_are_found_of_the_sender_only_and_only_the_first() -> None:
    """From the third on, what the sender j received hides its gradient.

    Let peer j's gradient differ by δ from iteration 2 on. Its own in-neighbour i (which is not the attacker
    if n > 3 or nobody colludes) can differ such that both payloads of j stay the same.
    """
    graph = Graph.load("directed-ring:5")
    for a in range(5):
        assert audit(graph, [a], 6).gradients == {(a - 1) % 5: (0, 1)}
    # Two in a row: who sends to the first of them is all that they hear of.
    assert audit(graph, [1, 2], 6).gradients == {0: (0, 1)}
    # The only peer between two that collude: they have all that it mixes.
    assert audit(graph, [0, 2], 6).gradients == {1: tuple(range(7)), 4: (0, 1)}


def test_from_the_end_of_a_line_all_averages_can_be_traced_back() -> None:
    """W is tridiagonal without zeros beside its diagonal: e_1, W e_1, W² e_1, … span everything."""
    graph = Graph.load("line:6")
    assert values_found(graph, [0]) == (1, 2, 3, 4, 5)
    assert values_found(Graph.load("star:6"), [2]) == (0,)


def test_who_receives_from_nobody_else_finds_nothing() -> None:
    assert audit(Graph.load("complete:1"), [0], K).gradients == {}
    assert audit(Graph.load("ring:4"), range(4), K).steady == ()


def test_weights_that_change_are_refused_and_so_are_peers_that_are_not_there() -> None:
    with pytest.raises(TopologyError, match="other weights in each iteration"):
        audit(scheduled(Graph.load("ring-4"), "one-peer-exponential"), [0], K)
    with pytest.raises(TopologyError, match="there is no peer 4"):
        audit(Graph.load("ring-4"), [4], K)


# Against other arithmetic


def system(A: Any, B: Any, seen: list[int], others: list[int], iterations: int, one: Any) -> list[list[Any]]:
    """Return what attackers receive, row by row, as coefficients of all g_u^k, k first, of ``others``.

    By the recursion itself, one unit of one gradient after the other; ``one`` is the arithmetic's number 1.
    """
    n, columns = len(A), []
    for k0 in range(iterations + 1):
        for u in others:
            g = [[one * (k == k0 and i == u) for i in range(n)] for k in range(iterations + 1)]
            phi, tau, column = [one * 0] * n, g[0], []
            for k in range(iterations):
                p = [phi[i] - tau[i] for i in range(n)]
                r = [tau[i] + g[k + 1][i] - g[k][i] for i in range(n)]
                column += [p[j] for j in seen] + [r[j] for j in seen]
                phi = [sum((A[i][j] * p[j] for j in range(n)), one * 0) for i in range(n)]
                tau = [sum((B[i][j] * r[j] for j in range(n)), one * 0) for i in range(n)]
            columns.append(column)
    return [list(row) for row in zip(*columns, strict=True)]


def fractions_of(graph: Graph) -> tuple[Any, Any]:
    W = [[Fraction(float(w)).limit_denominator(1000) for w in row] for row in graph.W]
    rows, columns = [sum(row) for row in W], [sum(column) for column in zip(*W, strict=True)]
    n = range(graph.n)
    return (
        [[W[i][j] / rows[i] for j in n] for i in n],
        [[W[i][j] / columns[j] for j in n] for i in n],
    )


def reduced(rows: list[list[Fraction]]) -> dict[int, list[Fraction]]:
    """Return a reduced row echelon form, by the column of each row's pivot."""
    done: dict[int, list[Fraction]] = {}
    for given in rows:
        row = given
        for pivot, other in done.items():
            if row[pivot]:
                factor = row[pivot]
                row = [x - factor * y for x, y in zip(row, other, strict=True)]
        pivot = next((c for c, x in enumerate(row) if x), -1)
        if pivot < 0:
            continue
        row = [x / row[pivot] for x in row]
        for c, other in done.items():
            if other[pivot]:
                factor = other[pivot]
                done[c] = [x - factor * y for x, y in zip(other, row, strict=True)]
        done[pivot] = row
    return done


def found_by_fractions(
    graph: Graph, attackers: tuple[int, ...], look: int, iterations: int
) -> dict[int, tuple]:
    """Return the gradients whose unit vector is in the row space of the attackers' system."""
    others = [u for u in range(graph.n) if u not in attackers]
    seen = sorted({j for a in attackers for j in graph.in_neighbours(a)} - set(attackers))
    rows = system(*fractions_of(graph), seen, others, iterations, Fraction(1))
    alone = {c for c, row in reduced(rows).items() if sum(x != 0 for x in row) == 1}
    when = {
        u: tuple(k for k in range(look + 1) if k * len(others) + m in alone) for m, u in enumerate(others)
    }
    return {u: k for u, k in when.items() if k}


@pytest.mark.parametrize("spec", ["directed-ring:3", "directed-ring:4", "star:4", "lopsided-4", "line:4"])
def test_rational_arithmetic_over_many_iterations_finds_the_same(spec: str) -> None:
    """After 2 n iterations more than are looked at nothing is added."""
    graph, look = Graph.load(spec), 2
    for size in (1, 2):
        for attackers in combinations(range(graph.n), size):
            expected = found_by_fractions(graph, attackers, look, look + 2 * graph.n)
            assert audit(graph, attackers, look).gradients == expected, attackers


@pytest.mark.parametrize("seed", range(6))
def test_rational_arithmetic_finds_the_same_on_graphs_with_any_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, look = 4, 2
    W = np.eye(n) + rng.integers(0, 4, (n, n)) * (rng.random((n, n)) < 0.6)
    W[np.arange(n), np.arange(n) - 1] += 1  # a ring at least
    graph = Graph.from_weights(W)
    for attackers in [(0,), (2,), (1, 3)]:
        expected = found_by_fractions(graph, attackers, look, look + 2 * n)
        assert audit(graph, attackers, look).gradients == expected
        others = [u for u in range(n) if u not in attackers]
        seen = sorted({j for a in attackers for j in graph.in_neighbours(a)} - set(attackers))
        free = system(*fractions_of(graph), seen, others, 2 * n, Fraction(1))
        m = len(others)  # with steady gradients the columns of one peer are added up
        rows = [[sum(row[c::m], Fraction(0)) for c in range(m)] for row in free]
        alone = {c for c, row in reduced(rows).items() if sum(x != 0 for x in row) == 1}
        assert audit(graph, attackers, look).steady == tuple(u for c, u in enumerate(others) if c in alone)


# Against a run


@dataclass(frozen=True)
class Overheard(P2PFT):
    """P2P-FT, whose payloads are written down by peer, in the order in which it sends them."""

    gradients: Any = None
    log: Any = None

    def step(self, k, state, gradient):
        exchange, mixed = super().step(k, state, gradient), None
        (peer,) = np.flatnonzero((self.gradients[k] == state.grad).all(axis=1))
        while True:
            try:
                request = exchange.send(mixed)
            except StopIteration as end:
                return end.value
            if not isinstance(request, Draw):  # gradients stay where they are
                self.log[peer].append(request.vector.copy())
            mixed = yield request


def given(vectors):
    """Return a gradient function that returns one vector after the other, wherever θ is."""
    left = list(vectors)
    return lambda theta: left.pop(0)


ALPHA = 0.3


def overheard(graph, gradients):
    """Run P2P-FT on gradients (K + 1, n, q); return each peer's p^k and r^k in turn, (n, 2 K, q)."""
    theta = np.linspace(-1, 1, gradients.shape[2])
    log: Any = [[] for _ in range(graph.n)]
    method = Overheard(make_schedule("constant", ALPHA, K), gradients=gradients, log=log)
    functions = [given(gradients[:, i]) for i in range(graph.n)]
    simulate(method, graph, functions, theta, alpha=ALPHA, iterations=K, errors=False)
    payloads = np.array(log)
    payloads[:, ::2] = (payloads[:, ::2] - theta) / ALPHA  # θ − α τ = θ^0 + α p
    return payloads


def attack(graph, attackers, gradients, payloads):
    """Solve the attackers' least squares; return each found g_u^k, and a direction that they cannot see."""
    others = [u for u in range(graph.n) if u not in attackers]
    seen = sorted({j for a in attackers for j in graph.in_neighbours(a)} - set(attackers))
    mine = list(attackers)
    known = np.array(system(graph.A, graph.B, seen, mine, K, 1.0))
    unknown = np.array(system(graph.A, graph.B, seen, others, K, 1.0))
    heard = np.concatenate([payloads[seen, 2 * k + phase] for k in range(K) for phase in (0, 1)])
    own = gradients[:, mine].reshape(-1, gradients.shape[2])
    solution, *_ = np.linalg.lstsq(unknown, heard - known @ own, rcond=1e-10)
    _, values, directions = np.linalg.svd(unknown)
    rank = int((values > 1e-10 * values[0]).sum())
    return others, solution, directions[rank:]


@pytest.mark.parametrize("spec", [*SMALL, "complete:4", "complete:2"])
def test_an_attack_on_the_messages_of_a_run_finds_what_the_audit_says_and_cannot_find_the_rest(
    spec: str,
) -> None:
    graph = Graph.load(spec)
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(K + 1, graph.n, 3))
    payloads = overheard(graph, gradients)
    sets = [(a,) for a in range(graph.n)] + list(combinations(range(graph.n), 2))[:4]
    for attackers in [some for some in sets if len(some) < graph.n]:
        others, solution, unseen = attack(graph, attackers, gradients, payloads)
        sure, found = audit(graph, attackers, K).gradients, []
        change = rng.normal(size=len(unseen)) @ unseen  # of all gradients, such that nothing is seen of it
        for column, (k, u) in enumerate((k, u) for k in range(K + 1) for u in others):
            if np.abs(unseen[:, column]).max(initial=0.0) < 1e-9:
                np.testing.assert_allclose(solution[column], gradients[k, u], atol=1e-6)
                found.append((u, k))
            if k not in sure.get(u, ()):
                assert abs(change[column]) > 1e-6, (attackers, u, k)
        assert {(u, k) for u, ks in sure.items() for k in ks} >= set(found)
        assert {(j, k) for a in attackers for j in graph.in_neighbours(a) for k in (0, 1)} <= {
            *found,
            *((a, k) for a in attackers for k in (0, 1)),
        }
        elsewhere = gradients.copy()
        elsewhere[:, others] += change.reshape(K + 1, len(others))[:, :, None]
        other_payloads = overheard(graph, elsewhere)
        for a in attackers:
            for j in (a, *graph.in_neighbours(a)):
                np.testing.assert_allclose(other_payloads[j], payloads[j], atol=1e-9)


def test_messages_after_the_gradients_that_are_looked_at_count_too() -> None:
    """The audit of g^0 to g^1 is that of g^0 to g^4, cut off: nothing is found later that was not found."""
    for spec in (*SMALL, "line:5", "grid:2x3"):
        graph = Graph.load(spec)
        for a in range(graph.n):
            short, long = audit(graph, [a], 1).gradients, audit(graph, [a], 4).gradients
            assert short == {u: when for u, ks in long.items() if (when := tuple(k for k in ks if k <= 1))}
