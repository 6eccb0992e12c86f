"""The protocols of a learning problem, as a host sees it: gradients, scores, and names for the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy.typing as npt

from p2pft_flower.errors import ConfigError
from p2pft_flower.scores import ClassScores

__all__ = [
    "Device",
    "InFull",
    "Objective",
    "OwnProblem",
    "Problem",
    "Score",
    "Together",
    "ValidationScores",
    "device_of",
    "evaluations",
    "together",
    "validated",
]

Vector = npt.NDArray[Any]


class Score(Protocol):
    """The scores of one evaluation."""

    @property
    def loss(self) -> float:
        """Mean loss on the test split; NaN if the peer has no test image."""
        ...

    @property
    def accuracy(self) -> float:
        """Share of all test images that are classified right, 0..1; NaN if the peer has no test image."""
        ...

    @property
    def accuracy_unseen(self) -> float | None:
        """Share, 0..1, of right answers on the test images of classes of which the peer holds no image.

        None if the peer holds images of all classes.
        """
        ...

    @property
    def accuracy_seen(self) -> float | None:
        """Share, 0..1, of right answers on the other test images; None if there is none."""
        ...


class ValidationScores(Protocol):
    """The scores of one θ on the training images that a peer holds out (``keep = best:…``)."""

    @property
    def loss(self) -> float:
        """Mean loss."""
        ...

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean, over the classes of these images, of the share of right answers, 0..1; None: undefined."""
        ...


class Objective(Protocol):
    """One peer's loss: fresh mini-batch gradients, and scores."""

    def gradient(self, theta: Vector) -> Vector:
        """Return the gradient at ``theta`` on the next mini-batch, (q,)."""
        ...

    def evaluate(self, theta: Vector) -> Score:
        """Return the scores of ``theta`` on the peer's test images."""
        ...

    def position(self) -> Callable[[], dict[str, Any]]:
        """Record the position in the data order; return a function that returns this position for JSON.

        There are two steps because a position is recorded after every iteration, and its values are needed
        rarely.
        """
        ...

    def go_to(self, position: Mapping[str, Any], lost: int) -> None:
        """Continue at the position that another objective of the same peer recorded, in any process.

        Parameters
        ----------
        position : mapping
            The other objective's :meth:`position`.
        lost : int
            Largest number of gradients that the other objective may have drawn after ``position``. They count
            towards ε if the noise is drawn anew; if it comes from the seed, the same gradients come again and
            cost nothing more.
        """
        ...

    def privacy_spent(self) -> tuple[float, float] | None:
        """Return (ε, δ) of all gradients so far; None if the gradients are not differentially private."""
        ...


class InFull(Protocol):
    """One evaluation with all that is known of it."""

    @property
    def score(self) -> Score:
        """The scores of every evaluation."""
        ...

    @property
    def class_scores(self) -> ClassScores | None:
        """The scores by class; None if the peer has no test image."""
        ...

    @property
    def predictions(self) -> Iterator[Sequence[str]] | None:
        """The rows of a table of the answers, the header first; None of a problem without classes."""
        ...


class _Plain(NamedTuple):
    """One evaluation of which no more is known than its scores: an :class:`InFull`."""

    score: Score
    class_scores: ClassScores | None = None
    predictions: Iterator[Sequence[str]] | None = None


def evaluations(
    problem: Problem,
    objectives: Mapping[int, Objective],
    thetas: Mapping[int, Vector],
    *,
    full: bool,
    progress: Callable[[], None],
) -> Iterator[Mapping[int, InFull]]:
    """Yield the scores of the peers in ``thetas``, in their order, some peers at a time.

    A problem may have ``evaluate_together``, with these arguments but the first, for peers that share test
    images. Other peers are scored one by one; an objective may have ``evaluate_in_full(theta)`` beside
    ``evaluate``, which returns an :class:`InFull`. A problem of the user's own has neither.

    Parameters
    ----------
    problem : Problem
        The problem, of which the objectives are.
    objectives : mapping of int to Objective
        Each peer's objective.
    thetas : mapping of int to (q,) array
        The θ of each peer that is scored.
    full : bool
        Whether scores by class and predictions are wanted, of problems that have them.
    progress : callable
        Called when a part of the work is done.
    """
    together = getattr(problem, "evaluate_together", None)
    if together is not None and len(thetas) > 1:
        yield from together(objectives, thetas, full=full, progress=progress)
        return
    for peer, theta in thetas.items():
        in_full = getattr(objectives[peer], "evaluate_in_full", None) if full else None
        yield {peer: _Plain(objectives[peer].evaluate(theta)) if in_full is None else in_full(theta)}
        progress()


def validated(objective: Objective, theta: Vector) -> ValidationScores | None:
    """Return the scores of ``theta``, (q,), on the peer's validation images; None if the peer has none.

    Raises
    ------
    ConfigError
        If the objective has no validation images to score on, as that of a ``problem`` of the user's own.
    """
    score = getattr(objective, "validate", None)
    if score is None:
        raise ConfigError(
            "keep = best:… needs an objective with validate(theta), which scores θ on images that are held "
            "out; keep = last does not"
        )
    scores: ValidationScores | None = score(theta)
    return scores


Together: TypeAlias = Callable[[Mapping[int, Vector]], Mapping[int, Vector]]
"""The gradients of several peers at once: each one's θ, (q,), ↦ its gradient on its next mini-batch, (q,)."""


def together(problem: Problem, objectives: Mapping[int, Objective]) -> Together | None:
    """Return what draws the gradients of ``objectives`` at once; None: each is drawn by itself.

    A problem may have a method ``together(objectives)`` that returns either.
    """
    make = getattr(problem, "together", None)
    made: Together | None = None if make is None else make(objectives)
    return made


class Device(Protocol):
    """The memory of an accelerator, in which a host's peers have their vectors."""

    def place(self, vector: Vector) -> Vector:
        """Return a vector of this memory or of the CPU's, (q,), as one of this memory."""
        ...

    def finite(self, vectors: Sequence[Vector]) -> Sequence[bool]:
        """Tell of each vector whether all its numbers are finite."""
        ...

    def sums(self, terms: Mapping[int, Sequence[tuple[float, Vector]]]) -> Mapping[int, Vector]:
        """Return Σ w x of the terms (w, x) of each peer, in their order; to the bits that NumPy has."""
        ...


def device_of(problem: Problem) -> Device | None:
    """Return where the vectors of ``problem`` are to be; None: in the CPU's memory, as NumPy's arrays.

    A problem may have an attribute ``vector_device``; its gradients are then where θ is.
    """
    found: Device | None = getattr(problem, "vector_device", None)
    return found


class Problem(Protocol):
    """The learning problem of the peers; :class:`~p2pft_flower.learning.workload.Workload` is one."""

    @property
    def theta0(self) -> Vector:
        """θ^0, (q,), the same on all peers."""
        ...

    @property
    def model_digest(self) -> str:
        """Digest of the frozen weights and θ^0; equal on all peers.

        Neighbours compare this digest before they train. If a problem has a ``meeting_digest``, a digest of
        all that must be equal on all peers, they compare that instead.
        """
        ...

    @property
    def model_parameters(self) -> int:
        """Number of parameters of the whole model, the frozen ones included."""
        ...

    def objectives(self, peers: Sequence[int], progress: Callable[[], None]) -> Mapping[int, Objective]:
        """Build the objectives of ``peers``, and call ``progress`` whenever a piece of the work is done."""
        ...

    def named_tail(self, theta: Vector) -> Mapping[str, Any]:
        """Return θ as tensors, by name."""
        ...

    def metadata(self) -> Mapping[str, str]:
        """Return the settings that are needed to load a tail again."""
        ...


class OwnProblem(Problem, Protocol):
    """The problem that ``my_module:my_problem`` returns: a :class:`Problem` that also counts its samples.

    The problem may also have ``theta_from(tensors)``, the inverse of :meth:`Problem.named_tail`, with which
    ``p2pft evaluate`` scores tails, and ``data_digest(peer)``, a text that recognises a peer's samples when a
    run is resumed. docs/extending.md has an example.
    """

    def samples(self, peer: int) -> int:
        """Return the number of samples that ``peer`` trains on, for epochs and ``objective = "examples"``."""
        ...
