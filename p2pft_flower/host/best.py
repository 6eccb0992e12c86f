"""``keep = best:…``: the peers choose the iteration whose θ they keep by the mean of their validation scores.

After an evaluation each peer has one number. A *table* has a row for each peer, and of one's own row only one
knows it at first. In each *round* all peers send their table along all edges of the view, and copy the rows
that they lack from the tables that come. After as many rounds as the longest of the shortest paths has edges
all have the same table, and decide the same, bit for bit: nobody collects the scores.

Why the peers never keep different iterations: who has decided on evaluation e has the rows of all others, so
these have all been scored at e, have their θ of e, and nobody is further than the rounds of the next
evaluation. When a view begins, the rounds come first, and a row also says what its peer has decided before:
the newest decision holds for all, and if there was none on e, it comes now.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import Cause, P2PFTError
from p2pft_flower.keeping.kept import Best, Kept

__all__ = ["COLUMNS", "BestTheta", "Table", "TableError", "merged"]

Table = npt.NDArray[np.float64]
"""(n, COLUMNS): a row for each peer of the run."""

_TOLD, _DECIDED, _ITERATION, _SCORE, _SCORED, _VALUE = range(6)
COLUMNS = 6
"""Whether the row is known (1 or 0); of the peer's :class:`Best` ``decided``, ``iteration`` and ``score``;
the evaluation that is to be decided on, by its number of iterations (-1: the peer has no score), and the
score."""


class TableError(P2PFTError):
    """A neighbour has sent a table of scores that no peer of this version makes."""

    cause = Cause.RUN

    def __init__(self, sender: int, receiver: int, problem: str) -> None:
        self.peer = receiver
        super().__init__(
            f"peer {receiver}: the table of scores that came from peer {sender} {problem}: one of the peers "
            "runs another version, or lies; keep = last does without these tables"
        )


class _Candidate(NamedTuple):
    score: float | None
    theta: npt.NDArray[Any]


class BestTheta:
    """The best θ of each of a host's peers.

    Parameters
    ----------
    by : {"balanced-accuracy", "loss"}
        The score that chooses.
    n : int
        Number of peers of the run.
    """

    def __init__(self, by: str, n: int) -> None:
        self.by, self._n = by, n
        self._best: dict[int, Best] = {}
        self._candidates: dict[int, dict[int, _Candidate]] = {}
        """By peer and evaluation. A peer that is behind when a view begins may have two: others have decided
        on one, and all are scored again."""
        self._let_in = False

    @property
    def so_far(self) -> dict[int, Best]:
        """By peer, what it keeps; a new dict."""
        return dict(self._best)

    def restore(self, peer: int, best: Best | None) -> None:
        """Go on from what the checkpoint of ``peer`` has; None: nothing."""
        if best is not None:
            self._best[peer] = best

    def come_back(self) -> None:
        """Take the others' word for all that was decided, as they went on without the peers of this host."""
        self._let_in = True

    def note(self, peer: int, iteration: int, score: float | None, theta: npt.NDArray[Any]) -> None:
        """Note the score of ``theta``, (q,), after ``iteration`` iterations; None: the peer has no score."""
        self._candidates.setdefault(peer, {})[iteration] = _Candidate(score, theta)

    def tables(self, peers: Iterable[int]) -> dict[int, Table]:
        """Return, for each of ``peers``, a table with no more than its own row."""
        tables = {}
        for peer in peers:
            best = Best() if self._let_in else self._best.get(peer, Best())
            scores = {k: new.score for k, new in self._candidates.get(peer, {}).items()}
            scored, value = max(((k, s) for k, s in scores.items() if s is not None), default=(-1, 0.0))
            table = tables[peer] = np.zeros((self._n, COLUMNS))
            table[peer] = 1.0, best.decided, best.iteration, best.score, scored, value
        return tables

    def decide(self, tables: Mapping[int, Table]) -> None:
        """Decide for each peer, by a table with the rows of the whole view, whether its best θ is a new one.

        A later θ is kept only if its score is better.
        """
        for peer, table in tables.items():
            rows = table[table[:, _TOLD] == 1.0]
            newest = rows[rows[:, _DECIDED].argmax()]
            decided, iteration, score = int(newest[_DECIDED]), int(newest[_ITERATION]), float(newest[_SCORE])
            evaluated = int(rows[:, _SCORED].max())
            if evaluated > decided:
                values = rows[rows[:, _SCORED] == evaluated, _VALUE]
                mean, decided = math.fsum(values) / len(values), evaluated
                if iteration < 0 or self._better(mean, score):
                    iteration, score = evaluated, mean
            self._best[peer] = Best(decided, iteration, score, self._theta_of(peer, iteration))
        self._candidates.clear()
        self._let_in = False

    def _better(self, score: float, than: float) -> bool:
        return score < than if self.by == "loss" else score > than

    def _theta_of(self, peer: int, iteration: int) -> npt.NDArray[Any] | None:
        best, new = self._best.get(peer, Best()), self._candidates.get(peer, {})
        if iteration in new:
            return new[iteration].theta
        return best.theta if best.iteration == iteration else None

    def kept(self, peer: int) -> Kept | None:
        """Return what results tell of the θ that ``peer`` has kept; None if nothing was decided on."""
        best = self._best.get(peer, Best())
        if best.iteration < 0:
            return None
        return Kept(by=self.by, iteration=best.iteration, score=best.score, own=best.theta is not None)

    def theta(self, peer: int) -> npt.NDArray[Any] | None:
        """Return the θ, (q,), that ``peer`` has kept; None if it has none."""
        return self._best.get(peer, Best()).theta


def merged(
    table: Table, come: npt.NDArray[np.floating], edge: tuple[int, int], peers: Collection[int], most: int
) -> Table:
    """Return ``table`` with the rows that it lacks and that the table along ``edge`` has.

    Parameters
    ----------
    table : (n, COLUMNS) array
        The receiver's table.
    come : array
        The sender's table, as one row of finite numbers.
    edge : (int, int)
        Sender and receiver.
    peers : collection of int
        The peers of the view.
    most : int
        Number of iterations of the run.

    Raises
    ------
    TableError
        If no peer makes such a table: it lacks the sender's row, has rows of peers that are not in the view,
        or numbers of iterations that cannot be.
    """
    theirs = come.reshape(table.shape)
    told, counts = theirs[:, _TOLD], theirs[:, (_DECIDED, _ITERATION, _SCORED)]
    beyond = sorted(set(np.flatnonzero(told).tolist()).difference(peers))
    for wrong, problem in (
        (not np.isin(told, (0.0, 1.0)).all() or theirs[told == 0.0].any(), "has a row that is half told"),
        (bool(beyond), f"has rows of peers {beyond}, which are not in this view"),
        (told[edge[0]] != 1.0, "lacks the sender's own row"),
        (
            (counts != counts.round()).any() or counts.min() < -1 or counts.max() > most,
            "has impossible counts",
        ),
        ((counts[:, 1] > counts[:, 0]).any(), "keeps what was not decided on"),
    ):
        if wrong:
            raise TableError(*edge, problem)
    return np.where(table[:, :1] == 1.0, table, theirs)
