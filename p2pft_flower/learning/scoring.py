"""The answers of a θ to test images, and the scores that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from p2pft_flower.learning.class_scores import class_scores
from p2pft_flower.learning.data.label_arrays import named
from p2pft_flower.learning.losses import decisions, image_loss
from p2pft_flower.learning.losses import probabilities as probabilities_of
from p2pft_flower.learning.model.structure import share_copy
from p2pft_flower.learning.store.features import Features
from p2pft_flower.learning.theta import Vector, set_theta, trained_parameters
from p2pft_flower.learning.threads import side_by_side
from p2pft_flower.scores import ClassScores

__all__ = [
    "Answers",
    "Evaluation",
    "InFull",
    "Scored",
    "Validation",
    "answers_of",
    "answers_of_all",
    "evaluate",
    "prediction_rows",
    "scores_of",
]

EVALUATION_BATCH = 128


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
    return answers_of_all(tail, [theta], test, probabilities=probabilities)[0]


def answers_of_all(
    tail: nn.Module,
    thetas: Sequence[Vector],
    test: Features,
    *,
    probabilities: bool = False,
    progress: Callable[[], None] = lambda: None,
    threads: int = 1,
) -> list[Answers]:
    """Return the answers of each θ to all test images, each of which is read once.

    Each θ answers by itself, so its answers are those of :func:`answers_of`, bit for bit, among any others.

    Parameters
    ----------
    tail : nn.Module
        The tail; its trained parameters become those in the last θ.
    thetas : sequence of (q,) float32 arrays
        The trained parameters.
    test : Features
        N test images.
    probabilities : bool
        Whether the answers have probabilities; default False.
    progress : callable, optional
        Called after each pass of a batch through the tail, by the thread that did it.
    threads : int
        Number of threads that share the θ; the answers do not depend on it. Default 1.
    """
    tail.eval()
    threads = max(1, min(threads, len(thetas)))
    tails = [tail, *(share_copy(tail) for _ in range(1, threads))]
    none, several = test.labels[:0].cpu(), test.labels.ndim == 2
    truth, losses, answers, likely = [none], _lists(thetas), _lists(thetas), _lists(thetas)

    def answer(inputs: Sequence[torch.Tensor], labels: torch.Tensor, thread: int) -> None:
        trained = trained_parameters(tails[thread])
        for k in range(thread, len(thetas), threads):
            set_theta(trained, thetas[k])  # not in inference mode, in which gradients could not use it later
            with torch.inference_mode():
                logits = tails[thread](*inputs)
                losses[k].append(image_loss(logits, labels, "none"))
                answers[k].append(decisions(logits, several=several))
                if probabilities:
                    likely[k].append(probabilities_of(logits.cpu().double(), several=several))
            progress()

    with side_by_side(threads) as pool:
        for start in range(0, len(test), EVALUATION_BATCH):
            inputs, labels = test.read(np.arange(start, min(start + EVALUATION_BATCH, len(test))))
            truth.append(labels.cpu())
            list(pool.map(partial(answer, inputs, labels), range(threads)))
    labels, nothing = torch.cat(truth), torch.empty((0, 0), dtype=torch.double)
    return [
        Answers(
            labels,
            torch.cat(answers[k]).cpu() if answers[k] else none,  # one wait for the device, at the end
            torch.cat(losses[k]).cpu().double() if losses[k] else torch.empty(0, dtype=torch.double),
            (torch.cat(likely[k]) if likely[k] else nothing) if probabilities else None,
        )
        for k in range(len(thetas))
    ]


def _lists(of: Sequence[Vector]) -> list[list[torch.Tensor]]:
    return [[] for _ in of]


def prediction_rows(images: Sequence[str], classes: Sequence[str], answers: Answers) -> Iterator[list[str]]:
    """Yield the rows of a table of answers, the header first.

    A row has the image, the names of its true class and of the answer, and the probability of each class,
    each a text that gives the float64 back to the last bit. Of several labels the names have | between them.
    """
    labels, predicted, probabilities = answers.arrays
    yield ["image", "truth", "predicted", *(f"p({name})" for name in classes)]
    for image, label, answer, likely in zip(images, labels, predicted, probabilities, strict=True):
        yield [image, named(label, classes), named(answer, classes), *map(repr, likely.tolist())]
