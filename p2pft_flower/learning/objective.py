"""One peer's loss as a function of the flat vector θ: the tail's loss on the peer's mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from p2pft_flower.learning.class_scores import balanced_accuracy
from p2pft_flower.learning.data.label_arrays import images_by_class
from p2pft_flower.learning.draws import seeded
from p2pft_flower.learning.losses import balanced_weights
from p2pft_flower.learning.minibatches import MiniBatch, MiniBatches, PooledMiniBatches
from p2pft_flower.learning.model.modes import training
from p2pft_flower.learning.model.structure import share_copy
from p2pft_flower.learning.privacy import ClippedGradients, Privacy, Spent
from p2pft_flower.learning.scoring import (
    Answers,
    Evaluation,
    InFull,
    Scored,
    Validation,
    answers_of,
    evaluate,
    prediction_rows,
    scores_of,
)
from p2pft_flower.learning.store.features import Features
from p2pft_flower.learning.theta import Vector, flat, like, set_theta, trained_parameters
from p2pft_flower.scores import has_confusion, has_rows
from p2pft_flower.typed import Count, converted

__all__ = ["PeerObjective", "gradient_of"]


@dataclass(frozen=True)
class _Position:
    """The content of :meth:`PeerObjective.position`; ``order`` is that of :meth:`MiniBatches.position`."""

    drawn: Count
    lost: Count
    order: dict[str, Any]


class PeerObjective:
    """Peer i's objective: gradients ∇L_i on fresh mini-batches, and the scores of a θ.

    Parameters
    ----------
    tail : nn.Module
        The tail; it is copied, since peers of one host share no memory that training writes to.
    images : MiniBatches or PooledMiniBatches
        The trunk's outputs for the peer's training images, mini-batch by mini-batch.
    test : Features
        The trunk's outputs for the test images; peers may share them.
    seed, peer : int
        Numbers that decide drop-out masks, if the tail has any, together with the mini-batch's number.
    privacy : Privacy, optional
        Settings that make the gradients differentially private; None: they are not.
    scored : Scored, optional
        The names of classes and test images, for :meth:`evaluate_in_full`.
    validation : sequence of Features
        The trunk's outputs for the training images that are held out to choose the best θ: of the peer, or,
        if the images are pooled, of each peer. Default: none are.
    balanced : bool
        Whether the loss is weighted by class; then :meth:`weigh` comes before the first gradient. Default
        False.
    """

    def __init__(
        self,
        tail: nn.Module,
        images: MiniBatches | PooledMiniBatches,
        test: Features,
        *,
        seed: int,
        peer: int,
        privacy: Privacy | None = None,
        scored: Scored | None = None,
        validation: Sequence[Features] = (),
        balanced: bool = False,
    ) -> None:
        self.drawn = 0
        """Number of mini-batches drawn so far, which is the number of the next one."""
        self._lost = 0
        """Upper bound on the gradients that earlier processes of this run drew after their checkpoint."""
        self._loss: float | torch.Tensor = float("nan")
        self._of_all = tail
        self._images, self.test, self._validation = images, test, validation
        self._key = (seed, peer)
        self._balanced = balanced
        self._weights: torch.Tensor | None = None
        self._privacy, self._scored = privacy, scored
        self._clipped = None if privacy is None else ClippedGradients(self.tail, privacy.clip)

    def gradient(self, theta: Vector) -> Vector:
        """Return ∇L_i(θ; next mini-batch), (q,) float32; ``theta``, (q,), is not written to.

        Raises
        ------
        DataError
            When images of the mini-batch cannot be read: see :meth:`MiniBatches.read`.
        """
        batch = self.read()
        loss: float | torch.Tensor
        # Drop-out must also be a function of seed, peer and position, on any host.
        with training(self.tail), seeded(*self._key, self.drawn):
            if self._privacy is None or self._clipped is None:
                gradient, loss = gradient_of(self.tail, self._trained, theta, batch, self._weights)
            else:
                set_theta(self._trained, theta)
                noised, loss = self._private(batch, theta.size, self._privacy, self._clipped)
                gradient = like(torch.from_numpy(noised).to(self._trained[0].device), theta)
        self.drew(loss)
        return gradient

    def read(self) -> MiniBatch:
        """Return the mini-batch of the next gradient; errors are those of :meth:`gradient`."""
        if self._balanced and self._weights is None:
            raise RuntimeError("class-weights = 'balanced', and no weights came before the first gradient")
        return self._images.read(self.drawn)

    def drew(self, loss: float | torch.Tensor) -> None:
        """Note that the gradient on the mini-batch of :meth:`read` was computed, with this mean ``loss``."""
        self._loss = loss
        self.drawn += 1

    @property
    def train_loss(self) -> float:
        """L_i of the last mini-batch; NaN if that was empty, and before the first one."""
        return float(self._loss)

    @property
    def weights(self) -> torch.Tensor | None:
        """The weights of the classes in the loss, (C,), once :meth:`weigh` has set them."""
        return self._weights

    def class_counts(self) -> npt.NDArray[np.float64]:
        """Return the number of training images, and that of each class, (1 + C,).

        Raises
        ------
        ValueError
            When the objective was built without ``scored``.
        """
        if self._scored is None:
            raise ValueError("the names of classes are not known")
        labels = self._images.labels.numpy()
        return np.array([len(labels), *images_by_class(labels, len(self._scored.classes))], np.float64)

    def weigh(self, counts: npt.NDArray[np.float64]) -> None:
        """Weight the loss of gradients by class from now on; the scores' loss stays as it is.

        Parameters
        ----------
        counts : (1 + C,) array
            The number of training images of all peers, and that of each class.
        """
        several = self._images.labels.ndim == 2
        self._weights = balanced_weights(counts, several=several).to(
            trained_parameters(self._of_all)[0].device
        )

    def _private(
        self, batch: MiniBatch, q: int, privacy: Privacy, clipped: ClippedGradients
    ) -> tuple[Vector, float]:
        total, loss = np.zeros(q, np.float32), float("nan")
        if len(batch.labels):  # an empty batch's gradient is noise alone
            summed, losses = clipped.total(batch.inputs, batch.labels)
            total, loss = summed.cpu().numpy(), float(losses.mean())
        return privacy.release(total, self.drawn), loss

    def position(self) -> Callable[[], dict[str, Any]]:
        """Record the position in the data order; return a function that gives it as JSON-able data."""
        drawn, lost, order = self.drawn, self._lost, self._images.position()
        return lambda: {"drawn": drawn, "lost": lost, "order": order()}

    def go_to(self, position: Mapping[str, Any], lost: int = 0) -> None:
        """Continue at the position that another objective of the same peer recorded, in any process.

        Parameters
        ----------
        position : mapping
            The other objective's :meth:`position`.
        lost : int
            Largest number of gradients that the other objective may have drawn after ``position``; default 0.
            They count towards ε if the noise is drawn anew; if it comes from the seed, the same gradients
            come again and cost nothing more.

        Raises
        ------
        DataError
            When ``position`` cannot be read, or does not fit the mini-batches of this objective.
        """
        told = converted(position, _Position, "the data order of a checkpoint")
        self.drawn = told.drawn
        self._images.go_to(told.order)
        drawn_again = self._privacy is None or self._privacy.key is not None
        self._lost = 0 if drawn_again else told.lost + lost

    def privacy_spent(self) -> Spent | None:
        """Return the privacy cost of all gradients up to the present position; None if they are not private.

        Raises
        ------
        ConfigError
            When Opacus, whose accountant computes ε, is not installed.
        """
        return None if self._privacy is None else self._privacy.spent(self.drawn + self._lost)

    def evaluate(self, theta: Vector) -> Evaluation:
        """Score ``theta``, (q,) float32, on all of this peer's test images."""
        return evaluate(self.tail, theta, self.test, self.unseen())

    def evaluate_in_full(self, theta: Vector) -> InFull:
        """Return what :meth:`evaluate` returns, the scores by class, and the answer to each test image.

        Raises
        ------
        ValueError
            When the objective was built without ``scored``.
        """
        return self.in_full(answers_of(self.tail, theta, self.test, probabilities=True))

    def in_full(self, answers: Answers) -> InFull:
        """Return all that is known of ``answers``, with probabilities, of any θ to this peer's test images.

        Raises
        ------
        ValueError
            When the objective was built without ``scored``.
        """
        if self._scored is None:
            raise ValueError("the names of classes and test images are not known")
        classes, peers = self._scored.classes, self._scored.peers
        by_class = answers.by_class(
            classes, rows=has_rows(peers, len(classes)), cells=has_confusion(peers, len(classes))
        )
        return InFull(scores_of(answers, self.unseen()), by_class, self._rows(self._scored, answers))

    def _rows(self, scored: Scored, answers: Answers) -> Iterator[list[str]]:
        yield from prediction_rows(scored.images(), scored.classes, answers)  # the names only if wanted

    @cached_property
    def tail(self) -> nn.Module:
        """The peer's own copy of the tail, into which each gradient and each evaluation puts its θ.

        It is made when first used: a host that computes its peers together needs one for all of them.
        """
        return share_copy(self._of_all)

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        return trained_parameters(self.tail)

    @property
    def outputs(self) -> int:
        """Number of the classes; 0 if their names are not known."""
        return 0 if self._scored is None else len(self._scored.classes)

    def unseen(self) -> torch.Tensor:
        """Return which test images are unseen, as :func:`evaluate` takes it."""
        held, test = self._images.labels, self.test.labels.cpu()  # the labels of a stream grow
        return ~held.any(dim=0) if test.ndim == 2 else ~torch.isin(test, torch.unique(held))

    def validate(self, theta: Vector) -> Validation | None:
        """Score ``theta``, (q,) float32, on the images that are held out; None if there are none."""
        sites = [answers_of(self.tail, theta, images) for images in self._validation if len(images)]
        if not sites:
            return None
        losses = [float(given.losses.mean()) for given in sites]
        accuracies = [balanced_accuracy(given.labels.numpy(), given.predicted.numpy()) for given in sites]
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        return Validation(fmean(losses), fmean(known) if known else None)


def gradient_of(
    tail: nn.Module,
    trained: list[nn.Parameter],
    theta: Vector,
    batch: MiniBatch,
    weights: torch.Tensor | None = None,
) -> tuple[Vector, torch.Tensor]:
    """Return the gradient of a mini-batch's loss at ``theta`` in ``tail``, (q,) float32, and the loss.

    The gradient is where ``theta`` is. If that is a device, nobody waits for it, nor for the loss.
    The tail is run in the mode that it is in; ``trained`` are its :func:`trained_parameters`. The others are
    as of :func:`evaluate` and :meth:`MiniBatch.loss`.
    """
    set_theta(trained, theta)
    loss = batch.loss(tail(*batch.inputs), weights)
    # A step may use only some trained parameters: the gradient of the others is 0.
    gradients = torch.autograd.grad(loss, trained, materialize_grads=True)
    return like(flat(gradients), theta), loss.detach()
