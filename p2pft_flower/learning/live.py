"""Images that are read when a mini-batch is drawn, because their trunk outputs are not stored.

There are four cases: train-time augmentation (another image each time), a stream (new images), a tail that
begins at the pixels, and ``cache = false``. The images are read, prepared and run through the frozen trunk
batch by batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.augmenting import check_augment, refusal
from p2pft_flower.learning.data.decoding import UNREADABLE
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.learning.data.streams import ImageStream
from p2pft_flower.learning.draws import seeded
from p2pft_flower.learning.model.models import data_config

__all__ = ["LiveFeatures", "StreamFeatures", "augmentation"]

Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]
Trunk: TypeAlias = Callable[[torch.Tensor], "torch.Tensor | tuple[torch.Tensor, ...]"]
Positions: TypeAlias = npt.NDArray[np.int64]

AUGMENTING = 1
"""Distinguishes the draws of augmentation from others of the same seed, peer and mini-batch (drop-out)."""

log = logging.getLogger(__name__)


def augmentation(model: nn.Module, augment: str) -> Transform:
    """Return timm's preparation of training images, with the model's size, interpolation, mean and std.

    Parameters
    ----------
    model : nn.Module
        The model, whose ``pretrained_cfg`` describes its images.
    augment : str
        ``"basic"`` (random resized crop, horizontal flip), or a timm auto-augmentation on top of it:
        ``"rand-m9-mstd0.5-inc1"``, ``"augmix-m3-w3"``, ``"original"``, ``"v0"``, ``"3a"``, …

    Returns
    -------
    callable
        PIL image ↦ (C, H, W) float32. It draws from the process's global generators
        (:func:`~p2pft_flower.learning.draws.seeded`).

    Raises
    ------
    ConfigError
        When timm lacks the augmentation; the message gives examples.
    """
    check_augment(augment)
    config = data_config(model)
    policy = None if augment == "basic" else augment
    try:
        transform = create_transform(
            **{key: config[key] for key in ("input_size", "interpolation", "mean", "std")},
            is_training=True,
            color_jitter=None,
            auto_augment=policy,
        )
    except (AssertionError, KeyError, ValueError) as error:  # timm's errors for unknown strings
        raise refusal(augment, error) from error
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    return lambda image: transform(image.convert(mode))


class LiveFeatures:
    """The tail's inputs for images that are read, prepared and run through the trunk when they are drawn.

    Parameters
    ----------
    split : Split
        The source of images and labels.
    positions : (N,) int64 array
        The positions of the images in ``split``, in the order in which they are numbered here.
    transform : callable
        PIL image ↦ (C, H, W) float32 tensor.
    trunk : callable
        (B, C, H, W) float32 ↦ a tensor or a tuple of tensors; run without gradients.
    seed, peer : int
        Numbers that decide the draws of ``transform``, together with the mini-batch's number.
    augmented : bool
        Whether ``transform`` draws random numbers (:func:`augmentation`).
    """

    def __init__(
        self,
        split: Split,
        positions: Positions,
        transform: Transform,
        trunk: Trunk,
        *,
        seed: int,
        peer: int,
        augmented: bool,
    ) -> None:
        self.labels = torch.from_numpy(split.labels[positions])
        """Labels, (N,) or (N, C) int64."""
        self._split, self._positions = split, positions
        self._prepare = _Preparation(transform, trunk, seed, peer, augmented)

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self, positions: Positions, draw: int | None = None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the trunk's outputs for the images at ``positions``, and their labels.

        Parameters
        ----------
        positions : (B,) int64 array
            Numbers of the images, 0 to N − 1.
        draw : int or None
            The mini-batch's number; None in evaluation.

        Raises
        ------
        DataError
            When an image cannot be read; the message names it.
        ValueError
            When ``draw`` is None, but the images are augmented.
        """
        images = [self._split.picture(int(p)) for p in self._positions[positions]]
        inputs = self._prepare(images, draw)
        return inputs, self.labels[torch.from_numpy(positions)].to(inputs[0].device)

    def ahead(self, following: Callable[[], Positions]) -> None:
        """Do nothing: random draws depend on the mini-batch's number, which ``following`` does not give."""


class _Preparation:
    """A function from images to the tail's inputs."""

    def __init__(self, transform: Transform, trunk: Trunk, seed: int, peer: int, augmented: bool) -> None:
        self._transform, self._trunk = transform, trunk
        self._key = (seed, peer)
        self._augmented = augmented

    def __call__(self, images: Iterable[Image.Image], draw: int | None) -> tuple[torch.Tensor, ...]:
        if not self._augmented:
            batch = torch.stack([self._transform(image) for image in images])
        elif draw is None:
            raise ValueError("augmented images are for training: they need the mini-batch's number")
        else:
            with seeded(*self._key, draw, AUGMENTING):
                batch = torch.stack([self._transform(image) for image in images])
        with torch.no_grad():
            made = self._trunk(batch)
        return made if isinstance(made, tuple) else (made,)


class StreamFeatures:
    """Like :class:`LiveFeatures`, but for a stream: images may come and go between two batches.

    Parameters
    ----------
    stream : ImageStream
        The source of images and labels.
    transform, trunk, seed, peer, augmented
        As for :class:`LiveFeatures`.
    """

    def __init__(
        self,
        stream: ImageStream,
        transform: Transform,
        trunk: Trunk,
        *,
        seed: int,
        peer: int,
        augmented: bool,
    ) -> None:
        self._stream = stream
        self._prepare = _Preparation(transform, trunk, seed, peer, augmented)

    @property
    def labels(self) -> torch.Tensor:
        """Classes of all images ever listed, (N,) int64; N grows."""
        return torch.from_numpy(self._stream.labels)

    def __len__(self) -> int:
        return len(self._stream.labels)

    def read(
        self, positions: Positions, draw: int | None = None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the trunk's outputs for the images at ``positions``, and their labels.

        Images that were removed or broken after they were listed are left out of the batch, with a warning.
        The parameters are those of :meth:`LiveFeatures.read`.

        Raises
        ------
        DataError
            When none of the images is left.
        ValueError
            When ``draw`` is None, but the images are augmented.
        """
        images: list[Image.Image] = []
        kept: list[int] = []
        for position in positions.tolist():
            try:
                images.append(self._stream.picture(position))
                kept.append(position)
            except UNREADABLE as error:
                log.warning("left out of a mini-batch, as it was listed but cannot be read now: %s", error)
        if not kept:
            raise DataError(f"none of the {len(positions)} images of a mini-batch exists any more")
        inputs = self._prepare(images, draw)
        return inputs, torch.from_numpy(self._stream.labels[kept]).to(inputs[0].device)

    def ahead(self, following: Callable[[], Positions]) -> None:
        """Do nothing: random draws depend on the mini-batch's number, which ``following`` does not give."""
