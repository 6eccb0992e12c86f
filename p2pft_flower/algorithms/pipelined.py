"""P2P-FT that computes while its payload travels: mix, then adapt; ``pipelined = true``.

    z_i^0     = τ_i^0 = ∇L_i(θ_i^0)
    c_i       = τ_i^k / w_i − z_i^k                            global gradient less the peer's own
    φ_i       ← φ_i − α (∇L_i(φ_i) + c_i)                      K times from φ_i = θ_i^k, fresh mini-batches
    z_i^{k+1} = the mean of these K gradients
    θ_i^{k+1} = Σ_j a_ij θ_j^k + (φ_i − θ_i^k)
    τ_i^{k+1} = Σ_j b_ij τ_j^k + (z_i^{k+1} − z_i^k)

Only θ^k and τ^k are sent, which are there when the iteration begins. So the K gradients are drawn while
both are under way, in one payload: an iteration takes as long as the slower of the two.
:mod:`~p2pft_flower.algorithms.local_steps` adapts, then mixes, and takes as long as both. Nothing is under
way between two iterations, so a checkpoint is the state, as for every method. w_i is n π_i, as in that
module. Source: DGD as Nedić and Ozdaglar (2009) write it, and DIGing (Nedić, Olshevsky and Shi, arXiv
1607.03218), draw gradients at the vector that is sent; DIGing steps along the tracker that was mixed. Steps
along the peer's own tracker, A, B and K steps are this project's adaptation.

Fixed point, with full gradients: as for p2pft. Σ τ = Σ z at every k. At rest z does not change, so τ = B τ
is a multiple c of w, and c_i + ∇L_i = c at every step: φ_i − θ_i = −K α c for every peer. The sum of θ = A
θ + (φ − θ), weighted by A's left eigenvector, leaves K α c = 0, so c = 0; then θ = A θ, all agree, and Σ
∇L_i(θ) = 0. The method needs a smaller α than p2pft, since a step is not averaged before the next gradient
is drawn. ``momentum`` (heavy ball on the corrected gradients, never sent), schedules, weight decay and
``objective`` act as for p2pft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2pft_flower.algorithms.local_steps import LocalSteps
from p2pft_flower.algorithms.p2pft import Tracking
from p2pft_flower.algorithms.seam import Both, Gradient, Send, Step, Take

__all__ = ["Pipelined"]


@dataclass(frozen=True)
class Pipelined(LocalSteps):
    """K corrected steps an iteration, drawn while θ and τ travel; see the module."""

    phases: ClassVar[tuple[str, ...]] = ("theta and tau",)

    def step(self, k: int, state: Tracking, gradient: Gradient) -> Step[Tracking]:
        """Run one iteration; ``grad`` of the state is z_i."""
        yield Send(Both(state.theta, state.tau))
        phi, grad, velocity = yield from self.adapt(k, state, gradient)
        theta, tau = yield Take()
        return Tracking(theta + (phi - state.theta), tau + (grad - state.grad), grad, velocity)
