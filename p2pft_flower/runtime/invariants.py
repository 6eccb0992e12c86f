"""Whether invariant 1 held throughout a run: Σ τ = Σ g, read from the peers' logs.

Peers whose environment has `TRACE` set write a sketch of τ_i − g_i after each iteration. Sketches are linear,
so those of all peers of a view, added, are the sketch of Σ τ − Σ g, which must be zero but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pft_flower.errors import DataError
from p2pft_flower.runtime import sketch
from p2pft_flower.runtime.journal import read_runs

__all__ = ["Surplus", "tracker_surplus"]


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


def tracker_surplus(folder: Path, peers: Iterable[int]) -> list[Surplus]:
    """Return the surplus after each iteration that all peers of its view have completed and traced.

    Parameters
    ----------
    folder : Path
        The run's folder, with ``peers/peer-<i>.jsonl``.
    peers : iterable of int
        All peers of the run.

    Raises
    ------
    DataError
        When a peer has left no log, or peers have different peers in a view of the same number.
    """
    views: dict[int, frozenset[int]] = {0: frozenset(peers)}
    traces: dict[tuple[int, int], dict[int, Any]] = {}
    for peer in sorted(views[0]):
        path = folder / "peers" / f"peer-{peer}.jsonl"
        if not path.is_file():
            raise DataError(f"{path}: peer {peer} has left no log")
        for line in _last_run(path):
            if line["event"] == "view":
                _note_view(views, line, path)
            elif line["event"] == "trace":
                at = line["view"], line["iteration"]
                traces.setdefault(at, {})[peer] = sketch.decode(line["surplus"]).astype(np.float64)
    return [
        Surplus(view, iteration, _relative(terms))
        for (view, iteration), terms in sorted(traces.items())
        if terms.keys() == views.get(view)
    ]


def _last_run(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of the last run in a log, of all lives that the peer had in it."""
    lives = read_runs(path)
    for life in lives:
        if life[0]["run"] == lives[-1][0]["run"]:
            yield from life


def _note_view(views: dict[int, frozenset[int]], line: Mapping[str, Any], path: Path) -> None:
    members = frozenset(line["peers"])
    known = views.setdefault(line["number"], members)
    if known != members:
        raise DataError(
            f"{path}: view {line['number']} has the peers {sorted(members)} there, and {sorted(known)} in "
            "another peer's log: two runs went on as the same one"
        )


def _relative(terms: Mapping[int, Any]) -> float:
    largest = max(float(np.linalg.norm(t)) for t in terms.values())
    return float(np.linalg.norm(sum(terms.values()))) / largest if largest > 0 else 0.0
