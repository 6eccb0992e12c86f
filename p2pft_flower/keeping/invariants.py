"""A check of invariant 1 throughout a run, Σ τ = Σ g, from the peers' journals.

If the environment variable `P2PFT_TRACE_TRACKER` is set, each peer writes a *trace* after each iteration: a
sketch of τ_i − g_i. Sketches are linear, so the sum of the traces of all peers of a view is the sketch of
Σ τ − Σ g, the *surplus*, which must be zero but for rounding.
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
    """The surplus Σ τ − Σ g over the peers of a view, after an iteration.

    Attributes
    ----------
    view, iteration : int
        The view's number, and the number of iterations that are done.
    relative : float
        Norm of the surplus's sketch, relative to the largest norm of a peer's sketch of τ_i − g_i; 0 if all
        are 0.
    """

    view: int
    iteration: int
    relative: float


class TrackerSums:
    """Adds up the traces in the peers' journals, line by line, in any order of the peers.

    Parameters
    ----------
    peers : iterable of int
        All peers of view 0, with which the run begins.

    Attributes
    ----------
    views : dict of int to frozenset of int
        The peers of each view that any journal has named so far, by the view's number.
    """

    def __init__(self, peers: Iterable[int]) -> None:
        self.views: dict[int, frozenset[int]] = {0: frozenset(peers)}
        self._terms: dict[tuple[int, int], dict[int, Any]] = {}

    def note_view(self, line: ViewChange, where: object) -> None:
        """Take in a line on a change of view; ``where`` is the line's place, for the error.

        Raises
        ------
        DataError
            If another journal has other peers in the view of the same number.
        """
        members = frozenset(line.peers)
        known = self.views.setdefault(line.number, members)
        if known != members:
            raise DataError(
                f"{where}: view {line.number} has the peers {sorted(members)} there, and {sorted(known)} "
                "in another peer's log: two runs went on as the same one"
            )

    def note_trace(self, line: Trace) -> Surplus | None:
        """Take in a peer's trace; return the surplus if the traces of all peers are in by then, else None."""
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
