"""Mini-batches for one gradient: one peer's, or several peers' together, each of which counts the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.batches import Batches, GrowingBatches, PoissonBatches
from p2pft_flower.learning.losses import image_loss
from p2pft_flower.learning.store.features import Features
from p2pft_flower.typed import converted

__all__ = ["MiniBatch", "MiniBatches", "PooledMiniBatches"]


class MiniBatch(NamedTuple):
    """Images with labels, of one peer or of several peers, one peer's images after the other's.

    Attributes
    ----------
    inputs : tuple of (B, …) float32 tensors
        The tail's inputs; empty if B is 0.
    labels : (B,) or (B, C) int64 tensor
        Classes; or 0 and 1, whether each image has each label.
    sizes : tuple of int
        Number of images of each peer; the numbers add up to B.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    sizes: tuple[int, ...]

    def loss(self, logits: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean over peers of each peer's mean loss (:func:`image_loss`).

        Parameters
        ----------
        logits : (B, classes) tensor
            The tail's outputs for ``inputs``.
        weights : (classes,) tensor, optional
            The classes' weights; default: all are 1.
        """
        if len(set(self.sizes)) == 1:  # equal sizes: the mean over all images
            return image_loss(logits, self.labels, weights=weights)
        sizes = list(self.sizes)
        parts = zip(torch.split(logits, sizes), torch.split(self.labels, sizes), strict=True)
        return torch.stack([image_loss(own, labels, weights=weights) for own, labels in parts]).mean()


class MiniBatches:
    """A peer's mini-batches, in the order in which it sees its images.

    Parameters
    ----------
    features : Features
        The trunk's outputs for the images.
    batches : Batches, GrowingBatches or PoissonBatches
        The order of the images.
    """

    def __init__(self, features: Features, batches: Batches | GrowingBatches | PoissonBatches) -> None:
        self._features, self._batches = features, batches

    @property
    def labels(self) -> torch.Tensor:
        """Labels of all images that can be drawn, (N,) or (N, C) int64, on the CPU; N grows in a stream."""
        return self._features.labels.cpu()

    def read(self, t: int) -> MiniBatch:
        """Return mini-batch ``t`` (t ≥ 0), and begin to fetch the next one.

        Raises
        ------
        DataError
            When an image cannot be read; the message names it. In a stream: only when no image of the
            mini-batch can be read.
        """
        positions = self._batches.batch(t)
        if len(positions):
            inputs, labels = self._features.read(positions, t)
        else:
            inputs, labels = (), torch.empty(0, dtype=torch.int64)
        self._features.ahead(partial(self._batches.batch, t + 1))
        return MiniBatch(inputs, labels, (len(labels),))

    def position(self) -> Callable[[], dict[str, Any]]:
        """Record the position in the order of images; return a function that gives it as JSON-able data."""
        return self._batches.position()

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Continue at a position that :meth:`position` recorded in any process.

        Raises
        ------
        DataError
            When ``position`` does not fit a stream: see :meth:`GrowingBatches.go_to`.
        """
        self._batches.go_to(position)


class PooledMiniBatches:
    """The mini-batches of n peers in one iteration, for one model on pooled data.

    The loss of such a mini-batch is the mean of the peers' losses, whatever the sizes of their mini-batches.
    So one model minimises the objective in which every peer counts the same, on the very images that the
    peers would see.

    Parameters
    ----------
    parts : sequence of MiniBatches
        Each peer's mini-batches.
    """

    def __init__(self, parts: Sequence[MiniBatches]) -> None:
        self._parts = parts

    @property
    def labels(self) -> torch.Tensor:
        """Labels of all images that can be drawn, (N,) or (N, C) int64, on the CPU."""
        return torch.cat([part.labels for part in self._parts])

    def read(self, t: int) -> MiniBatch:
        """Return mini-batch ``t`` of every peer, concatenated, and begin to fetch the next ones.

        Raises
        ------
        DataError
            When :meth:`MiniBatches.read` raises it for one of the peers.
        """
        read = [part.read(t) for part in self._parts]
        inputs = tuple(torch.cat(tensors) for tensors in zip(*(r.inputs for r in read), strict=True))
        labels = torch.cat([r.labels for r in read])
        return MiniBatch(inputs, labels, tuple(len(r.labels) for r in read))

    def position(self) -> Callable[[], dict[str, Any]]:
        """Record every peer's position, as :meth:`MiniBatches.position` does for one peer."""
        parts = [part.position() for part in self._parts]
        return lambda: {"parts": [own() for own in parts]}

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Continue at a position that :meth:`position` recorded in any process.

        Raises
        ------
        DataError
            When ``position`` cannot be read, is of another number of peers, or does not fit a stream.
        """
        told = converted(position.get("parts"), list[dict[str, Any]], "the data order of a checkpoint")
        if len(told) != len(self._parts):
            raise DataError(f"the data order of a checkpoint is of {len(told)} peers, not {len(self._parts)}")
        for part, order in zip(self._parts, told, strict=True):
            part.go_to(order)
