"""Graphs from a short text such as ``ring:8`` or ``random-directed:16:3:7``; networkx draws them.

Every edge and every self-weight is 1. An undirected graph takes a trailing ``:metropolis`` for weights that
are doubly stochastic, as in ``star:8:metropolis``.
"""

from __future__ import annotations

import difflib
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import schemes
from p2pft_flower.typed import MAX_PEERS

__all__ = ["GENERATORS", "Generator", "is_spec", "weights_from_spec"]

nx: Any = networkx  # its type stubs cover half of it

TRIES = 200
"""Draws of a random generator before it gives up on a strongly connected graph."""


@dataclass(frozen=True)
class Generator:
    """One kind of graph.

    Attributes
    ----------
    form : str
        The form of its specs, for instance ``"erdos-renyi:N:P:SEED"``.
    example : str
        A spec that works.
    meaning : str
        A description in one line, for people.
    undirected : bool
        Whether every edge has its reverse, as ``:metropolis`` needs.
    build : callable
        Takes the converted arguments; returns a networkx graph on the nodes 0 to n − 1.
    """

    form: str
    example: str
    meaning: str
    undirected: bool
    build: Callable[..., Any]


def _size(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _peers(text: str) -> int:
    n = _size(text)
    if not 1 <= n <= MAX_PEERS:
        raise ValueError(f"{n} peers: between 1 and {MAX_PEERS} are possible")
    return n


def _probability(text: str) -> float:
    try:
        p = float(text)
    except ValueError:
        p = math.nan
    if not 0 < p <= 1:
        raise ValueError(f"{text!r} is not a probability above 0 and up to 1")
    return p


def _shape(text: str) -> tuple[int, int]:
    rows, by, columns = text.partition("x")
    if not by:
        raise ValueError(f"{text!r} is not rows x columns, such as 3x4")
    shape = _size(rows), _size(columns)
    if not 1 <= shape[0] * shape[1] <= MAX_PEERS:
        raise ValueError(f"{text} has {shape[0] * shape[1]} peers: between 1 and {MAX_PEERS} are possible")
    return shape


# The reader of each capital word in a form.
_READ: dict[str, Callable[[str], Any]] = {
    "N": _peers,
    "P": _probability,
    "D": _size,
    "SEED": _size,
    "RxC": _shape,
}


def _at_least(n: int, least: int, what: str) -> None:
    if n < least:
        raise ValueError(f"a {what} needs at least {least} peers; complete:1 is a single peer")


def _ring(n: int) -> Any:
    _at_least(n, 2, "ring")
    return nx.cycle_graph(n)


def _directed_ring(n: int) -> Any:
    _at_least(n, 2, "directed ring")
    return nx.cycle_graph(n, create_using=nx.DiGraph)


def _star(n: int) -> Any:
    _at_least(n, 2, "star")
    return nx.star_graph(n - 1)


def _grid(shape: tuple[int, int]) -> Any:
    return nx.convert_node_labels_to_integers(nx.grid_2d_graph(*shape), ordering="sorted")


def _exponential(n: int) -> Any:
    # Not nx.circulant_graph, which adds i → i − 2^k as well, also to a directed graph.
    jumps = [2**k for k in range(n.bit_length()) if 2**k < n]
    graph = nx.empty_graph(n, create_using=nx.DiGraph)
    graph.add_edges_from((i, (i + jump) % n) for i in range(n) for jump in jumps)
    return graph


def _draws(seed: int) -> Iterator[int]:
    yield seed  # so that the first draw is what networkx gives for this very seed
    rng = random.Random(seed)  # noqa: S311 - graphs, not secrets
    for _ in range(TRIES - 1):
        yield rng.getrandbits(32)


def _erdos_renyi(n: int, p: float, seed: int) -> Any:
    for draw in _draws(seed):
        graph = nx.gnp_random_graph(n, p, seed=draw)
        if nx.is_connected(graph):
            return graph
    enough = min(1.0, math.ceil(150 * math.log(n) / n) / 100)  # 1.5 × the threshold ln n / n
    raise ValueError(
        f"none of {TRIES} graphs drawn is strongly connected; "
        f"raise the probability from {p:g} to about {max(enough, min(1.0, 2 * p)):g}"
    )


def _random_directed(n: int, degree: int, seed: int) -> Any:
    if not 1 <= degree <= n - 1:
        raise ValueError(
            f"with {n} peers an out-degree is between 1 and {n - 1}, not {degree}"
            if n > 1
            else "it needs at least 2 peers; complete:1 is a single peer"
        )
    for draw in _draws(seed):
        rng = random.Random(draw)  # noqa: S311 - graphs, not secrets
        graph = nx.empty_graph(n, create_using=nx.DiGraph)
        graph.add_edges_from(
            (j, i) for j in range(n) for i in rng.sample([k for k in range(n) if k != j], degree)
        )
        if nx.is_strongly_connected(graph):
            return graph
    ring = f", or use directed-ring:{n}" if degree == 1 else ""
    raise ValueError(
        f"none of {TRIES} graphs drawn is strongly connected; raise the out-degree from {degree} to "
        f"{min(n - 1, max(degree + 1, math.ceil(math.log(n)) + 1))}{ring}"
    )


GENERATORS: dict[str, Generator] = {
    "ring": Generator("ring:N", "ring:8", "each peer and its two neighbours", True, _ring),
    "directed-ring": Generator(
        "directed-ring:N", "directed-ring:8", "0 -> 1 -> … -> 0", False, _directed_ring
    ),
    "complete": Generator("complete:N", "complete:8", "everyone with everyone", True, nx.complete_graph),
    "star": Generator("star:N", "star:8", "peer 0 with each of the others", True, _star),
    "line": Generator("line:N", "line:8", "0 - 1 - … - N-1", True, nx.path_graph),
    "grid": Generator("grid:RxC", "grid:3x4", "rows times columns, numbered row by row", True, _grid),
    "exponential": Generator(
        "exponential:N", "exponential:16", "i -> i + 1, i + 2, i + 4, … modulo N", False, _exponential
    ),
    "erdos-renyi": Generator(
        "erdos-renyi:N:P:SEED", "erdos-renyi:16:0.3:7", "each pair with probability P", True, _erdos_renyi
    ),
    "random-directed": Generator(
        "random-directed:N:D:SEED",
        "random-directed:16:3:7",
        "each peer sends to D others drawn at random",
        False,
        _random_directed,
    ),
}


def is_spec(text: str) -> bool:
    """Return whether ``text`` is meant as a generator's spec, well-formed or not."""
    kind = text.partition(":")[0]
    return kind in GENERATORS or kind == "one-peer-exponential" or (":" in text and "/" not in text)


def weights_from_spec(spec: str) -> npt.NDArray[np.float64]:
    """Return the weights of the graph that a spec describes.

    A random graph depends on its spec only: if the first draw is not strongly connected, more are
    drawn, with numbers that follow from the seed.

    Parameters
    ----------
    spec : str
        ``KIND:ARGUMENTS`` with an optional ``:metropolis`` (undirected kinds) or ``:uniform``.

    Returns
    -------
    ndarray, shape (n, n), float64
        ``W[i, j]`` is the weight of edge j → i.

    Raises
    ------
    TopologyError
        When the kind is unknown, an argument is missing, superfluous or out of range, ``:metropolis`` is
        asked of a directed graph, or no strongly connected graph was drawn.
    """
    kind, *arguments = spec.split(":")
    if kind == "one-peer-exponential":
        raise TopologyError(
            f"{spec!r}: a one-peer graph changes at every iteration: set schedule-graph = "
            "'one-peer-exponential', alone; exponential:N has all of its edges at once"
        )
    if kind not in GENERATORS:
        close = difflib.get_close_matches(kind, GENERATORS, n=1)
        hint = f"; did you mean {GENERATORS[close[0]].form}?" if close else ""
        forms = ", ".join(g.form for g in GENERATORS.values())
        raise TopologyError(f"{spec!r}: there is no generator {kind!r}{hint} The generators are {forms}")
    generator = GENERATORS[kind]
    scheme = arguments.pop() if arguments and arguments[-1] in ("uniform", "metropolis") else "uniform"
    form = f"write {generator.form}, for instance {generator.example}"
    words = generator.form.split(":")[1:]
    if len(arguments) != len(words):
        raise TopologyError(f"{spec!r} has {len(arguments)} argument(s), not {len(words)}: {form}")
    if scheme == "metropolis" and not generator.undirected:
        raise TopologyError(
            f"{spec!r}: metropolis weights need an undirected graph, and {kind} is directed: "
            "leave :metropolis out"
        )
    try:
        values = [_READ[word](text) for word, text in zip(words, arguments, strict=True)]
        graph = generator.build(*values)
    except ValueError as error:
        raise TopologyError(f"{spec!r}: {error} ({form})") from error
    # networkx has [sender, receiver], W has [receiver, sender]
    pattern = nx.to_numpy_array(graph, nodelist=range(len(graph))).T > 0
    if scheme == "metropolis":
        return schemes.metropolis(pattern, tuple(str(i) for i in range(len(pattern))))
    return schemes.uniform(pattern)
