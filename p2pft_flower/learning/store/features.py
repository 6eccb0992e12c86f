"""The frozen trunk's outputs for images, the tail's inputs, stored on this machine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.learning.preparing import note_progress
from p2pft_flower.learning.store.cache import store_folder
from p2pft_flower.learning.store.trunk_store import Field, Rows, Store

__all__ = ["Features", "StoredFeatures", "TrunkStore"]

TRUNK_BATCH = 64
"""Images in one pass of the trunk."""

Positions = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


class Features(Protocol):
    """The tail's inputs for N images, with labels, read by position."""

    @property
    def labels(self) -> torch.Tensor:
        """Labels of the images, (N,) int64 classes, or (N, C) of 0 and 1."""
        ...

    def __len__(self) -> int:
        """Return N."""
        ...

    def read(
        self, positions: Positions, draw: int | None = None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the tail's inputs, each (B, …) float32, and the labels, (B, …) int64, at (B,) ``positions``.

        ``draw`` is the number of the mini-batch, which decides random draws; None in evaluation.
        """
        ...

    def ahead(self, following: Callable[[], Positions]) -> None:
        """Begin to fetch the images at the positions that ``following`` returns, if that is possible."""
        ...


class StoredFeatures:
    """Features whose trunk outputs are rows of the store; a batch is fetched while the one before is in use.

    Parameters
    ----------
    rows : Rows
        N rows.
    labels : (N,) or (N, C) int64 tensor
        Labels of the images.
    device : str
        The tail's device. If it is not the CPU, all rows are moved there at once, in the dtypes of the store,
        if they take no more than half of the memory that is free there; else batch by batch.
    """

    _fetcher = ThreadPoolExecutor(1, thread_name_prefix="p2pft-fetch")
    """One thread for the process: fetching is copying, and one thread copies as fast as memory allows."""

    def __init__(self, rows: Rows, labels: torch.Tensor, device: str = "cpu") -> None:
        self.labels, self.rows = labels.to(device), rows
        self._resident: tuple[torch.Tensor, ...] | None = None
        if device != "cpu" and rows.nbytes <= free_memory(device) / 2:
            whole = rows.gather(np.arange(len(labels)))
            self._resident = tuple(torch.from_numpy(field).to(device) for field in whole)
        self._next: tuple[Positions, Future[tuple[torch.Tensor, ...]]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self,
        positions: Positions,
        draw: int | None = None,  # noqa: ARG002 - rows are the same in every draw
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the tail's inputs, each (B, …) float32, and the labels, (B, …) int64, at ``positions``."""
        ready, self._next = self._next, None
        if ready is not None and np.array_equal(ready[0], positions):
            inputs = ready[1].result()
        else:
            inputs = self._gather(positions)
        return inputs, self.labels[torch.from_numpy(positions).to(self.labels.device)]

    def ahead(self, following: Callable[[], Positions]) -> None:
        """Begin to fetch the rows at the positions that ``following`` returns, unless all are resident."""
        if self._resident is None:
            positions = following()
            self._next = (positions, self._fetcher.submit(self._gather, positions))

    def _gather(self, positions: Positions) -> tuple[torch.Tensor, ...]:
        if self._resident is not None:
            index = torch.from_numpy(positions).to(self.labels.device)
            return tuple(field[index].float() for field in self._resident)
        gathered = self.rows.gather(positions)
        return tuple(torch.from_numpy(field).to(self.labels.device).float() for field in gathered)


def free_memory(device: str) -> float:
    """Return the bytes that are free on a device; infinity where torch cannot tell."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else math.inf


class TrunkStore:
    """A frozen trunk, and the store of its outputs.

    Parameters
    ----------
    trunk : nn.Module
        The trunk: (N, C, H, W) images ↦ tuple of tensors.
    transform : callable
        PIL image ↦ (C, H, W) float32 tensor.
    identity : dict of str to str
        All that the trunk's output depends on, digests of weights and preprocessing included; it names the
        store's folder.
    exact : sequence of int
        Indices of the trunk's outputs that are stored in float32 even if the others are stored in float16.
    halves : bool
        Whether outputs are stored in float16, else in float32.
    compute_dtype : torch.dtype
        Dtype to which the trunk's computations are autocast; float32: no autocast.
    device : str
        The device of trunk and tail.
    """

    def __init__(
        self,
        trunk: nn.Module,
        transform: Callable[[Any], torch.Tensor],
        identity: dict[str, str],
        *,
        exact: Sequence[int] = (),
        halves: bool = True,
        compute_dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self._trunk, self._transform = trunk.to(device), transform
        self._identity, self._exact, self._halves = identity, set(exact), halves
        self._dtype, self._device = compute_dtype, device
        self._store: Store | None = None

    def features(self, split: Split, positions: Positions, what: str) -> StoredFeatures:
        """Return features of the images of ``split`` at ``positions``; the trunk runs for missing rows.

        Parameters
        ----------
        split : Split
            Images with labels.
        positions : (N,) int64 array
            The positions of the images in ``split``, N ≥ 1.
        what : str
            Words that name the images in messages, such as ``"peer 1's"`` or ``"test"``.

        Raises
        ------
        DataError
            When an image cannot be read, the trunk's output for it is not finite, or the store cannot be
            read or written.
        """
        if self._store is None:
            self._store = self._open(split, positions, what)
        images = [int(p) for p in positions]

        def compute(wanted: list[int]) -> list[npt.NDArray[Any]]:
            return [t.numpy() for t in self._computed(split, [images[i] for i in wanted], what)]

        rows = self._store.fill(
            [_digest(split, p) for p in images],
            compute,
            batch=TRUNK_BATCH,
            progress=_Bar(f"trunk, {what} images"),
        )
        return StoredFeatures(rows, torch.from_numpy(split.labels[positions]), self._device)

    def _open(self, split: Split, positions: Positions, what: str) -> Store:
        """Open the store; the trunk's output for the first image gives the fields' shapes."""
        outputs = self._computed(split, [int(positions[0])], what)
        fields = [
            Field(
                str(i), tuple(t.shape[1:]), "float16" if self._halves and i not in self._exact else "float32"
            )
            for i, t in enumerate(outputs)
        ]
        identity = {**self._identity, "fields": repr(fields)}
        return Store(store_folder(identity), fields, identity)

    def _computed(self, split: Split, positions: Sequence[int], what: str) -> tuple[torch.Tensor, ...]:
        outputs = self._run(split, positions)
        # A stored NaN would come back in every later run.
        finite = torch.stack([t.isfinite().reshape(len(t), -1).all(1) for t in outputs]).all(0)
        if not finite.all():
            first = positions[int((~finite).nonzero()[0])]
            lower = self._dtype is not torch.float32
            raise DataError(
                f"{split.name(first, what)}: the frozen trunk's output for this image is not finite (NaN or "
                f"infinite); check the weights{', or set trunk-dtype = float32' if lower else ''}"
            )
        return outputs

    def _run(self, split: Split, positions: Sequence[int]) -> tuple[torch.Tensor, ...]:
        images = torch.stack([self._transform(split.picture(p)) for p in positions])
        return tuple(t.cpu() for t in self.run(images))

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the trunk's outputs for (N, C, H, W) ``images``, float32, on its device; store nothing."""
        reduced = self._dtype is not torch.float32
        with torch.no_grad(), torch.autocast(self._device, self._dtype, enabled=reduced):
            outputs = self._trunk(images.to(self._device))
        return tuple(t.float() for t in outputs)


def _digest(split: Split, position: int) -> bytes:
    digest = split.digest(position)
    note_progress()
    return digest


class _Bar:
    """A progress bar in the log, a line every three seconds at most: hosts have no terminal of their own."""

    def __init__(self, what: str) -> None:
        self._what, self._begin = what, time.monotonic()
        self._told = self._begin

    def __call__(self, done: int, total: int) -> None:
        note_progress()
        now = time.monotonic()
        if now - self._told < 3 or (done == total and self._told == self._begin):
            return
        self._told = now
        rate = done / (now - self._begin)
        bar = "█" * (20 * done // total)
        log.info(
            "%s |%-20s| %d of %d, %.0f images/s, %.0f s left",
            self._what,
            bar,
            done,
            total,
            rate,
            (total - done) / rate,
        )
