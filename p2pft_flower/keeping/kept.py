"""The best θ of a peer so far, by validation scores: what a checkpoint has of it, and what results tell."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec
import numpy.typing as npt

from p2pft_flower.typed import Count

__all__ = ["Best", "BestFacts", "Kept"]

_Evaluated = Annotated[int, msgspec.Meta(ge=-1, le=2**53)]
"""Number of iterations after which peers were scored; -1: never."""


class BestFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A :class:`Best` in the document of a checkpoint; its θ is a tensor of the file."""

    decided: _Evaluated
    iteration: _Evaluated
    score: float


class Best(NamedTuple):
    """What a peer keeps of the evaluations that were decided on.

    Attributes
    ----------
    decided : int
        Number of iterations after which the last evaluation was that counts; -1 before the first one.
    iteration : int
        Number of iterations after which θ was the best so far; -1 if there is none yet.
    score : float
        The mean of the sites' validation scores there; 0 if there is none yet.
    theta : (q,) array or None
        The peer's own θ there; None if it has none, as it was not there then.
    """

    decided: int = -1
    iteration: int = -1
    score: float = 0.0
    theta: npt.NDArray[Any] | None = None

    @property
    def facts(self) -> BestFacts:
        """All but θ."""
        return BestFacts(decided=self.decided, iteration=self.iteration, score=self.score)


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What results tell of the θ that a peer has kept, which is that of its tail and its last scores.

    Attributes
    ----------
    by : str
        The score that chose: ``balanced-accuracy`` or ``loss``.
    iteration : int
        Number of iterations after which it was the peers' θ.
    score : float
        The mean of the sites' validation scores there.
    own : bool
        Whether the peer has its θ of that iteration; False: it was not there then, and its tail and scores
        are those of its last θ.
    """

    by: str
    iteration: Count
    score: float
    own: bool = True

    def is_earlier(self, iterations: int) -> bool:
        """Return whether the peer ends with a θ of its own from before its last of ``iterations``."""
        return self.own and self.iteration < iterations
