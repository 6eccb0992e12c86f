"""Exact diffusion (Yuan et al., arXiv 1702.05122; as D², Tang et al., 1803.07068): exact with one vector.

    φ_i^k     = θ_i^k − α (∇L_i(θ_i^k) − c_i^k),   c_i^0 = 0
    θ_i^{k+1} ← ½ (φ_i^k + Σ_j w_ij φ_j^k)
    c_i^{k+1} = c_i^k − (φ_i^k − Σ_j w_ij φ_j^k) / (2α)

With ψ = θ − α ∇L these are the papers' ψ_i^k and φ_i^k = ψ_i^k + θ_i^k − ψ_i^{k−1}, for c_i^k is
(θ_i^k − ψ_i^{k−1}) / α. W = A must be symmetric, hence doubly stochastic: two peers that share an edge give
each other the same weight. Other graphs are refused. ½ (I + W) instead of W has no negative eigenvalues, on
some of which the recursion would diverge. Weights that change with the iteration are refused, too: c_i
remembers differences that one W left over, and another W would take these for its own.

Fixed point, with full gradients: exact for (1/n) Σ L_i. The columns of W sum to one, so Σ c = 0 at every k,
and Σ θ makes a plain step along Σ g. At rest φ_i = Σ_j w_ij φ_j, so all φ_i agree, and so do all θ_i = φ_i;
then ∇L_i(θ) = c_i, so Σ ∇L_i(θ) = 0. ``momentum`` (heavy ball on ∇L_i) leaves that point: c_i is
∇L_i(θ) / (1 − β) there. So does any schedule, because c is kept in units of the gradient: the papers'
θ − ψ^{k−1}, for a constant α, would be α_{k−1} ∇L_i where α_k ∇L_i is needed, and push the peers apart
whenever α changes. Weight decay and ``objective`` act as for p2pft.

Nothing pulls Σ c back to 0: what rounding adds to it stays, and moves Σ ∇L_i(θ) by as much. Trackers have no
such memory, since differences of gradients vanish at rest. In float32 over ring-4, quadratics with minima of
size 3 ended 1.4e-3 off after 2,000 iterations with α = 0.05 and 1.4e-2 off after 20,000, p2pft 5e-6 after
both; with a smaller α it is worse. Use p2pft for long runs with small steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from p2pft_flower.algorithms.seam import Draw, Gradient, Rows, Schedule, Step, Vector, heavy_ball

__all__ = ["Diffusion", "ExactDiffusion"]


class Diffusion(NamedTuple):
    """State of exact diffusion; every vector is (q,).

    Attributes
    ----------
    theta : Vector
        θ_i.
    correction : Vector
        c_i, which tends to ∇L_i.
    velocity : Vector or None
        The last heavy-ball direction; None without heavy ball and before the first iteration.
    """

    theta: Vector
    correction: Vector
    velocity: Vector | None = None


@dataclass(frozen=True)
class ExactDiffusion:
    """Diffusion with its bias corrected; see the module for its fixed point."""

    alpha: Schedule
    momentum: float = 0.0

    phases: ClassVar[tuple[str, ...]] = ("theta",)
    symmetric: ClassVar[bool] = True
    static: ClassVar[bool] = True

    def start(self, theta: Vector, gradient: Gradient) -> Diffusion:  # noqa: ARG002 - the seam's signature
        """Return the first state: θ_i^0, c_i = 0."""
        return Diffusion(theta, np.zeros_like(theta))

    def step(self, k: int, state: Diffusion, gradient: Gradient) -> Step[Diffusion]:
        """Run one iteration: adapt, combine, correct."""
        alpha = self.alpha(k)
        grad = yield Draw(gradient, state.theta)
        velocity = heavy_ball(self.momentum, state.velocity, grad)
        phi = state.theta - alpha * (velocity - state.correction)  # φ_i = θ_i − α (∇L_i(θ_i) − c_i)
        mixed = yield Rows(phi)  # Σ_j w_ij φ_j
        half = 0.5 * (phi - mixed)
        correction = state.correction - half / alpha  # c_i ← c_i − (φ_i − Σ_j w_ij φ_j) / (2α)
        return Diffusion(phi - half, correction, velocity if self.momentum else None)  # θ_i ← ½ (φ_i + Σ_j …)
