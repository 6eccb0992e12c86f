"""Whether invariant 1 held throughout a run: Σ τ = Σ g, read from the peers' logs.

Peers whose environment has `TRACE` set write a sketch of τ_i − g_i after each iteration. Sketches are linear,
so those of all peers of a view, added, are the sketch of Σ τ − Σ g, which must be zero but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pft_flower.errors import DataError
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.journal import by_run, read_journal
from p2pft_flower.keeping.lines import Trace, ViewChange

__all__ = ["Surplus", "TrackerSums", "tracker_surplus"]


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


def tracker_surplus(folder: Path, peers: Iterable[int]) -> list[Surplus]:
    """Return the surplus after each iteration that all peers of its view have completed and traced.

    Parameters
    ----------
    folder : Path
        The run's folder, with ``peers/peer-<i>.jsonl``; what peers did before they were killed and came back
        counts.
    peers : iterable of int
        All peers of the run.

    Raises
    ------
    DataError
        When a peer has left no log, a log is damaged, or peers have different peers in a view of the same
        number.
    """
    sums, traces = TrackerSums(peers), list[Trace]()
    for peer in sorted(sums.views[0]):
        path = folder / "peers" / f"peer-{peer}.jsonl"
        if not path.is_file():
            raise DataError(f"{path}: peer {peer} has left no log")
        lives = by_run(read_journal(path))
        for line in (e for life in lives if life.run.run == lives[-1].run.run for e in life.lines):
            if isinstance(line, ViewChange):
                sums.note_view(line, path)
            elif isinstance(line, Trace):
                traces.append(line)
    told = (sums.note_trace(line) for line in traces)
    return sorted(surplus for surplus in told if surplus is not None)


def _relative(terms: Mapping[int, Any]) -> float:
    largest = max(float(np.linalg.norm(t)) for t in terms.values())
    return float(np.linalg.norm(sum(terms.values()))) / largest if largest > 0 else 0.0
