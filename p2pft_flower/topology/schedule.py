"""Graphs whose weights change with the iteration: ``schedule-graph`` of the run-config.

    one-peer-exponential   in iteration k peer i receives from peer i − 2^(k mod m) only, m = ⌈log₂ n⌉, and
                           takes the mean of that vector and its own: one payload a peer. After m iterations
                           all have the exact mean if n is a power of 2 (Ying et al., arXiv 2110.13363).
    base:K                 each peer exchanges with K others at most, in both directions, and after one period
                           all have the exact mean, for every n: the Base-(K+1) graph (Takezawa et al.,
                           arXiv 2305.11420).
    GRAPH,GRAPH,…          shipped graphs, files and specs in turn; all of them together must connect
                           everybody, one alone need not.
    my_module:my_schedule  called with the topology's :class:`~p2pft_flower.topology.Graph`, returns the
                           weights W, (n, n), of iteration 0, 1, …, as many as there are before they repeat.

Peers, names and addresses are those of the ``topology``; its edges count for ``static`` only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError, TopologyError
from p2pft_flower.plugins import call_reference, is_reference
from p2pft_flower.topology import sources
from p2pft_flower.topology.graph import Graph

__all__ = ["STATIC", "base", "check_schedule", "is_own_schedule", "one_peer_exponential", "scheduled"]

Matrix = npt.NDArray[np.float64]

STATIC = "static"
_KEY = "schedule-graph"


def check_schedule(spec: str) -> None:
    """Refuse a ``schedule-graph`` of no known form; :func:`scheduled` checks that it fits a topology.

    Raises
    ------
    ConfigError
        When ``spec`` has none of the forms in the module's docstring.
    """
    spec = spec.strip()
    if spec in (STATIC, "one-peer-exponential") or re.fullmatch(r"base:[1-9]\d{0,3}", spec):
        return
    if spec.startswith("base:"):
        raise ConfigError(f"{_KEY} = {spec!r}: base:K needs a whole number K from 1 to 9999, as base:1")
    if is_own_schedule(spec):
        return
    parts = [part.strip() for part in spec.split(",")]
    alone = [part for part in parts if part in (STATIC, "one-peer-exponential") or is_own_schedule(part)]
    if alone and len(parts) > 1:
        raise ConfigError(f"{_KEY} = {spec!r}: {alone[0]} is no graph of a list; give it alone")
    if not all(parts):
        raise ConfigError(
            f"{_KEY} = {spec!r}: must be static, one-peer-exponential, base:K, graphs separated by commas, "
            "or my_module:my_schedule"
        )


def is_own_schedule(spec: str) -> bool:
    """Tell whether ``spec`` names a function of the user's own."""
    return not spec.startswith("base:") and is_reference(spec)


def scheduled(graph: Graph, spec: str) -> Graph:
    """Return the graph of a run: ``graph``, or a graph of its peers whose weights change with the iteration.

    Parameters
    ----------
    graph : Graph
        The topology.
    spec : str
        ``static``, or one of the forms in the module's docstring.

    Raises
    ------
    ConfigError, TopologyError
        When the schedule is unknown, does not fit the topology's peers, or does not connect all of them.
    """
    check_schedule(spec)
    spec = spec.strip()
    if spec == STATIC:
        return graph
    try:
        turns = _turns(graph, spec)
        return graph.in_turn(turns, f"{graph.name} by {spec}")
    except TopologyError as error:
        raise TopologyError(f"{_KEY} = {spec!r}: {error}") from error


def _turns(graph: Graph, spec: str) -> Sequence[npt.ArrayLike]:
    if spec == "one-peer-exponential":
        return one_peer_exponential(graph.n)
    if spec.startswith("base:"):
        return base(graph.n, int(spec.removeprefix("base:")))
    if is_own_schedule(spec):
        made = call_reference(spec, graph, key=_KEY)
        if not isinstance(made, Sequence | np.ndarray):
            raise TopologyError(
                f"it returned {type(made).__name__}, not the weights of each iteration: return a list of "
                f"({graph.n}, {graph.n}) arrays, which repeats by itself"
            )
        return list(made)
    return [_weights_of(part.strip(), graph) for part in spec.split(",")]


def _weights_of(name: str, graph: Graph) -> npt.ArrayLike:
    """Return W, (n, n), of the graph called ``name``: of the topology's peers, strongly connected or not."""
    try:
        source = sources.find(name)
    except TopologyError as error:
        hint = "one-peer-exponential, base:K, graphs separated by commas, or my_module:my_schedule"
        if name.endswith(".py"):
            hint = f"{name}:my_schedule, with the name of the function"
        raise TopologyError(f"{error}; a schedule is {hint}") from error
    names = source.peer_names
    if names is not None and tuple(names) != graph.peer_names:
        raise TopologyError(
            f"{source.origin}: its peers are {', '.join(map(str, names))}, those of the topology "
            f"{graph.name} {', '.join(graph.peer_names)}: name them alike, in the same order"
        )
    return source.W


def one_peer_exponential(n: int) -> list[Matrix]:
    """Return W, (n, n), of each turn of the one-peer exponential graph: ⌈log₂ n⌉ turns, at least one."""
    jumps = [2**t for t in range(max(1, (n - 1).bit_length()))]
    eye = np.eye(n)
    return [0.5 * (eye + np.roll(eye, jump, axis=0)) for jump in jumps]


def base(n: int, k: int) -> list[Matrix]:
    """Return W of each turn of the Base-(K+1) graph: doubly stochastic; the product of all takes the mean.

    Parameters
    ----------
    n : int
        Number of peers.
    k : int
        K ≥ 1, the most neighbours of a peer in one iteration.

    Returns
    -------
    list of (n, n) float64 arrays
        The symmetric W of the shorter one of two constructions. One is of all peers at once. The other takes
        the mean in each of several equal groups, then among the groups; their number is the largest divisor
        of n that has no prime factor above K + 1.
    """
    smooth, rest = _smooth_part(n, k)
    direct = _join(_simple(range(n), k), n)
    if smooth == 1 or rest == 1:
        return direct
    groups = [range(g * rest, (g + 1) * rest) for g in range(smooth)]
    columns = [range(member, n, rest) for member in range(rest)]
    within = _at_once([_simple(group, k) for group in groups])
    among = _at_once([_cliques(column, k) for column in columns])
    grouped = _join([*within, *among], n)
    return grouped if len(grouped) < len(direct) else direct


_Edges = list[tuple[int, int, float]]
"""Edges of one iteration, in both directions: (peer, peer, weight)."""


def _at_once(each: Sequence[Sequence[_Edges]]) -> list[_Edges]:
    """Merge sequences of iterations: iteration t of the result has the edges of iteration t of each sequence.

    The sequences have the same length, and no peer in common.
    """
    return [list(chain.from_iterable(turn)) for turn in zip(*each, strict=True)]


def _join(turns: Sequence[_Edges], n: int) -> list[Matrix]:
    """Return the symmetric W of each turn; the self-weight is the share of 1 that a row's edges leave."""
    made = []
    for edges in turns:
        W = np.zeros((n, n))
        for i, j, weight in edges:
            W[i, j] = W[j, i] = weight
        W[np.diag_indices(n)] = 1.0 - W.sum(axis=1)
        made.append(W)
    return made or [np.eye(n)]


def _smooth_part(n: int, k: int) -> tuple[int, int]:
    """Return (smooth, rest), n = smooth · rest: smooth has the prime factors up to K + 1, rest all others."""
    smooth = 1
    for factor in range(2, k + 2):
        while n % factor == 0:
            smooth, n = smooth * factor, n // factor
    return smooth, n


def _factors(n: int, k: int) -> list[int]:
    """Return factors of n, each at most K + 1, the largest first; n must have no prime factor above K + 1."""
    found = []
    while n > 1:
        factor = max(f for f in range(2, k + 2) if n % f == 0)
        found.append(factor)
        n //= factor
    return found


def _cliques(peers: Sequence[int], k: int) -> list[_Edges]:
    """Return iterations after which ``peers`` have their mean: one for each factor of their number.

    A peer's number has a digit for each factor; in an iteration the peers whose numbers differ in one
    digit only take their mean.
    """
    turns, stride = [], 1
    for factor in _factors(len(peers), k):
        edges: _Edges = []
        for position, peer in enumerate(peers):
            digit = position // stride % factor
            edges += [(peer, peers[position + d * stride], 1.0 / factor) for d in range(1, factor - digit)]
        turns.append(edges)
        stride *= factor
    return turns


def _simple(peers: Sequence[int], k: int) -> list[_Edges]:
    """Return iterations after which ``peers``, any number of them, have their mean.

    Their number is written in base K + 1, Σ_l a_l (K + 1)^p_l with descending p_l, and they are divided into
    parts of a_l (K + 1)^p_l peers. First each part takes its own mean. Then, for l = 1, 2, …, each peer of
    the later parts exchanges with one peer of each of the a_l blocks of part l, of (K + 1)^p_l peers each,
    with such a weight that it gets the mean of part l and all later ones. So does, on average, each block of
    part l, and each block takes its own mean next.
    """
    parts: list[tuple[int, list[Sequence[int]]]] = []  # a_l and the blocks
    left = peers
    power = 1
    while power * (k + 1) <= len(peers):
        power *= k + 1
    while left:
        digit = len(left) // power
        if digit:
            parts.append((digit, [left[b * power : (b + 1) * power] for b in range(digit)]))
            left = left[digit * power :]
        power //= k + 1
    if len(parts) <= 1:
        return _cliques(peers, k)
    wholes = [[peer for block in blocks for peer in block] for _, blocks in parts]
    own = [_cliques(whole, k) for whole in wholes]
    first = max(map(len, own))
    turns: list[_Edges] = [[edge for part in own if t < len(part) for edge in part[t]] for t in range(first)]
    for number, (digit, blocks) in enumerate(parts):
        at = first + number  # the iteration in which the later parts exchange with this one
        later = [peer for whole in wholes[number + 1 :] for peer in whole]
        if not later:
            break
        size = len(wholes[number])
        weight = size / (digit * (size + len(later)))
        exchange = [(peer, block[spot], weight) for spot, peer in enumerate(later) for block in blocks]
        for t, edges in enumerate([exchange, *_at_once([_cliques(block, k) for block in blocks])], at):
            turns += [[]] * (t + 1 - len(turns))
            turns[t] = turns[t] + edges
    return turns
