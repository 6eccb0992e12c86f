"""The weights of one iteration: the graph's own, or those of its turns, one iteration after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

__all__ = ["Turn", "by_columns", "by_rows", "cycle", "stationary"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Turn:
    """The weights with which one iteration mixes.

    Attributes
    ----------
    A, B : ndarray, shape (n, n), float64
        The receivers' weights, whose rows sum to 1, and the senders' shares, whose columns do.
    tracker_weights, next_weights : ndarray, shape (n,), float64
        The limit of each tracker in mean gradients: n π; and that of the next iteration, B n π. The two are
        one if weights do not change.
    """

    A: Matrix
    B: Matrix
    tracker_weights: Matrix
    next_weights: Matrix

    def senders(self, i: int) -> tuple[int, ...]:
        """Return the peers whose vectors ``i`` mixes, ascending, itself among them."""
        return tuple(map(int, np.flatnonzero(self.A[i])))

    def receivers(self, j: int) -> tuple[int, ...]:
        """Return the peers that mix the vector of ``j``, ascending, itself among them."""
        return tuple(map(int, np.flatnonzero(self.B[:, j])))


def cycle(weights: Sequence[Matrix], step: float = 1.0) -> tuple[Turn, ...]:
    """Return the turns of these weights W, (n, n) each, of which the first follows the last again.

    Trackers tend to a cycle: n π^0 is what all the B of one cycle, one after the other, leave as it is.

    Parameters
    ----------
    weights : sequence of (n, n) arrays
        W of each turn.
    step : float
        γ, where a codec makes of B (1 − γ) I + γ B. One B has the same limit with every γ, several have not.
    """
    eye = np.eye(len(weights[0]))
    shares = [(1 - step) * eye + step * by_columns(W) for W in weights]
    around = reduce(lambda done, B: B @ done, shares)
    limits = [len(around) * stationary(around)]
    for B in shares[:-1]:
        limits.append(B @ limits[-1])
    following = [*limits[1:], limits[0]]
    return tuple(
        Turn(by_rows(W), by_columns(W), limit, after)
        for W, limit, after in zip(weights, limits, following, strict=True)
    )


def by_rows(W: Matrix) -> Matrix:
    """Return W with rows that sum to 1, read-only."""
    A: Matrix = W / W.sum(axis=1, keepdims=True)
    A.setflags(write=False)
    return A


def by_columns(W: Matrix) -> Matrix:
    """Return W with columns that sum to 1, read-only."""
    B: Matrix = W / W.sum(axis=0, keepdims=True)
    B.setflags(write=False)
    return B


def stationary(matrix: Matrix) -> Matrix:
    """Return π, (n,), with ``matrix`` π = π and Σ π = 1."""
    n = len(matrix)
    system = np.vstack([matrix - np.eye(n), np.ones((1, n))])
    target = np.zeros(n + 1)
    target[-1] = 1.0
    weights: Matrix = np.linalg.lstsq(system, target, rcond=None)[0].astype(np.float64)
    return weights
