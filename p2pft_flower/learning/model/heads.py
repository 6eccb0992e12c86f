"""Heads for features that were made elsewhere: linear, a layer before it, or the classes' text embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["CosineHead", "FeatureHead", "head_of", "mlp_head"]


class CosineHead(nn.Module):
    """A classifier by direction: scale × the cosine between a feature and each class's weight, as in CLIP.

    Source: Radford et al., "Learning transferable visual models from natural language supervision" (ICML
    2021), section 3.1.2, where the weights are the embeddings of the classes' names.

    Parameters
    ----------
    weight : (C, D) float32 tensor
        A row a class, of any length but 0.
    scale : float
        The model's scale of logits; it is not trained.
    """

    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, C), of ``features``, (N, D)."""
        directions = nn.functional.normalize(self.weight, dim=1)
        cosines = nn.functional.linear(nn.functional.normalize(features, dim=1), directions)
        return self.scale * cosines


def mlp_head(features: int, width: int, classes: int) -> nn.Sequential:
    """Return a head with one layer of ``width`` numbers before the classifier, with GELU between them."""
    return nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, classes))


class FeatureHead(nn.Module):
    """The model of features that were made elsewhere: a head and nothing else; its parameters are ``head.…``.

    Parameters
    ----------
    head : nn.Module
        (N, D) features ↦ (N, C) logits.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, C), of ``features``, (N, D)."""
        logits: torch.Tensor = self.head(features)
        return logits


def head_of(state: Mapping[str, torch.Tensor]) -> FeatureHead:
    """Return the head whose state dict is ``state``, with these tensors in it.

    Raises
    ------
    KeyError, RuntimeError
        When it is the state of no head that is made here.
    """
    if "head.scale" in state:
        head: nn.Module = CosineHead(state["head.weight"], float(state["head.scale"]))
    elif "head.weight" in state:
        classes, features = state["head.weight"].shape
        head = nn.Linear(features, classes)
    else:
        width, features = state["head.0.weight"].shape
        head = mlp_head(features, width, len(state["head.2.weight"]))
    model = FeatureHead(head)
    model.load_state_dict(dict(state), strict=True)
    return model
