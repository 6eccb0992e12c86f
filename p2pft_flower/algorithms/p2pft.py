"""P2P-FT (Algorithm 1 of the paper): weight mixing by A, gradient tracking by B.

    τ_i^0     = ∇L_i(θ_i^0)
    θ_i^{k+1} ← Σ_j a_ij (θ_j^k − α τ_j^k)                    line 2
    g_i^{k+1} ← ∇L_i(θ_i^{k+1}), a fresh mini-batch           lines 3, 4
    τ_i^{k+1} ← Σ_j b_ij (τ_j^k + g_j^{k+1} − g_j^k)          line 5

Fixed point, with full gradients: B is column stochastic, so Σ τ = Σ g at every k; at rest all θ_i agree and
τ = 0, hence Σ ∇L_i(θ) = 0: exact for (1/n) Σ L_i on every strongly connected directed graph. Mini-batches
with a constant α reach a neighbourhood of it, whose size depends on their noise and on the graph (arXiv
2604.08219). ``momentum`` (heavy ball on τ_i, never sent) leaves that point as it is, for τ = 0 there, and so
does any schedule. Weight decay λ moves it to the minimiser of the mean loss + λ/2 ‖θ‖², and
``objective = "examples"`` to that of the image-weighted mean Σ (N_i / N) L_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from p2pft_flower.algorithms.seam import Columns, Draw, Gradient, Rows, Schedule, Step, Vector, heavy_ball

__all__ = ["P2PFT", "Tracking"]


class Tracking(NamedTuple):
    """State of a gradient-tracking method: θ_i, τ_i, the tracked gradient, and heavy ball's v_i; all (q,).

    ``velocity`` is None without heavy ball and before the first iteration.
    """

    theta: Vector
    tau: Vector
    grad: Vector
    velocity: Vector | None = None


@dataclass(frozen=True)
class P2PFT:
    """Algorithm 1; see the module for its equations and fixed point."""

    alpha: Schedule
    momentum: float = 0.0

    phases: ClassVar[tuple[str, ...]] = ("theta", "tau")

    def start(self, theta: Vector, gradient: Gradient) -> Tracking:
        """Return the first state: τ_i^0 = g_i^0 = ∇L_i(θ_i^0)."""
        grad = gradient(theta)
        return Tracking(theta, tau=grad, grad=grad)

    def step(self, k: int, state: Tracking, gradient: Gradient) -> Step[Tracking]:
        """Run one iteration of Algorithm 1."""
        velocity = heavy_ball(self.momentum, state.velocity, state.tau)
        theta = yield Rows(state.theta - self.alpha(k) * velocity)  # θ_i ← Σ_j a_ij (θ_j − α τ_j)
        grad = yield Draw(gradient, theta)  # g_i^{k+1}, a fresh mini-batch
        tau = yield Columns(state.tau + grad - state.grad)  # τ_i ← Σ_j b_ij (τ_j + g_j^{k+1} − g_j^k)
        return Tracking(theta, tau, grad, velocity if self.momentum else None)
