"""The mixing of a host that has all neighbours of its peers itself.

Where all peers have as many neighbours, a sender's vector weighs the same at each of its receivers. The
product with the weight is then computed once for all of them, which leaves half of the arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from p2pft_flower.algorithms.seam import Columns, Mix, Rows, Vector, combine, product, total
from p2pft_flower.plan import Neighbourhood

__all__ = ["mixed_here"]

MANY = 2**23
"""Numbers of all peers' vectors together from which several threads mix them."""

T = TypeVar("T")
Weights = tuple[float, float]
"""a_ij and b_ij; 0 is that which the kind of exchange does not use."""


def mixed_here(
    kind: type[Mix], places: Mapping[int, Neighbourhood], vectors: Mapping[int, Vector], threads: int
) -> dict[int, Vector]:
    """Return the mixed vector of each peer; bit by bit as :func:`combine` gives it.

    Parameters
    ----------
    kind : type
        Rows, Columns or Both.
    places : mapping of int to Neighbourhood
        Each peer's part of the graph in the iteration; all neighbours are among the peers.
    vectors : mapping of int to Vector
        The vector of each peer's request: (q,), or (2 q,) of Both.
    threads : int
        Number of threads that compute, if there are enough numbers to be worth their start.
    """
    terms = {i: [(j, _weights(kind, places, i, j)) for j in sorted(place.row)] for i, place in places.items()}
    uses = Counter(term for of_peer in terms.values() for term in of_peer)
    threads = threads if sum(vector.size for vector in vectors.values()) >= MANY else 1
    if 2 * len(uses) > uses.total():

        def mixed(i: int) -> Vector:
            return combine(kind, ((a, b, vectors[j]) for j, (a, b) in terms[i]))

        return _each(mixed, terms, threads)
    products = _each(lambda term: product(kind, *term[1], vectors[term[0]]), uses, threads)
    return _each(lambda i: total(products[term] for term in terms[i]), terms, threads)


def _weights(kind: type[Mix], places: Mapping[int, Neighbourhood], i: int, j: int) -> Weights:
    """Return the weights of the vector of ``j`` in the mixed vector of ``i``."""
    return (
        0.0 if kind is Columns else places[i].row[j],
        0.0 if kind is Rows else places[j].column[i],
    )


def _each(function: Callable[[T], Vector], of: Iterable[T], threads: int) -> dict[T, Vector]:
    """Return ``function`` of each of ``of``, computed by ``threads`` threads."""
    if threads == 1:
        return {one: function(one) for one in of}
    everything = list(of)
    parts = [everything[t::threads] for t in range(threads)]  # a task of each vector would cost more
    with ThreadPoolExecutor(threads, thread_name_prefix="p2pft-mix") as pool:
        found = list(pool.map(lambda part: {one: function(one) for one in part}, parts))
    by_one = {one: vector for part in found for one, vector in part.items()}
    return {one: by_one[one] for one in everything}
