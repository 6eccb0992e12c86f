"""What a host needs to know of a learning problem: gradients, scores, and names for the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["Objective", "OwnProblem", "Problem", "Score"]

Vector = npt.NDArray[Any]


class Score(Protocol):
    """What an evaluation returns."""

    @property
    def loss(self) -> float:
        """Mean loss on the test split; not a number where the peer has no test image."""
        ...

    @property
    def accuracy(self) -> float:
        """Share of all test images classified right, 0..1; not a number where the peer has none."""
        ...

    @property
    def accuracy_unseen(self) -> float | None:
        """The same on the classes the peer holds no image of; None where it holds all."""
        ...


class Objective(Protocol):
    """One peer's loss: fresh mini-batch gradients, and scores."""

    def gradient(self, theta: Vector) -> Vector:
        """Return a gradient on the next mini-batch, (q,)."""
        ...

    def evaluate(self, theta: Vector) -> Score:
        """Score ``theta``."""
        ...

    def position(self) -> Callable[[], dict[str, Any]]:
        """Take note of where the data order is now; what is returned says it (JSON-able) when it is called.

        Two steps, since this is asked for after every iteration, and what it says is needed rarely.
        """
        ...

    def go_to(self, position: Mapping[str, Any], lost: int) -> None:
        """Go on from where another objective of the same peer was, in whatever process.

        Parameters
        ----------
        position : mapping
            What :meth:`position` said.
        lost : int
            Gradients at most that the other one drew after that; neighbours may know what came of them.
        """
        ...

    def privacy_spent(self) -> tuple[float, float] | None:
        """Return (ε, δ) of all gradients so far; None where they are not differentially private."""
        ...


class Problem(Protocol):
    """What the peers learn; :class:`~p2pft_flower.learning.workload.Workload` is one."""

    @property
    def theta0(self) -> Vector:
        """θ^0 (q,), the same on all peers."""
        ...

    @property
    def model_digest(self) -> str:
        """Digest of the frozen weights and θ^0; equal on all peers.

        Neighbours compare it before they train, or ``meeting_digest``, where a problem has that: a digest of
        all that must be equal on all peers.
        """
        ...

    @property
    def model_parameters(self) -> int:
        """Number of parameters of the whole model, the frozen ones included."""
        ...

    def objectives(self, peers: Sequence[int], progress: Callable[[], None]) -> Mapping[int, Objective]:
        """Build the objectives of ``peers``, and call ``progress`` whenever a piece of that is done."""
        ...

    def named_tail(self, theta: Vector) -> Mapping[str, Any]:
        """Return θ as named tensors."""
        ...

    def metadata(self) -> Mapping[str, str]:
        """Return what is needed to load a tail again."""
        ...


class OwnProblem(Problem, Protocol):
    """What ``problem = my_module:my_problem`` returns: a :class:`Problem` that also counts its samples.

    It may also have ``theta_from(tensors)``, the inverse of :meth:`Problem.named_tail`, with which
    ``p2pft evaluate`` scores its tails, and ``data_digest(peer)``, a text by which a peer's samples are known
    again where a run is resumed. docs/extending.md has an example.
    """

    def samples(self, peer: int) -> int:
        """Return how many samples ``peer`` trains on; epochs and ``objective = "examples"`` count them."""
        ...
