"""DGD (equation 1 of the paper; Kar et al., 2012): mix what neighbours hold after a local step.

    θ_i^{k+1} ← Σ_j w_ij (θ_j^k − α ∇L_j(θ_j^k))

With W = A, the receivers' weights. Fixed point: not a minimiser of the mean loss. Each peer is pulled to
its own data with force O(α), and on a graph whose A is not doubly stochastic the peers count by A's
left eigenvector instead of equally. ``momentum`` β acts as a step of α / (1 − β): the bias is that of the
longer step. A decaying schedule shrinks the O(α) part and leaves the eigenvector's.
Weight decay λ adds λ/2 ‖θ‖² to every local loss; ``objective = "examples"`` weighs each local loss by its
images, and the same bias then surrounds the image-weighted optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from p2pft_flower.algorithms.seam import Draw, Gradient, Rows, Schedule, Step, Vector, heavy_ball

__all__ = ["DGD", "Descent"]


class Descent(NamedTuple):
    """State of a method without a tracker: θ_i, and heavy ball's v_i (None without); both (q,)."""

    theta: Vector
    velocity: Vector | None = None


@dataclass(frozen=True)
class DGD:
    """Equation 1; see the module for its fixed point."""

    alpha: Schedule
    momentum: float = 0.0

    phases: ClassVar[tuple[str, ...]] = ("theta",)

    def start(self, theta: Vector, gradient: Gradient) -> Descent:  # noqa: ARG002 - the seam's signature
        """Return the first state: θ_i^0."""
        return Descent(theta)

    def step(self, k: int, state: Descent, gradient: Gradient) -> Step[Descent]:
        """Run one iteration of equation 1."""
        grad = yield Draw(gradient, state.theta)
        velocity = heavy_ball(self.momentum, state.velocity, grad)
        theta = yield Rows(state.theta - self.alpha(k) * velocity)  # θ_i ← Σ_j w_ij (θ_j − α ∇L_j(θ_j))
        return Descent(theta, velocity if self.momentum else None)
