"""Heads: linear, with a layer before it, or by the classes' texts; of features and of image towers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["PROJECTION", "CosineHead", "FeatureHead", "TowerHead", "head_of", "mlp_head"]

PROJECTION = "head.projection."
"""Prefix of the parameters that lead from an image tower to the space of texts; they are no classifier."""


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


class TowerHead(nn.Module):
    """The head of an image tower: its projection into the space of texts, and a classifier there.

    Parameters
    ----------
    projection : nn.Module
        (N, F) pooled tokens ↦ (N, D); the identity of towers without one, as SigLIP's.
    classifier : nn.Module
        (N, D) ↦ (N, C) logits, by the cosine: :class:`CosineHead` or a head with a learned prompt.
    """

    def __init__(self, projection: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.projection, self.classifier = projection, classifier

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, C), of ``pooled``, (N, F)."""
        logits: torch.Tensor = self.classifier(self.projection(pooled))
        return logits

    def plain(self) -> nn.Linear:
        """Return one linear layer with the same answers: each image's logits times its projection's length.

        The largest logit is the same; probabilities are not.
        """
        classifier = self.classifier
        if not isinstance(classifier, CosineHead):
            raise TypeError(f"a {type(classifier).__name__} has no rows")
        rows = classifier.scale * nn.functional.normalize(classifier.weight.detach(), dim=1)
        if isinstance(self.projection, nn.Linear):
            bias = self.projection.bias
            offset = torch.zeros(len(rows)) if bias is None else rows @ bias.detach()
            rows = rows @ self.projection.weight.detach()
        else:
            offset = torch.zeros(len(rows))
        linear = nn.Linear(rows.shape[1], len(rows))
        linear.weight.data, linear.bias.data = rows, offset
        return linear


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
        When ``state`` is not the state dict of a head that this module makes.
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
