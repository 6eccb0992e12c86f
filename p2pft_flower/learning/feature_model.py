"""A head on features that were made elsewhere: no image, no trunk, nothing to store."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.filesize import decimal
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.learning.data.streams import ImageStream
from p2pft_flower.learning.draws import torch_seeded
from p2pft_flower.learning.model.devices import choose_device
from p2pft_flower.learning.model.heads import FeatureHead, mlp_head
from p2pft_flower.learning.model.split import Parts
from p2pft_flower.learning.model.structure import share_copy
from p2pft_flower.learning.model.text_heads import fixed_head, text_classifier
from p2pft_flower.learning.model.text_prompts import CONTEXT, PromptHead
from p2pft_flower.learning.model.tune_values import read_tune
from p2pft_flower.learning.theta import tail_vector

__all__ = ["FeatureModel", "HeldFeatures"]

log = logging.getLogger(__name__)

Positions = npt.NDArray[np.int64]


class FeatureModel:
    """The head that ``config`` describes.

    Parameters
    ----------
    config : LearningConfig
        ``tune``, ``head``, ``text_embeddings``, device, seed.
    classes : sequence of str
        Names of the classes.
    width : int
        D, the numbers of a feature.

    Notes
    -----
    Everything is built when first used. :class:`~p2pft_flower.learning.image_model.ImageModel` has the same
    attributes for images.
    """

    images = None
    """There are no images, so they have no settings."""
    preprocessing = None
    reads_images = False

    def __init__(self, config: LearningConfig, classes: tuple[str, ...], width: int) -> None:
        self.config, self.classes, self.width = config, classes, width

    @property
    def line(self) -> str:
        """The log's line on what the head sees."""
        source = self.config.text_embeddings or self.config.text_tower
        start = f", from the texts of {source}" if self._text else ""
        return f"features of {self.width} numbers, made elsewhere; head = {self.config.head}{start}"

    @property
    def facts(self) -> dict[str, str]:
        """The facts, beside θ^0, that must agree on all machines."""
        return {"features": f"{self.width} numbers"}

    @cached_property
    def device(self) -> str:
        """The name of the head's device: ``"cpu"``, ``"cuda"`` or ``"mps"``."""
        return choose_device(self.config.device)

    @property
    def _text(self) -> bool:
        return self.config.head == "text"

    @property
    def model(self) -> nn.Module:
        """The head with θ^0, frozen, in eval mode.

        Raises
        ------
        ConfigError, DataError
            When texts cannot be used: see :func:`text_classifier`.
        """
        return self._built[0]

    @property
    def text_origin(self) -> dict[str, str]:
        """The facts that decide a text head's start; empty for a new head."""
        return self._built[1]

    @cached_property
    def _built(self) -> tuple[nn.Module, dict[str, str]]:
        made: dict[str, str] = {}
        if self._text:
            head, made = text_classifier(self.config, self.classes, self.width)
        else:
            number, outputs = read_tune(self.config.tune).number, len(self.classes)
            with torch_seeded(self.config.seed):
                head = mlp_head(self.width, number, outputs) if number else nn.Linear(self.width, outputs)
        return FeatureHead(head).eval().requires_grad_(False), made

    @property
    def parameters(self) -> int:
        """Number of parameters of the head."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def parts(self) -> Parts:
        """The head as a tail without a trunk; all is trained, or the context alone of a learned prompt."""
        log.info("%s", self.line)
        tail = share_copy(self.model)
        for name, parameter in tail.named_parameters():
            if not isinstance(tail.head, PromptHead) or name == f"head.{CONTEXT}":
                parameter.data = parameter.data.clone()  # the memory of what is frozen remains the model's
                parameter.requires_grad_(True)
        tail = tail.to(self.device)
        trained = tail_vector(tail).size
        log.info(
            "tune = %s: q = %d trained parameters; a vector of them has %s",
            self.config.tune,
            trained,
            decimal(4 * trained),
        )
        return Parts(nn.Identity(), tail, "features", "")

    def features(self, split: Split, positions: Positions, what: str) -> HeldFeatures:
        """Return the vectors of ``split`` at ``positions``, (N,).

        Raises
        ------
        DataError
            When the vectors have another length than the head takes, or, for a text head, one of them is zero
            and so has no direction (the message names the row).
        """
        mine = split.rows(positions)
        if (found := mine.shape[1]) != self.width:
            raise DataError(
                f"dataset = {self.config.dataset!r}: its features have {found} numbers each, the head was "
                f"made for {self.width}: another model made them"
            )
        if self._text:
            counted = ", counted over the files of all peers here" if self.config.sited else ""
            _require_directions(
                mine, positions, f"dataset = {self.config.dataset!r}, {what} samples{counted}"
            )
        return HeldFeatures(mine, split.labels[positions], self.device)

    def training_features(
        self,
        split: Split,
        positions: Positions,
        peer: int,
        stream: Callable[[], ImageStream],  # noqa: ARG002 - as ImageModel
    ) -> HeldFeatures:
        """Return the vectors of a peer's training samples; see :meth:`ImageModel.training_features`."""
        return self.features(split, positions, f"peer {peer}'s")

    def with_tensors(self, tensors: dict[str, torch.Tensor]) -> nn.Module:
        """Return the head with ``tensors``, by name, in it, in eval mode on the CPU; it needs no text tower.

        Raises
        ------
        DataError
            When the head has no place for a tensor; the message names the tensor.
        """
        whole: Any = copy.deepcopy(self.model)  # the values are copied into it
        keys = whole.load_state_dict(tensors, strict=False)
        if keys.unexpected_keys:
            raise DataError(
                f"tensor {keys.unexpected_keys[0]!r} has no place in a head with tune = {self.config.tune!r}"
            )
        whole.head = fixed_head(whole.head)
        plain: nn.Module = whole.requires_grad_(False)
        return plain


def _require_directions(vectors: npt.NDArray[np.float32], positions: Positions, whose: str) -> None:
    """Refuse vectors whose cosines mean nothing in float32: 0, or far too short or long."""
    with np.errstate(over="ignore", under="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~((lengths > 1e-6) & np.isfinite(lengths)))
    if len(wrong):
        raise DataError(
            f"{whose}: row {positions[wrong[0]]} has length {lengths[wrong[0]]:g} and no direction, which "
            f"head = text reads; so have {len(wrong)} rows in all: leave them out"
        )


class HeldFeatures:
    """Features in memory, on the head's device.

    Parameters
    ----------
    vectors : (N, D) float32 array
        The features of N samples.
    labels : (N,) or (N, C) int64 array
        The class of each sample, or 0 or 1 for each of C labels.
    device : str
        The torch device, such as ``"cuda"``.
    """

    def __init__(
        self, vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], device: str = "cpu"
    ) -> None:
        self.labels = torch.from_numpy(labels).to(device)
        """Labels of the samples, (N,) or (N, C) int64."""
        self._vectors = torch.from_numpy(vectors).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self,
        positions: Positions,
        draw: int | None = None,  # noqa: ARG002 - nothing is drawn
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the features, (B, D) float32, and the labels, (B, …) int64, at ``positions``, (B,)."""
        index = torch.from_numpy(positions).to(self.labels.device)
        return (self._vectors[index],), self.labels[index]

    def ahead(self, following: Callable[[], Positions]) -> None:
        """Do nothing: all is in memory."""
