"""Whether invariant 1 held throughout a run: Σ τ = Σ g, read from the peers' logs.

Peers whose environment has `TRACE` set write a sketch of τ_i − g_i after each iteration. Sketches are linear,
so those of all peers of a view, added, are the sketch of Σ τ − Σ g, which must be zero but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from p2pft_flower.errors import DataError
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.lines import Trace, ViewChange

__all__ = ["Surplus", "TrackerSums"]


class Surplus(NamedTuple):
    """What the trackers of a view hold in excess of the gradients, after an iteration.

    Attributes
    ----------
    view, iteration : int
        When.
    relative : float
        Norm of the sum over the peers, by the largest norm of one of its terms; 0 where all terms are.
    """

    view: int
    iteration: int
    relative: float


class TrackerSums:
    """Adds up what the peers' logs tell, line by line, in whatever order the peers come.

    Parameters
    ----------
    peers : iterable of int
        All peers of the run: those of view 0.

    Attributes
    ----------
    views : dict of int to frozenset of int
        The peers of each view that some log has told of.
    """

    def __init__(self, peers: Iterable[int]) -> None:
        self.views: dict[int, frozenset[int]] = {0: frozenset(peers)}
        self._terms: dict[tuple[int, int], dict[int, Any]] = {}

    def note_view(self, line: ViewChange, where: object) -> None:
        """Take in a change of view; ``where`` it stands goes into the error.

        Raises
        ------
        DataError
            When another log has other peers in the view of the same number.
        """
        members = frozenset(line.peers)
        known = self.views.setdefault(line.number, members)
        if known != members:
            raise DataError(
                f"{where}: view {line.number} has the peers {sorted(members)} there, and {sorted(known)} "
                "in another peer's log: two runs went on as the same one"
            )

    def note_trace(self, line: Trace) -> Surplus | None:
        """Take in a peer's trace; return the surplus once all of its view have told."""
        at = line.view, line.iteration
        terms = self._terms.setdefault(at, {})
        terms[line.peer] = sketch.decode(line.surplus).astype(np.float64)
        if terms.keys() != self.views.get(line.view):
            return None
        del self._terms[at]
        return Surplus(*at, _relative(terms))


def _relative(terms: Mapping[int, Any]) -> float:
    largest = max(float(np.linalg.norm(t)) for t in terms.values())
    return float(np.linalg.norm(sum(terms.values()))) / largest if largest > 0 else 0.0
