"""P2P-FT with K local steps an iteration, each corrected by the tracker.

    z_i^0     = τ_i^0 = ∇L_i(θ_i^0)
    c_i       = τ_i^k / w_i − z_i^k                            global gradient less the peer's own
    φ_i       ← φ_i − α (∇L_i(φ_i) + c_i)                      K times from φ_i = θ_i^k, fresh mini-batches
    z_i^{k+1} = the mean of these K gradients
    θ_i^{k+1} ← Σ_j a_ij φ_j
    τ_i^{k+1} ← Σ_j b_ij (τ_j^k + z_j^{k+1} − z_j^k)

One iteration sends as many bytes as one of :mod:`~p2pft_flower.algorithms.p2pft` and makes K steps. Both of
its vectors are known before either is mixed, so they travel in one payload, with one latency. Source: K-GT
(Liu et al., arXiv 2301.01313) for one doubly stochastic W; with A and B it is this project's adaptation.

w_i is the limit of τ_i in mean gradients: n π_i with B π = π. On a graph whose B is not doubly stochastic
trackers differ by these factors (0.3 to 2.6 on lopsided-4). For one step along τ_i that is no harm, since θ
is mixed at once; but in K steps in a row, a peer with w_i = 2.6 would go as far as in 2.6 K.
:attr:`~p2pft_flower.topology.Graph.tracker_weights` follows from the graph, so nothing is sent for it. Where
weights change with the iteration, so does w_i (:mod:`p2pft_flower.topology.turn`).

Fixed point, with full gradients: as for p2pft. Σ τ = Σ z at every k; at rest all φ_i of an iteration are the
same point θ, so z_i = ∇L_i(θ), the direction ∇L_i(θ) + c_i = τ_i / w_i is zero, and Σ ∇L_i(θ) = 0.
``momentum`` (heavy ball on the corrected gradients, never sent), schedules, weight decay and ``objective``
act as for p2pft; a schedule counts iterations. Convergence bounds K α, not α.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from p2pft_flower.algorithms.p2pft import Tracking
from p2pft_flower.algorithms.seam import (
    Both,
    Draw,
    Gradient,
    Request,
    Schedule,
    Step,
    Vector,
    heavy_ball,
)

__all__ = ["LocalSteps"]


@dataclass(frozen=True)
class LocalSteps:
    """K = ``local_steps`` corrected steps an iteration; w_i is ``tracker_weight``; see the module."""

    alpha: Schedule
    momentum: float = 0.0
    local_steps: int = 1
    tracker_weight: float = 1.0

    phases: ClassVar[tuple[str, ...]] = ("theta and tau",)
    vectors_per_payload: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.local_steps < 1:
            raise ValueError(f"local-steps = {self.local_steps}: must be a whole number >= 1")

    @property
    def gradients_per_step(self) -> int:
        """K, the number of gradients that one iteration draws."""
        return self.local_steps

    def placed(self, tracker_weight: float, next_weight: float) -> LocalSteps:  # noqa: ARG002 - the seam's
        """Return the method for a peer whose w_i is ``tracker_weight``."""
        return replace(self, tracker_weight=tracker_weight)

    def start(self, theta: Vector, gradient: Gradient) -> Tracking:
        """Return the first state: z_i^0 = τ_i^0 = ∇L_i(θ_i^0)."""
        grad = gradient(theta)
        return Tracking(theta, tau=grad, grad=grad)

    def step(self, k: int, state: Tracking, gradient: Gradient) -> Step[Tracking]:
        """Run one iteration; ``grad`` of the state is z_i."""
        phi, grad, velocity = yield from self.adapt(k, state, gradient)
        # θ_i ← Σ_j a_ij φ_j and τ_i ← Σ_j b_ij (τ_j + z_j^{k+1} − z_j^k)
        theta, tau = yield Both(phi, state.tau + grad - state.grad)
        return Tracking(theta, tau, grad, velocity)

    def adapt(
        self, k: int, state: Tracking, gradient: Gradient
    ) -> Generator[Request, Any, tuple[Vector, Vector, Vector | None]]:
        """Make the K local steps; return φ_i, z_i^{k+1} and the heavy-ball direction (None without); (q,)."""
        correction = state.tau / self.tracker_weight - state.grad  # c_i = τ_i / w_i − z_i
        phi, velocity, grad = state.theta, state.velocity, np.zeros_like(state.grad)
        for _ in range(self.local_steps):
            drawn = yield Draw(gradient, phi)
            velocity = heavy_ball(self.momentum, velocity, drawn + correction)
            phi = phi - self.alpha(k) * velocity  # φ_i ← φ_i − α (∇L_i(φ_i) + c_i)
            grad = grad + drawn / self.local_steps  # z_i^{k+1}, the mean of all of them
        return phi, grad, velocity if self.momentum else None
