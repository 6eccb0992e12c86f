"""Centralised fine-tuning: one model on all data; a yardstick, for peers never pool data.

    θ^{k+1} = θ^k − α ∇L(θ^k)

``pooled`` asks its caller to put all peers' data in one place: :func:`simulate` averages their gradients, the
Flower app gives one peer all the images. An iteration sees as many images as n peers do: with
``objective = "uniform"`` the very mini-batches that they would draw, with ``"examples"`` n times the batch
from the union. Fixed point: the minimiser of the mean loss over peers, or over images.
``momentum``, schedules and weight decay act as for local.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2pft_flower.algorithms.dgd import Descent
from p2pft_flower.algorithms.seam import Draw, Gradient, Schedule, Step, Vector, heavy_ball

__all__ = ["Centralized"]


@dataclass(frozen=True)
class Centralized:
    """Gradient descent on the pooled data; see the module."""

    alpha: Schedule
    momentum: float = 0.0

    phases: ClassVar[tuple[str, ...]] = ()
    pooled: ClassVar[bool] = True

    def start(self, theta: Vector, gradient: Gradient) -> Descent:  # noqa: ARG002 - the seam's signature
        """Return the first state: θ^0."""
        return Descent(theta)

    def step(self, k: int, state: Descent, gradient: Gradient) -> Step[Descent]:
        """Make one gradient step; exchange nothing."""
        grad = yield Draw(gradient, state.theta)
        velocity = heavy_ball(self.momentum, state.velocity, grad)
        theta = state.theta - self.alpha(k) * velocity  # θ ← θ − α ∇L(θ)
        return Descent(theta, velocity if self.momentum else None)
