"""What the sections of a report are made of, and the tables and curves that several of them have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from p2pft_flower.errors import TopologyError
from p2pft_flower.report.grids import Grid
from p2pft_flower.report.page import verdicts
from p2pft_flower.report.page.charts import Band
from p2pft_flower.report.page.runs import Run
from p2pft_flower.report.page.verdicts import Answers
from p2pft_flower.topology import Graph

__all__ = [
    "EACH_PEER",
    "MOST_ROWS",
    "Material",
    "band_of",
    "by_peer",
    "ends",
    "graph_of",
    "histories",
    "seconds",
]

EACH_PEER = 8
"""Charts have a line for each of up to this many peers; of more, they have the mean and a band."""

MOST_ROWS = 64
"""Tables have a row for each of up to this many peers or edges; of more, the least, mean and largest."""


@dataclass(frozen=True)
class Material:
    """All that a report is made of.

    Attributes
    ----------
    runs : sequence of Run
        The runs, from :func:`~p2pft_flower.report.page.reading.find_runs`.
    answers : mapping of str to sequence of Answers
        By a run's label, the answers of its tails to the test images.
    unscored : mapping of str to str
        By a run's label, the reason why its answers are not known.
    """

    runs: Sequence[Run]
    answers: Mapping[str, Sequence[Answers]] = field(default_factory=dict)
    unscored: Mapping[str, str] = field(default_factory=dict)

    @property
    def main(self) -> Run:
        """The run that the first lines are about."""
        return verdicts.main_run(self.runs)

    @property
    def scored(self) -> list[Run]:
        """The runs that have numbers."""
        return [run for run in self.runs if run.scored]

    def colour(self, run: Run) -> int:
        """Return the number of a run's colour and dashes, the same in all charts."""
        return [other.label for other in self.runs].index(run.label)

    def of(self, run: Run) -> Sequence[Answers]:
        """Return the answers of a run's tails; empty if they are not known."""
        return self.answers.get(run.label, ())

    def learned(self, run: Run) -> verdicts.Learned:
        """Return whether the peers of ``run`` learned the classes they never saw."""
        return verdicts.learned(run, self.runs)

    def agreed(self, run: Run) -> verdicts.Agreed:
        """Return whether the peers of ``run`` agree."""
        return verdicts.agreed(run, self.of(run))


def ends(values: Sequence[float], form: str = ".3f") -> str:
    """Return the least and the largest of some numbers in words; a dash for none."""
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{low:{form}}" if len(values) == 1 else f"{low:{form}} to {high:{form}}"


def seconds(passed: float | None) -> str:
    """Return a duration for a cell; a dash if it is not known."""
    return "–" if passed is None else f"{passed:.1f} s"


def graph_of(run: Run) -> Graph | None:
    """Return the graph of a run; None if rows of it are missing or make no graph."""
    facts = run.results.graph
    if facts is None or not facts.weights or any(row is None for row in facts.weights):
        return None
    names = [name or str(i) for i, name in enumerate(facts.peer_names or [None] * len(facts.weights))]
    try:
        return Graph.from_dict(
            {
                "name": facts.name,
                "weights": facts.weights,
                "peer_names": names,
                "addresses": [None] * len(facts.weights),
                "turns": facts.turns,
            }
        )
    except TopologyError:
        return None


def by_peer(run: Run, title: str, header: Sequence[str], row: Callable[[int], list[str]]) -> Grid:
    """Return a table with a row for each peer of ``run``; of very many, of the first ones."""
    peers = run.all_peers
    shown = range(min(len(peers), MOST_ROWS))
    rest = f" (the first {MOST_ROWS} of {len(peers)}; --csv has all)" if len(peers) > MOST_ROWS else ""
    return Grid(f"{title}{rest}", ["peer", *header], [[peers[k].name, *row(k)] for k in shown])


def histories(run: Run, key: str) -> tuple[list[int], np.ndarray]:
    """Return the iterations, and the peers' scores, (K, n) with NaN where there is none."""
    moments = [
        m for m in run.results.history if len(getattr(m, key)) and any(v is not None for v in getattr(m, key))
    ]
    rows = [[np.nan if v is None else v for v in getattr(m, key)] for m in moments]
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0)
    return [m.iteration for m in moments], values


def band_of(run: Run, key: str, place: int, x: Sequence[float] | None = None) -> Band | None:
    """Return the curve of a score of ``run``: the peers' mean, worst and best; None without such scores.

    ``place`` is the number of its colour and dashes, ``x`` its places; default: the iterations.
    """
    iterations, values = histories(run, key)
    if not iterations:
        return None
    low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
    several = values.shape[1] > 1
    return Band(
        run.label,
        iterations if x is None else x,
        np.nanmean(values, axis=1).tolist(),
        low.tolist() if several else (),
        high.tolist() if several else (),
        place,
        place,
    )
