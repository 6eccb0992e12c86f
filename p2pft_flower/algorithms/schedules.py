"""Learning-rate schedules: iteration k ↦ α_k, the same on every peer.

A constant α keeps stochastic methods within a noise ball of radius O(α) of their fixed point; a
schedule that decays lets the ball shrink. None of them moves the fixed point of an exact method, nor that
of local. Those of dgd and sgp depend on α (their bias is O(α)), so they move towards their limits as α_k
falls.
"""

from __future__ import annotations

import math

from p2pft_flower.algorithms.seam import Schedule
from p2pft_flower.errors import ConfigError

__all__ = ["SCHEDULES", "make_schedule"]

SCHEDULES = ("constant", "cosine", "step:EVERY:FACTOR")


def make_schedule(spec: str, alpha: float, iterations: int) -> Schedule:
    """Build a schedule from its run-config value.

    Parameters
    ----------
    spec : str
        ``"constant"``: α_k = α. ``"cosine"``: α_k = α (1 + cos(π k / K)) / 2 over the K iterations of the
        run. ``"step:EVERY:FACTOR"``: α times FACTOR each EVERY iterations, e.g. ``"step:100:0.5"``.
    alpha : float
        Learning rate α > 0.
    iterations : int
        Length K of the run (used by ``cosine``).

    Raises
    ------
    ConfigError
        When ``spec`` has none of these forms, or α is not a positive number.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"learning-rate = {alpha}: must be a positive number")
    kind, *arguments = spec.split(":")
    if kind == "constant" and not arguments:
        return lambda k: alpha  # noqa: ARG005 - a schedule is a function of k
    if kind == "cosine" and not arguments:
        return lambda k: alpha * 0.5 * (1 + math.cos(math.pi * min(k, iterations) / max(iterations, 1)))
    if kind == "step" and len(arguments) == 2:
        try:
            every, factor = int(arguments[0]), float(arguments[1])
        except ValueError:
            every, factor = 0, 0.0
        if every >= 1 and 0 < factor <= 1:
            return lambda k: alpha * factor ** (k // every)
        raise ConfigError(
            f"schedule = {spec!r}: EVERY is a whole number >= 1 and FACTOR in (0, 1], as step:100:0.5"
        )
    raise ConfigError(f"schedule = {spec!r} is unknown; choose one of {', '.join(SCHEDULES)}")
