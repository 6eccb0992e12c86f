"""The progress of a run: scores by iteration and peer, reported as one line for each evaluation."""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2pft_flower.keeping.journal import by_run, read_whole_lines
from p2pft_flower.keeping.lines import Evaluation, Report
from p2pft_flower.keeping.sketch import consensus_error, decode

__all__ = ["EACH_PEER", "Progress", "scored", "told_evaluations"]

TOLD = 128
"""The most evaluations, of about 900 bytes each, that all peers of a deployed run together send to the
coordinator; with more peers than that, each sends one."""

EACH_PEER = 8
"""The most peers of which a line shows each; with more peers, it shows min/mean/max."""


def told_evaluations(folder: Path, peer: int, n: int) -> list[Report]:
    """Return the evaluations of the peer's last life that a deployed peer sends to the coordinator.

    Parameters
    ----------
    folder : Path
        The folder of the peer's journal.
    peer : int
        The peer.
    n : int
        Number of peers of the run; all of them choose the same iterations, as they evaluate after the same
        iterations.

    Returns
    -------
    list of Report
        All evaluations if there are at most :data:`TOLD` / n; otherwise so many, evenly spaced, the first and
        the last among them, or the last alone. Lines that cannot be read are left out.

    Raises
    ------
    DataError
        If the journal cannot be read.
    """
    lives = by_run(read_whole_lines(folder / f"peer-{peer}.jsonl")[0])
    reports = [line.report for life in lives[-1:] for line in life.lines if isinstance(line, Evaluation)]
    most = max(1, TOLD // n)
    if len(reports) > most:
        kept = np.linspace(len(reports) - 1, 0, most).round().astype(int)[::-1]
        reports = [reports[k] for k in kept]
    return reports


OF_LATE = 9
"""The evaluations from which the time left is estimated: a run that stood still for a while is not slower."""


class Progress:
    """Collects reports from any thread, and gives out a line whenever an iteration's reports are complete.

    Parameters
    ----------
    n : int
        Number of peers of the run.
    iterations : int
        Number of iterations of the run.
    tell : callable
        Called with each line, a text.
    missing : collection of int, optional
        Peers that take no part; their scores are None. Default none.
    completed : callable, optional
        Called with each iteration whose reports are complete, its consensus error, and the bytes of all.
    """

    def __init__(
        self,
        n: int,
        iterations: int,
        tell: Callable[[str], None],
        missing: Collection[int] = (),
        completed: Callable[[int, float | None, int], None] = lambda *_: None,
    ) -> None:
        self._n, self._iterations, self._tell, self._completed = n, iterations, tell, completed
        self._live = set(range(n)) - set(missing)
        self._reports: dict[int, dict[int, Report]] = {}
        self._last: dict[int, Report] = {}
        """Each peer's report of the latest iteration."""
        self._begin: float | None = None
        """Time of the first complete evaluation."""
        self._late: deque[tuple[float, int]] = deque(maxlen=OF_LATE)
        """Times and iterations of the last complete evaluations, from which the time left is estimated."""
        self._lock = threading.RLock()  # a signal's handler asks for the history, too

    def add(self, report: Report) -> None:
        """Take a report in; another report of the same peer and iteration changes nothing."""
        with self._lock:
            row = self._reports.setdefault(report.iteration, {})
            complete = self._live <= row.keys()
            self._take(report)
            if complete or not self._live <= row.keys():
                return
            reports, sent = [row[p] for p in sorted(row)], self._sent(report.iteration)
            line = self._line(report.iteration, reports, sent)
        self._tell(line)
        self._completed(report.iteration, _consensus(reports), sent)

    def go_on_with(self, peers: Collection[int]) -> None:
        """Take an iteration's reports, from here on, as complete if they have those of ``peers``."""
        with self._lock:
            self._live = set(peers)

    def fill(self, report: Report) -> None:
        """Take a report in that the observer missed, without giving out a line."""
        with self._lock:
            self._take(report)

    def _take(self, report: Report) -> None:
        row = self._reports.setdefault(report.iteration, {})
        known = row.get(report.peer)
        if known is None or known.sketch is None:  # what others told of a peer gives way to its own word
            row[report.peer] = report
        last = self._last.get(report.peer)
        if last is None or last.iteration < report.iteration:
            self._last[report.peer] = report

    def last(self, peer: int) -> Report | None:
        """Return the report of a peer's latest iteration; None if there is none."""
        with self._lock:
            return self._last.get(peer)

    def history(self) -> list[dict[str, Any]]:
        """Return one entry for each evaluated iteration, ascending.

        Scores without a report are None, and so is the consensus error if reports are missing. The bytes are
        those of all peers up to then, the lost ones' among them, as far as reports tell.
        """
        with self._lock:
            reports = {iteration: dict(row) for iteration, row in self._reports.items()}
        rows, sent = [], dict[int, int]()
        for iteration in sorted(reports):
            row = reports[iteration]
            sent |= {p: max(r.bytes_sent, sent.get(p, 0)) for p, r in row.items()}
            present = [row.get(p) for p in range(self._n)]
            rows.append(
                {
                    "iteration": iteration,
                    "loss": [r and scored(r.loss) for r in present],
                    "accuracy": [r and scored(r.accuracy) for r in present],
                    "accuracy_unseen": [r and r.accuracy_unseen for r in present],
                    "bytes_sent": sum(sent.values()),
                    "consensus_error": _consensus([row[p] for p in sorted(row)])  # in any order of arrival
                    if row.keys() >= self._live
                    else None,
                }
            )
        return rows

    def _sent(self, iteration: int) -> int:
        """Return the bytes that all peers have sent up to ``iteration``, those of lost peers included."""
        row, sent = self._reports[iteration], 0
        for peer, last in self._last.items():
            report: Report | None = row.get(peer, last)
            if (
                report is not None and report.iteration > iteration
            ):  # it is ahead of this iteration, and was not in it
                before = (
                    self._reports[k].get(peer) for k in sorted(self._reports, reverse=True) if k < iteration
                )
                report = next((r for r in before if r is not None), None)
            sent += 0 if report is None else report.bytes_sent
        return sent

    def _line(self, iteration: int, reports: Sequence[Report], sent: int) -> str:
        width = len(str(self._iterations))
        now = time.monotonic()
        if self._begin is None:
            self._begin = now
        self._late.append((now, iteration))
        late = list(self._late)
        paces = [
            (then - since) / (k - first)
            for (since, first), (then, k) in itertools.pairwise(late)
            if k > first
        ]
        # The median: an evaluation before which all stood still says nothing of the others.
        left = statistics.median(paces) * (self._iterations - iteration) if paces else None
        parts = [
            f"iteration {iteration:>{width}}/{self._iterations}",
            *_whose([r.peer for r in reports], self._n),
            f"loss {_spread([r.loss for r in reports], '.3f')}",
            f"accuracy {_spread([r.accuracy for r in reports], '.3f')}",
            *([] if (apart := _consensus(reports)) is None else [f"consensus error {apart:.2e}"]),
            f"sent {human_bytes(sent)}",
        ]
        if left is not None:
            ends = iteration >= self._iterations
            parts.append(f"in {now - self._begin:.0f} s" if ends else f"{left:.0f} s left")
        return " | ".join(parts)


def scored(value: float | None) -> float | None:
    """Return ``value``; None if it is NaN or None, the score of a peer without test images."""
    return None if value is None or math.isnan(value) else value


def _whose(peers: Sequence[int], n: int) -> list[str]:
    """Return which peers a line has the scores of, unless it has those of all ``n``."""
    if len(peers) == n:
        return []
    return [f"peers {' '.join(map(str, peers))}" if len(peers) <= EACH_PEER else f"{len(peers)} of {n} peers"]


def _spread(values: Sequence[float | None], form: str) -> str:
    if len(values) <= EACH_PEER:
        return " ".join("–" if scored(v) is None else format(v, form) for v in values)
    there = [v for v in map(scored, values) if v is not None]
    if not there:
        return "–"
    return f"{min(there):{form}}/{float(np.mean(there)):{form}}/{max(there):{form}} (min/mean/max)"


def _consensus(reports: Sequence[Report]) -> float | None:
    """Return an estimate of the peers' distance from their mean; None if a sketch is missing."""
    sketches = [decode(r.sketch) for r in reports if r.sketch is not None]
    return consensus_error(sketches) if len(sketches) == len(reports) else None


def human_bytes(count: int) -> str:
    """Return ``count`` bytes as a text for a person, in units of powers of 1000."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
