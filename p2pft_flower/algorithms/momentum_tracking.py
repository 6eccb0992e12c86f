"""Momentum tracking (arXiv 2209.15505; with A and B: 2604.08219): trackers follow averages of gradients.

    m_i^0     = τ_i^0 = ∇L_i(θ_i^0)
    θ_i^{k+1} ← Σ_j a_ij (θ_j^k − α τ_j^k)
    m_i^{k+1} = β₁ m_i^k + (1 − β₁) ∇L_i(θ_i^{k+1}), a fresh mini-batch
    τ_i^{k+1} ← Σ_j b_ij (τ_j^k + m_j^{k+1} − m_j^k)

β₁ (``beta1``; 1 − λ of the second paper) is the share of the old average that is kept, as in Adam, so a step
is as long as without averages. β₁ = 0 is p2pft. Each peer averages its mini-batches' gradients before these
are tracked, so less noise travels. The rate proven in the first paper does not depend on how uneven the
peers' data are; that of heavy ball on each peer's own gradient, as dgd's, does.

``momentum``, heavy ball on the direction of a step (which makes it 1 / (1 − β) times as long), has this one
meaning for all methods. On top of an average it would be momentum twice, so it is refused here.

Fixed point, with full gradients: as for p2pft. Σ τ = Σ m at every k, for which ``grad`` of the state is m; at
rest m_i = ∇L_i(θ_i), all θ_i agree and τ = 0, so Σ ∇L_i(θ) = 0. Schedules, weight decay and ``objective``
act as for p2pft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2pft_flower.algorithms.p2pft import Tracking
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

__all__ = ["MomentumTracking"]


@dataclass(frozen=True)
class MomentumTracking:
    """Tracking of averaged gradients; see the module for its fixed point."""

    alpha: Schedule
    momentum: float = 0.0
    beta1: float = 0.9

    phases: ClassVar[tuple[str, ...]] = ("theta", "tau")

    def __post_init__(self) -> None:
        refuse_heavy_ball(self.momentum, "momentum-tracking")
        require_share(beta1=self.beta1)

    def start(self, theta: Vector, gradient: Gradient) -> Tracking:
        """Return the first state: m_i^0 = τ_i^0 = ∇L_i(θ_i^0)."""
        grad = gradient(theta)
        return Tracking(theta, tau=grad, grad=grad)

    def step(self, k: int, state: Tracking, gradient: Gradient) -> Step[Tracking]:
        """Run one iteration; ``grad`` of the state is m_i."""
        theta = yield Rows(state.theta - self.alpha(k) * state.tau)  # θ_i ← Σ_j a_ij (θ_j − α τ_j)
        drawn = yield Draw(gradient, theta)
        mean = self.beta1 * state.grad + (1 - self.beta1) * drawn  # m_i = β₁ m_i + (1 − β₁) ∇L_i(θ_i^{k+1})
        tau = yield Columns(state.tau + mean - state.grad)  # τ_i ← Σ_j b_ij (τ_j + m_j^{k+1} − m_j^k)
        return Tracking(theta, tau, mean)
