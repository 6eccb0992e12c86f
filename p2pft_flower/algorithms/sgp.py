"""SGP, stochastic gradient push (arXiv 1811.10792): models shared out by B, push-sum undoes the imbalance.

    x_i^{k+1} ← Σ_j b_ij (x_j^k − α ∇L_j(z_j^k))
    w_i^{k+1} ← Σ_j b_ij w_j^k
    z_i^{k+1} = x_i^{k+1} / w_i^{k+1}

Push-sum begins with w^0 = 1 and sends w along each edge; on one graph w tends to n π with B π = π. Here w
begins at this limit, w_i = n π_i and x_i^0 = w_i θ_i^0, and stays there: Σ_j b_ij w_j = w_i. So w is not
sent, z^0 = θ^0, and an iteration exchanges one vector. ``theta`` of the state is z; x is w z.
:attr:`~p2pft_flower.topology.Graph.tracker_weights` gives w, anew in each view. Where weights change with the
iteration, so does w, which begins on the cycle that push-sum tends to (:mod:`p2pft_flower.topology.turn`).

Fixed point, with full gradients: near the minimiser of Σ L_i, in which every peer counts the same on every
strongly connected directed graph: unlike dgd's bias, this one vanishes with α. It is O(α) where the peers'
data differ, since each step moves peer i by α ∇L_i / w_i, and only mixing brings it back: 5 to 20 α on the
tests' quadratics. ``momentum`` β (heavy ball on ∇L_i) acts as a step of α / (1 − β): the bias is that of the
longer step. A decaying schedule shrinks it. Weight decay λ adds λ/2 ‖θ‖² to every local loss;
``objective = "examples"`` weighs each local loss by its images, and the same bias then surrounds the
image-weighted optimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from p2pft_flower.algorithms.dgd import Descent
from p2pft_flower.algorithms.seam import Columns, Draw, Gradient, Schedule, Step, Vector, heavy_ball

__all__ = ["SGP"]


@dataclass(frozen=True)
class SGP:
    """Gradient descent over push-sum; see the module for its fixed point."""

    alpha: Schedule
    momentum: float = 0.0
    tracker_weight: float = 1.0
    next_weight: float = 1.0

    phases: ClassVar[tuple[str, ...]] = ("theta",)

    def placed(self, tracker_weight: float, next_weight: float) -> SGP:
        """Return the method for a peer with w_i^k = ``tracker_weight`` and w_i^{k+1} = ``next_weight``."""
        return replace(self, tracker_weight=tracker_weight, next_weight=next_weight)

    def start(self, theta: Vector, gradient: Gradient) -> Descent:  # noqa: ARG002 - the seam's signature
        """Return the first state: z_i^0 = θ_i^0."""
        return Descent(theta)

    def step(self, k: int, state: Descent, gradient: Gradient) -> Step[Descent]:
        """Run one iteration; ``theta`` of the state is z_i."""
        w, w_next = self.tracker_weight, self.next_weight
        grad = yield Draw(gradient, state.theta)
        velocity = heavy_ball(self.momentum, state.velocity, grad)
        x = yield Columns(w * state.theta - self.alpha(k) * velocity)  # x_i ← Σ_j b_ij (x_j − α ∇L_j(z_j))
        return Descent(x / w_next, velocity if self.momentum else None)  # z_i = x_i / w_i^{k+1}
