"""Mix vectors by way of encoded differences, which both ends of an edge remember.

    d_i = C(x_i − h_i)            the sender encodes its vector's difference from h_i, which receivers know
    h_i ← h_i + d_i               the receivers' new knowledge of x_i, at the sender
    s_i ← s_i + Σ_j w_ij d_j      the receiver's new knowledge of its in-neighbours: s_i = Σ_j w_ij h_j
    x_i ← x_i − γ (h_i − s_i)     W = A in an exchange by rows, W = B in one by columns

C is any codec, h and s begin at zero, γ in (0, 1]. With C(x) = x and γ = 1 this is x_i ← Σ_j w_ij x_j. The
columns of B sum to one, so Σ s = Σ h and Σ x is preserved for any loss of C: Σ τ = Σ g for any codec. When
the vectors come to rest, differences vanish, and with them the loss by a relative error. So the fixed point
is that of the method over (1 − γ) I + γ W. That of p2pft and gt-dgd is the same for every W. Those of dgd
and sgp are not: their bias grows from O(α) to O(α / γ).

Sources: Song, Shi, Pu and Yan, arXiv 2106.07243 (compressed push-pull); Zhao et al., arXiv 2201.13320 (BEER);
Liao et al., arXiv 2205.12623.

Each exchange of an iteration has a memory of its own. Where weights change, each exchange of a period has
one: in all iterations of a turn a vector goes to the same receivers, with the same W, and rests at the same
value, which may differ from turn to turn (push-sum's does). A change of view begins all of them again at
zero.
Memories are float64, whatever the vectors are: what is rounded off Σ s = Σ h stays there and is added to Σ x
in every later iteration, so with float32 Σ τ would drift away from Σ g as iterations^1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from p2pft_flower.algorithms.codecs import Codec, relative_error
from p2pft_flower.algorithms.seam import Vector
from p2pft_flower.errors import ConfigError
from p2pft_flower.topology import Graph

__all__ = ["Compression", "Encoded", "Memory", "codec_step", "safe_step", "wide"]

_STEPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Values of γ for `safe_step`, times powers of a tenth: a rounding must not make two peers disagree."""


class Memory(NamedTuple):
    """The memory of one exchange of one peer; both vectors are (q,), float64.

    Attributes
    ----------
    known : Vector
        h_i, the approximation of the peer's vector that its out-neighbours have.
    mixed : Vector
        s_i = Σ_j w_ij h_j, summed over the in-neighbours j and the peer itself.
    """

    known: Vector
    mixed: Vector

    @classmethod
    def blank(cls, like: Vector) -> Memory:
        """Return the memory with which a view begins: zero, since nobody knows anything."""
        return cls(np.zeros(like.shape), np.zeros(like.shape))


class Encoded(NamedTuple):
    """A difference on its way.

    Attributes
    ----------
    payload : bytes
        d_i in the codec's bytes.
    vector : Vector
        d_i, (q,), float64, as every receiver decodes the payload.
    """

    payload: bytes
    vector: Vector


@dataclass(frozen=True)
class Compression:
    """The codec of a run and its step; pure functions of vectors and memories.

    Attributes
    ----------
    codec : Codec
        C.
    step : float
        γ in (0, 1].
    """

    codec: Codec
    step: float

    def __post_init__(self) -> None:
        if not 0.0 < self.step <= 1.0:
            raise ValueError(f"γ = {self.step}: must be in (0, 1]")

    def encode(self, vector: Vector, known: Vector) -> Encoded:
        """Return d = C(x − h).

        Parameters
        ----------
        vector : (q,) array
            x, the peer's vector.
        known : (q,) array
            h, the receivers' knowledge of x.
        """
        payload = self.codec.encode((vector - known).astype(vector.dtype, copy=False))
        return Encoded(payload, wide(self.codec.decode(payload, vector.size, vector.dtype)))

    def mix(self, vector: Vector, memory: Memory, own: Vector, sum_: Vector) -> tuple[Vector, Memory]:
        """Return the mixed vector, (q,), and the next memory.

        Parameters
        ----------
        vector : (q,) array
            x_i.
        memory : Memory
            The memory with which d_i was encoded.
        own, sum_ : (q,) array
            d_i and Σ_j w_ij d_j, float64.
        """
        memory = Memory(memory.known + own, memory.mixed + sum_)
        mixed = vector - self.step * (memory.known - memory.mixed)
        return mixed.astype(vector.dtype, copy=False), memory


def wide(vector: Vector) -> Vector:
    """Return a difference, (q,), in float64, in which memories are added up."""
    return vector.astype(np.float64, copy=False)


def codec_step(codec: Codec | None, wanted: float, graph: Graph) -> float:
    """Return γ over ``graph``: ``wanted``, or :func:`safe_step` if that is 0; 0 if there is no codec."""
    if codec is None:
        return 0.0
    return wanted or safe_step(graph, codec)


def safe_step(graph: Graph, codec: Codec) -> float:
    """Return the γ with which disagreement and codec error shrink fastest together.

    Let ρ(γ) be the second largest modulus of the eigenvalues of (1 − γ) I + γ W, β the largest of those of
    I − W, and ε the codec's relative error. Disagreement x̃ and an error e in any direction obey, on average,

        ‖x̃⁺‖² ≤ ρ(γ)² ‖x̃‖² + (γ β)² ‖e‖²,    ‖e⁺‖² ≤ ε² ((γ β)² ‖x̃‖² + (1 + γ β)² ‖e‖²)

    and γ makes the spectral radius of this pair of inequalities least, for A or for B, whichever is larger.
    Where weights change, ρ is the mean over a period, the T-th root of that of the product of all T, and β
    the largest of any turn.

    Parameters
    ----------
    graph : Graph
        The view's graph.
    codec : Codec
        The codec, whose ε is measured (:func:`~p2pft_flower.algorithms.codecs.relative_error`).

    Returns
    -------
    float
        γ in (0, 1], with one significant digit.

    Raises
    ------
    ConfigError
        When ε is not below 1: no γ is safe then.
    """
    error = relative_error(codec)
    if not error < 1:
        raise ConfigError(
            f"codec: it loses {error:.2g} of a vector, and has to lose less than 1, so that neighbours come "
            "to know a peer's vector; change what it returns, or set codec-step, a small one"
        )
    turns = [graph.turn(k) for k in range(graph.period)]
    both = [
        (weights, [_others(each) for each in weights])
        for weights in ([turn.A for turn in turns], [turn.B for turn in turns])
    ]

    def radius(step: float) -> float:
        return max(_radius(step, weights, others, error) for weights, others in both)

    steps = (digit * 10.0**-power for power in range(4) for digit in _STEPS)
    return min(steps, key=lambda step: (round(radius(step), 6), -step))


def _others(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the eigenvalues of A or B, or of a product of them, without the one that is 1."""
    eigenvalues = np.linalg.eigvals(weights)
    return np.delete(eigenvalues, np.argmin(np.abs(eigenvalues - 1)))


def _radius(
    step: float, turns: Sequence[npt.NDArray[Any]], others: Sequence[npt.NDArray[Any]], error: float
) -> float:
    if not others[0].size:
        return 0.0
    if len(turns) == 1:  # the product is one matrix, whose eigenvalues are known
        around = 1 - step + step * others[0]
    else:
        eye = np.eye(len(turns[0]))
        around = _others(reduce(lambda done, each: ((1 - step) * eye + step * each) @ done, turns, eye))
    shrinks = float(np.abs(around).max()) ** (1 / len(turns))
    moves = step * max(float(np.abs(1 - each).max()) for each in others)
    pair = np.array([[shrinks, moves], [error * moves, error * (1 + moves)]]) ** 2
    return float(np.abs(np.linalg.eigvals(pair)).max())
