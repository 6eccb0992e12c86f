"""The curves of a run for the live page: a line a peer, or the least, mean and greatest of many peers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from p2pft_flower.keeping.bulletins import Apart, Point
from p2pft_flower.keeping.progress import EACH_PEER
from p2pft_flower.typed import Count

__all__ = ["Chart", "HistoryRow", "charts_of_history", "charts_of_points"]

_WIDTH = 240
"""The most iterations of a chart."""

Curve = Sequence[tuple[int, float]]
"""Iterations, ascending, and a number after each."""

SCORES = ("accuracy", "accuracy_unseen", "loss")


class HistoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of results.json's ``history``: a number or None a peer, or of all peers together."""

    iteration: Count
    loss: list[float | None]
    accuracy: list[float | None]
    accuracy_unseen: list[float | None]
    bytes_sent: Count
    consensus_error: float | None


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """Curves over the iterations.

    Attributes
    ----------
    iterations : tuple of int
        The iterations, ascending.
    lines : dict of str to tuple
        By the number of a peer (as text), or ``min``, ``mean`` and ``max`` over the peers, or ``all``: a
        number for each iteration, None where there is none.
    """

    iterations: tuple[int, ...]
    lines: dict[str, tuple[float | None, ...]]


def charts_of_points(
    scores: Mapping[int, Sequence[Point]], apart: Sequence[Apart], live: Iterable[int]
) -> dict[str, Chart]:
    """Return the charts of a run that trains, from the scores heard of each peer.

    ``live`` are the peers of the present view: the total of bytes waits for none but these.
    """
    curves = {
        name: {p: _curve((q.iteration, getattr(q, name)) for q in points) for p, points in scores.items()}
        for name in SCORES
    }
    charts = {name: _peers(of) for name, of in curves.items()}
    charts["consensus_error"] = _alone(_curve((a.iteration, a.error) for a in apart))
    charts["bytes_sent"] = _alone(_total(scores, live))
    return {name: chart for name, chart in charts.items() if chart is not None}


def charts_of_history(history: Sequence[HistoryRow]) -> dict[str, Chart]:
    """Return the charts of the entry ``history`` of results.json."""
    n = min((len(getattr(row, name)) for row in history for name in SCORES), default=0)
    charts = {
        name: _peers({p: _curve((row.iteration, getattr(row, name)[p]) for row in history) for p in range(n)})
        for name in SCORES
    }
    for name in ("consensus_error", "bytes_sent"):
        charts[name] = _alone(_curve((row.iteration, getattr(row, name)) for row in history))
    return {name: chart for name, chart in charts.items() if chart is not None}


def _curve(points: Iterable[tuple[int, float | None]]) -> Curve:
    return [(k, float(v)) for k, v in points if v is not None and np.isfinite(v)]


def _total(scores: Mapping[int, Sequence[Point]], live: Iterable[int]) -> Curve:
    """Return the bytes of all peers together, from the first to the last iteration known of all that live."""
    curves = {p: _curve((q.iteration, q.bytes_sent) for q in points) for p, points in scores.items()}
    there = [curves[p] for p in live if curves.get(p)]
    if not there:
        return []
    grid = _grid(there)
    grid = grid[grid <= min(c[-1][0] for c in there)]
    # What a lost peer had sent stays sent.
    total = np.zeros(len(grid))
    for c in curves.values():
        if c:
            total += np.interp(grid, [k for k, _ in c], [v for _, v in c])
    return list(zip(grid.tolist(), total.tolist(), strict=True))


def _alone(curve: Curve) -> Chart | None:
    if not curve:
        return None
    grid = _grid([curve])
    return Chart(iterations=tuple(grid.tolist()), lines={"all": _on(grid, curve)})


def _peers(curves: Mapping[int, Curve]) -> Chart | None:
    told = {p: c for p, c in sorted(curves.items()) if c}
    if not told:
        return None
    grid = _grid(told.values())
    lines = {str(p): _on(grid, c) for p, c in told.items()}
    if len(curves) > EACH_PEER:
        values = np.array([[np.nan if v is None else v for v in line] for line in lines.values()])
        some = ~np.isnan(values).all(axis=0)
        grid, values = grid[some], values[:, some]
        lines = {
            name: _rounded(of(values, axis=0))
            for name, of in (("min", np.nanmin), ("mean", np.nanmean), ("max", np.nanmax))
        }
    return Chart(iterations=tuple(grid.tolist()), lines=lines)


def _grid(curves: Iterable[Curve]) -> npt.NDArray[np.int64]:
    """Return the iterations of all curves, ascending; of very many, evenly chosen ones with both ends."""
    every = np.array(sorted({k for c in curves for k, _ in c}), dtype=np.int64)
    if len(every) <= _WIDTH:
        return every
    return every[np.linspace(0, len(every) - 1, _WIDTH).round().astype(np.int64)]


def _on(grid: npt.NDArray[np.int64], curve: Curve) -> tuple[float | None, ...]:
    """Return a curve's values at the iterations of ``grid``, between its own ends."""
    at, values = zip(*curve, strict=True)
    return _rounded(np.interp(grid, at, values, left=np.nan, right=np.nan))


def _rounded(values: npt.NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(v) else float(f"{v:.6g}") for v in values)
