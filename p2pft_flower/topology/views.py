"""The graph of a view: the rest of a graph when some of its peers or edges are missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

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
        Of a graph with turns each turn is mended so, whether the rest is connected or not. A weight that
        would lead from a peer past d back to the same peer is added to that peer's self-weight, so a turn
        that was symmetric or doubly stochastic remains so. If all turns together do not connect the rest,
        d's in-neighbours in any turn are joined to d's out-neighbours in each turn, and a turn may lose these
        properties.

        If broken edges still divide the rest, each edge that works is used in the other direction too,
        with its weight. If even that fails, the largest strongly connected part remains
        (of several, the one with the lowest peer).

        Parameters
        ----------
        graph : Graph
            The whole graph.
        missing : iterable of int
            Numbers of the missing peers, in any order; the view does not depend on the order.
        broken : iterable of (int, int)
            (sender, receiver) of each edge that must not be used, whether ``graph`` has it or not.

        Raises
        ------
        TopologyError
            When ``graph`` has no such missing peer, or nobody is left.
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
        from scipy.sparse.csgraph import connected_components

        turns = np.stack(graph.turns or (graph.W,))
        past = _without_edges(_joined(turns, gone), cut)
        candidates = [_without_edges(turns, cut), past]
        if graph.turns:
            past = _without_edges(_joined(turns, gone, any_turn=True), cut)
            candidates = [candidates[1], past]
        candidates.append(_without_edges(_both_ways(past), cut))
        for each in candidates:
            weights = each[:, live][:, :, live]
            parts, part = connected_components(weights.any(axis=0), connection="strong")
            if parts == 1:
                break
        else:
            largest = np.bincount(part).max()
            remaining = next(p for p in part if np.count_nonzero(part == p) == largest)
            inside = np.flatnonzero(part == remaining)
            live = [live[i] for i in inside]
            weights = weights[:, inside][:, :, inside]
        absent = ", ".join(graph.peer_names[d] for d in range(graph.n) if d not in live)
        lacks = [text for text in (absent, f"{len(cut)} edges" if cut else "") if text]
        rest = Graph(
            f"{graph.name} without {' and '.join(lacks)}",
            weights.mean(axis=0),
            tuple(graph.peer_names[i] for i in live),
            tuple(graph.addresses[i] for i in live),
            turns=tuple(weights) if graph.turns else (),
        )
        return cls(tuple(live), rest)

    def row(self, peer: int) -> dict[int, float]:
        """Return a_ij by j, for ``peer`` = i and each j that i receives from, i included, ascending in j."""
        return dict(self._rows[self._index(peer)])

    def column(self, peer: int) -> dict[int, float]:
        """Return b_ij by i, for ``peer`` = j and each i that j sends to, j included, ascending in i."""
        return dict(self._columns[self._index(peer)])

    @cached_property
    def _rows(self) -> list[dict[int, float]]:
        return [self._named(row) for row in self.graph.A]

    @cached_property
    def _columns(self) -> list[dict[int, float]]:
        return [self._named(column) for column in self.graph.B.T]

    def turn_of(
        self, peer: int, k: int, step: float
    ) -> tuple[dict[int, float], dict[int, float], float, float]:
        """Return the weights of ``peer`` in iteration ``k``; ``step`` is γ of a codec, 1 without one.

        Returns
        -------
        row, column : dict of int to float
            As :meth:`row` and :meth:`column` return them, but of that iteration.
        tracker_weight, next_weight : float
            The peer's entries of ``tracker_weights`` and ``next_weights`` of
            :class:`~p2pft_flower.topology.turn.Turn`.
        """
        turn, i = self.graph.turn(k, step), self._index(peer)
        row, column = self._named(turn.A[i]), self._named(turn.B[:, i])
        return row, column, float(turn.tracker_weights[i]), float(turn.next_weights[i])

    def _named(self, weights: npt.NDArray[np.float64]) -> dict[int, float]:
        return {self.peers[j]: float(weights[j]) for j in np.flatnonzero(weights)}

    def added_to(self, graph: Graph) -> tuple[tuple[int, int], ...]:
        """Return the (sender, receiver) edges of this view, ascending, that ``graph`` does not have."""
        edges = {(self.peers[j], self.peers[i]) for j, i in self.graph.edges}
        return tuple(sorted(edges.difference(graph.edges)))

    def _index(self, peer: int) -> int:
        if peer not in self.peers:
            raise TopologyError(f"peer {peer} is not in this view; there are {list(self.peers)}")
        return self.peers.index(peer)


def _joined(
    turns: npt.NDArray[np.float64], gone: list[int], *, any_turn: bool = False
) -> npt.NDArray[np.float64]:
    """Return the turns, (T, n, n), with each peer of ``gone`` replaced by edges past it.

    Such an edge leads from an in-neighbour of the peer to an out-neighbour. With ``any_turn`` the
    in-neighbours of all turns count in each turn, else those of the same turn only.
    """
    turns = turns.copy()
    for d in gone:
        into, out = turns[:, d].copy(), turns[:, :, d].copy()
        turns[:, d], turns[:, :, d] = 0.0, 0.0
        into[:, d] = out[:, d] = 0.0
        if any_turn:
            into[:] = into.sum(axis=0)
        for t, (senders, receivers) in enumerate(zip(into, out, strict=True)):
            if senders.sum() > 0:  # else no remaining peer received anything through d
                past = np.outer(receivers, senders / senders.sum())
                if len(turns) == 1:
                    np.fill_diagonal(past, 0.0)
                turns[t] += past
    return turns


def _both_ways(turns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the turns with each missing reverse edge added."""
    return np.where(turns > 0, turns, turns.swapaxes(1, 2))


def _without_edges(turns: npt.NDArray[np.float64], cut: list[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Return the turns with the weights of the (sender, receiver) edges in ``cut`` set to zero."""
    turns = turns.copy()
    for sender, receiver in cut:
        turns[:, receiver, sender] = 0.0
    return turns
