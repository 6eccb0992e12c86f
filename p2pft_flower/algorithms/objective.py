"""The local objective that a method minimises: the peer's loss, its weight, and weight decay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2pft_flower.algorithms.seam import Gradient, Vector
from p2pft_flower.errors import ConfigError

__all__ = ["OBJECTIVES", "local_objective", "of_objective", "peer_weights"]

OBJECTIVES = ("uniform", "examples")


def peer_weights(objective: str, examples: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the factor of each peer's loss, with mean one.

    Parameters
    ----------
    objective : {"uniform", "examples"}
        ``uniform`` (the paper): minimise (1/n) Σ_i L_i, every peer counts the same. ``examples``:
        minimise Σ_i (N_i / N) L_i, every image counts the same; the fixed point of each exact method is
        then that of training on the union of the images.
    examples : sequence of int
        N_i, number of training images of each peer.

    Returns
    -------
    (n,) float64 array
        1 for ``uniform``; n N_i / N for ``examples``, so that a learning rate has the same effect with both.

    Raises
    ------
    ConfigError
        When ``objective`` is neither of these, or no peer has an image.
    """
    counts = np.asarray(examples, dtype=np.float64)
    if objective == "uniform":
        return np.ones_like(counts)
    if objective == "examples":
        if counts.sum() <= 0:
            raise ConfigError("objective = 'examples': the peers hold no images at all")
        return np.asarray(counts * len(counts) / counts.sum())
    raise ConfigError(f"objective = {objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}")


def local_objective(gradient: Gradient, *, weight: float = 1.0, weight_decay: float = 0.0) -> Gradient:
    """Return θ ↦ w ∇L_i(θ) + λ θ, the gradient of w L_i + λ/2 ‖θ‖².

    Weight decay is part of the objective (L2), not of the step, so that trackers track it: the exact
    methods converge to the minimiser of the mean loss + λ/2 ‖θ‖².

    Parameters
    ----------
    gradient : callable
        ∇L_i.
    weight : float
        The peer's factor w from :func:`peer_weights`.
    weight_decay : float
        λ ≥ 0.
    """
    if weight == 1.0 and weight_decay == 0.0:
        return gradient
    return lambda theta: of_objective(gradient(theta), theta, weight=weight, weight_decay=weight_decay)


def of_objective(
    gradient: Vector, theta: Vector, *, weight: float = 1.0, weight_decay: float = 0.0
) -> Vector:
    """Return w ∇L_i + λ θ from ∇L_i at ``theta``, each (q,): see :func:`local_objective`."""
    if weight != 1.0:
        gradient = weight * gradient
    if weight_decay != 0.0:
        gradient = gradient + weight_decay * theta
    return gradient
