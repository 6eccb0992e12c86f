"""Weights for a pattern of edges: ``uniform`` and ``metropolis``.

A pattern is a boolean array ``R`` of shape (n, n): ``R[i, j]`` says that the edge j → i is there. Its
diagonal is False; self-weights are given apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import TopologyError

__all__ = ["SCHEMES", "metropolis", "one_way_edge", "uniform"]

Pattern = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.float64]

SCHEMES = ("uniform", "metropolis", "explicit")


def uniform(pattern: Pattern, self_weights: float | Weights = 1.0) -> Weights:
    """Return weights W that give every edge the weight 1.

    Parameters
    ----------
    pattern : ndarray, shape (n, n), bool
        The edges.
    self_weights : float or ndarray, shape (n,), default 1
        The diagonal of the result.

    Returns
    -------
    ndarray, shape (n, n), float64
    """
    W = pattern.astype(np.float64)
    np.fill_diagonal(W, self_weights)
    return W


def one_way_edge(pattern: Pattern) -> tuple[int, int] | None:
    """Return an edge (sender, receiver) whose reverse is missing, or None in an undirected graph."""
    one_way = np.argwhere(pattern.T & ~pattern)  # pattern.T[j, i] is the edge j → i
    return (int(one_way[0][0]), int(one_way[0][1])) if len(one_way) else None


def metropolis(pattern: Pattern, peer_names: tuple[str, ...]) -> Weights:
    """Return Metropolis-Hastings weights, which are doubly stochastic on any undirected graph.

    ``w_ij = 1 / (1 + max(deg_i, deg_j))`` on edges and ``w_ii = 1 - Σ_j w_ij``, with degrees that leave the
    peer itself out (Xiao, Boyd and Kim, 2007).

    Parameters
    ----------
    pattern : ndarray, shape (n, n), bool
        The edges; every edge needs its reverse.
    peer_names : tuple of str
        The n names, for errors.

    Returns
    -------
    ndarray, shape (n, n), float64
        Symmetric; every w_ii is at least 1 / (1 + deg_i), so no self-weight is missing.

    Raises
    ------
    TopologyError
        When an edge has no reverse.
    """
    edge = one_way_edge(pattern)
    if edge is not None:
        sender, receiver = (peer_names[k] for k in edge)
        raise TopologyError(
            f"metropolis weights need an undirected graph, but edge {sender} -> {receiver} has no reverse: "
            f"add {receiver} -> {sender}, or use the scheme uniform or explicit"
        )
    degree = pattern.sum(axis=1)
    W = np.where(pattern, 1.0 / (1.0 + np.maximum.outer(degree, degree)), 0.0)
    np.fill_diagonal(W, 1.0 - W.sum(axis=1))
    return W
