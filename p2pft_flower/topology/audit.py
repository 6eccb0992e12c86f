"""Whose gradients can peers reconstruct from the messages that they receive? An audit of a graph.

After El Mrini, Cyffers and Bellet, "Privacy Attacks in Decentralized Learning" (ICML 2024, arXiv
2402.10001): what a peer receives are linear combinations of the others' private vectors, with coefficients
that follow from the weights. An attacker who knows the weights solves for the vectors; it has a peer's vector
exactly if that one's unit vector is in the row space of its system. Here this is decided for P2P-FT, whose
models mix by A and whose trackers mix by B, and for plain averaging, the basic case.

**The system.** Let all peers begin with the same θ^0, which all know, and φ_i^k = (θ_i^k − θ^0) / α. As the
rows of A sum to one, Algorithm 1 is ::

    τ^0 = g^0,  φ^0 = 0
    p^k = φ^k − τ^k                    payload theta of iteration k; θ − α τ = θ^0 + α p
    φ^{k+1} = A p^k
    r^k = τ^k + g^{k+1} − g^k          payload tau
    τ^{k+1} = B r^k

for each of the q numbers by itself: so α and q do not matter. An attacker receives p_j^k and r_j^k of its
in-neighbours j at every k, and knows its own gradients; from these follows all that it computes itself.
Several that collude join what they have. The unknowns are the gradients g_u^k of the others.

**Two readings.** How a gradient depends on θ is not linear, and no attacker is supposed to know it.

*Free gradients.* Every g_u^k is an unknown by itself. Two worlds are *alike* if all is the same in them that
the attackers receive or own. g_u^k is *found* if it is the same in all worlds that are alike. If it is not,
nobody can tell it from these messages, whatever is computed from them, as worlds with other values explain
all of them; unless something is known of the gradients beforehand. Sums of several peers' gradients may be
found though none of them is.

*Steady gradients*, g_u^k = g_u at every k: as with full batches, a small α and a model that hardly moves.
This is what the paper's attack on gradient descent supposes. Then r^k = τ^k, the unknowns are far fewer, and
more is found. Real gradients are between the two: what is found if they are free is found in any case; what
is found only if they are steady can be estimated the better, the less they change.

**How it is decided.** The differences of worlds that are alike are a linear space. It is built iteration by
iteration; g_u^k is found if it is zero in all of the space. Messages of later iterations count too, in a run
of any length: the states (φ, τ) from which a difference can go on unseen for m iterations are a falling chain
of subspaces of R^{2n}, constant from the first repetition on, and its end is imposed on the last state. If
gradients are steady, 2 n iterations have all that there is, and of averaging n (Cayley and Hamilton).

All this is exact. Weights are fractions: those within 1e-12 of one with a denominator up to 10,000 are taken
to be it, such as 0.3333333333333333. Ranks are computed modulo the prime 2^31 − 1; rational numbers would
give another answer only if it divided one of the determinants involved, a chance of about 1 in 10^9 for each.
A gradient that is found may yet be out of reach in practice, if payloads are rounded more than the solution
of the system bears: the audit errs on the careful side there.

What it does not cover: other methods, momentum, local steps, codecs (payloads then hold rounded differences),
weights that change, several peers of one host, changes of view, in which θ is handed on and trackers begin
anew, attackers who send false numbers, and all that is known from elsewhere, such as the final model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import TopologyError
from p2pft_flower.topology.graph import Graph

__all__ = ["Findings", "audit", "values_found"]

Residues = npt.NDArray[np.int64]
"""A matrix modulo `_PRIME`."""

_PRIME = 2**31 - 1
_NEAR = 1e-12
"""Relative distance within which a weight is taken to be a simple fraction."""
_DENOMINATOR = 10_000
"""Largest denominator of a simple fraction."""


@dataclass(frozen=True)
class Findings:
    """What a set of attackers finds out in a run of P2P-FT of any length.

    Attributes
    ----------
    attackers : tuple of int
        The peers that join what they receive, ascending.
    gradients : dict of int to tuple of int
        Each other peer of which a gradient is found in any case (free gradients), ascending, and the
        iterations k of these gradients g^k among those that were looked at.
    steady : tuple of int
        The other peers whose gradient is found if no gradient changes, ascending.
    """

    attackers: tuple[int, ...]
    gradients: dict[int, tuple[int, ...]]
    steady: tuple[int, ...]


def audit(graph: Graph, attackers: Iterable[int], iterations: int) -> Findings:
    """Return what ``attackers`` find out of the others' gradients in P2P-FT; see the module.

    Parameters
    ----------
    graph : Graph
        The graph, with the same weights in each iteration.
    attackers : iterable of int
        The peers that join what they receive.
    iterations : int
        The gradients g^0 to g^iterations are looked at; messages count in a run of any length.

    Raises
    ------
    TopologyError
        When the weights change with the iteration, or an attacker is no peer of the graph.
    """
    view = _View.of(graph, attackers)
    found = _free(view, iterations)
    when = {u: tuple(map(int, np.flatnonzero(found[:, u]))) for u in map(int, view.others)}
    return Findings(view.attackers, {u: k for u, k in when.items() if k}, _steady(view))


def values_found(graph: Graph, attackers: Iterable[int]) -> tuple[int, ...]:
    """Return the peers whose first value attackers find out in averaging, x ← A x, of any length.

    Parameters and errors are those of :func:`audit`.
    """
    view = _View.of(graph, attackers)
    x = first = view.unknown()
    for _ in range(graph.n):
        x, first = _alike((x, first), x[view.seen])
        x = _times(view.A, x)
    return _found(view, first)


@dataclass(frozen=True)
class _View:
    """A graph as its attackers see it.

    Attributes
    ----------
    A, B : (n, n) Residues
        The weights.
    attackers : tuple of int
        The attackers, ascending.
    others : (m,) array of int
        All other peers, ascending.
    seen : list of int
        The others that send to an attacker, ascending.
    """

    A: Residues
    B: Residues
    attackers: tuple[int, ...]
    others: npt.NDArray[np.int64]
    seen: list[int]

    @classmethod
    def of(cls, graph: Graph, attackers: Iterable[int]) -> _View:
        if graph.turns:
            raise TopologyError(
                f"{graph.name!r} has other weights in each iteration, for which nobody has worked out what "
                "peers can reconstruct: audit a graph whose weights stay"
            )
        own = tuple(sorted(set(attackers)))
        senders = {j for a in own for j in graph.in_neighbours(a)}
        others = np.array([u for u in range(graph.n) if u not in own], dtype=np.int64)
        W = [[_fraction(float(w)) for w in row] for row in graph.W]
        rows, columns = [sum(row) for row in W], [sum(column) for column in zip(*W, strict=True)]
        A = [[_residue(w / rows[i]) for w in row] for i, row in enumerate(W)]
        B = [[_residue(w / columns[j]) for j, w in enumerate(row)] for row in W]
        return cls(np.array(A), np.array(B), own, others, sorted(senders - set(own)))

    @property
    def n(self) -> int:
        """The number of peers."""
        return len(self.A)

    def unknown(self) -> Residues:
        """Return a number of each peer, (n, m), in terms of m free ones: those of the others."""
        return np.eye(self.n, dtype=np.int64)[:, self.others]


def _free(view: _View, iterations: int) -> npt.NDArray[np.bool_]:
    """Return whether g_u^k is found, (iterations + 1, n), if every gradient is an unknown by itself.

    The columns of φ, τ and all g together are a basis of the differences of worlds that are alike so far.
    """
    n, new = view.n, view.unknown()
    phi, tau, all_g = np.zeros_like(new), new, new  # φ^0 = 0, τ^0 = g^0
    for _ in range(iterations):
        p = (phi - tau) % _PRIME
        p, tau, all_g = _alike((p, tau, all_g), p[view.seen])
        phi = _times(view.A, p)  # φ^{k+1} = A p^k
        known = tau.shape[1]
        phi, tau, all_g = (np.pad(part, ((0, 0), (0, new.shape[1]))) for part in (phi, tau, all_g))
        g = np.zeros_like(tau)
        g[:, known:] = new  # g^{k+1} is anything
        r = (tau + g - all_g[-n:]) % _PRIME  # r^k = τ^k + g^{k+1} − g^k
        phi, r, all_g = _alike((phi, r, np.concatenate([all_g, g])), r[view.seen])
        tau = _times(view.B, r)  # τ^{k+1} = B r^k
    leaving = _times(_bounds(view), np.concatenate([phi, tau]))
    (all_g,) = _alike((all_g,), leaving)
    return ~all_g.any(axis=1).reshape(iterations + 1, n)


def _steady(view: _View) -> tuple[int, ...]:
    """Return the peers whose gradient is found if no gradient changes: r^k = τ^k."""
    tau = g = view.unknown()
    phi = np.zeros_like(tau)
    for _ in range(2 * view.n):
        p = (phi - tau) % _PRIME
        p, tau, g = _alike((p, tau, g), np.concatenate([p[view.seen], tau[view.seen]]))
        phi, tau = _times(view.A, p), _times(view.B, tau)
    return _found(view, g)


def _bounds(view: _View) -> Residues:
    """Return a matrix whose kernel is V: the states (φ, τ) from which a difference can go unseen for ever.

    V_0 is everything, and V_{m+1} has the states from which gradients can be chosen such that nothing is seen
    in one iteration and the next state is in V_m. The chain is constant from the first repetition on.
    """
    n, seen = view.n, view.seen
    eye = np.eye(n, dtype=np.int64)
    zero, chosen = np.zeros_like(eye), eye[:, view.others]
    unseen_p = np.concatenate([eye, -eye], axis=1)[seen] % _PRIME  # p_j = φ_j − τ_j
    unseen_r = np.concatenate([zero, eye], axis=1)[seen]  # r_j = τ_j + d_j, with d = g^{k+1} − g^k
    bounds = np.zeros((0, 2 * n), np.int64)
    while True:
        on_phi, on_tau = _times(bounds[:, :n], view.A), _times(bounds[:, n:], view.B)
        # The next state is A (φ − τ), B (τ + d).
        states = np.concatenate(
            [unseen_p, unseen_r, np.concatenate([on_phi, (on_tau - on_phi) % _PRIME], axis=1)]
        )
        inputs = np.concatenate(
            [np.zeros((len(seen), chosen.shape[1]), np.int64), chosen[seen], on_tau[:, view.others]]
        )
        # The combinations of these equations in which no d is left.
        (left,) = _alike((states.T,), inputs.T)
        longer = _independent(left.T)
        if len(longer) == len(bounds):
            return bounds
        bounds = longer


def _found(view: _View, values: Residues) -> tuple[int, ...]:
    """Return the other peers whose values are zero in all differences."""
    return tuple(u for u in map(int, view.others) if not values[u].any())


def _alike(parts: Sequence[Residues], zero: Residues) -> list[Residues]:
    """Return ``parts`` for those combinations of their columns for which the rows of ``zero`` vanish.

    All have the same number of columns; the columns that are returned are a basis of the combinations.
    """
    stack = np.concatenate([*parts, zero])
    kept = np.ones(stack.shape[1], bool)
    for row in range(len(stack) - len(zero), len(stack)):
        used = np.flatnonzero(stack[row])
        if not used.size:
            continue
        pivot, rest = used[0], used[1:]
        factors = stack[row, rest] * pow(int(stack[row, pivot]), -1, _PRIME) % _PRIME
        stack[:, rest] = (stack[:, rest] - stack[:, pivot, None] * factors) % _PRIME
        stack[:, pivot] = 0
        kept[pivot] = False
    ends = np.cumsum([len(part) for part in parts])
    return np.split(stack[:, kept], ends)[:-1]


def _independent(rows: Residues) -> Residues:
    """Return as many independent combinations of ``rows`` as there are, with the same span."""
    rows, rank = rows.copy(), 0
    for column in range(rows.shape[1]):
        (below,) = np.nonzero(rows[rank:, column])
        if not below.size:
            continue
        pivot = rank + below[0]
        rows[[rank, pivot]] = rows[[pivot, rank]]
        rows[rank] = rows[rank] * pow(int(rows[rank, column]), -1, _PRIME) % _PRIME
        rest = rank + 1 + np.flatnonzero(rows[rank + 1 :, column])
        rows[rest] = (rows[rest] - rows[rest, column, None] * rows[rank]) % _PRIME
        rank += 1
    return rows[:rank]


def _times(left: Residues, right: Residues) -> Residues:
    """Return the product of two matrices modulo the prime; no sum exceeds 64 bits."""
    high, low = left >> 16, left & 0xFFFF
    return ((high @ right % _PRIME << 16) + low @ right) % _PRIME


def _fraction(weight: float) -> Fraction:
    """Return a weight as a fraction: a simple one if one is as near as rounding leaves it."""
    exact = Fraction(weight)
    simple = exact.limit_denominator(_DENOMINATOR)
    return simple if abs(simple - exact) <= Fraction(_NEAR) * exact else exact


def _residue(fraction: Fraction) -> int:
    return fraction.numerator * pow(fraction.denominator, -1, _PRIME) % _PRIME
