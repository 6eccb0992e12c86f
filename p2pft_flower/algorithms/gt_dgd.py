"""GT-DGD (section 2.2 of the paper; Qu & Li, 2017): gradient tracking with one doubly stochastic W.

    θ_i^{k+1} ← Σ_j w_ij (θ_j^k − α τ_j^k)
    τ_i^{k+1} ← Σ_j w_ij (τ_j^k + ∇L_j(θ_j^{k+1}) − ∇L_j(θ_j^k)),   τ_i^0 = ∇L_i(θ_i^0)

Both exchanges use the receivers' weights W = A, which is why W's columns must sum to one too: on any
other graph Σ τ drifts away from Σ g and the limit is biased without a sign of it. Such graphs are refused.
Fixed point, and the effect of ``momentum``, schedules, weight decay and ``objective``: as for p2pft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2pft_flower.algorithms.p2pft import Tracking
from p2pft_flower.algorithms.seam import Draw, Gradient, Rows, Schedule, Step, Vector, heavy_ball

__all__ = ["GTDGD"]


@dataclass(frozen=True)
class GTDGD:
    """Gradient tracking with a single matrix; see the module."""

    alpha: Schedule
    momentum: float = 0.0

    phases: ClassVar[tuple[str, ...]] = ("theta", "tau")
    doubly_stochastic: ClassVar[bool] = True

    def start(self, theta: Vector, gradient: Gradient) -> Tracking:
        """Return the first state: τ_i^0 = ∇L_i(θ_i^0)."""
        grad = gradient(theta)
        return Tracking(theta, tau=grad, grad=grad)

    def step(self, k: int, state: Tracking, gradient: Gradient) -> Step[Tracking]:
        """Run one iteration of GT-DGD."""
        velocity = heavy_ball(self.momentum, state.velocity, state.tau)
        theta = yield Rows(state.theta - self.alpha(k) * velocity)  # θ_i ← Σ_j w_ij (θ_j − α τ_j)
        grad = yield Draw(gradient, theta)  # ∇L_i(θ_i^{k+1})
        tau = yield Rows(state.tau + grad - state.grad)  # τ_i ← Σ_j w_ij (τ_j + ∇L_j^{k+1} − ∇L_j^k)
        return Tracking(theta, tau, grad, velocity if self.momentum else None)
