"""Small problems with known answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from p2pft_flower.topology import Graph


@dataclass(frozen=True)
class Quadratics:
    """L_i(θ) = ½ (θ − c_i)ᵀ H_i (θ − c_i): different minimisers and curvatures."""

    H: np.ndarray
    c: np.ndarray

    @property
    def gradients(self):
        return [
            lambda t, H=H, c=c: (H @ (t - c)).astype(t.dtype) for H, c in zip(self.H, self.c, strict=True)
        ]

    def optimum(self, weights=None, weight_decay=0.0):
        """The minimiser of Σ w_i L_i / n + λ/2 ‖θ‖², in closed form."""
        w = np.ones(len(self.H)) if weights is None else np.asarray(weights)
        H = np.einsum("i,iab->ab", w, self.H) / len(w) + weight_decay * np.eye(self.H.shape[1])
        return np.linalg.solve(H, np.einsum("i,iab,ib->a", w, self.H, self.c) / len(w))


def quadratics(n, q=5, seed=0):
    rng = np.random.default_rng(seed)
    M = rng.normal(size=(n, q, q)) / np.sqrt(q)
    return Quadratics(H=0.5 * np.eye(q) + np.einsum("iab,icb->iac", M, M), c=3 * rng.normal(size=(n, q)))


LOPSIDED = np.array([[1, 0, 0, 0.2], [5, 1, 0, 0], [5, 1, 1, 0], [5, 0, 1, 1]])


@pytest.fixture
def lopsided():
    return Graph.from_weights(LOPSIDED, name="lopsided")
