"""The loss of images: cross-entropy of one class, or binary cross-entropy of several labels.

With logits z, (B, C), and labels y, the loss of an image is

    y in 0..C-1:   −log softmax(z)_y
    y in {0, 1}^C:   −(1/C) Σ_c (y_c log σ(z_c) + (1 − y_c) log(1 − σ(z_c)))

With weights w of the classes, (C,), the first is w_y times as large, and of the second each term with
y_c = 1 is w_c times as large. A mini-batch's loss is the sum of its B images' divided by B, and not by the
sum of their weights: so its mean over mini-batches is the loss of all images, and gradients stay unbiased.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = ["balanced_weights", "decisions", "image_loss", "probabilities"]


def image_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reduction: Literal["mean", "none"] = "mean",
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean loss of images, or with ``"none"`` the loss of each, (B,).

    Parameters
    ----------
    logits : (B, C) tensor
        The model's outputs.
    labels : (B,) or (B, C) int64 tensor
        Each image's class; or 0 and 1, whether it has each label.
    reduction : {"mean", "none"}
        Whether the mean is returned.
    weights : (C,) tensor, optional
        The classes' weights: :func:`balanced_weights`; default: all are 1.
    """
    if labels.ndim == 1:
        if weights is None:
            return nn.functional.cross_entropy(logits, labels, reduction=reduction)
        # torch would divide the mean by the sum of the weights of the mini-batch.
        losses = weights[labels] * nn.functional.cross_entropy(logits, labels, reduction="none")
        return losses.mean() if reduction == "mean" else losses
    each = nn.functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction=reduction, pos_weight=weights
    )
    return each if reduction == "mean" else each.mean(dim=1)


def balanced_weights(counts: npt.NDArray[np.float64], *, several: bool) -> torch.Tensor:
    """Return the weight of each class, (C,) float32, with which rare classes count as much as common ones.

    With N images, of which N_c are of class c, and C classes with an image, this is N / (C N_c), as
    scikit-learn has it; of ``several`` labels (N − N_c) / N_c, so that a label's presence counts as much as
    its absence. The weight of a class without an image is 1, and is never used.

    Parameters
    ----------
    counts : (1 + C,) array
        N, and N_c of each class.
    several : bool
        Whether an image may have several labels.
    """
    images, of_class = counts[0], counts[1:]
    held = of_class > 0
    weights = np.ones(len(of_class))
    if several:
        weights[held] = (images - of_class[held]) / of_class[held]
    else:
        weights[held] = images / (held.sum() * of_class[held])
    return torch.from_numpy(weights.astype(np.float32))


def decisions(logits: torch.Tensor, *, several: bool) -> torch.Tensor:
    """Return the answers, int64: the class with the largest logit, (B,); of ``several`` labels, (B, C).

    A label is given if its probability is at least 0.5.
    """
    return (logits >= 0).long() if several else logits.argmax(dim=1)


def probabilities(logits: torch.Tensor, *, several: bool) -> torch.Tensor:
    """Return the probability of each class, (B, C): softmax, or the sigmoid of each of ``several`` labels."""
    return logits.sigmoid() if several else logits.softmax(dim=1)
