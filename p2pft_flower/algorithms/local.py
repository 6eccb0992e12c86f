"""Local-FT: every peer fine-tunes alone; the paper's lower yardstick.

    θ_i^{k+1} = θ_i^k − α ∇L_i(θ_i^k)

Fixed point: the minimiser of the peer's own loss. ``momentum`` and schedules leave it; weight decay λ
adds λ/2 ‖θ‖² to the local loss. ``objective`` does nothing, since nobody's loss is weighed against another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2pft_flower.algorithms.dgd import Descent
from p2pft_flower.algorithms.seam import Draw, Gradient, Schedule, Step, Vector, heavy_ball

__all__ = ["Local"]


@dataclass(frozen=True)
class Local:
    """Gradient descent without any exchange; see the module."""

    alpha: Schedule
    momentum: float = 0.0

    phases: ClassVar[tuple[str, ...]] = ()

    def start(self, theta: Vector, gradient: Gradient) -> Descent:  # noqa: ARG002 - the seam's signature
        """Return the first state: θ_i^0."""
        return Descent(theta)

    def step(self, k: int, state: Descent, gradient: Gradient) -> Step[Descent]:
        """Make one gradient step; exchange nothing."""
        grad = yield Draw(gradient, state.theta)
        velocity = heavy_ball(self.momentum, state.velocity, grad)
        theta = state.theta - self.alpha(k) * velocity  # θ_i ← θ_i − α ∇L_i(θ_i)
        return Descent(theta, velocity if self.momentum else None)
