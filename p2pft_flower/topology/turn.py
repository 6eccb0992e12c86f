"""The weights of one iteration: the graph's own or, of a graph whose weights change, those of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

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
        The limit of each tracker, in mean gradients: n π in this iteration, and B n π in the next one. Both
        are equal if weights do not change.
    """

    A: Matrix
    B: Matrix
    tracker_weights: Matrix
    next_weights: Matrix

    def senders(self, i: int) -> tuple[int, ...]:
        """Return the peers whose vectors ``i`` mixes, ascending, ``i`` among them."""
        return tuple(map(int, np.flatnonzero(self.A[i])))

    def receivers(self, j: int) -> tuple[int, ...]:
        """Return the peers that mix the vector of ``j``, ascending, ``j`` among them."""
        return tuple(map(int, np.flatnonzero(self.B[:, j])))

    @cached_property
    def mixes(self) -> tuple[tuple[tuple[int, float, float], ...], ...]:
        """Of each peer i, (j, a_ij, b_ij) of its senders j, ascending."""
        return tuple(
            tuple((j, float(self.A[i, j]), float(self.B[i, j])) for j in self.senders(i))
            for i in range(len(self.A))
        )


def cycle(weights: Sequence[Matrix], step: float = 1.0) -> tuple[Turn, ...]:
    """Return one turn for each W of ``weights``; after the last turn the first follows again.

    Trackers tend to a cycle: the product of all B of one cycle leaves n π^0, the limit in turn 0, unchanged.

    Parameters
    ----------
    weights : sequence of (n, n) arrays
        W of each turn.
    step : float
        γ of a codec, which replaces each B by (1 − γ) I + γ B; 1 without a codec. The limits depend on γ only
        if there are several turns.
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
    """Return A = W / row sums, (n, n), read-only: rows sum to 1."""
    A: Matrix = W / W.sum(axis=1, keepdims=True)
    A.setflags(write=False)
    return A


def by_columns(W: Matrix) -> Matrix:
    """Return B = W / column sums, (n, n), read-only: columns sum to 1."""
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
