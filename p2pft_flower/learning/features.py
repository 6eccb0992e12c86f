"""What the frozen trunk makes of images: computed once, then read by every iteration and evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from p2pft_flower.learning.datasets import Split

__all__ = ["Features", "compute_features"]

TRUNK_BATCH = 128

log = logging.getLogger(__name__)


class Features:
    """Trunk outputs with labels, indexed by arrays of positions.

    Parameters
    ----------
    values : (N, …) float32 tensor
        Outputs of the trunk.
    labels : (N,) int64 tensor
        Classes.
    """

    def __init__(self, values: torch.Tensor, labels: torch.Tensor) -> None:
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (B, …) outputs and (B,) labels at ``positions``."""
        index = torch.from_numpy(positions)
        return self.values[index], self.labels[index]


def compute_features(
    trunk: nn.Module,
    transform: Callable[[Any], torch.Tensor],
    split: Split,
    positions: Sequence[int] | npt.NDArray[np.int64],
    what: str,
) -> Features:
    """Run the trunk once over the images of ``split`` at ``positions``.

    Parameters
    ----------
    trunk : nn.Module
        Frozen; stays in eval mode.
    transform : callable
        Preprocessing, PIL image ↦ (C, H, W).
    split : Split
        Where images and labels come from.
    positions : sequence of int
        Which ones, in this order.
    what : str
        For the progress in the log, e.g. ``"test"``.
    """
    outputs: list[torch.Tensor] = []
    begin = told = time.monotonic()
    with torch.inference_mode():
        for start in range(0, len(positions), TRUNK_BATCH):
            stretch = positions[start : start + TRUNK_BATCH]
            images = torch.stack([transform(split.read(int(p))) for p in stretch])
            outputs.append(trunk(images))
            now, done = time.monotonic(), start + len(stretch)
            if now - told > 3 and done < len(positions):
                rate = done / (now - begin)
                left = (len(positions) - done) / rate
                log.info(
                    "trunk: %d of %d %s images, %.0f images/s, %.0f s left",
                    done,
                    len(positions),
                    what,
                    rate,
                    left,
                )
                told = now
    labels = torch.from_numpy(split.labels[np.asarray(positions)])
    return Features(torch.cat(outputs), labels)
