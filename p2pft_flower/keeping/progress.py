"""The progress of a run: scores by iteration and peer, reported as one line for each evaluation."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2pft_flower.keeping.journal import by_run, read_whole_lines
from p2pft_flower.keeping.lines import Evaluation, Report
from p2pft_flower.keeping.sketch import consensus_error, decode

__all__ = ["Progress", "scored", "told_evaluations"]

TOLD = 128
"""Evaluations, about 900 bytes each, that all peers of a deployed run together send to the coordinator."""

EACH_PEER = 8
"""A line shows each of up to this many peers; with more, it shows min/mean/max."""


def told_evaluations(folder: Path, peer: int, n: int) -> list[Report]:
    """Return the evaluations that a deployed peer sends to the coordinator, as many as the limit allows.

    Parameters
    ----------
    folder : Path
        The folder of the peer's log.
    peer : int
        The peer.
    n : int
        Peers of the run; all of them choose the same iterations, as they evaluate after the same ones.

    Returns
    -------
    list of Report
        Every evaluation if all peers together have at most ``TOLD``; otherwise evenly spaced ones with the
        first and the last, or the last one alone. Lines that cannot be read are left out.

    Raises
    ------
    DataError
        If the log cannot be read.
    """
    lives = by_run(read_whole_lines(folder / f"peer-{peer}.jsonl")[0])
    reports = [line.report for life in lives[-1:] for line in life.lines if isinstance(line, Evaluation)]
    most = max(1, TOLD // n)
    if len(reports) > most:
        kept = np.linspace(len(reports) - 1, 0, most).round().astype(int)[::-1]
        reports = [reports[k] for k in kept]
    return reports


class Progress:
    """Collects reports from any thread, and gives out a line whenever an iteration's reports are complete.

    Parameters
    ----------
    n : int
        Peers of the run.
    iterations : int
        Length of the run.
    tell : callable
        Called with each line.
    missing : collection of int, optional
        Peers that take no part; their scores are None.
    """

    def __init__(
        self, n: int, iterations: int, tell: Callable[[str], None], missing: Collection[int] = ()
    ) -> None:
        self._n, self._iterations, self._tell = n, iterations, tell
        self._live = set(range(n)) - set(missing)
        self._reports: dict[int, dict[int, Report]] = {}
        self._begin: float | None = None
        """Time at which the first evaluation was complete: the estimate of the rest begins there."""
        self._first = 0
        self._lock = threading.Lock()

    def add(self, report: Report) -> None:
        """Take a report in; a second one of the same peer and iteration changes nothing."""
        with self._lock:
            row = self._reports.setdefault(report.iteration, {})
            complete = self._live <= row.keys()
            row.setdefault(report.peer, report)
            if complete or not self._live <= row.keys():
                return
            line = self._line(report.iteration, [row[p] for p in sorted(row)])
        self._tell(line)

    def go_on_with(self, peers: Collection[int]) -> None:
        """From now on, an iteration's reports are complete with those of ``peers``."""
        with self._lock:
            self._live = set(peers)

    def fill(self, report: Report) -> None:
        """Take a report in that the observer missed, without giving out a line."""
        with self._lock:
            self._reports.setdefault(report.iteration, {}).setdefault(report.peer, report)

    def history(self) -> list[dict[str, Any]]:
        """Return one entry an evaluated iteration, ascending; missing peers' scores are None."""
        rows = []
        for iteration in sorted(self._reports):
            row = self._reports[iteration]
            present = [row.get(p) for p in range(self._n)]
            rows.append(
                {
                    "iteration": iteration,
                    "loss": [r and scored(r.loss) for r in present],
                    "accuracy": [r and scored(r.accuracy) for r in present],
                    "accuracy_unseen": [r and r.accuracy_unseen for r in present],
                    "bytes_sent": sum(r.bytes_sent for r in row.values()),
                    "consensus_error": _consensus([row[p] for p in sorted(row)])  # in any order of arrival
                    if row.keys() >= self._live
                    else None,
                }
            )
        return rows

    def _line(self, iteration: int, reports: Sequence[Report]) -> str:
        width = len(str(self._iterations))
        if self._begin is None:
            self._begin, self._first = time.monotonic(), iteration
        passed, done = time.monotonic() - self._begin, iteration - self._first
        left = passed / done * (self._iterations - iteration) if done else None
        parts = [
            f"iteration {iteration:>{width}}/{self._iterations}",
            f"loss {_spread([r.loss for r in reports], '.3f')}",
            f"accuracy {_spread([r.accuracy for r in reports], '.3f')}",
            f"consensus error {_consensus(reports):.2e}",
            f"sent {human_bytes(sum(r.bytes_sent for r in reports))}",
        ]
        if left is not None:
            parts.append(f"{left:.0f} s left" if iteration < self._iterations else f"in {passed:.0f} s")
        return " | ".join(parts)


def scored(value: float | None) -> float | None:
    """Return a score; None if the peer has no test image to be scored on."""
    return None if value is None or math.isnan(value) else value


def _spread(values: Sequence[float | None], form: str) -> str:
    if len(values) <= EACH_PEER:
        return " ".join("–" if scored(v) is None else format(v, form) for v in values)
    there = [v for v in map(scored, values) if v is not None]
    if not there:
        return "–"
    return f"{min(there):{form}}/{float(np.mean(there)):{form}}/{max(there):{form}} (min/mean/max)"


def _consensus(reports: Sequence[Report]) -> float:
    return consensus_error([decode(r.sketch) for r in reports])


def human_bytes(count: int) -> str:
    """Return ``count`` bytes for a person, in powers of 1000."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
