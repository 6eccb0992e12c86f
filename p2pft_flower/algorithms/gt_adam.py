"""GT-Adam (Carnevale et al., arXiv 2009.01745; here with A and B): Adam on the tracked gradient.

    τ_i^0     = ∇L_i(θ_i^0),  m_i = s_i = 0
    m_i       ← β₁ m_i + (1 − β₁) τ_i^k
    s_i       ← β₂ s_i + (1 − β₂) τ_i^k ∘ τ_i^k
    d_i       = m̂_i / (√ŝ_i + ε),   m̂_i = m_i / (1 − β₁^t),   ŝ_i = s_i / (1 − β₂^t)
    θ_i^{k+1} ← Σ_j a_ij (θ_j^k − α d_j)
    τ_i^{k+1} ← Σ_j b_ij (τ_j^k + ∇L_j(θ_j^{k+1}) − ∇L_j(θ_j^k))

m, s and d are each peer's own, computed number by number, and never sent; t counts iterations from the start
of the view. d does not grow with τ, so peers whose trackers differ by factors (B not doubly stochastic) make
steps of the same length.

Fixed point, with full gradients: Σ τ = Σ g at every k; at rest τ = 0, so m = d = 0, all θ_i agree, and
Σ ∇L_i(θ) = 0. But a constant α does not stay at rest there: √ŝ vanishes as τ does, until a step of α / √ŝ is
too long and throws the peers out again. On the tests' quadratics over a lopsided graph they were 1.4 α off
in the root mean square over 12,000 iterations, and 9 α at most. A schedule that decays to zero reaches the
point; so does a constant α with an ε (``eps``) that is not small against τ, for d then tends to τ / ε.

``momentum`` is refused, since the method has a momentum of its own, β₁ (``beta1``). Weight decay λ is part
of the objective, so that it is tracked and the limit is the minimiser of the mean loss + λ/2 ‖θ‖²; it is not
AdamW's, which is taken from θ beside the step. ``objective`` acts as for p2pft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from p2pft_flower.algorithms.seam import (
    Columns,
    Draw,
    Gradient,
    Rows,
    Schedule,
    Step,
    Vector,
    refuse_heavy_ball,
    require_share,
)

__all__ = ["GTAdam", "Moments"]


class Moments(NamedTuple):
    """State of GT-Adam; every vector is (q,).

    Attributes
    ----------
    theta, tau, grad : Vector
        θ_i, τ_i and ∇L_i(θ_i).
    first, second : Vector
        m_i and s_i.
    steps : int
        t, the number of iterations since the start of the view.
    """

    theta: Vector
    tau: Vector
    grad: Vector
    first: Vector
    second: Vector
    steps: int


@dataclass(frozen=True)
class GTAdam:
    """Adam along the tracker; see the module for its fixed point."""

    alpha: Schedule
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    phases: ClassVar[tuple[str, ...]] = ("theta", "tau")

    def __post_init__(self) -> None:
        refuse_heavy_ball(self.momentum, "gt-adam")
        require_share(beta1=self.beta1, beta2=self.beta2)
        if not 0.0 < self.eps < float("inf"):
            raise ValueError(f"eps = {self.eps}: must be a positive number")

    def start(self, theta: Vector, gradient: Gradient) -> Moments:
        """Return the first state: τ_i^0 = ∇L_i(θ_i^0), m_i = s_i = 0."""
        grad = gradient(theta)
        return Moments(theta, grad, grad, np.zeros_like(theta), np.zeros_like(theta), 0)

    def step(self, k: int, state: Moments, gradient: Gradient) -> Step[Moments]:
        """Run one iteration."""
        t = state.steps + 1
        first = self.beta1 * state.first + (1 - self.beta1) * state.tau  # m_i ← β₁ m_i + (1 − β₁) τ_i
        second = self.beta2 * state.second + (1 - self.beta2) * state.tau**2  # s_i ← β₂ s_i + (1 − β₂) τ_i²
        size = np.sqrt(second / (1 - self.beta2**t)) + self.eps  # √ŝ_i + ε
        direction = first / (1 - self.beta1**t) / size  # d_i = m̂_i / (√ŝ_i + ε)
        theta = yield Rows(state.theta - self.alpha(k) * direction)  # θ_i ← Σ_j a_ij (θ_j − α d_j)
        grad = yield Draw(gradient, theta)  # ∇L_i(θ_i^{k+1})
        tau = yield Columns(state.tau + grad - state.grad)  # τ_i ← Σ_j b_ij (τ_j + ∇L_j^{k+1} − ∇L_j^k)
        return Moments(theta, tau, grad, first, second, t)
