"""Push-DIGing (Nedić, Olshevsky and Shi, arXiv 1607.03218): push-sum with gradient tracking, both by B.

    τ_i^0     = ∇L_i(z_i^0),  z_i^0 = θ_i^0
    x_i^{k+1} ← Σ_j b_ij (x_j^k − α τ_j^k)
    w_i^{k+1} ← Σ_j b_ij w_j^k,   z_i^{k+1} = x_i^{k+1} / w_i^{k+1}
    τ_i^{k+1} ← Σ_j b_ij (τ_j^k + ∇L_j(z_j^{k+1}) − ∇L_j(z_j^k))

The paper adds the gradients' difference after mixing the trackers; here it is mixed with them, as in p2pft.
Push-sum weights are not sent: they begin at their limit w_i = n π_i with B π = π, and stay there, as for
:mod:`~p2pft_flower.algorithms.sgp`. ``theta`` of the state is z; x is w z. Senders need to know only their
own shares, and no receiver weighs anything.

Fixed point, with full gradients: exact for (1/n) Σ L_i on every strongly connected directed graph. Σ τ = Σ g
at every k, since B's columns sum to one; at rest Σ x = Σ x − α Σ τ, so Σ τ = 0, and τ = B τ is a multiple of
π, so τ = 0; then w z = B w z, so all z_i agree, and Σ ∇L_i(z) = 0. ``momentum`` (heavy ball on τ_i, never
sent), schedules, weight decay and ``objective`` act as for p2pft.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from p2pft_flower.algorithms.p2pft import Tracking
from p2pft_flower.algorithms.seam import Columns, Draw, Gradient, Schedule, Step, Vector, heavy_ball

__all__ = ["PushDIGing"]


@dataclass(frozen=True)
class PushDIGing:
    """Gradient tracking over push-sum; see the module for its fixed point."""

    alpha: Schedule
    momentum: float = 0.0
    tracker_weight: float = 1.0
    next_weight: float = 1.0

    phases: ClassVar[tuple[str, ...]] = ("theta", "tau")

    def placed(self, tracker_weight: float, next_weight: float) -> PushDIGing:
        """Return the method for a peer with w_i^k = ``tracker_weight`` and w_i^{k+1} = ``next_weight``."""
        return replace(self, tracker_weight=tracker_weight, next_weight=next_weight)

    def start(self, theta: Vector, gradient: Gradient) -> Tracking:
        """Return the first state: τ_i^0 = ∇L_i(z_i^0), z_i^0 = θ_i^0."""
        grad = gradient(theta)
        return Tracking(theta, tau=grad, grad=grad)

    def step(self, k: int, state: Tracking, gradient: Gradient) -> Step[Tracking]:
        """Run one iteration; ``theta`` of the state is z_i."""
        w, w_next = self.tracker_weight, self.next_weight
        velocity = heavy_ball(self.momentum, state.velocity, state.tau)
        x = yield Columns(w * state.theta - self.alpha(k) * velocity)  # x_i ← Σ_j b_ij (x_j − α τ_j)
        theta = x / w_next  # z_i = x_i / w_i^{k+1}
        grad = yield Draw(gradient, theta)  # ∇L_i(z_i^{k+1})
        tau = yield Columns(state.tau + grad - state.grad)  # τ_i ← Σ_j b_ij (τ_j + ∇L_j^{k+1} − ∇L_j^k)
        return Tracking(theta, tau, grad, velocity if self.momentum else None)
