"""The rules that do not change during a run: its members, their graph, and the times that they wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from p2pft_flower.agreement.record import Composition, Edge
from p2pft_flower.topology.graph import Graph
from p2pft_flower.topology.views import View

__all__ = ["Rules"]


@dataclass(frozen=True)
class Rules:
    """The rules of a run, the same for all members except ``patience``, which each may set for itself.

    Attributes
    ----------
    graph : Graph
        The whole graph.
    groups : mapping of int to tuple of int
        The peers of each member that the run begins with; a member is named by its lowest peer.
    round_time : float
        Seconds without progress after which a member gives a ballot up for another one; they grow with each
        ballot that the member opens.
    patience : float
        Seconds that a change of view, or waiting to be let in, may last.
    wait : bool
        Whether the other members wait for a missing one, for half of ``patience``, before they leave it out.
    """

    graph: Graph
    groups: Mapping[int, tuple[int, ...]]
    round_time: float
    patience: float
    wait: bool = False

    @property
    def apart(self) -> int:
        """A bound on the iterations that two members can be apart: n edges, and one period for each edge."""
        return self.graph.n * self.graph.period

    @cached_property
    def first(self) -> Composition:
        """The view that the run begins with: all members, in their first incarnation."""
        members = tuple(sorted(self.groups))
        return Composition(0, members, (0,) * len(members))

    def peers(self, members: Iterable[int]) -> set[int]:
        """Return the peers of ``members``."""
        return {p for m in members for p in self.groups[m]}

    def around(self, member: int) -> set[int]:
        """Return the members that the whole graph's edges, in either direction, join to ``member``."""
        near: set[int] = set()
        for p in self.groups[member]:
            near.update(self.graph.in_neighbours(p), self.graph.out_neighbours(p))
        return {m for m, peers in self.groups.items() if m != member and not near.isdisjoint(peers)}

    def between(self, some: Iterable[int], others: Iterable[int]) -> set[Edge]:
        """Return all pairs, in both directions, of peers of the members ``some`` and ``others``."""
        one, two = self.peers(some), self.peers(others)
        return {(a, b) for a in one for b in two} | {(b, a) for a in one for b in two}

    def view(self, members: Iterable[int], broken: Iterable[Edge]) -> View:
        """Return the live graph of ``members`` without the ``broken`` edges."""
        missing = frozenset(range(self.graph.n)).difference(self.peers(members))
        return _without(self.graph, missing, frozenset(broken))


@lru_cache(maxsize=64)
def _without(graph: Graph, missing: frozenset[int], broken: frozenset[Edge]) -> View:
    return View.without(graph, missing, broken)
