"""The loss of images: cross-entropy of one class, or binary cross-entropy of several labels.

With logits z, (B, C), and labels y, the loss of an image is

    y in 0..C-1:   −log softmax(z)_y
    y in {0, 1}^C:   −(1/C) Σ_c (y_c log σ(z_c) + (1 − y_c) log(1 − σ(z_c)))
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

__all__ = ["decisions", "image_loss", "probabilities"]


def image_loss(
    logits: torch.Tensor, labels: torch.Tensor, reduction: Literal["mean", "none"] = "mean"
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
    """
    if labels.ndim == 1:
        return nn.functional.cross_entropy(logits, labels, reduction=reduction)
    each = nn.functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction=reduction
    )
    return each if reduction == "mean" else each.mean(dim=1)


def decisions(logits: torch.Tensor, *, several: bool) -> torch.Tensor:
    """Return the answers, int64: the class with the largest logit, (B,); of ``several`` labels, (B, C).

    A label is given if its probability is at least 0.5.
    """
    return (logits >= 0).long() if several else logits.argmax(dim=1)


def probabilities(logits: torch.Tensor, *, several: bool) -> torch.Tensor:
    """Return the probability of each class, (B, C): softmax, or the sigmoid of each of ``several`` labels."""
    return logits.sigmoid() if several else logits.softmax(dim=1)
