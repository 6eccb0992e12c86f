"""The distance of the peers from each other, estimated from sketches: nobody needs to see a θ.

A peer reports a CountSketch (Charikar, Chen and Farach-Colton, 2002): 128 sums of the entries of θ_i with
random signs. Sketches are linear and keep squared distances on average, so the consensus error of the
sketches estimates that of the peers, with a relative deviation of about 1/√(2·128) = 6 %; it is exactly
zero if all θ_i are equal.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["SIZE", "Sketcher", "consensus_error", "decode", "encode"]

SIZE = 128
"""Number of numbers in a sketch, so that a report does not grow with q."""

Sketch = npt.NDArray[np.float32]


class Sketcher:
    """Sketches vectors of ``length`` numbers, with signs and places that are drawn alike on every peer.

    Parameters
    ----------
    length : int
        The length q of the vectors.
    """

    def __init__(self, length: int) -> None:
        rng = np.random.default_rng(length)
        self._place = rng.integers(SIZE, size=length, dtype=np.uint8)
        self._sign = rng.integers(2, size=length, dtype=np.int8) * 2 - 1

    def __call__(self, theta: npt.NDArray[np.floating]) -> Sketch:
        """Return the sketch, (128,) float32, of ``theta`` (q,)."""
        return np.bincount(self._place, weights=self._sign * theta.astype(np.float64), minlength=SIZE).astype(
            np.float32
        )


def consensus_error(sketches: Sequence[Sketch]) -> float:
    """Return an estimate of sqrt((1/n) Σ ‖θ_i − θ̄‖²) from the peers' sketches, (128,) each.

    If a θ_i is not finite, the estimate is not finite either.
    """
    stacked = np.stack(sketches).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # of a θ that is not finite it is not either
        return float(np.sqrt(((stacked - stacked.mean(axis=0)) ** 2).sum(axis=1).mean()))


def encode(sketch: npt.ArrayLike) -> str:
    """Return a sketch, (128,), as text for JSON: base64 of little-endian float32."""
    return base64.b64encode(np.asarray(sketch, dtype="<f4").tobytes()).decode("ascii")


def decode(text: str) -> Sketch:
    """Return the sketch, (128,) float32, of a text that :func:`encode` returned."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4")
