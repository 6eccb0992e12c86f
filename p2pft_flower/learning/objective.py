"""One peer's loss as a function of the flat vector θ: the tail's loss on the peer's mini-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from p2pft_flower.learning.class_scores import balanced_accuracy, class_scores
from p2pft_flower.learning.data.label_arrays import images_by_class, named
from p2pft_flower.learning.draws import seeded
from p2pft_flower.learning.losses import balanced_weights, decisions, image_loss
from p2pft_flower.learning.losses import probabilities as probabilities_of
from p2pft_flower.learning.minibatches import MiniBatch, MiniBatches, PooledMiniBatches
from p2pft_flower.learning.model.modes import training
from p2pft_flower.learning.model.structure import share_copy
from p2pft_flower.learning.privacy import ClippedGradients, Privacy, Spent
from p2pft_flower.learning.store.features import Features
from p2pft_flower.scores import ClassScores, has_confusion, has_rows
from p2pft_flower.typed import Count, converted

__all__ = [
    "Answers",
    "Evaluation",
    "InFull",
    "PeerObjective",
    "Scored",
    "Validation",
    "answers_of",
    "as_tensor",
    "evaluate",
    "gradient_of",
    "prediction_rows",
    "scores_of",
    "tail_vector",
    "trained_parameters",
]

Vector = npt.NDArray[np.float32]

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class _Position:
    """The content of :meth:`PeerObjective.position`; ``order`` is that of :meth:`MiniBatches.position`."""

    drawn: Count
    lost: Count
    order: dict[str, Any]


def trained_parameters(tail: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters of ``tail`` in θ's order, which is that of ``named_parameters``."""
    return [p for p in tail.parameters() if p.requires_grad]


def tail_vector(tail: nn.Module) -> Vector:
    """Return θ, (q,) float32: the trained parameters of ``tail`` as one vector."""
    return _flat(trained_parameters(tail)).detach().cpu().numpy().copy()


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return all numbers of ``tensors`` as one vector, also of tensors whose memory has gaps."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@dataclass(frozen=True)
class Evaluation:
    """Scores of one θ on the test split.

    Attributes
    ----------
    loss : float
        Mean loss (:func:`image_loss`); NaN without test images.
    accuracy : float
        Share of all test images that are classified right, 0..1; NaN without test images. Of images with
        several labels: share of right decisions, of all images and labels, at a probability of 0.5.
    accuracy_unseen : float or None
        Share of right answers among the test images of classes of which the peer holds no training image,
        0..1; None if there is no such test image. Of several labels: share of right decisions on the labels
        of which the peer holds no training image; None if it holds images of all.
    accuracy_seen : float or None
        The same among the other test images, or on the other labels; None if there is none.
    """

    loss: float
    accuracy: float
    accuracy_unseen: float | None
    accuracy_seen: float | None


@dataclass(frozen=True)
class Validation:
    """Scores of one θ on training images that are held out; of pooled images the mean of the peers' scores.

    Attributes
    ----------
    loss : float
        Mean loss (:func:`image_loss`).
    balanced_accuracy : float or None
        Mean, over the classes of a peer's images, of the share of right answers, 0..1; of several labels as
        :func:`balanced_accuracy` has it, and None if none of the images has a label.
    """

    loss: float
    balanced_accuracy: float | None


@dataclass(frozen=True)
class Answers:
    """The answers of one θ to N test images, on the CPU.

    Attributes
    ----------
    labels, predicted : (N,) int64 tensors
        Each image's true class, and the class with the largest logit; or (N, C) of 0 and 1, the labels that
        each image has, and those with a probability of at least 0.5.
    losses : (N,) float64 tensor
        The loss of each image.
    probabilities : (N, C) float64 tensor or None
        Each image's probability of each class: the softmax of its logits, or the sigmoid of each; None if
        nobody asked for them.
    """

    labels: torch.Tensor
    predicted: torch.Tensor
    losses: torch.Tensor
    probabilities: torch.Tensor | None = None

    @property
    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Labels, answers and probabilities, as :func:`class_scores` takes them.

        Raises
        ------
        ValueError
            When there are no probabilities.
        """
        if self.probabilities is None:
            raise ValueError("the answers have no probabilities")
        return self.labels.numpy(), self.predicted.numpy(), self.probabilities.numpy()

    def by_class(self, names: Sequence[str], *, rows: bool = True, cells: bool = True) -> ClassScores | None:
        """Return the scores by class, as :func:`class_scores` does; None without images."""
        return class_scores(*self.arrays, names, rows=rows, cells=cells)


@dataclass(frozen=True)
class Scored:
    """What is told of a peer's test images beside the answers.

    Attributes
    ----------
    classes : sequence of str
        Names of the classes, in the order of the head's outputs.
    images : callable
        Returns the names of the test images, in their order.
    peers : int
        Number of peers of the run, which decides whether results have room for numbers of each class.
    """

    classes: Sequence[str]
    images: Callable[[], Sequence[str]]
    peers: int


class InFull(NamedTuple):
    """The last evaluation of a peer, with all that is known of it.

    Attributes
    ----------
    score : Evaluation
        The scores of every evaluation.
    class_scores : ClassScores or None
        The scores by class; None without test images.
    predictions : iterator of list of str
        The rows of a table of the answers: :func:`prediction_rows`.
    """

    score: Evaluation
    class_scores: ClassScores | None
    predictions: Iterator[list[str]]


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
        self.train_loss = float("nan")
        """L_i of the last mini-batch; NaN if that was empty, and before the first one."""
        self._tail = share_copy(tail)
        self._trained = trained_parameters(self._tail)
        self._images, self._test, self._validation = images, test, validation
        self._key = (seed, peer)
        self._balanced = balanced
        self._weights: torch.Tensor | None = None
        self._privacy, self._scored = privacy, scored
        self._clipped = None if privacy is None else ClippedGradients(self._tail, privacy.clip)

    def gradient(self, theta: Vector) -> Vector:
        """Return ∇L_i(θ; next mini-batch), (q,) float32; ``theta``, (q,), is not written to.

        Raises
        ------
        DataError
            When images of the mini-batch cannot be read: see :meth:`MiniBatches.read`.
        """
        batch = self.read()
        # Drop-out must also be a function of seed, peer and position, on any host.
        with training(self._tail), seeded(*self._key, self.drawn):
            if self._privacy is None or self._clipped is None:
                gradient, loss = gradient_of(self._tail, self._trained, theta, batch, self._weights)
            else:
                _set(self._trained, theta)
                gradient, loss = self._private(batch, theta.size, self._privacy, self._clipped)
        self.drew(loss)
        return gradient

    def read(self) -> MiniBatch:
        """Return the mini-batch of the next gradient; errors are those of :meth:`gradient`."""
        if self._balanced and self._weights is None:
            raise RuntimeError("class-weights = 'balanced', and no weights came before the first gradient")
        return self._images.read(self.drawn)

    def drew(self, loss: float) -> None:
        """Note that the gradient on the mini-batch of :meth:`read` was computed, with this mean ``loss``."""
        self.train_loss = loss
        self.drawn += 1

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
        self._weights = balanced_weights(counts, several=several).to(self._trained[0].device)

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
        return evaluate(self._tail, theta, self._test, self._unseen())

    def evaluate_in_full(self, theta: Vector) -> InFull:
        """Return what :meth:`evaluate` returns, the scores by class, and the answer to each test image.

        Raises
        ------
        ValueError
            When the objective was built without ``scored``.
        """
        if self._scored is None:
            raise ValueError("the names of classes and test images are not known")
        answers = answers_of(self._tail, theta, self._test, probabilities=True)
        classes, peers = self._scored.classes, self._scored.peers
        by_class = answers.by_class(
            classes, rows=has_rows(peers, len(classes)), cells=has_confusion(peers, len(classes))
        )
        rows = prediction_rows(self._scored.images(), classes, answers)
        return InFull(scores_of(answers, self._unseen()), by_class, rows)

    def _unseen(self) -> torch.Tensor:
        held, test = self._images.labels, self._test.labels.cpu()  # the labels of a stream grow
        return ~held.any(dim=0) if test.ndim == 2 else ~torch.isin(test, torch.unique(held))

    def validate(self, theta: Vector) -> Validation | None:
        """Score ``theta``, (q,) float32, on the images that are held out; None if there are none."""
        sites = [answers_of(self._tail, theta, images) for images in self._validation if len(images)]
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
) -> tuple[Vector, float]:
    """Return the gradient of a mini-batch's loss at ``theta`` in ``tail``, (q,) float32, and the loss.

    The tail is run in the mode that it is in; ``trained`` are its :func:`trained_parameters`. The others are
    as of :func:`evaluate` and :meth:`MiniBatch.loss`.
    """
    _set(trained, theta)
    loss = batch.loss(tail(*batch.inputs), weights)
    # A step may use only some trained parameters: the gradient of the others is 0.
    gradients = torch.autograd.grad(loss, trained, materialize_grads=True)
    return _flat(gradients).cpu().numpy(), float(loss.detach())


def evaluate(
    tail: nn.Module, theta: Vector, test: Features, unseen: torch.Tensor | None = None
) -> Evaluation:
    """Score ``theta`` in ``tail`` on all test images.

    Parameters
    ----------
    tail : nn.Module
        The tail; its trained parameters become those in ``theta``, without a copy if that is possible.
    theta : (q,) float32 array
        The trained parameters.
    test : Features
        N test images.
    unseen : (N,) bool tensor, optional
        For each test image, whether the peer holds no training image of that image's class; if images have
        several labels, (C,), whether the peer holds no training image with the label.
        None: nothing is unseen.
    """
    return scores_of(answers_of(tail, theta, test), unseen)


def scores_of(given: Answers, unseen: torch.Tensor | None = None) -> Evaluation:
    """Return the scores of answers; ``unseen`` is that of :func:`evaluate`."""
    if not len(given.labels):
        return Evaluation(math.nan, math.nan, None, None)
    # Of several labels the columns are scored, of which some are unseen.
    correct = (given.predicted == given.labels).double()
    if correct.ndim == 2:
        correct = correct.T
    if unseen is None:
        unseen = torch.zeros(len(correct), dtype=torch.bool)
    return Evaluation(
        loss=float(given.losses.mean()),
        accuracy=float(correct.mean()),
        accuracy_unseen=float(correct[unseen].mean()) if unseen.any() else None,
        accuracy_seen=None if unseen.all() else float(correct[~unseen].mean()),
    )


def answers_of(tail: nn.Module, theta: Vector, test: Features, *, probabilities: bool = False) -> Answers:
    """Return the answers of ``theta`` in ``tail`` to all test images; parameters as of :func:`evaluate`.

    If ``probabilities``, the answers have them; default False, since they take memory, N × C numbers.
    """
    tail.eval()
    _set(trained_parameters(tail), theta)
    none, several = test.labels[:0].cpu(), test.labels.ndim == 2
    losses, answers, truth = [torch.empty(0, dtype=torch.double)], [none], [none]
    likely = list[torch.Tensor]()
    with torch.inference_mode():
        for start in range(0, len(test), EVALUATION_BATCH):
            inputs, labels = test.read(np.arange(start, min(start + EVALUATION_BATCH, len(test))))
            logits = tail(*inputs)
            losses.append(image_loss(logits, labels, "none").cpu().double())
            answers.append(decisions(logits, several=several).cpu())
            truth.append(labels.cpu())
            if probabilities:
                likely.append(probabilities_of(logits.cpu().double(), several=several))
    found = None
    if probabilities:
        found = torch.cat(likely) if likely else torch.empty((0, 0), dtype=torch.double)
    return Answers(torch.cat(truth), torch.cat(answers), torch.cat(losses), found)


def prediction_rows(images: Sequence[str], classes: Sequence[str], answers: Answers) -> Iterator[list[str]]:
    """Yield the rows of a table of answers, the header first.

    A row has the image, the names of its true class and of the answer, and the probability of each class,
    each a text that gives the float64 back to the last bit. Of several labels the names have | between them.
    """
    labels, predicted, probabilities = answers.arrays
    yield ["image", "truth", "predicted", *(f"p({name})" for name in classes)]
    for image, label, answer, likely in zip(images, labels, predicted, probabilities, strict=True):
        yield [image, named(label, classes), named(answer, classes), *map(repr, likely.tolist())]


def as_tensor(theta: Vector) -> torch.Tensor:
    """Return ``theta``, (q,) float32, as a tensor on its memory, to which nobody may write.

    torch warns of read-only arrays, as θ^0 is: those are copied.
    """
    return torch.from_numpy(theta if theta.flags.writeable else theta.copy())


def _set(trained: list[nn.Parameter], theta: Vector) -> None:
    # Views on theta, no copy: neither forward nor backward writes to parameters.
    vector_to_parameters(as_tensor(theta).to(trained[0].device), trained)
