"""The graph of a view: the rest of a graph when some of its peers or edges are missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components

from p2pft_flower.errors import TopologyError
from p2pft_flower.topology.graph import Graph

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """A set of live peers with its graph.

    Attributes
    ----------
    peers : tuple of int
        The live peers, ascending, by their numbers in the whole graph.
    graph : Graph
        Strongly connected; its peer k is ``peers[k]``.
    """

    peers: tuple[int, ...]
    graph: Graph

    @classmethod
    def whole(cls, graph: Graph) -> View:
        """Return the view in which nobody is missing."""
        return cls(tuple(range(graph.n)), graph)

    @classmethod
    def without(cls, graph: Graph, missing: Iterable[int], broken: Iterable[tuple[int, int]] = ()) -> View:
        """Return the view of ``graph`` without the ``missing`` peers and the ``broken`` edges.

        The rest has the same edges and weights. If it is not strongly connected, the in-neighbours of each
        missing peer d are joined to its out-neighbours, so that a ring remains a ring: i, which received
        from d with weight w_id, receives from d's in-neighbours j with w_id w_dj / Σ_j w_dj instead (added to
        any weight that i has for j already). So a path through missing peers becomes a path of edges, and the
        rest is strongly connected because the whole was: if no edge is broken, no other peer is left out.

        If broken edges still divide the rest, each edge that works is used in the other direction too,
        with its weight. If even that fails, the largest strongly connected part remains
        (of several, the one with the lowest peer).

        Parameters
        ----------
        graph : Graph
            The whole graph.
        missing : iterable of int
            Peers of it, in any order; the view does not depend on the order.
        broken : iterable of (int, int)
            (sender, receiver) of edges, of ``graph`` or not, that are not to be used.

        Raises
        ------
        TopologyError
            When a missing peer is none of the graph's, or nobody is left.
        """
        gone, cut = sorted(set(missing)), sorted(set(broken))
        if unknown := [d for d in gone if not 0 <= d < graph.n]:
            raise TopologyError(
                f"there is no peer {unknown[0]}: {graph.name} has the peers 0 to {graph.n - 1}"
            )
        live = [i for i in range(graph.n) if i not in gone]
        if not live:
            raise TopologyError(f"none of the {graph.n} peers of {graph.name} is left")
        if not gone and not cut:
            return cls.whole(graph)
        past = _without_edges(_joined(graph.W, gone), cut)
        for weights in (_without_edges(graph.W, cut), past, _without_edges(_both_ways(past), cut)):
            W = weights[np.ix_(live, live)]
            parts, part = connected_components(W > 0, connection="strong")
            if parts == 1:
                break
        else:
            largest = np.bincount(part).max()
            remaining = next(p for p in part if np.count_nonzero(part == p) == largest)
            live = [i for i, p in zip(live, part, strict=True) if p == remaining]
            W = weights[np.ix_(live, live)]
        absent = ", ".join(graph.peer_names[d] for d in range(graph.n) if d not in live)
        lacks = [text for text in (absent, f"{len(cut)} edges" if cut else "") if text]
        rest = Graph(
            f"{graph.name} without {' and '.join(lacks)}",
            W,
            tuple(graph.peer_names[i] for i in live),
            tuple(graph.addresses[i] for i in live),
        )
        return cls(tuple(live), rest)

    def row(self, peer: int) -> dict[int, float]:
        """Return a_ij of each j that ``peer`` receives from, itself included, ascending in j."""
        i = self._index(peer)
        return {self.peers[j]: float(self.graph.A[i, j]) for j in sorted((i, *self.graph.in_neighbours(i)))}

    def column(self, peer: int) -> dict[int, float]:
        """Return b_ij of each i that ``peer`` = j sends to, itself included, ascending in i."""
        j = self._index(peer)
        return {self.peers[i]: float(self.graph.B[i, j]) for i in sorted((j, *self.graph.out_neighbours(j)))}

    def tracker_weight(self, peer: int) -> float:
        """Return the limit of ``peer``'s tracker in mean gradients: :attr:`Graph.tracker_weights`."""
        return float(self.graph.tracker_weights[self._index(peer)])

    def added_to(self, graph: Graph) -> tuple[tuple[int, int], ...]:
        """Return the (sender, receiver) edges of this view, ascending, that ``graph`` does not have."""
        edges = {(self.peers[j], self.peers[i]) for j, i in self.graph.edges}
        return tuple(sorted(edges.difference(graph.edges)))

    def _index(self, peer: int) -> int:
        if peer not in self.peers:
            raise TopologyError(f"peer {peer} is not in this view; there are {list(self.peers)}")
        return self.peers.index(peer)


def _joined(weights: npt.NDArray[np.float64], gone: list[int]) -> npt.NDArray[np.float64]:
    """Return the weights with each peer of ``gone``, one after the other, replaced by edges past it."""
    W = weights.copy()
    for d in gone:
        into, out = W[d].copy(), W[:, d].copy()
        W[d], W[:, d] = 0.0, 0.0
        into[d] = out[d] = 0.0
        if into.sum() > 0:  # else no remaining peer received anything through d
            past = np.outer(out, into / into.sum())
            np.fill_diagonal(past, 0.0)
            W += past
    return W


def _both_ways(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the weights with each missing reverse edge added."""
    return np.where(weights > 0, weights, weights.T)


def _without_edges(weights: npt.NDArray[np.float64], cut: list[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Return the weights with those of the (sender, receiver) edges in ``cut`` set to zero."""
    W = weights.copy()
    for sender, receiver in cut:
        W[receiver, sender] = 0.0
    return W
